"""FGSM, the fast gradient sign method: one step to the edge of the ball.

x_adv = clip(x + eps · s(∇_x L(f(x), y))), s = sign for L_inf (Goodfellow et al. 2014), s = g/‖g‖₂
for L2 (the "fast gradient method" of Miyato et al. 2016). JumpReLU eq. 4; Sloped ReLU eq. 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access, ThreatModel
from retroact.spec import spec


@spec
class FGSM(Attack):
    """One step of length eps along the steepest direction of the loss; no random start."""

    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Goodfellow et al. 2014, arXiv:1412.6572"
    passes: ClassVar[int] = 1
    starts_clean: ClassVar[bool] = True
    shares_radii: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Tensor:
        return self.sweep(scene, [scene.threat])[0]

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """One gradient serves every eps."""
        x, climbed = scene.x, partial(loss_of(self.loss), aim=scene.aim)
        _, gradient = scene.oracle.gradient(x, scene.rows, climbed)
        scenes = [scene.under(threat) for threat in threats]
        return [s.project(x + s.push(x, gradient, s.threat.eps, x), x) for s in scenes]
