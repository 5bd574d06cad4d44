"""Care of a store: what is damaged in it, and the rest without that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retroact.evaluation.record import from_bytes
from retroact.experiments import intact, sealed
from retroact.experiments.claim import Claim
from retroact.experiments.sealed import FORMAT, CellRow, FactsRow, LedgerRow, Packed
from retroact.experiments.store_file import StoreError, StoreFile, warn
from retroact.files import replacing

_MANY = 200  # rows that are asked for at once, as long as none is damaged


@dataclass
class Found:
    """What a look through a whole store found: cells and facts that hold, and of each that does
    not its key, its print and why."""

    path: Path
    format: int
    cells: int = 0
    facts: int = 0
    damaged: list[str] = field(default_factory=list)
    aside: Path | None = None


def check(path: str | Path) -> Found:
    """Looks at every row and every byte of a store, and changes nothing."""
    with closing(_open(Path(path), readonly=True)) as file:
        found = Found(Path(path), file.format)
        for _ in _salvage(file, found):
            pass
        return found


def repair(path: str | Path) -> Found:
    """Drops what is damaged and keeps the rest, in a new file that takes the old one's place.

    The old one is kept beside it (`aside`). Where nothing is damaged, nothing is done. Raises
    StoreInUseError while a process fills the store.
    """
    path = Path(path)
    claim = Claim(path, wait=False, tell=warn)
    with closing(_open(path, readonly=False)) as file, claim.block():
        claim.take()
        return _repair(path, file)


def _repair(path: Path, file: StoreFile) -> Found:
    with file.held():
        found = Found(path, file.format)
        for _ in _salvage(file, found):
            pass
        if found.damaged:
            with replacing(path) as draft:
                _copy_what_holds(file, draft)
                found.aside = _put_aside(path)
    return found


def _copy_what_holds(file: StoreFile, draft: Path) -> None:
    with closing(StoreFile(draft)) as new, new.writing() as db:
        for write in _salvage(file, Found(draft, FORMAT)):
            write(db)


def _open(path: Path, *, readonly: bool) -> StoreFile:
    if not path.exists():
        raise StoreError(f"no store at {path}; give its file")
    return StoreFile(path, create=False, readonly=readonly, rescue=True)


def _salvage(file: StoreFile, found: Found) -> Iterator[Any]:
    """For each row that holds, what writes it into another store; counts and names the others."""
    times: dict[str, LedgerRow] = {}
    for row, why in _rows(file, "ledger"):
        if row is None:
            found.damaged.append(f"a line of the ledger: {why}")
        else:
            times[row.key] = row
    records = _Records(file)
    seen: set[str] = set()
    for table in ("cells", "facts"):
        for row, why in _rows(file, table):
            if row is None:
                found.damaged.append(why)
                continue
            name = f"{'cell' if table == 'cells' else table} {row.key}"
            n = times[name].times if name in times else 1
            made = _whole(file, row, records, found) if table == "cells" else row
            if name in seen or made is None:
                continue
            seen.add(name)
            yield _writer(made, n)
            found.cells += table == "cells"
            found.facts += table == "facts"
    yield from _absent(times, seen, found)
    _look_around(file, found)


def _absent(times: dict[str, LedgerRow], seen: set[str], found: Found) -> Iterator[Any]:
    """What the ledger names and the store does not have: removed once, or missing."""
    told = "\n".join(found.damaged)
    for name, row in times.items():
        if name in seen:
            continue
        if row.there and name.split(" ", 1)[1] not in told:
            found.damaged.append(f"{name} ({row.what}): it is missing")
        yield lambda db, row=row: sealed.note(db, row.key, row.what, row.times, there=0)


def _look_around(file: StoreFile, found: Found) -> None:
    """What no row says: the tallies, and the structure of the file."""
    if not found.damaged and file.format >= FORMAT:
        for table in sealed.COLUMNS:
            try:
                intact.check_tally(file, table)
                intact.check_counts(file)
            except StoreError as e:
                found.damaged.append(str(e).split(";", 1)[0])
                break
    found.damaged += [f"the file: {said}" for said in file.checked()]


def _writer(made: Packed | FactsRow, times: int) -> Any:
    if isinstance(made, Packed):
        return lambda db: sealed.insert_cell(db, made, times)
    return lambda db: sealed.insert_facts(db, made[:5], times)


def _whole(file: StoreFile, row: CellRow, records: _Records, found: Found) -> Packed | None:
    """The cell with its record; without its images where these alone are damaged."""
    record, images = records.of(row.key)
    name = f"{row.key} ({row.cell})"
    if file.format < FORMAT:
        try:
            from_bytes(record, images)
        except (TypeError, ValueError) as e:
            found.damaged.append(f"{name}: {e}")
            return None
        return Packed.of(row[:6], sealed.pack(record), sealed.pack(images))
    if not isinstance(record, bytes) or sealed.checksum(record) != row.record_sum:
        found.damaged.append(f"{name}: its record is damaged or missing")
        return None
    whole = Packed(row, record, images)
    if sealed.checksum(images) == row.images_sum:
        return whole
    found.damaged.append(f"{name}: its images are damaged, its record is not")
    return whole.without_images()


class _Records:
    """The records of a store by key, also where the index of their table is damaged."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file
        self._places: dict[str, int] | None = None

    def of(self, key: str) -> tuple[Any, Any]:
        """The bytes of record and images; None where they cannot be read."""
        query = f"SELECT record, images FROM {self._file.table('records')} WHERE key = ?"
        with suppress(StoreError):
            for found in self._file.ask(query, (key,)):
                return found[0], found[1]
        if self._places is None:
            scan = "SELECT key, rowid FROM records NOT INDEXED ORDER BY rowid"
            self._places = dict(_until_damaged(self._file, scan))
        with suppress(StoreError, KeyError):
            query = "SELECT record, images FROM records WHERE rowid = ?"
            for found in self._file.ask(query, (self._places[key],)):
                return found[0], found[1]
        return None, None


