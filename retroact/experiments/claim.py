"""One writer: who runs what a store lacks holds `NAME.lock` beside it; others wait or are refused.

The lock is the system's (flock): it is free as soon as its owner has ended, however that ended. The
file says who the owner is, and is removed with the lock; one that is left over locks nothing.
Reading never asks for it.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from retroact.experiments.store_file import SOON, StoreError

_FAR = 2**30  # where Windows locks a byte, so that the text before it may be read
_POLL = 0.2  # seconds


class StoreInUseError(StoreError):
    """Another process is filling the store."""


class Claim:
    """The claim to be the only one who fills the store at `path`.

    `wait`: until the other has ended, which `tell` is told; else StoreInUseError.
    """

    def __init__(self, path: Path, *, wait: bool, tell: Callable[[str], None]) -> None:
        self._store, self._wait, self._tell = path, wait, tell
        real = Path(os.path.realpath(path))
        self.path = real.with_name(f"{real.name}.lock")
        self._held: int | None = None
        self._blocks = 0

    @contextmanager
    def block(self) -> Iterator[None]:
        """What is taken within the outermost block is given back when that ends."""
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
            if self._blocks == 0:
                self._give_back()

    def take(self) -> bool:
        """Takes it unless it is held here already; whether it was taken now."""
        if self._held is not None or str(self._store) == ":memory:":
            return False
        began, told = time.monotonic(), False
        while (held := _acquire(self.path)) is None:
            if not self._wait:
                raise StoreInUseError(self._say("wait for it to end (--wait, wait=True)"))
            if time.monotonic() - began > SOON and not told:
                self._tell(f"waiting: {self._say('Ctrl-C to leave it')}")
                told = True
            time.sleep(_POLL)
        self._held = held
        return True

    def _say(self, cure: str) -> str:
        owner = _owner(self.path)
        return f"{self._store} is being filled by {owner}; {cure}, or give another file"

    def _give_back(self) -> None:
        if self._held is not None:
            with suppress(OSError):
                self.path.unlink()  # while it is held, so that nobody else's is removed
            os.close(self._held)
            self._held = None


def _acquire(path: Path) -> int | None:
    """The lock file, held by this process; None where another holds it."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if not _lock(file):
            os.close(file)
            return None
        if not _leads_to(path, file):  # its last owner has removed it in between
            os.close(file)
            return _acquire(path)
    except OSError as e:
        raise StoreError(
            f"could not lock {path}: {e}; keep the store on a disk of this machine, in a folder"
            " that can be written (network disks are not supported)"
        ) from None
    os.ftruncate(file, 0)
    os.write(file, _oneself().encode())
    return file


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> bool:
        os.lseek(file, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(file, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _leads_to(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file))
    except FileNotFoundError:
        return False


def _oneself() -> str:
    words = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:100]
    host, now = socket.gethostname(), datetime.now().isoformat(sep=" ", timespec="minutes")
    return f"process {os.getpid()} on {host} (`{words}`, since {now})"


def _owner(path: Path) -> str:
    """What the owner says of itself."""
    try:
        said = path.read_text("utf-8", errors="replace")[:300]
    except OSError:
        said = ""
    return said if said.isprintable() and said else "another process"
