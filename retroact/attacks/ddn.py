"""DDN: the direction and the norm of the perturbation are found apart.

δ ← δ + α_i · ∇L / ‖∇L‖₂, then ε ← (1 ∓ γ) ε as the last point was adversarial or not, then δ ← ε ·
δ / ‖δ‖₂ and a cut with the box; α_i falls along a cosine to 0.01 (Rony et al. 2019, Algorithm 1).
Unlike there, the image is not rounded to 256 grey levels, and L is the log-odds of logits of one
and the same spread: near the direction of the cross-entropy's gradient, but it neither vanishes
where the network is sure nor changes with the scale of its logits. And α_0 is 3, not 1, which looks
farther around before it settles: smaller norms on validation images of all networks that were
tried.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.geometry import TINY, each
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import Smallest, cosine
from retroact.crafting.threat import L2, Access
from retroact.spec import Count, Positive, Within, spec


@spec
class DDN(Attack):
    """`steps` gradients from a first norm `init` (L2, pixels: shares of the box's width), which
    changes by the part `gamma` at each step.

    The first step is `step_size` long (likewise), the last 0.01. `probes` forward passes then draw
    the result towards the clean image. With loss="cross_entropy", step_size=1 and probes=0 it is
    the published algorithm.
    """

    steps: Count = 100
    gamma: Annotated[float, Within(0.0, 1.0, above=True)] = 0.05
    init: Positive = 1.0
    loss: Loss = "scaled_log_odds"
    probes: Annotated[int, Within(0)] = 2
    step_size: Annotated[float, Within(0.01)] = 3.0
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Rony et al. 2019, arXiv:1811.09600"
    # a loss that does not depend on the scale of the logits, and longer first steps
    version: ClassVar[int] = 3
    starts_clean: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.steps + (self.probes > 0)  # the polish takes one

    def __call__(self, scene: Scene) -> Tensor:
        x, smallest, loss = scene.x, Smallest(scene), loss_of(self.loss)
        rows, at, unit = scene.rows, x, scene.domain.width
        size = x.new_full((len(x),), self.init * unit)
        for i in range(self.steps):
            climbed = partial(loss, aim=scene.aim[rows])
            logits, gradient = scene.oracle.gradient(at, rows, climbed)
            hit = smallest.keep(at, logits, rows)
            size = torch.where(hit, size * (1 - self.gamma), size * (1 + self.gamma))
            length = cosine(i, self.steps, self.step_size, 0.01) * unit
            d = at - x[rows] + length * L2.steepest(gradient)
            if i == 0:  # no gradient at the clean image: there never will be one
                moved = (L2.size(d) > 0).nonzero()[:, 0]
                rows, d, size = rows[moved], d[moved], size[moved]
            if len(rows) == 0:
                break
            at = scene.clamp(x[rows] + each(size / L2.size(d).clamp_min(TINY), d) * d)
        smallest.pull(self.probes)
        return smallest.polish(self.probes)
