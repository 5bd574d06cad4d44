"""StepLL: steps towards the class that the clean image looks least like.

x ← Π(x − step · sign(∇_x CE(f(x), y_LL))), y_LL = argmin of the clean logits (Kurakin et al. 2016,
section 2.3; one step: Kurakin, Goodfellow & Bengio 2016, "step l.l."). It is scored as any attack
with its goal: for an untargeted one it has won when the decision is any wrong class.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.driver import Standing
from retroact.crafting.geometry import project, steepest
from retroact.crafting.goals import Aim, LeastLikely
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import Count, Positive, spec


@spec
class StepLL:
    """`steps` steps of `relative_step` · eps each (None: eps/steps, and so one step of eps by
    default).

    A targeted goal keeps its own target; with `LeastLikely()` that is the same class.
    """

    steps: Count = 1
    relative_step: Positive | None = None
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Kurakin et al. 2016, arXiv:1611.01236"

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        loss, standing, centre = loss_of(self.loss), Standing(x, aim), x
        towards = self._towards(oracle, x, aim, index)
        step = threat.eps * (self.relative_step or 1 / self.steps)
        for _ in range(self.steps):
            logits, gradient = oracle.gradient(
                x, standing.rows, partial(loss, aim=towards[standing.rows])
            )
            x, centre, gradient = standing.drop(x, logits, centre, gradient)
            if not len(standing):
                break
            x = project(x + step * steepest(gradient, threat.norm), centre, threat)
        return standing.finish(x)

    def _towards(self, oracle: Oracle, x: Tensor, aim: Aim, index: Tensor) -> Aim:
        if aim.targets is not None:
            return aim
        logits = oracle.logits(x, torch.arange(len(x), device=x.device))
        return LeastLikely()(aim.labels, logits, index)
