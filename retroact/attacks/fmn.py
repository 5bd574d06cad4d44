"""FMN, fast minimum-norm: a ball that shrinks around the clean image as long as it holds an
adversarial point.

Each step climbs the margin, δ ← δ + α_i · ∇m / ‖∇m‖₂, and cuts δ with the ball of radius ε_i and
with the box. Until a first adversarial point is found ε is the distance of the linearised boundary,
‖δ‖_p + |m| / ‖∇m‖_q; then it is (1 − γ_i) ε inside, never above the best norm, and (1 + γ_i) ε
outside. α and γ fall along a cosine (Pintor et al. 2021, Algorithm 1). Two things differ from
there: the first distance is taken (1 + γ_i) times too, or a flat boundary would be neared from
inside without end; and pixels at an edge of the box, pushed outward, do not count in ∇m, which the
box would make too long.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.geometry import each
from retroact.crafting.losses import margin
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import Smallest, cosine
from retroact.crafting.threat import L2, Access
from retroact.spec import Count, Positive, Within, spec


@spec
class FMN(Attack):
    """`steps` gradients; the first step is `step_size` long (L2, pixels: shares of the box's width;
    None: 1 for the L2 norm, 5 for L_inf, whose ball a step leaves in most pixels at once), the last
    a hundredth of it.

    `gamma` is the first part by which the radius changes, 0.001 the last; `probes` forward passes
    then draw the result towards the clean image (0: the published algorithm).
    """

    steps: Count = 100
    step_size: Positive | None = None
    gamma: Annotated[float, Within(0.001, 1.0)] = 0.05
    probes: Annotated[int, Within(0)] = 2
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Pintor et al. 2021, arXiv:2102.12827"
    version: ClassVar[int] = 2
    starts_clean: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.steps + (self.probes > 0)  # the polish takes one

    def __call__(self, scene: Scene) -> Tensor:
        x, aim, threat, smallest = scene.x, scene.aim, scene.threat, Smallest(scene)
        rows, at = scene.rows, x
        radius = torch.full_like(smallest.size, torch.inf)
        first = (self.step_size or threat.stride) * scene.domain.width
        for i in range(self.steps):
            climbed = partial(margin, aim=aim[rows])
            logits, seen, gradient = scene.oracle.tangent(at, rows, climbed)
            gradient = scene.domain.inward(gradient, at)
            hit = smallest.keep(at, logits, rows)
            d, best = at - x[rows], smallest.size[rows]
            edge = threat.size(d) + climbed(seen).abs() / threat.dual_norm(gradient)
            gamma = cosine(i, self.steps, self.gamma, 0.001)
            inside = torch.minimum(radius * (1 - gamma), best)
            radius = inside.where(hit, (edge.where(best.isinf(), radius) * (1 + gamma))).nan_to_num(
                torch.inf
            )
            # a dead place is left along the ray
            d = torch.where(each(edge.isfinite(), d), d, (1 + gamma) * d)
            d = d + cosine(i, self.steps, first, first / 100) * L2.steepest(gradient)
            if i == 0:  # no gradient at the clean image: there never will be one
                moved = (threat.size(d) > 0).nonzero()[:, 0]
                rows, d, radius = rows[moved], d[moved], radius[moved]
            if len(rows) == 0:
                break
            at = scene.clamp(x[rows] + threat.cut(d, radius))
        smallest.pull(self.probes)
        return smallest.polish(self.probes)
