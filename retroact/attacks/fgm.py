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
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import spec


@spec
class FGM:
    """One step of L2 length eps along the gradient of the loss."""

    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Miyato et al. 2016, arXiv:1605.07725"
    passes: ClassVar[int] = 1

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        return FGSM(self.loss)(oracle, x, aim, threat, index=index, seed=seed)

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
        return FGSM(self.loss).sweep(oracle, x, aim, threats, index=index, seed=seed)
