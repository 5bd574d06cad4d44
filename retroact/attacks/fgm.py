"""FGM, the fast gradient method: the L2 name of FGSM.

x_adv = clip(x + eps · g/‖g‖₂), g = ∇_x L(f(x), y) (Miyato et al. 2016, eq. 12; foolbox's
L2FastGradient). It is a name of its own because tables have one; `FGSM` under an `L2` threat is the
same attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from retroact.attacks.fgsm import FGSM
from retroact.crafting.attack import Attack
from retroact.crafting.losses import Loss
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access, ThreatModel
from retroact.spec import spec


@spec
class FGM(Attack):
    """One step of L2 length eps along the gradient of the loss."""

    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Miyato et al. 2016, arXiv:1605.07725"
    passes: ClassVar[int] = 1
    shares_radii: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Tensor:
        return FGSM(self.loss)(scene)

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """One gradient serves every eps."""
        return FGSM(self.loss).sweep(scene, threats)
