"""Rows that hold: what is damaged or missing is an error that names it and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from retroact.evaluation.record import Record, from_bytes
from retroact.experiments import sealed
from retroact.experiments.sealed import FORMAT, CellRow, FactsRow, LedgerRow, Packed, Tally
from retroact.experiments.store_file import CURE, StoreError, StoreFile
from retroact.files import parse_object

Row: TypeAlias = CellRow | FactsRow | LedgerRow

ROWS: dict[str, type[Row]] = {"cells": CellRow, "facts": FactsRow, "ledger": LedgerRow}

_KINDS = {"cells": "cell ", "facts": "facts "}  # how their keys begin in the ledger

BATCH = 500
"""Rows that are read at once."""

_QUOTED = 200  # characters of a print in a message


def find(file: StoreFile, table: str, key: str) -> Any:
    """The row of a key; None where there is none. Raises StoreError where it is damaged, or where
    the ledger says that it was written."""
    query = f"SELECT {sealed.COLUMNS[table]} FROM {file.table(table)} WHERE key = ?"
    for values in file.ask(query, (key,)):
        return check(file, ROWS[table](*values))
    if table != "ledger" and file.format >= FORMAT:
        written = find(file, "ledger", f"{_KINDS[table]}{key}")
        if written is not None and written.there:
            raise _missing(file, [(key, written.what)])
    return None


def each(file: StoreFile, table: str, glob: str = "*") -> Iterator[Any]:
    """The rows whose key or print matches, in the order of writing, in batches, so that nobody
    waits for a slow reader; the table's tally is checked first."""
    check_tally(file, table)
    named, last = "cell" if table == "cells" else "what", -(2**63)
    while True:
        found = file.ask(
            f"SELECT id, key GLOB ? OR {named} GLOB ?, {sealed.COLUMNS[table]}"
            f" FROM {file.table(table)} WHERE id > ? ORDER BY id LIMIT {BATCH}",
            (glob, glob, last),
        )
        for last, matches, *values in found:  # noqa: B007
            row = check(file, ROWS[table](*values))  # all: a flipped bit may also hide a row
            if matches:
                yield row
        if len(found) < BATCH:
            return


def check(file: StoreFile, row: Any) -> Any:
    """The same row. Raises StoreError where it does not say what was sealed."""
    if file.format >= FORMAT and not sealed.holds(row):
        raise damaged(file, row, "it does not match its checksum")
    return row


def check_print(file: StoreFile, row: Any, said: str) -> None:
    """Raises StoreError where a row is filed under the key of another print than its own; any will
    do where `said` is empty."""
    if said and row[1] != said:
        raise StoreError(
            f"{_call(row[0], row[1])} in {file.path} is filed under the key of {_call('', said)}:"
            f" whoever wrote it is not to be trusted; `retroact store prune {file.path} --cells"
            f" {row[0]}` removes it"
        )


def record(file: StoreFile, row: CellRow, *, images: bool = False) -> Record:
    """The record of a cell. Raises StoreError where it is damaged or missing."""
    what = f"record, {'images' if images else 'NULL'}"
    query = f"SELECT {what} FROM {file.table('records')} WHERE key = ?"
    parts = file.ask(query, (row.key,))
    if not parts:
        raise damaged(file, row, "its record is missing")
    try:
        if file.format < FORMAT:
            return from_bytes(*parts[0])
        pictures = parts[0][1]
        opened = _open(parts[0][0], row.record_sum, "record", sealed.RECORD_LIMIT)
        return from_bytes(
            opened, _open(pictures, row.images_sum, "images") if images and row.kept else None
        )
    except (TypeError, ValueError) as e:
        raise damaged(file, row, str(e)) from None


def packed(source: StoreFile, row: CellRow) -> Packed:
    """A cell with the bytes of its record and images, compressed and sealed as it is written.

    Raises StoreError where it is damaged.
    """
    query = f"SELECT record, images FROM {source.table('records')} WHERE key = ?"
    found = source.ask(query, (row.key,))
    if not found:
        raise damaged(source, row, "its record is missing")
    record, images = found[0]
    if source.format < FORMAT:
        return Packed.of(row[:6], sealed.pack(record), sealed.pack(images))
    if sealed.checksum(record) != row.record_sum or sealed.checksum(images) != row.images_sum:
        raise damaged(source, row, "its record does not match the checksum")
    return Packed(row, record, images)


