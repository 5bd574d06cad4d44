"""The store: one SQLite file in which a cell is there whole or not at all, and says when it is
wrong.

Facts are stored, numbers are computed late. A record is written in one transaction, so a killed
process or a full disk loses the cell that was being written and nothing else. Each row has a
checksum (`sealed`); a busy file is waited for, and what it cannot take yet waits beside it
(`spool`). No torch here: reports open a store in an instant.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from retroact.evaluation.record import Record, images_to_bytes, to_bytes
from retroact.experiments import intact, sealed, spool
from retroact.experiments.claim import Claim
from retroact.experiments.claim import StoreInUseError as StoreInUseError
from retroact.experiments.curves import draw_over_eps
from retroact.experiments.fields import CellFields
from retroact.experiments.sealed import FORMAT as FORMAT
from retroact.experiments.sealed import RECORD_LIMIT, Packed
from retroact.experiments.store_file import (
    StoreBusyError,
    StoreFile,
    StoreGoneError,
    warn,
)
from retroact.experiments.store_file import StoreError as StoreError
from retroact.experiments.stored_parts import StoredParts
from retroact.files import parse_object
from retroact.stopping import uninterrupted

if TYPE_CHECKING:
    from retroact.figures import Figure


@dataclass(frozen=True, slots=True)
class Row:
    """One finished cell: its key, its print, its fields (`said`: as JSON, which a long listing does
    not take apart), when it was written, images kept."""

    key: str
    cell: str
    said: str
    n: int
    written: str
    kept: int

    @property
    def fields(self) -> CellFields:
        return CellFields.from_json(parse_object(self.said))


class Store:
    """A store at `path`, made if it is not there (`create=False`: refused instead).

    What cannot be written is opened for reading. `patience`: seconds that a file is waited for that
    another process holds; what cannot be written then is kept in a file beside it until it can.
    `tell` takes what there is to say about that (a warning, unless told). Raises StoreError for a
    file that is no store, that a newer version has written, or that lacks rows.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        create: bool = True,
        readonly: bool = False,
        patience: float = 30.0,
        wait: bool = False,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self.path, self._tell = Path(path), tell
        self._claim = Claim(self.path, wait=wait, tell=tell)
        if not create and not self.path.exists():
            raise StoreError(
                f"no store at {self.path}; run a sweep first, or give its file with --store"
            )
        how: dict[str, Any] = {"readonly": readonly, "patience": patience, "tell": tell}
        self.file = StoreFile(self.path, create=create, **how)
        self._spool: spool.Spool | None = None
        self._wrote = False
        try:
            intact.check_counts(self.file)
            spool.adopt(self.file, tell)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # who has pressed Ctrl-C waits for nobody
        self._close(0.0 if isinstance(error, KeyboardInterrupt) else None)

    def __len__(self) -> int:
        if not self._drain(patience=0.0):
            return sum(1 for _ in self._each("cells"))
        return int(self.file.ask(f"SELECT count(*) FROM {self.file.table('cells')}")[0][0])

    def __contains__(self, key: str) -> bool:
        return self.has(key)

    def has(self, key: str, *, keep: int = 0, cell: str = "") -> bool:
        """Whether the cell is there, with `keep` of its images or all of them. `cell`: the print
        that it must have, for a key names what it is a hash of; StoreError where it has another."""
        found = self._find("cells", key)
        if found is not None:
            intact.check_print(*found, cell)
        return found is not None and bool(found[1].kept >= min(keep, found[1].n))

    def close(self) -> None:
        """Closes the file; the store may be opened again at any time."""
        self._close(None)

    def _close(self, patience: float | None) -> None:
        try:
            self._drain(patience)
            if self._wrote:
                self.file.check_there()
        except StoreError as e:
            self._tell(str(e))
        if self._spool is not None:
            self._tell(
                f"{self.path} could not be written to: results are kept in {self._spool.path};"
                " they are filed when the store is next opened"
            )
            self._spool.close()
            self._spool = None
        self.file.close()

    def check_writable(self) -> None:
        """Raises StoreError where results could not be written; ask before the work."""
        self.file.check_writable()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within the block no other process fills the store: plan what is to run here, not before.

        Raises StoreInUseError where one does that already, unless the store was opened to `wait`.
        """
        self.check_writable()
        with self._claim.block():
            if self._claim.take():
                spool.adopt(self.file, self._tell)  # what another may have left
            yield

    @contextmanager
    def claim_kept(self) -> Iterator[None]:
        """What is `claimed` within the block is given back at its end only."""
        with self._claim.block():
            yield

    def put(self, key: str, cell: str, fields: CellFields, record: Record) -> None:
        """Writes a finished cell, whole; a cell that is there already is replaced."""
        kept = 0 if record.examples is None else len(record.examples)
        said = (key, cell, json.dumps(fields.to_json()), len(record), _now(), kept)
        try:
            parts = (
                sealed.pack(to_bytes(record), RECORD_LIMIT),
                sealed.pack(images_to_bytes(record)),
            )
        except ValueError as e:
            raise StoreError(f"could not write {key} to {self.path}: {e}") from None
        packed = Packed.of(said, *parts)
        self._write(lambda db: sealed.insert_cell(db, packed))

    def read(self, key: str, *, images: bool = False) -> Record:
        """The record of a cell, with its kept `images` if asked. Raises KeyError where there is
        none, StoreError where its checksum says that it is damaged."""
        found = self._find("cells", key)
        if found is None:
            raise KeyError(
                f"no cell {key} in {self.path}; `retroact list store` shows those that are there"
            )
        return intact.record(*found, images=images)

    def put_facts(self, key: str, what: str, facts: Mapping[str, Any], seconds: float) -> None:
        """Writes plain numbers that are no record (see `facts`), and how long they took."""
        text = json.dumps(dict(facts))
        try:
            parse_object(text)  # as it will be when it is read
        except ValueError as e:
            raise StoreError(f"could not write {key} to {self.path}: {e}") from None
        said = (key, what, _now(), float(seconds), text)
        self._write(lambda db: sealed.insert_facts(db, said))

    def read_facts(self, key: str, what: str = "") -> tuple[dict[str, Any], float] | None:
        """Stored plain numbers and their seconds; None where there are none. `what`: the print that
        they must have; StoreError where they have another."""
        found = self._find("facts", key)
        if found is None:
            return None
        intact.check_print(*found, what)
        return intact.numbers(*found), float(found[1].seconds)

    def facts(self) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
        """All plain numbers: key, print, seconds and the numbers, in the order of their prints."""
        found = list(self._each("facts"))
        for file, row in sorted(found, key=lambda pair: (pair[1].what, pair[1].key)):
            yield row.key, row.what, float(row.seconds), intact.numbers(file, row)

    @property
    def parts(self) -> StoredParts:
        """The parts of long runs that are kept here, such as an audit's attacks.

        Raises StoreError where none could be written.
        """
        self.check_writable()
        if str(self.path) == ":memory:":
            raise StoreError("parts of a run are to outlive it; give a store that is a file")
        return StoredParts(self.path.absolute(), Store)

    def rows(self, glob: str = "*") -> list[Row]:
        """The finished cells whose key or print matches `glob`, oldest first."""
        return sorted(self.each(glob), key=lambda row: row.written)

    def plot(self, glob: str = "*") -> Figure:
        """Robust accuracy over eps of the cells whose key or print matches `glob`, one curve per
        network and attack, at 0 the clean accuracy.

        Raises ValueError where no cell matches, and for cells of several data sets, norms or goals,
        which say nothing of one another.
        """
        found = [(row, row.fields) for row in self.rows(glob)]
        alike = {(f.data, f.norm, f.goal) for _, f in found}
        if len(alike) != 1:
            named = "; ".join(", ".join(group) for group in sorted(alike)) or "no cells"
            raise ValueError(
                f"expected cells of one data set, norm and goal that match {glob!r}, got {named};"
                " give a glob that some of them match, such as '*mnist*'"
            )
        return draw_over_eps((fields, self.read(row.key)) for row, fields in found)

    def each(self, glob: str = "*") -> Iterator[Row]:
        """The same cells one by one, in the order of writing: for more than fit into memory."""
        for _, r in self._each("cells", glob):
            yield Row(r.key, r.cell, r.fields, r.n, r.written, r.kept)

    def runs(self) -> dict[str, int]:
        """How often each cell was written, ever: 1 for each unless it was run again on purpose."""
        found = (row for _, row in self._each("ledger", "cell *"))
        return {row.key.removeprefix("cell "): row.times for row in found}

    def remove(self, glob: str) -> int:
        """Removes the cells and facts whose key or print matches `glob`, gives the space back;
        returns how many."""
        self._drain()
        with self.file.writing() as db:
            gone = [
                (table, key, what)
                for table, named in (("cells", "cell"), ("facts", "what"))
                for key, what in db.execute(
                    f"SELECT key, {named} FROM {table} WHERE key GLOB ? OR {named} GLOB ?",
                    (glob, glob),
                ).fetchall()
            ]
            for table, key, what in gone:
                sealed.delete(db, table, key, what)
        self.file.shrink()
        return len(gone)

    def _files(self) -> list[StoreFile]:
        """Where rows stand: first those that wait, then the file itself."""
        return [*([] if self._spool is None else [self._spool.file]), self.file]

    def _write(self, write: Callable[[sqlite3.Connection], None]) -> None:
        """Writes to the file, or beside it where that is busy or gone; Ctrl-C waits for it."""
        with uninterrupted():
            self._write_somewhere(write)

    def _write_somewhere(self, write: Callable[[sqlite3.Connection], None]) -> None:
        try:
            if self._spool is None or self._drain(patience=0.0):
                with self.file.writing() as db:
                    write(db)
                self._wrote = True
                return
        except StoreBusyError:
            self._tell(f"{self.path} is busy: results are kept beside it until it is free")
        except StoreGoneError as e:
            self._keep(write)
            assert self._spool is not None
            raise StoreGoneError(f"{e}; this result is kept in {self._spool.path}") from None
        self._keep(write)

    def _keep(self, write: Callable[[sqlite3.Connection], None]) -> None:
        if self._spool is None:
            self._spool = spool.Spool(self.path)
        with self._spool.file.writing() as db:
            write(db)

    def _drain(self, patience: float | None = None) -> bool:
        """Files what waits beside the store; whether nothing waits any more."""
        if self._spool is not None and self._spool.drain(self.file, patience):
            self._spool = None
        return self._spool is None

    def _find(self, table: str, key: str) -> tuple[StoreFile, Any] | None:
        for file in self._files():
            row = intact.find(file, table, key)
            if row is not None:
                return file, row
        return None

    def _each(self, table: str, glob: str = "*") -> Iterator[tuple[StoreFile, Any]]:
        """The rows of a table, those that wait beside the file among them."""
        self._drain(patience=0.0)
        beside = self._spool
        waiting = [] if beside is None else list(intact.each(beside.file, table, glob))
        names = {row.key for row in waiting}
        yield from (
            (self.file, row) for row in intact.each(self.file, table, glob) if row.key not in names
        )
        if beside is not None:
            yield from ((beside.file, row) for row in waiting)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
