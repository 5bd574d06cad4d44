"""BIM, the basic iterative method, or iterative FGSM: small steps from the clean image itself.

x ← Π(x + step · s(∇_x L(f(x), y))), from x_0 = x (Kurakin et al. 2016, section 2.2). It is PGD
without the random start, under the name and with the step that its tables use. How the papers ran
it differs: see `published.Torchattacks13BIM` and `published.ErichsonPGD`.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from retroact.attacks.pgd import PGD
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import Count, Positive, spec


@spec
class BIM:
    """`steps` steps of `relative_step` · eps each; examples leave as soon as their goal is
    reached."""

    steps: Count = 10
    relative_step: Positive = 0.2
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Kurakin et al. 2016, arXiv:1607.02533"

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        walk = PGD(self.steps, self.relative_step, random_start=False, loss=self.loss)
        return walk(oracle, x, aim, threat, index=index, seed=seed)
