"""Two stores made one, and old results dropped."""

from __future__ import annotations

import sqlite3
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from retroact.experiments import intact, sealed
from retroact.experiments.sealed import CellRow, FactsRow
from retroact.experiments.store import Store
from retroact.experiments.store_file import StoreError


@dataclass
class Merged:
    """What became of the cells and facts of a store that was merged into another."""

    added: int = 0
    there: int = 0
    differ: list[str] = field(default_factory=list)


def merge(into: str | Path, source: str | Path) -> Merged:
    """Puts into one store what another has and it lacks, all of it or nothing.

    A cell that both have stays as it is, unless the other has kept more of its images. Raises
    StoreError where one of them is damaged, StoreInUseError while a process fills `into`.
    """
    into, source = Path(into), Path(source)
    if into.exists() and source.exists() and into.samefile(source):
        raise StoreError(f"expected two stores, got {into} twice")
    merged = Merged()
    with (
        Store(source, create=False, readonly=True) as other,
        Store(into) as store,
        store.claimed(),
        store.file.writing() as db,
    ):
        for row in intact.each(other.file, "cells"):
            _merge_cell(store, other, row, db, merged)
        for row in intact.each(other.file, "facts"):
            mine = intact.find(store.file, "facts", row.key)
            if mine is None:
                sealed.insert_facts(db, row[:-1])
            same = mine is None or mine.facts == row.facts
            _count(merged, row, same, added=mine is None)
    return merged


def prune(
    path: str | Path,
    *,
    glob: str = "*",
    before: str = "",
    images: bool = False,
    dry: bool = False,
) -> list[str]:
    """Removes the cells and facts that match `glob` and were written before a date (ISO 8601), or
    of such cells the kept `images` alone, and gives the space back; returns their prints.

    `dry` only says which these are.
    """
    with (
        Store(path, create=False, readonly=dry) as store,
        nullcontext() if dry else store.claimed(),
    ):
        chosen = [
            (table, row)
            for table in (("cells",) if images else ("cells", "facts"))
            for row in intact.each(store.file, table, glob)
            if (not before or row.written < before) and (row[5] or not images)
        ]
        if not dry:
            with store.file.writing() as db:
                for table, row in chosen:
                    if images:
                        sealed.insert_cell(db, intact.packed(store.file, row).without_images(), 0)
                    else:
                        sealed.delete(db, table, row.key, row[1])
            store.file.shrink()
    return [str(row[1]) for _, row in chosen]


def _merge_cell(
    store: Store, other: Store, row: CellRow, db: sqlite3.Connection, merged: Merged
) -> None:
    mine = intact.find(store.file, "cells", row.key)
    same = mine is None or (intact.record(store.file, mine) == intact.record(other.file, row))
    add = mine is None or (same and row.kept > mine.kept)
    if add:
        sealed.insert_cell(db, intact.packed(other.file, row))
    _count(merged, row, same, added=add)


def _count(merged: Merged, row: CellRow | FactsRow, same: bool, *, added: bool) -> None:
    merged.added += added
    merged.there += same and not added
    if not same:
        merged.differ.append(f"{row.key} ({row[1]})")
