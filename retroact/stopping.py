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
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType


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


class _Hold:
    """Whether Ctrl-C is held back, and how often it came; the main thread alone hears it."""

    active, came = False, 0


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C back until the block ends, so that finished work is filed; a second one is not.

    Outside the main thread, and within another such block, there is nothing more to hold back.
    """
    heard = signal.getsignal(signal.SIGINT)
    outside = threading.current_thread() is not threading.main_thread()
    if outside or _Hold.active or not callable(heard):
        yield
        return

    def hold(number: int, frame: FrameType | None) -> None:
        _Hold.came += 1
        if _Hold.came > 1:
            heard(number, frame)

    signal.signal(signal.SIGINT, hold)
    _Hold.active, _Hold.came = True, 0
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)
        waiting, _Hold.active, _Hold.came = _Hold.came == 1, False, 0
        if waiting:
            heard(signal.SIGINT, None)


def is_interrupt_held() -> bool:
    """Whether a Ctrl-C waits for the end of such a block, which should then be near."""
    return _Hold.came > 0
