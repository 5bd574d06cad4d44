"""PixelSearch: the fewest pixels that turn the decision, each moved to a corner of the colours.

Every pixel of an image is tried at every corner of the box, one at a time; where none turns the
decision, pixels that come near it are tried together, two, three and so on, drawn by their rank
(Croce & Hein 2019, CornerSearch, section 3.1: the one-pixel modifications ordered by what they
take from the margin, and P(i) = (2N − 2i + 1) / N² for the i-th of N, eq. 8). The paper goes on
with any number of pixels; here their number is the first field. A pixel of a series is a moment,
of a row a column.

The search asks for scores and no gradient, so it sees over what hides one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.domain import Domain
from retroact.crafting.driver import Unbroken
from retroact.crafting.losses import margin
from retroact.crafting.noise import uniform
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.spec import Count, spec

_TOGETHER = 64  # points of an example that are asked about at once
_CHANNELS = 4  # with more of them there are too many corners: one channel moves, or all of them


@spec
class PixelSearch(Attack):
    """At most so many `pixels`; of two and more `draws` sets for each number, from the `pool` that
    comes nearest. It minimises ‖x_adv − x‖₀, whatever the norm of the threat."""

    pixels: Count = 1
    pool: Count = 100
    draws: Count = 100
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "score"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Croce & Hein 2019, arXiv:1909.05040"

    @property
    def passes(self) -> int:
        """Queries on a CIFAR-10 image, which cost less than the gradients that others count."""
        return 8 * 1024 + (self.pixels - 1) * self.draws

    def __call__(self, scene: Scene) -> Tensor:
        unbroken, corners = Unbroken(scene), _corners(scene.domain).to(scene.x)
        x, gains = _try_each(scene, unbroken, corners)
        if self.pixels > 1 and len(unbroken):
            x = self._try_sets(scene, unbroken, x, gains, corners)
        return unbroken.finish(x)

    def _try_sets(
        self, scene: Scene, unbroken: Unbroken, x: Tensor, gains: Tensor, corners: Tensor
    ) -> Tensor:
        """Sets of two and more pixels, those of fewer first."""
        gain, corner = gains.view(len(x), -1, len(corners)).max(2)
        place = gain.sort(dim=1, descending=True, stable=True).indices[:, : self.pool]
        corner = corner.gather(1, place)
        for count in range(2, self.pixels + 1):
            for turn, drawn in enumerate(_portions(self.draws)):
                stream = 1 + count * self.draws + turn
                u = uniform((drawn, count), scene.index[unbroken.rows], scene.seed, stream).to(x)
                rank = _rank(u, place.shape[1]).flatten(1)
                at, to = (v.gather(1, rank).view(-1, drawn, count) for v in (place, corner))
                points = _paint(scene, x, at, to, corners)
                x, place, corner = _ask(scene, unbroken, points, x, place, corner)[:3]
                if not len(unbroken):
                    return x
        return x


def _corners(domain: Domain) -> Tensor:
    """The colours that a pixel is moved to, (q, channels)."""
    ends, channels = (domain.low, domain.high), domain.frame.channels
    if channels <= _CHANNELS:
        return torch.tensor(list(itertools.product(ends, repeat=channels)))
    alone = torch.full((2 * channels, channels), torch.nan)  # as it is, but for one channel
    for i, end in itertools.product(range(channels), (0, 1)):
        alone[2 * i + end, i] = ends[end]
    return torch.cat([alone, torch.tensor([[end] * channels for end in ends])])


def _try_each(scene: Scene, unbroken: Unbroken, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel alone at each corner: the examples that none of these breaks, and their margins
    (m, places · q)."""
    x, gains = scene.x, scene.x.new_empty(len(scene), 0)
    frame = scene.domain.frame
    for part in torch.arange(frame.height * frame.width * len(corners)).split(_TOGETHER):
        place, corner = (
            v.to(x.device).expand(len(x), -1)[..., None]
            for v in (part // len(corners), part % len(corners))
        )
        points = _paint(scene, x, place, corner, corners)
        x, gains, gain = _ask(scene, unbroken, points, x, gains)
        gains = torch.cat([gains, gain], dim=1)
        if not len(unbroken):
            break
    return x, gains


def _paint(scene: Scene, x: Tensor, place: Tensor, corner: Tensor, corners: Tensor) -> Tensor:
    """`x` (m, …) with the pixels `place` (m, s, k) moved to the colours `corner` of `corners`: (m,
    s, …)."""
    flat = scene.domain.frame.view(x).flatten(2)[:, None].expand(-1, place.shape[1], -1, -1)
    at = place[:, :, None].expand(-1, -1, flat.shape[2], -1)
    colour = corners[corner].transpose(2, 3)
    colour = flat.gather(3, at).where(colour.isnan(), colour)
    return flat.scatter(3, at, colour).view(*place.shape[:2], *x.shape[1:])


def _ask(
    scene: Scene, unbroken: Unbroken, points: Tensor, x: Tensor, *others: Tensor
) -> tuple[Tensor, ...]:
    """Files away the examples that one of their `points` (m, s, …) breaks, at the first of them;
    (x, *others, margins (m, s)) of the rest."""
    m, s = points.shape[:2]
    logits = scene.at_several(scene.oracle.logits, points, unbroken.rows).flatten(0, 1)
    aim = unbroken.aim[torch.arange(m, device=x.device).repeat_interleave(s)]
    hit, gain = aim.reached(logits).view(m, s), margin(logits, aim).view(m, s)
    first = hit.int().argmax(1)
    broken = hit.any(1)
    tried = points[torch.arange(m, device=x.device), first]
    clean, *rest = unbroken.part(tried, broken, x, *others, gain)[1:]
    return clean, *rest


def _rank(u: Tensor, pool: int) -> Tensor:
    """The ranks that u in [0, 1] draw: P(rank < i) = 1 − (1 − i / N)² = Σ_{j ≤ i} (2N − 2j + 1) /
    N²."""
    return (pool * (1 - (1 - u).sqrt())).long().clamp_max(pool - 1)


def _portions(draws: int) -> Iterator[int]:
    """How many sets are asked about together."""
    for begin in range(0, draws, _TOGETHER):
        yield min(_TOGETHER, draws - begin)
