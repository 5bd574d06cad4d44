"""Momentum: steps along a running mean of gradients, long at first and short at the end.

g ← μ g + ∇m / mean|∇m|, x ← Π(x + η_k s(g)), η_k falling from eps to eps/50 along half a cosine.
The mean of normalised gradients is Dong et al.'s; they keep the step, Croce & Hein's APGD sets it
by what the loss does. Where gradients are only a guide to a loss with jumps, the loss says little
about the step, and a plan does better. There `noise` helps too: gradients at points around the one
that is judged, whose mean over the steps smooths the jumps.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from retroact.attacks.apgd import likeliest
from retroact.crafting.driver import Standing
from retroact.crafting.geometry import each, nonzero, project, random_start, steepest
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of, margin
from retroact.crafting.noise import uniform
from retroact.crafting.oracle import Oracle
from retroact.crafting.smallest import cosine
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import AtLeast0, Count, UnitInterval, Within, spec

_LAST = 0.02  # of eps: the length of the last step
# steps from one look at the point itself to the next, where gradients are taken around it
_LOOK = 5
_TURN = 10_007  # pixels from the noise of one step to that of the next; a prime, to come round late
_NOISE = 600_000_011  # streams of their own, so that starts do not move with the noise


@spec
class Momentum:
    """`steps` gradients from each of `restarts` random starts, the running mean keeping `mu` of
    itself.

    `targets=k` climbs towards each of the k classes that the clean logits rank next after the true
    one, for an untargeted goal, each from the best point of those before; 0 climbs as the goal
    says. `finish` more gradients from the best point of all climb towards the class that is nearest
    there. With `noise`, gradients are taken at a point drawn around the one that moves, up to so
    many times the step away.
    """

    steps: Count = 30
    restarts: Count = 1
    targets: Annotated[int, Within(0)] = 0
    mu: UnitInterval = 0.5
    loss: Loss = "margin"
    finish: Annotated[int, Within(0)] = 0
    noise: AtLeast0 = 0.0
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Dong et al. 2018, arXiv:1710.06081"

    @property
    def passes(self) -> int:
        return self.restarts * (self.steps * max(1, self.targets) + self.finish)

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        at, runs = (
            _Chunk(oracle, x, Standing(x, aim), _Best(x), threat, index, seed),
            max(1, self.targets),
        )
        for run, towards in enumerate(likeliest(oracle, x, aim, self.targets, self.restarts)):
            rows = at.standing.rows
            if not len(rows):
                break
            start = at.best.x[rows]
            if run % runs == 0:
                start = random_start(x[rows], threat, index[rows], seed, stream=run)
            self._climb(at, start, towards, self.steps, run)
            if self.finish and run % runs == runs - 1 and len(at.standing):
                start = at.best.x[at.standing.rows]
                self._climb(at, start, at.nearest(aim), self.finish, run + runs * self.restarts)
        return at.standing.finish(at.best.x[at.standing.rows])

    def _climb(self, at: _Chunk, x: Tensor, towards: Aim, steps: int, run: int) -> None:
        loss, mean, standing = loss_of(self.loss), torch.zeros_like(x), at.standing
        centre, drawn = at.centre[standing.rows], at.noise(run) if self.noise else x
        for k in range(steps):
            at.oracle.progress(k / steps)
            step = at.threat.eps * cosine(k, steps, 1.0, _LAST)
            climbed = partial(loss, aim=towards[standing.rows])
            if not self.noise:
                logits, gradient = at.oracle.gradient(x, standing.rows, climbed)
                x, centre, gradient, mean = at.judged(x, logits, centre, gradient, mean)
            else:
                around = x + self.noise * step * _turned(drawn, k)
                _, gradient = at.oracle.gradient(around, standing.rows, climbed)
                if k % _LOOK == 0:
                    logits = at.oracle.logits(x, standing.rows)
                    x, centre, gradient, mean, drawn = at.judged(
                        x, logits, centre, gradient, mean, drawn
                    )
            if not len(standing):
                return
            mean = self.mu * mean + gradient / each(
                nonzero(gradient.flatten(1).abs().mean(1)), gradient
            )
            x = project(x + step * steepest(mean, at.threat.norm), centre, at.threat)
        at.judged(x, at.oracle.logits(x, standing.rows))


class _Chunk(NamedTuple):
    """What the runs of an attack share: the chunk's clean images `centre`, who stands, and the best
    points."""

    oracle: Oracle
    centre: Tensor
    standing: Standing
    best: _Best
    threat: ThreatModel
    named: Tensor  # the index of each example
    seed: int

    def judged(self, x: Tensor, logits: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Keeps the best points and files the fallen away; (x, *others) of those that still
        stand."""
        self.best.keep(x, margin(logits, self.standing.aim), self.standing.rows)
        return self.standing.drop(x, logits, *others)

    def nearest(self, aim: Aim) -> Aim:
        """Towards the class that each best point's logits rank next after the true one, if the goal
        lets us choose."""
        if aim.targets is not None:
            return aim
        rows = self.standing.rows
        logits = self.oracle.logits(self.best.x[rows], rows).scatter(
            1, aim.labels[rows, None], -torch.inf
        )
        towards = aim.labels.clone()
        towards[rows] = logits.argmax(1)
        return Aim(aim.labels, towards)

    def noise(self, run: int) -> Tensor:
        """For each standing example, shaped as its image: from [-1, 1) for L_inf, for L2 of length
        1 or so."""
        shape = tuple(self.centre.shape[1:])
        drawn = uniform(shape, self.named[self.standing.rows], self.seed, _NOISE + run) * 2 - 1
        return drawn if self.threat.norm == "linf" else drawn * math.sqrt(3 / math.prod(shape))


def _turned(noise: Tensor, k: int) -> Tensor:
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
        at = rows[better]
        self.x[at], self._margin[at] = x[better], margins[better].to(self._margin)
