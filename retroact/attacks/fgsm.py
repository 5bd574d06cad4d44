"""FGSM, the fast gradient sign method: one step to the edge of the ball.

x_adv = clip(x + eps · s(∇_x L(f(x), y))), s = sign for L_inf (Goodfellow et al. 2014), s = g/‖g‖₂
for L2 (the "fast gradient method" of Miyato et al. 2016). JumpReLU eq. 4; Sloped ReLU eq. 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.geometry import project, steepest
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import spec


@spec
class FGSM:
    """One step of length eps along the steepest direction of the loss; no random start."""

    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1412.6572"
    passes: ClassVar[int] = 1
    starts_clean: ClassVar[bool] = True

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        return self.sweep(oracle, x, aim, [threat], index=index, seed=seed)[0]

    def sweep(
        self,
        oracle: Oracle,
        x: Tensor,
        aim: Aim,
        threats: Sequence[ThreatModel],
        *,
        index: Tensor,
        seed: int,
    ) -> list[Tensor]:
        """One gradient serves every eps."""
        rows = torch.arange(len(x), device=x.device)
        _, gradient = oracle.gradient(x, rows, partial(loss_of(self.loss), aim=aim))
        return [project(x + t.eps * steepest(gradient, t.norm), x, t) for t in threats]
