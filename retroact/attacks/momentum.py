"""Momentum: steps along a running mean of gradients, long at first and short at the end.

g ← μ g + ∇m / mean|∇m|, x ← Π(x + η_k s(g)), η_k falling from eps to eps/50 along half a cosine.
The mean of normalised gradients is Dong et al.'s; they keep the step, Croce & Hein's APGD sets it
by what the loss does. Where gradients are only a guide to a loss with jumps, the loss says little
about the step, and a plan does better. There `noise` helps too: gradients at points around the one
that is judged, whose mean over the steps smooths the jumps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from retroact.attacks.apgd import choose
from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each, nonzero, put
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of, margin
from retroact.crafting.noise import uniform
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import cosine
from retroact.crafting.threat import Access
from retroact.spec import AtLeast0, Count, UnitInterval, Within, spec

_LAST = 0.02  # of eps: the length of the last step
# steps from one look at the point itself to the next, where gradients are taken around it
_LOOK = 5
_TURN = 10_007  # pixels from the noise of one step to that of the next; a prime, to come round late
_NOISE = 600_000_011  # streams of their own, so that starts do not move with the noise


@spec
class Momentum(Attack):
    """`steps` gradients from each of `restarts` random starts, the running mean keeping `mu` of
    itself.

    `targets=k` climbs towards each of the k classes that the clean logits rank next after the true
    one, for an untargeted goal, each from the best point of those before; 0 climbs as the goal
    says. `finish` more gradients from the best point of all climb towards the class that is nearest
    there. With `noise`, gradients are taken at a point drawn around the one that moves, up to so
    many times the step away; within the box where the network gives no numbers outside it.
    """

    steps: Count = 30
    restarts: Count = 1
    targets: Annotated[int, Within(0)] = 0
    mu: UnitInterval = 0.5
    loss: Loss = "margin"
    finish: Annotated[int, Within(0)] = 0
    noise: AtLeast0 = 0.0
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    streams: ClassVar[bool] = True
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Dong et al. 2018, arXiv:1710.06081"

    @property
    def passes(self) -> int:
        return self.restarts * (self.steps * max(1, self.targets) + self.finish)

    def __call__(self, scene: Scene) -> Tensor:
        confined = torch.zeros(len(scene.x), dtype=torch.bool, device=scene.x.device)
        at = _Chunk(scene, Unbroken(scene), _Best(scene.x), confined)
        runs = max(1, self.targets)
        for run, towards in enumerate(choose(scene, self.targets, self.restarts)):
            rows = at.unbroken.rows
            if not len(rows):
                break
            start = at.best.x[rows]
            if run % runs == 0:
                start = scene.start(rows, stream=run)
            self._climb(at, start, towards, self.steps, run)
            if self.finish and run % runs == runs - 1 and len(at.unbroken):
                start = at.best.x[at.unbroken.rows]
                self._climb(at, start, at.choose(), self.finish, run + runs * self.restarts)
        return at.unbroken.finish(at.best.x[at.unbroken.rows])

    def _climb(self, at: _Chunk, x: Tensor, towards: Aim, steps: int, run: int) -> None:
        (scene, unbroken, *_), loss, mean = at, loss_of(self.loss), torch.zeros_like(x)
        centre, drawn = scene.x[unbroken.rows], at.noise(run) if self.noise else x
        for k in range(steps):
            scene.oracle.progress(k / steps)
            step = scene.threat.eps * cosine(k, steps, 1.0, _LAST)
            climbed = partial(loss, aim=towards[unbroken.rows])
            if not self.noise:
                logits, gradient = scene.oracle.gradient(x, unbroken.rows, climbed)
                x, centre, gradient, mean = at.judge(x, logits, centre, gradient, mean)
            else:
                around = at.around(x, self.noise * step * _turn(drawn, k))
                gradient = at.look(around, climbed, first=run == k == 0)
                if k % _LOOK == 0:
                    logits = scene.oracle.logits(x, unbroken.rows)
                    x, centre, gradient, mean, drawn = at.judge(
                        x, logits, centre, gradient, mean, drawn
                    )
            if not len(unbroken):
                return
            size = nonzero(gradient.flatten(1).abs().mean(1))
            mean = self.mu * mean + gradient / each(size, gradient)
            x = scene.project(x + scene.push(x, mean, step, centre), centre)
        at.judge(x, scene.oracle.logits(x, unbroken.rows))


class _Chunk(NamedTuple):
    """What the runs of an attack share: the scene, which examples are unbroken, the best points,
    and around which examples the network has no numbers outside the box (a root has none)."""

    scene: Scene
    unbroken: Unbroken
    best: _Best
    confined: Tensor

    def judge(self, x: Tensor, logits: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Keeps the best points and files the broken away; (x, *others) of the unbroken."""
        self.best.keep(x, margin(logits, self.unbroken.aim), self.unbroken.rows)
        return self.unbroken.drop(x, logits, *others)

    def choose(self) -> Aim:
        """Towards the class that each best point's logits rank next after the true one, if the goal
        lets us choose."""
        aim, rows = self.scene.aim, self.unbroken.rows
        if aim.targets is not None:
            return aim
        towards = aim.labels.clone()
        towards[rows] = self.scene.wrong_classes(self.best.x[rows], rows)[:, 0]
        return Aim(aim.labels, towards)

    def around(self, x: Tensor, d: Tensor) -> Tensor:
        """The points x + d, in the box where there is nothing outside it."""
        points = x + d
        free = ~self.confined[self.unbroken.rows]
        return points.where(each(free, points), self.scene.clamp(points))

    def look(self, x: Tensor, objective: Callable[[Tensor], Tensor], first: bool) -> Tensor:
        """The gradient at points that may lie outside the box; the `first` time it is seen whether
        there are numbers, which flags nobody."""
        oracle, rows = self.scene.oracle, self.unbroken.rows
        if not first:
            return oracle.gradient(x, rows, objective)[1]
        outside = oracle.narrowed(rows, self.scene.x[rows])
        _, gradient = outside.gradient(x, torch.arange(len(rows), device=rows.device), objective)
        self.confined[rows] = outside.nonfinite
        outside.forgive()
        oracle.add(outside, rows)
        return gradient

    def noise(self, run: int) -> Tensor:
        """For each unbroken example, shaped as it: from [-1, 1) for each entry, scaled to length 1
        or so in the threat's norm."""
        scene, domain = self.scene, self.scene.domain
        index = scene.index[self.unbroken.rows]
        drawn = uniform(domain.shape, index, scene.seed, _NOISE + run) * 2 - 1
        return drawn * scene.threat.share(domain.entries)


def _turn(noise: Tensor, k: int) -> Tensor:
    """The noise of step `k`: the run's own with its pixels shifted, as new draws at each step would
    cost much."""
    return noise.flatten(1).roll(_TURN * k, 1).view_as(noise)


class _Best:
    """For each example of a chunk the point `x` that came nearest to the goal, by the margin."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self._margin = x.new_full((len(x),), -torch.inf)

    def keep(self, x: Tensor, margins: Tensor, rows: Tensor) -> None:
        better = margins > self._margin[rows]  # false for a NaN
        put(self.x, rows, x, better)
        put(self._margin, rows, margins, better)
