"""The file of a store: how it is opened, waited for, and brought to today's format.

Every error of SQLite leaves here as one sentence.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from retroact.experiments import formats
from retroact.experiments.sealed import FORMAT
from retroact.stopping import is_interrupt_held

SOON = 2.0
"""Seconds that a busy store is waited for before a message says so."""

CURE = "`retroact store check` says what is damaged, `retroact store repair` keeps the rest"

Answer = TypeVar("Answer")


class StoreError(RuntimeError):
    """A store that cannot be opened, read or written; the message says what to do."""


class StoreBusyError(StoreError):
    """Another process holds the store, and went on doing so."""


class StoreGoneError(StoreError):
    """The file was moved, deleted or replaced while it was open."""


def warn(text: str) -> None:
    """A message about a store, where nobody else takes it."""
    warnings.warn(text, stacklevel=4)


class StoreFile:
    """An open file of a store; made if it is not there and `create`.

    What cannot be written (the file, its folder, a mount) is opened for reading. `alone` keeps all
    others out until it is closed, and waits for nobody; `rescue` opens also what no longer says
    its format. Raises StoreError.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        readonly: bool = False,
        alone: bool = False,
        rescue: bool = False,
        patience: float = 30.0,
        tell: Callable[[str], None] = warn,
    ) -> None:
        self.path, self._patience, self._tell = path, 0.0 if alone else patience, tell
        self._rescue = rescue
        self.writable = not readonly and _can_write(path)
        mode = "ro" if not self.writable else "rwc" if create else "rw"
        with self._saying("open"):
            self._db = _connect(path, f"mode={mode}")
            self.format = self._look()
            if alone:
                self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            if self.format == 0:
                self._make()
        self._identity = _identity(path)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def table(self, name: str) -> str:
        """What to select from, in the format that the file has."""
        if self.format < FORMAT:  # another process may have brought it up to date
            self.format = self._read_format()
        return name if self.format >= FORMAT else formats.FIRST[name]

    def ask(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All answers to a query, at once, so that nobody waits for a slow reader."""
        with self._saying("read"):
            try:
                return self._patiently(lambda: self._db.execute(query, values).fetchall())
            except sqlite3.OperationalError as e:
                if "decode" not in str(e):
                    raise
            # a flipped bit is no exception here: the row's checksum names it
            self._db.text_factory = partial(str, encoding="utf-8", errors="replace")
            return self._patiently(lambda: self._db.execute(query, values).fetchall())

    def stream(self, query: str) -> Iterator[tuple[Any, ...]]:
        """The answers to a query one by one, up to where the file is damaged (StoreError)."""
        with self._saying("read"):
            yield from self._db.execute(query)

    def check_there(self) -> None:
        """Raises StoreGoneError where the path no longer leads to the file that was opened."""
        if _identity(self.path) != self._identity:
            raise StoreGoneError(
                f"{self.path} was moved, deleted or replaced while it was in use, and what had been"
                " written went with it; put it back, or run the same command again for a new one"
            )

    def check_writable(self) -> None:
        """Raises StoreError where the file was opened for reading."""
        if not self.writable:
            raise StoreError(
                f"{self.path} can only be read: it, its folder or its mount is write-protected;"
                " give another file with --store"
            )

    @contextmanager
    def writing(self, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it or nothing. An older format is brought to today's first.

        Waits for readers before it begins, so that it never waits with its work half done.
        """
        self.check_writable()
        self.check_there()
        try:
            with self._saying("write to"):
                self._patiently(lambda: self._db.execute("BEGIN EXCLUSIVE"), patience)
                if self._read_format() < FORMAT:
                    formats.upgrade(self._db)
                yield self._db
                self._db.execute("COMMIT")
                self.format = FORMAT
        finally:
            if self._db.in_transaction:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps all others from the file for a while."""
        self.check_writable()
        with self._saying("hold"):
            self._patiently(lambda: self._db.execute("BEGIN EXCLUSIVE"))
        try:
            yield
        finally:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def shrink(self) -> None:
        """Gives free space back to the disk; left for another time where the file is busy."""
        with suppress(StoreBusyError), self._saying("write to"):
            self._db.execute("VACUUM")

    def checked(self) -> list[str]:
        """What SQLite itself finds wrong with the file's structure."""
        try:
            found = [str(said) for (said,) in self._db.execute("PRAGMA quick_check(20)")]
        except sqlite3.Error as e:
            return [str(e)]
        return [] if found == ["ok"] else found

    def _look(self) -> int:
        """The format; where the folder is write-protected, the file is read without locks if it
        must."""
        try:
            return self._patiently(self._read_format)
        except sqlite3.OperationalError:
            journals = (Path(f"{self.path}{end}") for end in ("-journal", "-wal"))
            if self.writable or any(p.exists() and p.stat().st_size for p in journals):
                raise
            self._db.close()
            self._db = _connect(self.path, "mode=ro&immutable=1")
            return self._read_format()

    def _read_format(self) -> int:
        """The number in the file, 0 where it is empty. Raises StoreError where it is no store, or
        a newer one."""
        names = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        if not names:
            return 0
        if "about" not in names:
            raise StoreError(
                f"{self.path} is a database but no store; give another file with --store"
            )
        if self._rescue:
            return FORMAT if "records" in names else 1
        found = self._db.execute("SELECT value FROM about WHERE name = 'format'").fetchone()
        if found is None or not re.fullmatch("[1-9][0-9]*", str(found[0])):
            raise StoreError(f"{self.path} is damaged: it has no number of its format; {CURE}")
        if int(found[0]) > FORMAT:
            raise StoreError(
                f"{self.path} has format {found[0]}, this retroact reads up to {FORMAT}; "
                "upgrade retroact, or give another file with --store"
            )
        return int(found[0])

    def _make(self) -> None:
        """Makes the tables of a new store, unless another process just has."""
        self.check_writable()
        self._patiently(lambda: self._db.execute("BEGIN EXCLUSIVE"))
        if self._read_format() == 0:
            formats.create(self._db)
        self._db.execute("COMMIT")
        self.format = self._read_format()

    def _patiently(self, do: Callable[[], Answer], patience: float | None = None) -> Answer:
        """Does it, waiting for other processes; says so once that takes long."""
        patience = self._patience if patience is None else patience
        began, told = time.monotonic(), False
        while True:
            try:
                return do()
            except sqlite3.OperationalError as e:
                waited = time.monotonic() - began
                if not _is_busy(e) or waited >= patience or is_interrupt_held():
                    raise
                if waited > SOON and not told:
                    self._tell(f"waiting for {self.path}: another process holds it")
                    told = True
                time.sleep(0.01 if waited < 1 else 0.1)

    @contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        """Errors of SQLite as one sentence, with the cure."""
        try:
            yield
        except sqlite3.Error as e:
            if _is_busy(e):
                raise StoreBusyError(
                    f"could not {what} {self.path}: another process holds it; wait for it to end,"
                    " then run the same command again"
                ) from None
            raise StoreError(_explain(what, self.path, e)) from None
        except (TypeError, ValueError) as e:  # a tally or a seal that is none
            raise StoreError(f"{self.path} is damaged: {e}; {CURE}") from None


def _explain(what: str, path: Path, error: sqlite3.Error) -> str:
    if what == "open" and not path.absolute().parent.is_dir():
        return f"no folder {path.absolute().parent} for the store {path.name}; make it first"
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR) and what != "open":
        return f"could not {what} {path}: it is damaged ({error}); {CURE}"
    if what == "write to":
        return (
            f"could not write to {path}: {error}; every finished cell is still there, so make"
            " room (or permissions) and run the same command again"
        )
    return (
        f"cannot {what} {path} as a store: {error}; if it is no store, give another file with"
        f" --store; if it is one, {CURE}"
    )


def _is_busy(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _connect(path: Path, how: str) -> sqlite3.Connection:
    name = ":memory:" if str(path) == ":memory:" else f"{path.absolute().as_uri()}?{how}"
    # we wait ourselves, to say so
    db = sqlite3.connect(name, timeout=0.0, isolation_level=None, uri=True)
    db.execute("PRAGMA cell_size_check = ON")
    return db


def _can_write(path: Path) -> bool:
    if str(path) == ":memory:":
        return True
    return os.access(path.absolute().parent, os.W_OK) and (
        not path.exists() or os.access(path, os.W_OK)
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
