"""FGSM, the fast gradient sign method: one step to the edge of the ball.

x_adv = clip(x + eps · s(∇_x L(f(x), y))), s = sign for L_inf (Goodfellow et al. 2014), s = g/‖g‖₂
for L2 (the "fast gradient method" of Miyato et al. 2016). JumpReLU eq. 4; Sloped ReLU eq. 1 and 2.
Code that averages the loss over its batch of B images, as that of Sloped ReLU, follows ∇(L/B): the
same direction, but for entries so small that dividing by B rounds them to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access, ThreatModel
from retroact.spec import Count, spec


@spec
class FGSM(Attack):
    """One step of length eps along the steepest direction of the loss; no random start. The loss
    is divided by `batch` before the gradient is taken, as the mean over so many images is."""

    loss: Loss = "cross_entropy"
    batch: Count = 1
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
        x = scene.x
        _, gradient = scene.oracle.gradient(x, scene.rows, partial(self._share, aim=scene.aim))
        scenes = [scene.under(threat) for threat in threats]
        return [s.project(x + s.push(x, gradient, s.threat.eps, x), x) for s in scenes]

    def _share(self, logits: Tensor, aim: Aim) -> Tensor:
        """What an image adds to the mean of its batch."""
        loss = loss_of(self.loss)(logits, aim)
        return loss if self.batch == 1 else loss / self.batch
