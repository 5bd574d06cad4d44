"""Results that wait: what a busy store cannot take is kept in a file beside it until it can.

The file is a store itself, `NAME.PID.spool`, held by its process alone while that runs; whoever
opens the store next files what a process that is gone has left.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from retroact.experiments import intact, sealed
from retroact.experiments.store_file import StoreBusyError, StoreError, StoreFile


class Spool:
    """The file beside a store for what this process has made meanwhile; `path` is its name."""

    def __init__(self, store: Path) -> None:
        first = store.with_name(f"{store.name}.{os.getpid()}.spool")
        self.path = next(p for p in _names(first) if not p.exists())
        self.file = StoreFile(self.path, alone=True)

    def drain(self, store: StoreFile, patience: float | None = None) -> bool:
        """Files everything in the store and removes itself; False where that is still busy."""
        try:
            _move(self.file, store, patience)
        except StoreBusyError:
            return False
        return True

    def close(self) -> None:
        """Leaves the file for whoever opens the store next."""
        self.file.close()


def adopt(store: StoreFile, tell: Callable[[str], None]) -> None:
    """Files what processes that are gone have left beside a store; what cannot be filed now
    stays."""
    if not store.writable:
        return
    for path in sorted(store.path.parent.glob(f"{glob.escape(store.path.name)}.*.spool")):
        try:
            left = StoreFile(path, create=False, alone=True)
        except StoreBusyError:
            continue  # its process is at work
        except StoreError as e:
            tell(f"left alone: {e}")
            continue
        try:
            _move(left, store, 0.0)
        except StoreError as e:
            left.close()
            tell(f"{path} waits to be filed: {e}")


def _names(first: Path) -> list[Path]:
    return [first, *(first.with_suffix(f".{i}.spool") for i in range(1, 1000))]


def _move(source: StoreFile, store: StoreFile, patience: float | None) -> None:
    """Files all rows of a spool file and removes it."""
    with source.writing(), store.writing(patience) as db:
        source.check_there()  # another process may have been faster
        for row in intact.each(source, "cells"):
            sealed.insert_cell(db, intact.packed(source, row))
        for row in intact.each(source, "facts"):
            sealed.insert_facts(db, row[:-1])
    with suppress(OSError):
        source.path.unlink()  # before others may have it
    source.close()
