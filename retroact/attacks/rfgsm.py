"""R+FGSM: a random step, then FGSM with what is left of the radius.

x' = clip(x + alpha · sign(N(0, 1))), x_adv = clip(x' + (eps − alpha) · sign(∇L(f(x'), y))), alpha <
eps (Tramèr et al. 2017, eq. 7). The random step leaves the flat spot that adversarial training digs
around the clean image. `published.Torchattacks13RFGSM` is the version of the Sloped ReLU paper,
which leaves the ball.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.geometry import project
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.noise import normal
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import UnitInterval, spec


@spec
class RFGSM:
    """A random step of `start` · eps, then one gradient step of (1 − start) · eps; `start=0` is
    FGSM."""

    start: UnitInterval = 0.5
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Tramèr et al. 2017, arXiv:1705.07204"
    passes: ClassVar[int] = 1

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        alpha = self.start * threat.eps
        moved = project(x + alpha * normal(tuple(x.shape[1:]), index, seed).sign(), x, threat)
        rows = torch.arange(len(x), device=x.device)
        _, gradient = oracle.gradient(moved, rows, partial(loss_of(self.loss), aim=aim))
        return project(moved + (threat.eps - alpha) * gradient.sign(), x, threat)
