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

from retroact.crafting.geometry import TINY, dual_norm, each, inward, norm, steepest
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.crafting.oracle import Oracle
from retroact.crafting.smallest import Smallest, cosine
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import Count, Positive, Within, spec

_STEP: dict[Norm, float] = {"l2": 1.0, "linf": 5.0}


@spec
class FMN:
    """`steps` gradients; the first step is `step_size` long (L2, pixels; None: 1 for the L2 norm, 5
    for L_inf, whose ball a step leaves in most pixels at once), the last a hundredth of it.

    `gamma` is the first part by which the radius changes, 0.001 the last; `probes` forward passes
    then draw the result towards the clean image (0: the published algorithm).
    """

    steps: Count = 100
    step_size: Positive | None = None
    gamma: Annotated[float, Within(0.001, 1.0)] = 0.05
    probes: Annotated[int, Within(0)] = 2
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Pintor et al. 2021, arXiv:2102.12827"
    version: ClassVar[int] = 2
    starts_clean: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.steps + (self.probes > 0)  # the polish takes one

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        found, p = Smallest(x, aim, threat.norm), threat.norm
        rows, at = torch.arange(len(x), device=x.device), x
        radius, first = torch.full_like(found.size, torch.inf), self.step_size or _STEP[p]
        for i in range(self.steps):
            logits, seen, gradient = oracle.tangent(at, rows, partial(margin, aim=aim[rows]))
            gradient = inward(gradient, at)
            hit = found.keep(at, logits, rows)
            d, best = at - x[rows], found.size[rows]
            edge = norm(d, p) + margin(seen, aim[rows]).abs() / dual_norm(gradient, p)
            gamma = cosine(i, self.steps, self.gamma, 0.001)
            inside = torch.minimum(radius * (1 - gamma), best)
            radius = inside.where(hit, (edge.where(best.isinf(), radius) * (1 + gamma))).nan_to_num(
                torch.inf
            )
            # a dead place is left along the ray
            d = torch.where(each(edge.isfinite(), d), d, (1 + gamma) * d)
            d = d + cosine(i, self.steps, first, first / 100) * steepest(gradient, "l2")
            moved = norm(d, p) > 0
            if not moved.all():  # no gradient at the clean image: there never will be one
                rows, d, radius = rows[moved], d[moved], radius[moved]
            if len(rows) == 0:
                break
            at = (x[rows] + _cut(d, radius, p)).clamp(0.0, 1.0)
        found.pull(oracle, self.probes)
        return found.polish(oracle, self.probes)


def _cut(d: Tensor, radius: Tensor, p: Norm) -> Tensor:
    if p == "linf":
        return torch.clamp(d, -each(radius, d), each(radius, d))
    return each((radius / norm(d, "l2").clamp_min(TINY)).clamp_max(1.0), d) * d
