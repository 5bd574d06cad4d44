"""How APGD's climb sets its own step, and what it makes of a step: each ball has a `Pace` of its
own.

Where a step moves every entry, as in L_inf and L2, it is halved and given momentum (Croce & Hein
2020, algorithm 1). Where it moves few, as in L1, how many is what a climb has to learn (Croce &
Hein 2021, algorithm 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from retroact.crafting.geometry import each

RHO = 0.75  # the share of steps that must go up between two checkpoints for the step size to stay
MOMENTUM = 0.75
SPARSER = 0.95  # of the changed entries: the step starts anew where the best point has fewer
FEWER = 1.5  # times fewer entries in a step than the best point has changed
SHORTER = 1.5  # times shorter steps where the best point gets no sparser
SHORTEST = 0.1  # of the first step


class Climb(NamedTuple):
    """Where each unbroken example is: images (m, …), the rest (m,)."""

    x: Tensor
    previous: Tensor
    centre: Tensor
    best: Tensor
    uphill: Tensor  # the gradient at the best point
    score: Tensor  # the loss at the best point
    margin: Tensor  # the margin at the best point, which compares runs of different losses
    last: Tensor  # the loss at the point before
    rises: Tensor  # steps that went up since the last checkpoint
    anchor: Tensor  # `score` at the last checkpoint
    halved: Tensor  # whether the last checkpoint halved the step
    step: Tensor
    entries: Tensor  # over so many entries a step is spread, where the norm leaves a choice
    changed: Tensor  # entries in which the best point differed at the last checkpoint

    def back(self, where: Tensor, gradient: Tensor) -> tuple[Climb, Tensor]:
        """At the best point with its gradient, for the examples `where` (m,)."""
        wide = each(where, self.x)
        at = self._replace(x=self.best.where(wide, self.x), last=self.score.where(where, self.last))
        return at, self.uphill.where(wide, gradient)


def outset(start: Tensor, centre: Tensor, step: float, share: float = 1.0) -> Climb:
    """A climb about to begin, with steps so long, over a `share` of all entries."""
    low, zero = start.new_full((len(start),), -math.inf), start.new_zeros(len(start))
    never = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    return Climb(
        start,
        start,
        centre,
        start,
        torch.zeros_like(start),
        low,
        low,
        -low,
        zero,
        low,
        ~never,
        torch.full_like(zero, step),
        torch.full_like(zero, share * start[0].numel()),
        torch.full_like(zero, start[0].numel()),
    )


class Pace(Protocol):
    """When a climb looks back, what it changes then, and how it moves."""

    first: ClassVar[float]
    """The first step, in radii."""
    share: ClassVar[float]
    """Over what share of all entries it is spread."""

    def checkpoints(self, steps: int) -> Iterator[tuple[int, int]]:
        """The steps at which a climb looks back, each with how many steps lie behind it."""
        ...

    def check(
        self, at: Climb, gradient: Tensor, width: int, longest: float
    ) -> tuple[Climb, Tensor]:
        """The climb after a look back over `width` steps, and the gradient where it is then;
        `longest` is the first step."""
        ...

    def move(self, at: Climb, d: Tensor, k: int, project: Callable[[Tensor], Tensor]) -> Climb:
        """The climb after its step `k`, along `d`."""
        ...


@dataclass(frozen=True)
class Halving:
    """Steps of 2 eps with momentum, halved where the climb stalls (Croce & Hein 2020)."""

    first: ClassVar[float] = 2.0
    share: ClassVar[float] = 1.0

    def checkpoints(self, steps: int) -> Iterator[tuple[int, int]]:
        """p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06), p_1 = 0.22, as shares of `steps` (eq.
        5)."""
        before, share, stride = 0, 0.22, 0.22
        while True:
            check = math.ceil(share * steps)
            yield check, check - before
            stride = max(stride - 0.03, 0.06)
            before, share = check, share + stride

    def check(
        self, at: Climb, gradient: Tensor, width: int, longest: float
    ) -> tuple[Climb, Tensor]:
        """Halves the step and goes back to the best point where the climb stalls (conditions 1 and
        2)."""
        stalled = (at.rises < RHO * width) | (~at.halved & (at.anchor >= at.score))
        at, gradient = at.back(stalled, gradient)
        halved = at._replace(
            step=at.step.where(~stalled, at.step / 2),
            rises=torch.zeros_like(at.rises),
            anchor=at.score,
            halved=stalled,
        )
        return halved, gradient

    def move(self, at: Climb, d: Tensor, k: int, project: Callable[[Tensor], Tensor]) -> Climb:
        """x + 0.75 (z − x) + 0.25 (x − the point before), z = Π(x + d)."""
        z, momentum = project(at.x + d), MOMENTUM if k else 1.0
        moved = at.x + momentum * (z - at.x) + (1 - momentum) * (at.x - at.previous)
        return at._replace(x=project(moved), previous=at.x)


@dataclass(frozen=True)
class Sparse:
    """Steps of eps over ever fewer entries (Croce & Hein 2021, algorithm 1).

    At every 25th of the steps: 1.5 times fewer entries than the best point has changed; where it
    has grown sparser, back to it and to the first step, elsewhere a step 1.5 times shorter, down to
    a tenth.
    """

    first: ClassVar[float] = 1.0
    share: ClassVar[float] = 0.2

    def checkpoints(self, steps: int) -> Iterator[tuple[int, int]]:
        """Every 25th of the steps."""
        width = max(1, int(0.04 * steps))
        check = width
        while True:
            yield check, width
            check += width

    def check(
        self, at: Climb, gradient: Tensor, width: int, longest: float
    ) -> tuple[Climb, Tensor]:
        """Sets the entries of a step by those that the best point has changed, and its length by
        whether they have become fewer."""
        changed = (at.best != at.centre).flatten(1).sum(1).to(at.changed)
        sparser = changed < SPARSER * at.changed
        at, gradient = at.back(sparser, gradient)
        shorter = (at.step / SHORTER).clamp_min(SHORTEST * longest)
        step = torch.full_like(shorter, longest).where(sparser, shorter)
        return at._replace(step=step, entries=changed / FEWER, changed=changed), gradient

    def move(self, at: Climb, d: Tensor, k: int, project: Callable[[Tensor], Tensor]) -> Climb:
        """Π(x + d), without momentum."""
        return at._replace(x=project(at.x + d), previous=at.x)