def numbers(file: StoreFile, row: FactsRow) -> dict[str, Any]:
    """The plain numbers of a row. Raises StoreError where they are none."""
    try:
        return parse_object(row.facts)
    except (TypeError, ValueError) as e:
        raise damaged(file, row, f"its numbers cannot be read: {e}") from None


def check_counts(file: StoreFile) -> None:
    """Raises StoreError where rows are missing; counts, and reads none of them."""
    if file.format < FORMAT:
        return
    (told,) = file.ask(
        "SELECT (SELECT value FROM about WHERE name = 'cells'), (SELECT count(*) FROM cells),"
        " (SELECT count(*) FROM records), (SELECT value FROM about WHERE name = 'facts'),"
        " (SELECT count(*) FROM facts)"
    )
    if not _tally(file, told[0]).rows == told[1] == told[2]:
        raise missing(file, "cells")
    if _tally(file, told[3]).rows != told[4]:
        raise missing(file, "facts")


def check_tally(file: StoreFile, table: str) -> None:
    """Raises StoreError where a table lacks rows, or has others than were written."""
    if file.format < FORMAT:
        return
    found = file.ask(
        f"SELECT a.value, t.seal FROM about a LEFT JOIN {table} t WHERE a.name = ?", (table,)
    )
    seals = [text for _, text in found if text is not None]
    try:
        # an empty one stands for a table without rows
        holds = Tally.of(seals) == _tally(file, found[0][0] if found else None)
    except (TypeError, ValueError):
        holds = False
    if not holds:
        raise missing(file, table)


def damaged(file: StoreFile, row: Any, why: str) -> StoreError:
    """The error that names a damaged row."""
    return StoreError(f"{_call(row[0], row[1])} in {file.path} is damaged: {why}; {_anew(file)}")


def missing(file: StoreFile, table: str) -> StoreError:
    """The error of a table whose rows are not those that were written; names what it lacks."""
    lost = _lost(file, table)
    if not lost:
        return StoreError(f"{file.path} is damaged: its {table} are not those written; {CURE}")
    return _missing(file, lost)


def _missing(file: StoreFile, lost: Sequence[Sequence[str]]) -> StoreError:
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return StoreError(
        f"{_call(*lost[0])}{more} of {file.path} went missing or was damaged; {_anew(file)}"
    )


def _lost(file: StoreFile, table: str) -> list[Sequence[str]]:
    """Key and print of what the ledger names and the table, or its damaged index, does not have."""
    if table == "ledger":
        return []
    kind = _KINDS[table]
    start = len(kind) + 1
    places = ("cells", "records") if table == "cells" else ("facts",)
    lacks = " OR ".join(
        f"NOT EXISTS (SELECT 1 FROM {place} WHERE key = substr(l.key, {start}))" for place in places
    )
    query = f"SELECT substr(key, {start}), what FROM ledger l WHERE there AND key GLOB ? AND"
    try:
        return list(file.ask(f"{query} ({lacks}) LIMIT 1000", (f"{kind}*",)))
    except StoreError:
        return []


def _anew(file: StoreFile) -> str:
    return (
        f"`retroact store repair {file.path}` keeps the rest, then the command that made it runs it"
        " again"
    )


def _call(key: Any, what: Any) -> str:
    text = str(what)
    return f"{key} ({text if len(text) <= _QUOTED else text[: _QUOTED - 1] + '…'})"


def _open(data: Any, told: str, what: str, limit: int | None = None) -> bytes:
    if not isinstance(data, bytes) or sealed.checksum(data) != told:
        raise ValueError(f"its {what} does not match the checksum")
    return sealed.unpack(data, limit)


def _tally(file: StoreFile, text: Any) -> Tally:
    try:
        return Tally.read(text)
    except (AttributeError, ValueError):
        raise StoreError(f"{file.path} is damaged: it does not say what it holds; {CURE}") from None
