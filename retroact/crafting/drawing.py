"""The process's own random generators, lent for a block: seeded, to one borrower at a time, and as
they were after it.

Our attacks draw from generators of their own, example by example. Randomised networks and other
people's attacks draw from torch's, numpy's and Python's, which all threads share; some networks
hold one of their own.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from retroact.ground import seed_torch

_LENT = threading.RLock()  # the same thread may borrow within its own block


class _Ways(NamedTuple):
    """How a kind of generator is seeded, read and put back."""

    seed: Callable[[Any, int], Any]
    read: Callable[[Any], Any]
    put_back: Callable[[Any, Any], Any]


_KINDS: dict[type, _Ways] = {
    torch.Generator: _Ways(
        torch.Generator.manual_seed, torch.Generator.get_state, torch.Generator.set_state
    ),
    np.random.Generator: _Ways(
        lambda held, seed: _set(held, type(held.bit_generator)(seed).state),
        lambda held: held.bit_generator.state,
        lambda held, state: _set(held, state),
    ),
    np.random.RandomState: _Ways(
        np.random.RandomState.seed, np.random.RandomState.get_state, np.random.RandomState.set_state
    ),
    random.Random: _Ways(random.Random.seed, random.Random.getstate, random.Random.setstate),
}


@contextmanager
def drawing(seed: int, device: torch.device, net: object = None) -> Iterator[None]:
    """Torch's (also `device`'s), numpy's and Python's generators, and those that are attributes of
    a module of `net`, seeded with `seed`, 0 to 2^32 − 1; other threads wait."""
    devices = [device] if device.type == "cuda" else []
    with _LENT:
        shared, own = (np.random.get_state(), random.getstate()), list(_own(net))
        states = [ways.read(held) for held, ways in own]
        try:
            with torch.random.fork_rng(devices):
                seed_torch(seed)
                np.random.seed(seed)
                random.seed(seed)
                for held, ways in own:
                    ways.seed(held, seed)
                yield
        finally:
            np.random.set_state(shared[0])
            random.setstate(shared[1])
            for (held, ways), state in zip(own, states, strict=True):
                ways.put_back(held, state)


def _own(net: object) -> Iterator[tuple[Any, _Ways]]:
    """The generators that modules of `net` hold, each once."""
    modules = net.modules() if isinstance(net, nn.Module) else ()
    kept = (value for module in modules for value in vars(module).values())
    held = {id(value): value for value in kept if isinstance(value, tuple(_KINDS))}
    for value in held.values():
        for kind, ways in _KINDS.items():
            if isinstance(value, kind):
                yield value, ways


def _set(held: np.random.Generator, state: Any) -> None:
    held.bit_generator.state = state
