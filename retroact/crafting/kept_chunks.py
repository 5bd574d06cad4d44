"""The outcomes of chunks, filed as they are done, so that a long run goes on after a stop."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from retroact.crafting.outcome import Outcome, join
from retroact.parts import Arrays, Filed

SECONDS = 5.0
"""Of work that is filed together: what a kill loses, or one chunk where that takes longer."""

_COLUMNS = ("x_adv", "targets", "queries", "gradients", "zero_gradients", "nonfinite")


class KeptChunks:
    """What one run over all examples has done, chunk by chunk, in `filed`; `size` is that of a
    chunk."""

    def __init__(self, filed: Filed, size: int) -> None:
        self._filed, self._size = filed, size
        self._since, self._begin = time.monotonic(), 0
        self._waiting: list[Sequence[Outcome]] = []

    def find(self, start: int) -> tuple[list[Outcome], int] | None:
        """What was filed from the example `start` on, an outcome for each threat, and where it
        ends."""
        found = self._filed.find(self._name(start)) if not self._waiting else None
        if found is None:
            return None
        self._since, self._begin = time.monotonic(), int(found["stop"][0])
        return _unpack(found), self._begin

    def add(self, outcomes: Sequence[Outcome], stop: int) -> None:
        """One more chunk, which ends before `stop`; filed with those before it, now and then."""
        if not self._filed.about:
            return
        self._waiting.append(outcomes)
        if time.monotonic() - self._since < SECONDS:
            return
        parts = [join(list(part)) for part in zip(*self._waiting, strict=True)]
        what = f"examples {self._begin} to {stop}"
        self._filed.keep(self._name(self._begin), what, _pack(parts, stop))
        self._since, self._begin, self._waiting = time.monotonic(), stop, []

    def _name(self, start: int) -> str:
        return self._filed.name("from", start, self._size)


def _pack(outcomes: Sequence[Outcome], stop: int) -> Arrays:
    arrays = {"stop": torch.tensor([stop]).numpy()}
    for i, one in enumerate(outcomes):
        arrays |= {f"{i}.{name}": getattr(one, name).numpy() for name in _COLUMNS}
        if one.last is not one.x_adv:
            arrays[f"{i}.last"] = one.last.numpy()
    return arrays


def _unpack(found: Arrays) -> list[Outcome]:
    several = sum(name.endswith(".x_adv") for name in found)
    return [_one(found, f"{i}.") for i in range(several)]


def _one(found: Arrays, begin: str) -> Outcome:
    columns = {name: torch.from_numpy(found[begin + name].copy()) for name in _COLUMNS}
    last = found.get(f"{begin}last")
    return Outcome(
        **columns, last=columns["x_adv"] if last is None else torch.from_numpy(last.copy())
    )
