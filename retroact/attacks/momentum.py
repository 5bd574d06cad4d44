"""Momentum: steps along a running mean of gradients, long at first and short at the end.

g ← μ g + ∇m / mean|∇m|, x ← Π(x + η_k s(g)), η_k falling from eps to eps/50 along half a cosine. The mean of
normalised gradients is Dong et al.'s; they keep the step, Croce & Hein's APGD sets it by what the loss does. Where
gradients are only a guide to a loss with jumps, the loss says little about the step, and a plan does better.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.attacks.apgd import likeliest
from retroact.attacks.driver import Standing
from retroact.attacks.geometry import TINY, each, project, random_start, steepest
from retroact.attacks.goals import Aim
from retroact.attacks.losses import Loss, loss_of, margin
from retroact.attacks.oracle import Oracle
from retroact.attacks.smallest import cosine
from retroact.attacks.threat import Access, Norm, ThreatModel
from retroact.spec import Count, UnitInterval, Within, spec

_LAST = 0.02  # of eps: the length of the last step


@spec
class Momentum:
    """`steps` gradients from each of `restarts` random starts, the running mean keeping `mu` of itself.

    `targets=k` climbs towards each of the k classes that the clean logits rank next after the true one, for an
    untargeted goal, each from the best point of those before; 0 climbs as the goal says.
    """

    steps: Count = 30
    restarts: Count = 1
    targets: Annotated[int, Within(0)] = 0
    mu: UnitInterval = 0.5
    loss: Loss = "margin"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Dong et al. 2018, arXiv:1710.06081"

    @property
    def passes(self) -> int:
        return self.steps * self.restarts * max(1, self.targets)

    def __call__(self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int) -> Tensor:
        standing, best = Standing(x, aim), _Best(x)
        for run, towards in enumerate(likeliest(oracle, x, aim, self.targets, self.restarts)):
            rows = standing.rows
            if not len(rows):
                break
            start = best.x[rows]
            if run % max(1, self.targets) == 0:
                start = random_start(x[rows], threat, index[rows], seed, stream=run)
            self._climb(oracle, standing, best, start, x[rows], threat, towards)
        return standing.finish(best.x[standing.rows])

    def _climb(
        self,
        oracle: Oracle,
        standing: Standing,
        best: _Best,
        x: Tensor,
        centre: Tensor,
        threat: ThreatModel,
        towards: Aim,
    ) -> None:
        loss, mean = loss_of(self.loss), torch.zeros_like(x)
        for k in range(self.steps):
            oracle.progress(k / self.steps)
            climbed = partial(loss, aim=towards[standing.rows])
            logits, gradient = oracle.gradient(x, standing.rows, climbed)
            best.keep(x, margin(logits, standing.aim), standing.rows)
            x, centre, gradient, mean = standing.drop(x, logits, centre, gradient, mean)
            if not len(standing):
                return
            mean = self.mu * mean + gradient / each(gradient.flatten(1).abs().mean(1).clamp_min(TINY), gradient)
            step = threat.eps * cosine(k, self.steps, 1.0, _LAST)
            x = project(x + step * steepest(mean, threat.norm), centre, threat)
        logits = oracle.logits(x, standing.rows)
        best.keep(x, margin(logits, standing.aim), standing.rows)
        standing.drop(x, logits)


class _Best:
    """For each example of a chunk the point `x` that came nearest to the goal, by the margin."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self._margin = x.new_full((len(x),), -torch.inf)

    def keep(self, x: Tensor, margins: Tensor, rows: Tensor) -> None:
        better = margins > self._margin[rows]  # false for a NaN
        at = rows[better]
        self.x[at], self._margin[at] = x[better], margins[better].to(self._margin)
