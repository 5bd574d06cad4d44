"""Neutral ground: what the caller's program has set neither changes a result nor is changed by one.

    @neutral()
    def evaluate(...): ...

Grad and inference mode, autocast, the default dtype and device belong to the caller; so do the states of the
random generators, which a network may draw from or seed. Within the block they are torch's own defaults, and the
generators are seeded; afterwards, also after an exception, they are as they were. Everyone may use this.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

_AUTOCAST = ("cpu", "cuda", "mps")


@contextmanager
def neutral() -> Iterator[None]:
    """Gradients on, no inference mode, no autocast, float32 and the CPU by default, generators seeded with 0.

    Also a decorator: `@neutral()`. A block within a block, in any thread, finds all this done.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_PROCESS.entered())
        yield


class _Process:
    """What is set for the whole process: set by the first block that is entered, put back by the last that is left."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._put_back: list[Callable[[], object]] = []

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._put_back = _states()
                _settle()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for put_back in self._put_back:
                        put_back()


_PROCESS = _Process()


class Held:
    """A setting of the process that blocks, in any thread, hold at `value`: the last one that is left puts it back."""

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
        self._read, self._write, self._value = read, write, value
        self._lock, self._inside, self._before = threading.Lock(), 0, value

    @contextmanager
    def held(self) -> Iterator[None]:
        """The setting at its value for the time of the block."""
        with self._lock:
            if self._inside == 0:
                self._before = self._read()
                self._write(self._value)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._write(self._before)


def _states() -> list[Callable[[], object]]:
    """How each setting of the process is put back as it is now."""
    dtype, cpu = torch.get_default_dtype(), torch.get_rng_state()
    python, numpy = random.getstate(), np.random.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return [
        lambda: torch.set_default_dtype(dtype),
        lambda: random.setstate(python),
        lambda: np.random.set_state(numpy),
        lambda: torch.set_rng_state(cpu),
        lambda: None if gpus is None else torch.cuda.set_rng_state_all(gpus),  # type: ignore[func-returns-value]
    ]


def _settle() -> None:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
