"""The store: one SQLite file in which a cell is there whole or not at all.

Facts are stored, numbers are computed late. A record is written in one transaction, so a killed
process or a full disk loses the cell that was being written and nothing else. No torch here:
reports open a store in an instant.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from retroact.evaluation.record import Record, from_bytes, images_to_bytes, to_bytes
from retroact.experiments.fields import CellFields

FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (
  key TEXT PRIMARY KEY, cell TEXT NOT NULL, fields TEXT NOT NULL, n INTEGER NOT NULL,
  written TEXT NOT NULL, record BLOB NOT NULL,
  kept INTEGER NOT NULL, images BLOB
);
CREATE TABLE IF NOT EXISTS facts (
  key TEXT PRIMARY KEY, what TEXT NOT NULL, written TEXT NOT NULL,
  seconds REAL NOT NULL, facts TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, key TEXT NOT NULL, written TEXT NOT NULL);
"""


class StoreError(RuntimeError):
    """A store that cannot be opened, read or written; the message says what to do."""


@dataclass(frozen=True)
class Row:
    """One finished cell: its key, its print, its fields, when it was written, images kept."""

    key: str
    cell: str
    fields: CellFields
    n: int
    written: str
    kept: int


class Store:
    """A store at `path`, made if it is not there (`create=False`: refused instead).

    Raises StoreError for a file that is no store or that a newer version has written.
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.exists():
            raise StoreError(
                f"no store at {self.path}; run a sweep first, or give its file with --store"
            )
        try:
            self._db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
            self._db.execute("PRAGMA foreign_keys = ON")
            self._check_format()
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO about VALUES ('format', ?)", (str(FORMAT),))
        except sqlite3.Error as e:
            raise StoreError(
                f"cannot open {self.path} as a store: {e}; if it is no store, give another file"
                " with --store"
            ) from None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM cells")[0])

    def __contains__(self, key: str) -> bool:
        return self.has(key)

    def has(self, key: str, *, keep: int = 0) -> bool:
        """Whether the cell is there, with `keep` of its images or all of them."""
        query = "SELECT 1 FROM cells WHERE key = ? AND kept >= min(?, n)"
        return self._db.execute(query, (key, keep)).fetchone() is not None

    def close(self) -> None:
        """Closes the file; the store may be opened again at any time."""
        self._db.close()

    def put(self, key: str, cell: str, fields: CellFields, record: Record) -> None:
        """Writes a finished cell, whole; a cell that is there already is replaced."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        kept = 0 if record.examples is None else len(record.examples)
        what = (key, cell, json.dumps(fields.to_json()), len(record), now)
        row = (*what, to_bytes(record), kept, images_to_bytes(record))
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO cells VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._db.execute("INSERT INTO runs (key, written) VALUES (?, ?)", (key, now))

    def read(self, key: str, *, images: bool = False) -> Record:
        """The record of a cell, with its kept `images` if asked. Raises KeyError where there is
        none."""
        columns = "record, images" if images else "record, NULL"
        found = self._db.execute(f"SELECT {columns} FROM cells WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(
                f"no cell {key} in {self.path}; `retroact list store` shows those that are there"
            )
        return from_bytes(*found)

    def put_facts(self, key: str, what: str, facts: Mapping[str, Any], seconds: float) -> None:
        """Writes plain numbers that are no record (see `facts`), and how long they took."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._transaction():
            row = (key, what, now, seconds, json.dumps(dict(facts)))
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?, ?)", row)

    def read_facts(self, key: str) -> tuple[dict[str, Any], float] | None:
        """Stored plain numbers and their seconds; None where there are none."""
        found = self._db.execute(
            "SELECT facts, seconds FROM facts WHERE key = ?", (key,)
        ).fetchone()
        return None if found is None else (json.loads(found[0]), float(found[1]))

    def facts(self) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
        """All plain numbers: key, print, seconds and the numbers, in the order of their prints."""
        for name, what, seconds, facts in self._db.execute(
            "SELECT key, what, seconds, facts FROM facts ORDER BY what, key"
        ):
            yield name, what, float(seconds), json.loads(facts)

    def rows(self, glob: str = "*") -> list[Row]:
        """The finished cells whose key or print matches `glob`, oldest first."""
        found = self._db.execute(
            "SELECT key, cell, fields, n, written, kept FROM cells "
            "WHERE key GLOB ? OR cell GLOB ? ORDER BY written, rowid",
            (glob, glob),
        )
        return [
            Row(k, c, CellFields.from_json(json.loads(f)), n, w, e) for k, c, f, n, w, e in found
        ]

    def runs(self) -> dict[str, int]:
        """How often each cell was written, ever: 1 for each unless it was run again on purpose."""
        return dict(self._db.execute("SELECT key, count(*) FROM runs GROUP BY key"))

    def remove(self, glob: str) -> int:
        """Removes the cells and facts whose key or print matches `glob`, gives the space back;
        returns how many."""
        with self._transaction():
            gone = self._db.execute(
                "DELETE FROM cells WHERE key GLOB ? OR cell GLOB ?", (glob, glob)
            ).rowcount
            gone += self._db.execute(
                "DELETE FROM facts WHERE key GLOB ? OR what GLOB ?", (glob, glob)
            ).rowcount
        self._db.execute("VACUUM")
        return int(gone)

    def _check_format(self) -> None:
        if not self._one("SELECT count(*) FROM sqlite_master WHERE name = 'about'")[0]:
            if self._one("SELECT count(*) FROM sqlite_master")[0]:
                raise StoreError(
                    f"{self.path} is a database but no store; give another file with --store"
                )
            return
        found = int(self._one("SELECT value FROM about WHERE name = 'format'")[0])
        if found > FORMAT:
            raise StoreError(
                f"{self.path} has format {found}, this retroact reads up to {FORMAT}; "
                "upgrade retroact, or give another file with --store"
            )

    def _one(self, query: str) -> tuple[Any, ...]:
        return tuple(self._db.execute(query).fetchone() or ("0",))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(
                f"could not write to {self.path}: {e}; every finished cell is still there, so make"
                " room (or permissions) and run the same command again"
            ) from None
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
