"""Rows that say when they are wrong: what a store's tables hold, and a checksum over each row.

A seal is the BLAKE2b of all that a row says and of the format's number, so a flipped bit gives
another one. A table's tally is the number of its rows and the sum of their seals, kept in `about`
by the transaction that writes a row, so a missing row, a doubled and a stale one give another sum.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

FORMAT = 2

LIMIT = 2**30
"""Bytes of the images of a cell: more are neither written nor unpacked."""

RECORD_LIMIT = 2**28
"""Bytes of a record, two million examples: more are neither written nor unpacked."""

TABLES = (
    "CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE cells (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, cell TEXT NOT NULL,"
    " fields TEXT NOT NULL, n INTEGER NOT NULL, written TEXT NOT NULL, kept INTEGER NOT NULL,"
    " record_sum TEXT NOT NULL, images_sum TEXT NOT NULL, seal TEXT NOT NULL)",
    "CREATE TABLE records (key TEXT PRIMARY KEY, record BLOB NOT NULL, images BLOB)",
    "CREATE TABLE facts (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, what TEXT NOT NULL,"
    " written TEXT NOT NULL, seconds REAL NOT NULL, facts TEXT NOT NULL, seal TEXT NOT NULL)",
    # all that was ever written: it names what is missing
    "CREATE TABLE ledger (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, what TEXT NOT NULL,"
    " times INTEGER NOT NULL, there INTEGER NOT NULL, seal TEXT NOT NULL)",
)

COLUMNS = {
    "cells": "key, cell, fields, n, written, kept, record_sum, images_sum, seal",
    "facts": "key, what, written, seconds, facts, seal",
    "ledger": "key, what, times, there, seal",
}


class CellRow(NamedTuple):
    """A cell as a listing reads it, with the checksums of its record and images, which lie
    apart."""

    key: str
    cell: str
    fields: str
    n: int
    written: str
    kept: int
    record_sum: str
    images_sum: str
    seal: str


class FactsRow(NamedTuple):
    """Plain numbers that are no record."""

    key: str
    what: str
    written: str
    seconds: float
    facts: str
    seal: str


class LedgerRow(NamedTuple):
    """What was written under a key, how often, and whether it should be there now. Keys begin with
    "cell " or "facts "."""

    key: str
    what: str
    times: int
    there: int
    seal: str


class Tally(NamedTuple):
    """How many rows a table has, and the sum of their seals."""

    rows: int
    total: int

    @classmethod
    def of(cls, seals: Iterable[str]) -> Tally:
        """The tally of a table. Raises ValueError where a seal is none."""
        numbers = [int(seal, 16) for seal in seals]
        return cls(len(numbers), sum(numbers) % 2**128)

    @classmethod
    def read(cls, text: str) -> Tally:
        """The tally that `str` printed. Raises ValueError for any other text."""
        rows, total = text.split(":")
        return cls(int(rows), int(total, 16))

    def __str__(self) -> str:
        return f"{self.rows}:{self.total:032x}"


@dataclass(frozen=True)
class Packed:
    """A finished cell as it is written: its row, and the compressed bytes of record and images."""

    row: CellRow
    record: bytes
    images: bytes | None

    @classmethod
    def of(cls, said: tuple[str, str, str, int, str, int], *parts: bytes | None) -> Packed:
        """Sealed; `said` is what stands before the checksums, `parts` are record and images, as
        `pack` made them."""
        record, images = parts
        assert record is not None
        values = (*said, checksum(record), checksum(images))
        return cls(CellRow(*values, seal(values)), record, images)

    def without_images(self) -> Packed:
        """The same cell with its record alone."""
        return Packed.of((*self.row[:5], 0), self.record, None)


def seal(values: Iterable[Any]) -> str:
    """The checksum of what a row says, 32 hex digits."""
    said = ascii((FORMAT, *values))  # the same text for any version of Python
    return blake2b(said.encode("ascii"), digest_size=16).hexdigest()


def checksum(data: bytes | None) -> str:
    """The checksum of bytes, 32 hex digits; empty where there are none."""
    return "" if data is None else blake2b(data, digest_size=16).hexdigest()


def holds(row: tuple[Any, ...]) -> bool:
    """Whether a row says what was sealed."""
    return bool(seal(row[:-1]) == row[-1])


def pack(data: bytes | None, limit: int | None = None) -> bytes | None:
    """Compressed, without loss. Raises ValueError beyond `limit`, or `LIMIT`."""
    limit = LIMIT if limit is None else limit
    if data is None:
        return None
    if len(data) > limit:
        raise ValueError(
            f"expected at most {limit:,} bytes for a cell, got {len(data):,}; keep fewer of its"
            " images, or split its data into several slices"
        )
    return zlib.compress(data, 6)


def unpack(data: bytes, limit: int | None = None) -> bytes:
    """What `pack` was given. Raises ValueError for anything else, and beyond `limit`, or
    `LIMIT`."""
    limit = LIMIT if limit is None else limit
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, limit)
    except zlib.error as e:
        raise ValueError(f"expected compressed bytes, got something else: {e}") from None
    if not stream.eof or stream.unused_data:
        raise ValueError(f"expected compressed bytes of at most {limit:,}, got more, or a part")
    return found


def insert_cell(db: sqlite3.Connection, packed: Packed, times: int = 1) -> None:
    """Writes a cell in the open transaction, with its record, in the place of an older one."""
    _replace(db, "cells", packed.row)
    values = (packed.row.key, packed.record, packed.images)
    db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", values)
    note(db, f"cell {packed.row.key}", packed.row.cell, times)


def insert_facts(db: sqlite3.Connection, said: tuple[Any, ...], times: int = 1) -> None:
    """Writes facts in the open transaction; `said` is a FactsRow but for its seal."""
    key, what, *_ = said
    _replace(db, "facts", (*said, seal(said)))
    note(db, f"facts {key}", what, times)


def delete(db: sqlite3.Connection, table: str, key: str, what: str) -> None:
    """Removes a row of cells or facts in the open transaction; the ledger keeps its name."""
    _replace(db, table, None, key)
    if table == "cells":
        db.execute("DELETE FROM records WHERE key = ?", (key,))
    note(db, f"{'cell' if table == 'cells' else table} {key}", what, 0, there=0)


def note(db: sqlite3.Connection, key: str, what: str, times: int, there: int = 1) -> None:
    """Writes into the ledger, in the open transaction, that a key was written so many times
    more."""
    before = db.execute("SELECT times FROM ledger WHERE key = ?", (key,)).fetchone()
    said = (key, what, times + (before[0] if before else 0), there)
    _replace(db, "ledger", LedgerRow(*said, seal(said)))


def _replace(
    db: sqlite3.Connection, table: str, row: tuple[Any, ...] | None, key: str = ""
) -> None:
    """Puts a row (None: nothing) in the place of that with its key, and keeps the table's tally."""
    key = row[0] if row is not None else key
    (told,) = db.execute("SELECT value FROM about WHERE name = ?", (table,)).fetchone()
    rows, total = Tally.read(told)
    for identity, old in db.execute(
        f"SELECT id, seal FROM {table} WHERE key = ?", (key,)
    ).fetchall():
        db.execute(f"DELETE FROM {table} WHERE id = ?", (identity,))
        rows, total = rows - 1, total - int(old, 16)
    if row is not None:
        marks = ", ".join("?" * len(row))
        db.execute(f"INSERT INTO {table} ({COLUMNS[table]}) VALUES ({marks})", row)
        rows, total = rows + 1, total + int(row[-1], 16)
    tally = str(Tally(rows, total % 2**128))
    db.execute("UPDATE about SET value = ? WHERE name = ?", (tally, table))
