"""R+FGSM: a random step, then FGSM with what is left of the radius.

x' = clip(x + alpha · sign(N(0, 1))), x_adv = clip(x' + (eps − alpha) · sign(∇L(f(x'), y))), alpha <
eps (Tramèr et al. 2017, eq. 7). The random step leaves the flat spot that adversarial training digs
around the clean image. `Torchattacks13RFGSM` is the version of the Sloped ReLU paper, which leaves
the ball.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.noise import normal
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.spec import UnitInterval, spec


@spec
class RFGSM(Attack):
    """A random step of `start` · eps, then one gradient step of (1 − start) · eps; `start=0` is
    FGSM."""

    start: UnitInterval = 0.5
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Tramèr et al. 2017, arXiv:1705.07204"
    passes: ClassVar[int] = 1

    def __call__(self, scene: Scene) -> Tensor:
        x, alpha = scene.x, self.start * scene.threat.eps
        noise = normal(scene.domain.shape, scene.index, scene.seed).sign()
        moved = scene.project(x + alpha * noise, x)
        climbed = partial(loss_of(self.loss), aim=scene.aim)
        _, gradient = scene.oracle.gradient(moved, scene.rows, climbed)
        return scene.project(moved + (scene.threat.eps - alpha) * gradient.sign(), x)
