"""Square windows for random search: what it paints, and how the ball wants them painted.

Each threat that can be searched has `Windows` of its own: stripes and flat windows of ± eps for
L_inf, two-sided bumps for L2 (Andriushchenko et al. 2020, algorithms 1 to 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from retroact.crafting.domain import Domain
from retroact.crafting.geometry import TINY, each
from retroact.crafting.noise import uniform

TILES = 5  # the bumps of the L2 start, along each side


class Windows(Protocol):
    """How one norm's ball is searched by windows; images are (n, c, h, w), eps is in pixels."""

    pace: ClassVar[float]
    """N queries go through the paper's schedule (10,000 / N)^pace times as fast.

    The paper's 1 leaves a short search four fifths of its queries for the smallest squares; 0 never
    gets to them. Chosen at 100 to 1000 queries on MNIST validation images."""

    def start(self, x: Tensor, eps: float, domain: Domain, index: Tensor, seed: int) -> Tensor:
        """Where the search begins, in the ball of radius `eps` around `x`."""
        ...

    def side(self, share: float, height: int, width: int) -> int:
        """The side of a square that covers `share` of the image."""
        ...

    def repaint(
        self,
        best: Tensor,
        centre: Tensor,
        eps: float,
        domain: Domain,
        side: int,
        corners: Tensor,
        signs: Tensor,
    ) -> Tensor:
        """`best` with a square repainted: `corners` (n, 2) has places for two of them, `signs`
        (n, 1 + c) the orientation and a sign for each channel."""
        ...


@dataclass(frozen=True)
class Stripes:
    """For L_inf: vertical stripes at first, then windows at + eps or − eps of the clean image."""

    pace: ClassVar[float] = 0.75

    def start(self, x: Tensor, eps: float, domain: Domain, index: Tensor, seed: int) -> Tensor:
        """Vertical stripes of ± eps."""
        channels, _, width = domain.image("Square")
        return domain.clamp(x + eps * signs_of(uniform((channels, 1, width), index, seed)))

    def side(self, share: float, height: int, width: int) -> int:
        """At least 1, at most the image's."""
        return min(max(1, round(math.sqrt(share * height * width))), height, width)

    def repaint(
        self,
        best: Tensor,
        centre: Tensor,
        eps: float,
        domain: Domain,
        side: int,
        corners: Tensor,
        signs: Tensor,
    ) -> Tensor:
        """One window of each image at + eps or − eps of the clean image, per channel (algorithm
        2)."""
        window = _window(best, side, corners[:, 0])
        shift = eps * signs[:, 1:, None]
        middle = _look(centre, window)
        new = domain.clamp(middle + shift)
        # A repaint that changes nothing would waste the query: it takes the other sign.
        moved = (new != _look(best, window)).flatten(1).any(1)
        return _paint(best, window, new.where(each(moved, new), domain.clamp(middle - shift)))


