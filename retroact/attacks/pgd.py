"""PGD, projected gradient descent: many small steps, each pulled back into the ball.

x ← Π(x + step · s(∇_x L(f(x), y))), from a random point of the ball, with restarts (Madry et al.
2017). Examples whose goal is reached leave the loop at once: since they stay beaten, this is never
weaker than the fixed budget, and it is where most of the time is saved.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.driver import Standing
from retroact.crafting.geometry import project, random_start, steepest
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import Count, Positive, spec


@spec
class PGD:
    """`steps` steps of `relative_step` · eps each (None: 2.5/steps, Madry et al.'s rule),
    `restarts` times.

    The first start is random too unless `random_start` is False; further restarts always are.
    """

    steps: Count = 40
    relative_step: Positive | None = None
    restarts: Count = 1
    random_start: bool = True
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Madry et al. 2017, arXiv:1706.06083"

    @property
    def passes(self) -> int:
        return self.steps * self.restarts

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        standing, last = Standing(x, aim), x
        for restart in range(self.restarts):
            rows = standing.rows
            centre = x[rows]
            start = centre
            if self.random_start or restart:
                start = random_start(centre, threat, index[rows], seed, stream=restart)
            last = self._climb(oracle, standing, start, centre, threat)
            if restart + 1 < self.restarts and len(standing):
                (last,) = standing.drop(last, oracle.logits(last, standing.rows))
            if not len(standing):
                break
        return standing.finish(last)

    def _climb(
        self, oracle: Oracle, standing: Standing, x: Tensor, centre: Tensor, threat: ThreatModel
    ) -> Tensor:
        loss = loss_of(self.loss)
        step = threat.eps * (self.relative_step or 2.5 / self.steps)
        for _ in range(self.steps):
            if not len(standing):
                break
            logits, gradient = oracle.gradient(x, standing.rows, partial(loss, aim=standing.aim))
            x, centre, gradient = standing.drop(x, logits, centre, gradient)
            x = project(torch.add(x, steepest(gradient, threat.norm), alpha=step), centre, threat)
        return x
