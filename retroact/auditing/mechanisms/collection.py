"""All mechanisms, found in the files of this room."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from retroact.auditing.mechanisms import (
    activations,
    backward,
    controls,
    inputs,
    memory,
    numbers,
    outputs,
    random,
    scale,
    state,
)
from retroact.auditing.mechanisms.mechanism import Mechanism

_ROOM = (controls, activations, memory, inputs, backward, outputs, scale, random, state, numbers)


def mechanisms(*, fast: bool = False) -> list[Mechanism]:
    """All, in the order of their files, or those that the self-test has the time for (`fast`)."""
    found = [mechanism for file in _ROOM for mechanism in _in(file)]
    return [mechanism for mechanism in found if mechanism.fast or not fast]


def _in(file: ModuleType) -> Iterator[Mechanism]:
    for value in vars(file).values():
        if isinstance(value, Mechanism):
            yield value
        elif isinstance(value, tuple):
            yield from (one for one in value if isinstance(one, Mechanism))
