"""The L1 ball: few entries may change much.

Here the box matters: an entry that has reached its edge takes no more, so both the projection and
the steepest step are those of the ball and the box together (Croce & Hein 2021, arXiv:2103.01208).
Both are found by halving the interval of one number for each example, with no sorting: the same
bits in any batch, and faster.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.domain import Domain
from retroact.crafting.geometry import each, nonzero
from retroact.crafting.noise import normal
from retroact.crafting.pacing import Pace, Sparse
from retroact.crafting.threat import Access, ThreatModel
from retroact.spec import Positive, spec

_HALVINGS = 24  # of the interval of a number: as many as float32 has bits
_SPREAD = 2.0  # a step changes at least so many times fewer entries than have changed already
_DUST = 64  # roundings of an entry: less than so many of them is no change of it


@spec
class L1(ThreatModel):
    """‖x_adv − x‖₁ ≤ eps, the absolute changes of all entries of [0, 1] images added up.

    So eps = 10 may turn ten black pixels white, or change twenty by half. A budget attack refuses a
    radius beyond the c·h·w of the box; to a minimum-norm attack a large one means no limit.
    """

    eps: Positive
    access: Access = "gradient"
    norm: ClassVar[str] = "l1"
    pace: ClassVar[Pace] = Sparse()
    travel: ClassVar[float] = 10.0  # what one step adds to some entries, projections take from all

    @staticmethod
    def size(d: Tensor) -> Tensor:
        """Σ |d|."""
        return d.flatten(1).abs().sum(1)

    @staticmethod
    def dual_norm(g: Tensor) -> Tensor:
        """max |g|."""
        return g.flatten(1).abs().amax(1)

    @staticmethod
    def steepest(g: Tensor) -> Tensor:
        """The sign of the largest |g|, the first of several, in its place; zero elsewhere."""
        flat = g.flatten(1)
        at = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, at, flat.gather(1, at).sign()).view_as(g)

    @staticmethod
    def cut(d: Tensor, radius: Tensor | float) -> Tensor:
        """The nearest point of the ball, sign(d) · max(|d| − λ, 0) (Duchi et al. 2008)."""
        return shrink(d, d.abs(), radius)

    @staticmethod
    def measure(domain: Domain) -> float:
        """(high − low) · entries."""
        return domain.width * domain.entries

    def confine(self, d: Tensor, radius: Tensor | float, centre: Tensor, domain: Domain) -> Tensor:
        """The nearest point of ball and box together (Croce & Hein 2021, prop. 2.2)."""
        return domain.clamp(centre + shrink(d, _room(d, centre, domain), radius))

    def start(self, x: Tensor, domain: Domain, index: Tensor, seed: int, stream: int = 0) -> Tensor:
        """Normal noise, as wide as the box, projected, so that only its largest entries are left
        (as in Croce & Hein 2021)."""
        noise = normal(domain.shape, index, seed, stream).to(x)
        return self.project(x + domain.width * noise, x, domain)

    def push(
        self,
        x: Tensor,
        gradient: Tensor,
        length: Tensor | float,
        centre: Tensor,
        domain: Domain,
        entries: Tensor | None = None,
    ) -> Tensor:
        """The d of ‖d‖ = length and x + d in the box with the largest g·d, no entry of which is
        longer than length / `entries` (m,).

        By default `entries` is half of those in which `x` differs from `centre`: 1 at the centre
        itself, from which d is the steepest step that there is.
        """
        length = _numbers(length, gradient)
        if entries is None:
            entries = (x != centre).flatten(1).sum(1) / _SPREAD
        longest = each(length / entries.clamp_min(1.0), gradient)
        room = torch.minimum(_room(gradient, x, domain), longest)
        rank = gradient.abs() / each(nonzero(self.dual_norm(gradient)), gradient)
        return gradient.sign() * room * fill(rank, room, length)

    def step(
        self, x: Tensor, gradient: Tensor, length: float, centre: Tensor, domain: Domain
    ) -> Tensor:
        """A step of PGD along the entries in which the gradient is largest."""
        return self.project(x + self.push(x, gradient, length, centre, domain), centre, domain)

    def shortest(self, w: Tensor, wanted: Tensor, x: Tensor, domain: Domain) -> Tensor:
        """One entry after the other to its edge of the box, the largest |w| first, until w·d =
        `wanted`."""
        steepness = nonzero(self.dual_norm(w)).double()
        rank, room = w.abs().double() / each(steepness, w), _room(w, x, domain)
        return w.sign() * room * fill(rank, rank * room, wanted / steepness).to(w)


def shrink(d: Tensor, room: Tensor, radius: Tensor | float) -> Tensor:
    """The point nearest to `d` (n, …) in the ball of `radius`, one or (n,), no entry of which is
    longer than `room`.

    sign(d) · clip(|d| − λ, 0, room) with the smallest λ ≥ 0 that makes it short enough.
    """
    # in double: a sum of many entries is to be exact enough to project a second time to the same
    size, room = d.abs().flatten(1).double(), room.flatten(1).double()
    most = _numbers(radius, size)[:, None]
    low, high = torch.zeros_like(most), size.amax(1, keepdim=True)

    def left(by: Tensor) -> Tensor:
        return torch.minimum((size - by).clamp_min(0.0), room)

    high = high.where(left(low).sum(1, keepdim=True) > most, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        long = left(middle).sum(1, keepdim=True) > most
        low, high = middle.where(long, low), high.where(long, middle)
    kept = left(high)
    free = ((kept > 0) & (kept < room)).sum(1, keepdim=True)  # so many lengths change with λ
    spare = (most - kept.sum(1, keepdim=True)) / free.clamp_min(1)
    kept = left(torch.maximum(high - spare, low))
    # what rounding alone leaves of an entry is none that has moved, which `Sparse` counts
    kept = kept.where(kept > _DUST * torch.finfo(d.dtype).eps * size, 0.0)
    return (d.sign().flatten(1) * kept).to(d).view_as(d)


def fill(rank: Tensor, amounts: Tensor, wanted: Tensor) -> Tensor:
    """What part of each of the `amounts` (n, …) to take so that they add up to `wanted` (n,), those
    of the highest `rank`, in [0, 1], first: as `amounts`, all of them where they are too few.

    Entries of one rank share what is left for them; those of rank 0 have nothing.
    """
    flat, there, wanted = rank.flatten(1), amounts.flatten(1), wanted[:, None]
    low, high = torch.zeros_like(flat[:, :1]), torch.ones_like(flat[:, :1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = (there * (flat > middle)).sum(1, keepdim=True) >= wanted
        low, high = middle.where(enough, low), high.where(enough, middle)
    whole = flat > high
    last = (flat > low) & ~whole
    rest = wanted - (there * whole).sum(1, keepdim=True)
    part = (rest / nonzero((there * last).sum(1, keepdim=True))).clamp(0.0, 1.0)
    return (whole + last * part).view_as(rank)


def _room(d: Tensor, x: Tensor, domain: Domain) -> Tensor:
    """How far each entry of `x` is from the edge of the box that `d` points to."""
    return torch.where(d > 0, domain.high - x, x - domain.low)


def _numbers(value: Tensor | float, like: Tensor) -> Tensor:
    """A number for each example of `like`, (n,)."""
    given = value.to(like) if isinstance(value, Tensor) else like.new_full((), value)
    return given.expand(len(like))
