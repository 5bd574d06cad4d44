"""Neutral ground: what the caller's program has set neither changes a result nor is changed by one.

    @neutral()
    def evaluate(...): ...

Grad and inference mode, autocast, TF32, fused attention, the default dtype and device belong to the
caller; so do the states of the random generators, which a network may draw from or seed. Within the
block they are torch's own defaults (but TF32 and fused attention are off), and the generators are
seeded; afterwards, also after an exception, they are as they were. Everyone may use this.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

_AUTOCAST = ("cpu", "cuda", "mps")


@contextmanager
def neutral() -> Iterator[None]:
    """Gradients on, no inference mode, no autocast, float32 and the CPU by default, no TF32 (of
    whose 10 bits a GPU makes a float32's products otherwise), no fused attention, generators seeded
    with 0.

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
        stack.enter_context(_PROCESS.held())
        yield


class Held:
    """Settings of the process: the first block that is entered, in any thread, settles them, the
    last puts them back.

    `settle` sets them and gives what puts them back as they were.
    """

    def __init__(self, settle: Callable[[], Callable[[], object]]) -> None:
        self._settle = settle
        self._lock, self._inside = threading.Lock(), 0
        self._put_back: Callable[[], object] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """The settings as they are settled, for the time of the block."""
        with self._lock:
            if self._inside == 0:
                self._put_back = self._settle()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._put_back()


def seed_torch(seed: int) -> None:
    """`torch.manual_seed`, which without a GPU would keep a note of each call for the day when one
    comes."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _settle_process() -> Callable[[], object]:
    """The default dtype and the generators as torch has them at first; what puts them back."""
    dtype, cpu = torch.get_default_dtype(), torch.get_rng_state()
    python, numpy = random.getstate(), np.random.get_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    short, mha = (matmul.allow_tf32, cudnn.allow_tf32), torch.backends.mha
    fused = mha.get_fastpath_enabled()

    def put_back() -> None:
        mha.set_fastpath_enabled(fused)
        torch.set_default_dtype(dtype)
        matmul.allow_tf32, cudnn.allow_tf32 = short
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)

    torch.set_default_dtype(torch.float32)
    matmul.allow_tf32, cudnn.allow_tf32 = False, False
    # passes without a graph would take it and those with one would not, in other roundings, and it
    # hides what is called within: whoever looks there, in any thread, turns it off for all
    mha.set_fastpath_enabled(False)
    seed_torch(0)
    np.random.seed(0)
    random.seed(0)
    return put_back


_PROCESS = Held(_settle_process)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's sums within the block, so that they are added in one order."""
    with _ONE_THREAD.held():
        if torch.get_num_threads() != 1:  # a count is each thread's own, once it has computed
            torch.set_num_threads(1)
        yield


def _settle_on_one() -> Callable[[], object]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return partial(torch.set_num_threads, before)


_ONE_THREAD = Held(_settle_on_one)


@contextmanager
def one_trace() -> Iterator[None]:
    """One trace by torch.fx at a time in the process, as a second one would undo the patches of the
    first; what it patches in nn.Module is undone at the end, also where it raises."""
    patched = ("__call__", "__getattr__")
    with _TRACING:
        before = {name: vars(nn.Module)[name] for name in patched}
        try:
            yield
        finally:
            for name in patched:
                if vars(nn.Module)[name] is not before[name]:
                    setattr(nn.Module, name, before[name])


_TRACING = threading.RLock()