@dataclass(frozen=True)
class Bumps:
    """For L2: two-sided bumps on a grid at first, then the budget of two windows in one bump."""

    pace: ClassVar[float] = 0.5

    def start(self, x: Tensor, eps: float, domain: Domain, index: Tensor, seed: int) -> Tensor:
        """Bumps of random signs on a grid, with the norm eps."""
        channels, height, width = domain.image("Square")
        side = max(1, min(height, width) // TILES)
        rows, columns = min(TILES, height // side), min(TILES, width // side)
        signs = signs_of(uniform((channels + 1, rows, columns), index, seed))
        signs = signs.repeat_interleave(side, 2).repeat_interleave(side, 3)
        pair = _pair(side).to(x)
        upright, signs = signs[:, :1] > 0, signs[:, 1:]
        d = torch.zeros_like(x)
        top, left = (height - rows * side) // 2, (width - columns * side) // 2
        grid = signs * pair.repeat(rows, columns).where(upright, pair.T.repeat(rows, columns))
        d[:, :, top : top + rows * side, left : left + columns * side] = grid
        return domain.clamp(x + d * each(eps / d.flatten(1).norm(dim=1), d))

    def side(self, share: float, height: int, width: int) -> int:
        """At least 3 and odd, so that it has a middle, as far as the image allows."""
        return _make_odd(max(3, round(math.sqrt(share * height * width))), min(height, width))

    def repaint(
        self,
        best: Tensor,
        centre: Tensor,
        eps: float,
        domain: Domain,
        side: int,
        corners: Tensor,
        signs: Tensor,
    ) -> Tensor:
        """The budget of two windows, and what is unused, moved into a two-sided bump in the first
        (algorithm 3)."""
        first, second = _window(best, side, corners[:, 0]), _window(best, side, corners[:, 1])
        d = best - centre
        old = _look(d, first)
        rest = _paint(_paint(d, first, torch.zeros_like(old)), second, torch.zeros_like(old))
        energy = _energy(d)
        # Unclamped, so that what rounding puts above eps is taken back.
        unused = (eps**2 - energy.sum(1, keepdim=True)) / d.shape[1]
        available = (energy - _energy(rest) + unused).clamp_min(0.0)
        pair = _pair(side).to(d)
        way = torch.where(signs[:, :1, None] > 0, pair.flatten(), pair.T.flatten())
        new = way * signs[:, 1:, None] + old / _energy(old).sqrt().clamp_min(TINY)[:, :, None]
        new = new * (available / _energy(new).clamp_min(TINY)).sqrt()[:, :, None]
        return domain.clamp(centre + _paint(rest, first, new))


def signs_of(drawn: Tensor) -> Tensor:
    """±1 from draws of [0, 1)."""
    return (drawn < 0.5).to(drawn.dtype) * 2 - 1


def _window(x: Tensor, side: int, corner: Tensor) -> Tensor:
    """Where the pixels of a square of each image lie in its flat channels, (n, c, side²)."""
    spots = corner[:, None] + _spots(side, x.shape[3]).to(x.device)
    return spots[:, None].expand(-1, x.shape[1], -1)


def _look(x: Tensor, window: Tensor) -> Tensor:
    """The pixels of `x` in the window, (n, c, side²)."""
    return x.flatten(2).gather(2, window)


def _paint(x: Tensor, window: Tensor, new: Tensor) -> Tensor:
    """A copy of `x` with the pixels `new` in the window."""
    return x.flatten(2).scatter(2, window, new).view_as(x)


@lru_cache(maxsize=64)
def _spots(side: int, width: int) -> Tensor:
    """Where the pixels of a square in the corner of an image lie in the flat image, (side²,)."""
    span = torch.arange(side, device="cpu")
    return (span[:, None] * width + span).flatten()


def _energy(d: Tensor) -> Tensor:
    """‖d‖₂² of each channel, (n, c)."""
    return d.flatten(2).square().sum(2)


def _make_odd(side: int, most: int) -> int:
    """The nearest odd side from `side` up, as far as the image allows."""
    most -= 1 - most % 2
    return min(side + 1 - side % 2, most)


@lru_cache(maxsize=64)
def _pair(side: int) -> Tensor:
    """Two bumps of opposite sign, one above the other, with norm 1 (side, side)."""
    upper = side // 2
    pair = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    unit: Tensor = pair / pair.norm()
    return unit


def _bump(height: int, width: int) -> Tensor:
    """η_{rs} = Σ_{j=d}^{m} 1/(j+1)², d the distance of (r, s) from the middle in L_inf, m its bound
    (eq. 2)."""
    down = (torch.arange(height, device="cpu") - height // 2).abs()
    across = (torch.arange(width, device="cpu") - width // 2).abs()
    rings = torch.maximum(down[:, None], across[None])
    terms = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float32, device="cpu").pow(-2)
    return terms.flip(0).cumsum(0).flip(0)[rings]
