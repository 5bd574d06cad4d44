"""BIM, the basic iterative method, or iterative FGSM: small steps from the clean image itself.

x ← Π(x + step · s(∇_x L(f(x), y))), from x_0 = x (Kurakin et al. 2016, section 2.2). It is PGD
without the random start, under the name and with the step that its tables use. How the papers ran
it differs: see `torchattacks13.Torchattacks13BIM` and `erichson.ErichsonPGD`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from retroact.attacks.pgd import PGD
from retroact.crafting.attack import Attack
from retroact.crafting.losses import Loss
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.spec import Count, Positive, spec


@spec
class BIM(Attack):
    """`steps` steps of `relative_step` · eps each; examples leave as soon as their goal is
    reached."""

    steps: Count = 10
    relative_step: Positive = 0.2
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    streams: ClassVar[bool] = True
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Kurakin et al. 2016, arXiv:1607.02533"

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(self, scene: Scene) -> Tensor:
        walk = PGD(self.steps, self.relative_step, random_start=False, loss=self.loss)
        return walk(scene)