def _rows(file: StoreFile, table: str) -> Iterator[tuple[Any, str]]:
    """Each row of a table that can be read (None: it does not hold, and why)."""
    if table == "ledger" and file.format < FORMAT:
        return
    places = sorted(
        {
            place
            for order in ("", " DESC")
            for (place,) in _until_damaged(file, _SCAN[table] + order)
        }
        | {p for order in ("", " DESC") for _, p in _until_damaged(file, _KEYS[table] + order)}
    )
    for i in range(0, len(places), _MANY):
        yield from _those(file, table, places[i : i + _MANY])


_SCAN = {t: f"SELECT rowid FROM {t} NOT INDEXED ORDER BY rowid" for t in sealed.COLUMNS}
_KEYS = {t: f"SELECT key, rowid FROM {t} ORDER BY key" for t in sealed.COLUMNS}


def _those(file: StoreFile, table: str, places: list[int]) -> Iterator[tuple[Any, str]]:
    """The rows at some places; one by one where one of them cannot be read."""
    query = f"SELECT {sealed.COLUMNS[table]} FROM {file.table(table)} WHERE id BETWEEN ? AND ?"
    try:
        found = file.ask(query, (places[0], places[-1]))
    except StoreError:
        if len(places) == 1:
            yield None, f"a row of {table}: its page is damaged"
        else:
            for place in places:
                yield from _those(file, table, [place])
        return
    for values in found:
        row = intact.ROWS[table](*values)
        if file.format < FORMAT or sealed.holds(row):
            yield row, ""
        else:
            yield None, f"{row[0]} ({row[1]}): it does not match its checksum"


def _until_damaged(file: StoreFile, query: str) -> Iterator[Any]:
    """The answers to a query up to where the file is damaged."""
    with suppress(StoreError):
        yield from file.stream(query)


def _put_aside(path: Path) -> Path:
    """Another name for the file as it is."""
    names = (path.with_name(f"{path.name}.damaged{i or ''}") for i in range(1000))
    aside = next(name for name in names if not name.exists())
    try:
        os.link(path, aside)
    except OSError:  # a disk without links
        shutil.copyfile(path, aside)
    return aside
