"""Work that nobody wants any more, and an interrupt that must wait for a moment; everyone may use
this, and it needs no torch.

    wanted = Wanted()
    with wanted.working():      # in a thread of its own
        ...                     # check_wanted(), at each step
    wanted.end()                # from another thread: the next check raises NotWanted
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class NotWanted(BaseException):  # as KeyboardInterrupt: nothing that may be swallowed
    """Nobody wants the result of this work any more."""


class Wanted:
    """Whether the result of some work is still wanted; work within work is while both are."""

    def __init__(self) -> None:
        self._ended, self._around = False, _WANTED.get()

    def end(self) -> None:
        """Says that it is not; the work stops at its next step."""
        self._ended = True

    def check(self) -> None:
        """Raises NotWanted where it is not."""
        if self._ended:
            raise NotWanted
        if self._around is not None:
            self._around.check()

    @contextmanager
    def working(self) -> Iterator[None]:
        """What this thread does within the block is for this result."""
        token = _WANTED.set(self)
        try:
            yield
        finally:
            _WANTED.reset(token)


_WANTED: ContextVar[Wanted | None] = ContextVar("wanted", default=None)


def check_wanted() -> None:
    """Raises NotWanted where nobody wants what this thread is doing; asked at each step."""
    wanted = _WANTED.get()
    if wanted is not None:
        wanted.check()


@contextmanager
def uninterrupted() -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C back until the block ends, so that finished work is filed; a second one is not.

    Gives a question: whether one is held back. Outside the main thread, which alone hears Ctrl-C,
    there is nothing to hold back.
    """
    heard = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(heard):
        yield lambda: False
        return
    held: list[int] = []

    def hold(number: int, frame: object) -> None:
        held.append(number)
        if len(held) > 1:
            heard(number, None)

    signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(held)
    finally:
        signal.signal(signal.SIGINT, heard)
        if len(held) == 1:
            heard(held[0], None)
