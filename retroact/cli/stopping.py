"""Ctrl-C: what is true of a command that was stopped, and the second one, which ends the program
whatever it is doing."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from retroact.cli.codes import STOPPED

NOTHING = "nothing of it is kept: the same command begins anew"
_SHOW_CURSOR = b"\x1b[?25h\n"


class StoppedError(Exception):
    """A command was stopped; the message is one sentence: what is kept, and how to go on."""

    @classmethod
    def of(cls, stop: KeyboardInterrupt) -> StoppedError:
        """What the work that was stopped has noted about itself."""
        return cls("; ".join(getattr(stop, "__notes__", ())) or NOTHING)


@contextmanager
def if_stopped(truth: str, *, unless_noted: bool = False) -> Iterator[None]:
    """What is true where the block is stopped: what is kept, and how to go on; `unless_noted`:
    where the work itself has not noted more."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if unless_noted and hasattr(stop, "__notes__"):
            raise
        raise StoppedError(truth) from stop


def leave() -> NoReturn:
    """Ends a program that was stopped, without the seconds that taking torch apart can last."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody may read any more
            stream.flush()
    os._exit(STOPPED)


@contextmanager
def ended_by_two() -> Iterator[None]:
    """Within the block the second Ctrl-C ends the program at once, also where the first is not
    heard yet, as within a long call of native code."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # in the background of a shell, which is deaf to it, or within another program
        return
    _COUNTING.append(_Counting())
    try:
        yield
    finally:
        _COUNTING.pop().end()


@contextmanager
def uncounted() -> Iterator[None]:
    """Within the block nobody counts Ctrl-C, so that a program may be one thread."""
    if not _COUNTING:
        yield
        return
    _COUNTING.pop().end()
    try:
        yield
    finally:
        _COUNTING.append(_Counting())


class _Counting:
    """A thread that reads which signals have come, and ends the program at the second Ctrl-C."""

    def __init__(self) -> None:
        self._mine, self._told = socket.socketpair()
        self._told.setblocking(False)
        self._before = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends the thread."""
        signal.set_wakeup_fd(self._before)
        self._told.close()
        self._thread.join()

    def _count(self) -> None:
        came = 0
        while signals := self._mine.recv(16):
            came += signals.count(signal.SIGINT)
            if came > 1:
                if sys.stderr.isatty():
                    os.write(2, _SHOW_CURSOR)  # which a progress bar may have hidden
                os._exit(STOPPED)  # with it its worker processes
        self._mine.close()


_COUNTING: list[_Counting] = []
"""The one that counts, if one does."""
