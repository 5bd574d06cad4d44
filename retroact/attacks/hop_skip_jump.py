"""HopSkipJump: along a decision boundary to its nearest point, by decisions alone.

From a point at the boundary it asks whether points around it are still decided wrongly; the mean of
these directions, each signed by the answer less the mean answer, estimates the boundary's normal
(Chen, Jordan & Wainwright 2020, algorithm 2, eq. 15 and 16). A step along it is halved until it
ends beyond the boundary, and bisection draws what it found back towards the clean example: along
the line for L2, entry by entry for L_inf, for so the norm pulls back into a smaller ball.

All examples of a chunk are asked at once, and each has its own random directions, so that none
depends on the others.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.geometry import each, put
from retroact.crafting.noise import portions, uniform
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Access
from retroact.spec import Count, spec

_DRAWS = 50  # random examples that are tried for a start,
_STARTS = 16  # of which so many are drawn to the boundary
_HALVINGS = 12  # of a step, until it is given up
_DIRECTIONS = 700_000_001  # streams of their own
_STRIDE = 10_007  # from the streams of one estimate to those of the next


@spec
class HopSkipJump(Attack):
    """At most `queries` decisions. The t-th estimate of the normal takes √t times `samples` of
    them; another t-th step is begun where the queries left are enough for it.

    It starts from examples of noise or corners of the box that are decided wrongly: from the
    nearest of sixteen, once they have been drawn to the boundary.
    """

    queries: Count = 5000
    samples: Count = 100
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Chen, Jordan & Wainwright 2020, arXiv:1904.02144"

    @property
    def passes(self) -> int:
        """Queries, which cost less than the gradients that other attacks count here."""
        return self.queries

    def __call__(self, scene: Scene) -> Tensor:
        halvings, turn = min(_precision(scene), self.queries // 2), 1
        found, left = _start(scene, self.queries, halvings)
        rows = found.size.isfinite().nonzero()[:, 0]
        at = found.x_adv[rows]
        while True:
            samples = round(self.samples * math.sqrt(turn))
            on = (left[rows] >= samples + _HALVINGS + halvings).nonzero()[:, 0]
            rows, at = rows[on], at[on]
            if not len(rows):
                return found.x_adv
            normal = _estimate(scene, at, rows, samples, turn)
            at, used = _leap(scene, at, normal, rows, turn)
            at = _approach(scene, at, rows, halvings)
            left[rows] -= samples + used + halvings
            found.keep(at, rows)
            turn += 1


class _Nearest:
    """For each example of a scene the nearest point `x_adv` that was decided wrongly, `size` (n,)
    away; the clean example, and infinite, where none was."""

    def __init__(self, scene: Scene) -> None:
        self._scene, self.x_adv = scene, scene.x.clone()
        self.size = scene.x.new_full((len(scene),), torch.inf)

    def keep(self, x_adv: Tensor, rows: Tensor) -> None:
        size = self._scene.threat.size(x_adv - self._scene.x[rows])
        nearer = size < self.size[rows]
        put(self.x_adv, rows, x_adv, nearer)
        put(self.size, rows, size, nearer)


def _precision(scene: Scene) -> int:
    """How many halvings find a radius to a share of d^(-3/2), as in the paper for L2."""
    return 1 + math.ceil(1.5 * math.log2(scene.domain.entries))


def _start(scene: Scene, queries: int, halvings: int) -> tuple[_Nearest, Tensor]:
    """Where each example's search begins, the nearest of a few points at the boundary, and how many
    `queries` are left (n,)."""
    found, left = _Nearest(scene), torch.full_like(scene.rows, queries)
    hits = torch.zeros_like(left)
    for turn in range(_DRAWS):
        # a start is needed, others are worth half of the queries
        more = (hits == 0) | ((hits < _STARTS) & (left > queries // 2))
        rows = (more & (left > halvings)).nonzero()[:, 0]
        if not len(rows):
            break
        tried = _far(scene, rows, turn, last=turn == _DRAWS - 1)
        hit = scene.is_broken(tried, rows).nonzero()[:, 0]
        left[rows] -= 1
        rows, tried = rows[hit], tried[hit]
        if len(rows):
            found.keep(_approach(scene, tried, rows, halvings), rows)
            left[rows] -= halvings
            hits[rows] += 1
    return found, left


def _far(scene: Scene, rows: Tensor, turn: int, *, last: bool) -> Tensor:
    """Noise, a random corner of the box, and so on in turn; in the end the corner that is
    farthest."""
    low, high, middle = scene.domain.low, scene.domain.high, scene.domain.middle
    x = scene.x[rows]
    if last:
        return torch.full_like(x, low).where(x >= middle, high)
    drawn = low + scene.domain.width * uniform(
        scene.domain.shape, scene.index[rows], scene.seed, turn
    ).to(x)
    return torch.full_like(x, low).where(drawn < middle, high) if turn % 2 else drawn


def _approach(scene: Scene, at: Tensor, rows: Tensor, halvings: int) -> Tensor:
    """The points `at` (m, …), drawn towards the clean examples as far as bisection finds them
    decided wrongly."""
    x = scene.x[rows]
    d, nearest = at - x, at
    high = scene.threat.size(d)
    low = torch.zeros_like(high)
    for _ in range(halvings):
        middle = (low + high) / 2
        tried = scene.threat.confine(d, middle, x, scene.domain)
        hit = scene.is_broken(tried, rows)
        nearest = tried.where(each(hit, x), nearest)
        low, high = low.where(hit, middle), middle.where(hit, high)
    return nearest


def _estimate(scene: Scene, at: Tensor, rows: Tensor, samples: int, turn: int) -> Tensor:
    """The boundary's normal at the points `at`, towards wrong decisions, (m, …), of any length.

    Σ (φ − mean φ) u over points at + u, φ = ±1 as they are decided, u as long as the
    perturbation over d: the paper's for L2.
    """
    reach = L2.size(at - scene.x[rows]) / scene.domain.entries
    answers, moves, signed = reach * 0, torch.zeros_like(at), torch.zeros_like(at)
    for block, size in enumerate(portions(samples, scene.domain.entries)):
        stream = _DIRECTIONS + _STRIDE * turn + block
        drawn = uniform((size, *scene.domain.shape), scene.index[rows], scene.seed, stream)
        u = L2.steepest((drawn.to(at) * 2 - 1).flatten(0, 1)).view_as(drawn)
        points = scene.clamp(at[:, None] + each(reach, u) * u)
        answer = scene.at_several(scene.is_broken, points, rows).to(at) * 2 - 1
        u = points - at[:, None]
        answers, moves = answers + answer.sum(1), moves + u.sum(1)
        signed = signed + (answer.view(*answer.shape, *[1] * (u.dim() - 2)) * u).sum(1)
    mean = answers / samples
    # where all agree, the mean of all directions is all that there is
    mean = mean.where(mean.abs() < 1, 0.0)
    return signed - each(mean, moves) * moves


def _leap(
    scene: Scene, at: Tensor, normal: Tensor, rows: Tensor, turn: int
) -> tuple[Tensor, Tensor]:
    """A step along the normal, ‖at − x‖ / √t long, halved until it ends where decisions are wrong;
    and the queries that it took, (m,)."""
    length = scene.threat.size(at - scene.x[rows]) / math.sqrt(turn)
    way, moved, used = scene.threat.steepest(normal), at.clone(), torch.zeros_like(rows)
    waiting = torch.arange(len(rows), device=rows.device)
    for _ in range(_HALVINGS):
        step = each(length[waiting], way) * way[waiting]
        tried = scene.clamp(at[waiting] + step)
        hit = scene.is_broken(tried, rows[waiting])
        used[waiting] += 1
        moved[waiting[hit]] = tried[hit]
        waiting, length = waiting[~hit], length / 2
        if not len(waiting):
            break
    return moved, used
