"""SPSA: gradient steps whose gradients are made of scores alone.

ĝ = Σ (L(x + c v) − L(x − c v)) v over random directions v: signs for SPSA (Uesato et al. 2018,
algorithm 1), normal draws for NES (Ilyas et al. 2018, algorithm 1). It follows the loss itself, so
that a backward pass that is zero, partial or another function's does not mislead it, and c is long
enough to see over small stairs. What it needs grows with the number of entries: it serves small
examples.

Steps are Momentum's: along a running mean of estimates, long at first and short at the end. The
points around x are pulled into ball and box before they are asked about, so that each of them may
be what was looked for.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each, nonzero
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.noise import normal, portions, uniform
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import cosine
from retroact.crafting.threat import Access
from retroact.crafting.windows import signs_of
from retroact.spec import Count, UnitInterval, Within, spec

_LAST = 0.02  # of eps: the length of the last step
_DIRECTIONS = 800_000_011  # streams of their own
_STRIDE = 10_007  # from the streams of one step to those of the next


@spec
class SPSA(Attack):
    """`steps` steps along estimates from `samples` pairs of points each, `reach` times eps around
    the one that moves: 2 · `samples` + 1 queries a step.

    The directions are signs, or normal draws with estimator="nes". The running mean keeps `mu` of
    itself.
    """

    steps: Count = 30
    samples: Count = 32
    reach: Annotated[float, Within(0.0, above=True)] = 0.5
    mu: UnitInterval = 0.9
    loss: Loss = "margin"
    estimator: Literal["spsa", "nes"] = "spsa"
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "score"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Uesato et al. 2018, arXiv:1802.05666"

    @property
    def passes(self) -> int:
        """Queries, which cost less than the gradients that other attacks count here."""
        return self.steps * (2 * self.samples + 1) + 1

    def __call__(self, scene: Scene) -> Tensor:
        unbroken, x, centre, mean = Unbroken(scene), scene.x, scene.x, torch.zeros_like(scene.x)
        for k in range(self.steps):
            scene.oracle.progress(k / self.steps)
            seen = self._look(scene, x, unbroken.rows, k)
            _, x, centre, slope, mean = unbroken.part(
                seen.tried, seen.broken, x, centre, seen.slope, mean
            )
            if not len(unbroken):
                return unbroken.finish(x)
            size = nonzero(slope.flatten(1).abs().mean(1))
            mean = self.mu * mean + slope / each(size, slope)
            step = scene.threat.eps * cosine(k, self.steps, 1.0, _LAST)
            x = scene.project(x + scene.push(x, mean, step, centre), centre)
        return unbroken.finish(x)

    def _look(self, scene: Scene, x: Tensor, rows: Tensor, k: int) -> _Seen:
        """What the points `x` (m, …) and those around them have shown in the step `k`."""
        loss, aim, threat = loss_of(self.loss), scene.aim[rows], scene.threat
        tried, broken, slope = x, aim.reached(scene.oracle.logits(x, rows)), torch.zeros_like(x)
        reach = self.reach * threat.eps * threat.share(scene.domain.entries)
        for block, size in enumerate(portions(self.samples, scene.domain.entries)):
            v = self._draw(scene, rows, size, _DIRECTIONS + _STRIDE * k + block).to(x)
            points = x[:, None] + reach * torch.cat([v, -v], dim=1)
            centre = scene.x[rows.repeat_interleave(2 * size)]
            points = scene.project(points.flatten(0, 1), centre).view_as(points)
            logits = scene.at_several(scene.oracle.logits, points, rows)
            of = aim[torch.arange(len(rows), device=rows.device).repeat_interleave(2 * size)]
            value = loss(logits.flatten(0, 1), of).view(len(rows), 2, size)
            rise = (value[:, 0] - value[:, 1]).nan_to_num(0.0, 0.0, 0.0)
            apart = points[:, :size] - points[:, size:]  # 2 c v, but for what ball and box took
            slope = slope + (rise.view(*rise.shape, *[1] * (x.dim() - 1)) * apart).sum(1)
            hit = of.reached(logits.flatten(0, 1)).view(len(rows), -1)
            first = points[torch.arange(len(rows), device=rows.device), hit.int().argmax(1)]
            tried = tried.where(each(broken | ~hit.any(1), x), first)
            broken = broken | hit.any(1)
        return _Seen(tried, broken, slope)

    def _draw(self, scene: Scene, rows: Tensor, size: int, stream: int) -> Tensor:
        """`size` directions for each example, (m, size, …)."""
        shape, index = (size, *scene.domain.shape), scene.index[rows]
        if self.estimator == "nes":
            return normal(shape, index, scene.seed, stream)
        return signs_of(uniform(shape, index, scene.seed, stream))


class _Seen(NamedTuple):
    """Of each example a point that reaches the goal, where one is `broken`, and the slope."""

    tried: Tensor
    broken: Tensor
    slope: Tensor
