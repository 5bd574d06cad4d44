"""Windows for random search: what it paints, and how the ball wants them painted.

Each threat that can be searched has `Windows` of its own: stripes and flat windows of ± eps for
L_inf, two-sided bumps for L2 (Andriushchenko et al. 2020, algorithms 1 to 3). The paper's windows
are squares of an image; `Domain.frame` says what they are in a series and in a row of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from retroact.crafting.domain import Domain, Frame
from retroact.crafting.geometry import TINY, each
from retroact.crafting.noise import uniform

TILES = 5  # the bumps of the L2 start, along each side


class Stroke(NamedTuple):
    """The chances of one repaint: the window's `size` (height, width), `corners` (n, 2), places for
    two of them in a channel, `signs` (n, 1 + c), the orientation and a sign for each channel, and
    the `order` (n, d) of a row's columns, (n, 0) where a window has its places side by side."""

    size: tuple[int, int]
    corners: Tensor
    signs: Tensor
    order: Tensor


class Windows(Protocol):
    """How one norm's ball is searched by windows; examples are (n, …), eps is in pixels."""

    pace: ClassVar[float]
    """N queries go through the paper's schedule (10,000 / N)^pace times as fast.

    The paper's 1 leaves a short search four fifths of its queries for the smallest squares; 0 never
    gets to them. Chosen at 100 to 1000 queries on MNIST validation images."""

    def start(self, x: Tensor, eps: float, domain: Domain, index: Tensor, seed: int) -> Tensor:
        """Where the search begins, in the ball of radius `eps` around `x`."""
        ...

    def size(self, share: float, frame: Frame) -> tuple[int, int]:
        """Height and width of a window that covers `share` of the places."""
        ...

    def repaint(
        self, best: Tensor, centre: Tensor, eps: float, domain: Domain, stroke: Stroke
    ) -> Tensor:
        """`best` with a window repainted."""
        ...


@dataclass(frozen=True)
class Stripes:
    """For L_inf: vertical stripes at first, then windows at + eps or − eps of the clean example."""

    pace: ClassVar[float] = 0.75

    def start(self, x: Tensor, eps: float, domain: Domain, index: Tensor, seed: int) -> Tensor:
        """Vertical stripes of ± eps: of a series and of a row each entry for itself."""
        frame = domain.frame
        signs = signs_of(uniform((frame.channels, 1, frame.width), index, seed))
        return domain.clamp(frame.view(x) + eps * signs).view_as(x)

    def size(self, share: float, frame: Frame) -> tuple[int, int]:
        """A side of at least 1, at most the example's."""
        return frame.window(min(max(1, frame.side(share)), frame.longest))

    def repaint(
        self, best: Tensor, centre: Tensor, eps: float, domain: Domain, stroke: Stroke
    ) -> Tensor:
        """One window of each example at + eps or − eps of the clean one, per channel (algorithm
        2)."""
        frame, signs = domain.frame, stroke.signs
        now, clean = frame.view(best), frame.view(centre)
        window = _window(frame, stroke, 0)
        shift = eps * signs[:, 1:, None]
        middle = _look(clean, window)
        new = domain.clamp(middle + shift)
        # A repaint that changes nothing would waste the query: it takes the other sign.
        moved = (new != _look(now, window)).flatten(1).any(1)
        new = new.where(each(moved, new), domain.clamp(middle - shift))
        return _paint(now, window, new).view_as(best)


@dataclass(frozen=True)
class Bumps:
    """For L2: two-sided bumps on a grid at first, then the budget of two windows in one bump."""

    pace: ClassVar[float] = 0.5

    def start(self, x: Tensor, eps: float, domain: Domain, index: Tensor, seed: int) -> Tensor:
        """Bumps of random signs on a grid, with the norm eps."""
        frame = domain.frame
        tall, wide = frame.window(max(1, frame.longest // TILES))
        rows, columns = min(TILES, frame.height // tall), min(TILES, frame.width // wide)
        signs = signs_of(uniform((frame.channels + 1, rows, columns), index, seed))
        signs = signs.repeat_interleave(tall, 2).repeat_interleave(wide, 3)
        upright, turned = (pair.to(x).repeat(rows, columns) for pair in _both(tall, wide))
        d = torch.zeros_like(frame.view(x))
        top, left = (frame.height - rows * tall) // 2, (frame.width - columns * wide) // 2
        grid = signs[:, 1:] * upright.where(signs[:, :1] > 0, turned)
        d[:, :, top : top + rows * tall, left : left + columns * wide] = grid
        return domain.clamp(x + d.view_as(x) * each(eps / d.flatten(1).norm(dim=1), x))

    def size(self, share: float, frame: Frame) -> tuple[int, int]:
        """A side of at least 3 and odd, so that it has a middle, as far as the example allows."""
        return frame.window(_make_odd(max(3, frame.side(share)), frame.longest))

    def repaint(
        self, best: Tensor, centre: Tensor, eps: float, domain: Domain, stroke: Stroke
    ) -> Tensor:
        """The budget of two windows, and what is unused, moved into a two-sided bump in the first
        (algorithm 3)."""
        frame, signs = domain.frame, stroke.signs
        first, second = _window(frame, stroke, 0), _window(frame, stroke, 1)
        d = frame.view(best - centre)
        old = _look(d, first)
        rest = _paint(_paint(d, first, torch.zeros_like(old)), second, torch.zeros_like(old))
        energy = _energy(d)
        # Unclamped, so that what rounding puts above eps is taken back.
        unused = (eps**2 - energy.sum(1, keepdim=True)) / frame.channels
        available = (energy - _energy(rest) + unused).clamp_min(0.0)
        upright, turned = (pair.to(d).flatten() for pair in _both(*stroke.size))
        way = torch.where(signs[:, :1, None] > 0, upright, turned)
        new = way * signs[:, 1:, None] + old / _energy(old).sqrt().clamp_min(TINY)[:, :, None]
        new = new * (available / _energy(new).clamp_min(TINY)).sqrt()[:, :, None]
        return domain.clamp(centre + _paint(rest, first, new).view_as(centre))


def signs_of(drawn: Tensor) -> Tensor:
    """±1 from draws of [0, 1)."""
    return (drawn < 0.5).to(drawn.dtype) * 2 - 1


def _window(frame: Frame, stroke: Stroke, which: int) -> Tensor:
    """The places of each example's first or second window in its flat channels, (n, c, places)."""
    corner = stroke.corners[:, which]
    spots = corner[:, None] + _spots(*stroke.size, frame.width).to(corner.device)
    if frame.drawn:
        spots = stroke.order.gather(1, spots)
    return spots[:, None].expand(-1, frame.channels, -1)


def _look(x: Tensor, window: Tensor) -> Tensor:
    """What `x` (n, c, h, w) is in the window, (n, c, places)."""
    return x.flatten(2).gather(2, window)


def _paint(x: Tensor, window: Tensor, new: Tensor) -> Tensor:
    """A copy of `x` (n, c, h, w) that is `new` in the window."""
    return x.flatten(2).scatter(2, window, new).view_as(x)


@lru_cache(maxsize=64)
def _spots(tall: int, wide: int, width: int) -> Tensor:
    """The places of a window in the corner of a channel, in the flat channel."""
    down, across = (torch.arange(side, device="cpu") for side in (tall, wide))
    return (down[:, None] * width + across).flatten()


def _energy(d: Tensor) -> Tensor:
    """‖d‖₂² of each channel, (n, c)."""
    return d.flatten(2).square().sum(2)


def _make_odd(side: int, most: int) -> int:
    """The nearest odd side from `side` up, as far as the example allows."""
    most -= 1 - most % 2
    return min(side + 1 - side % 2, most)


def _both(tall: int, wide: int) -> tuple[Tensor, Tensor]:
    """A pair of bumps in both orientations; in a line there is one."""
    pair = _pair(tall, wide)
    return pair, (pair.T if tall == wide else pair)


@lru_cache(maxsize=64)
def _pair(tall: int, wide: int) -> Tensor:
    """Two bumps of opposite sign, one above the other, or in a line side by side, with norm 1
    (tall, wide)."""
    upper, left = tall // 2, wide // 2
    if tall == wide:
        pair = torch.cat([_bump(upper, wide), -_bump(tall - upper, wide)])
    else:
        pair = torch.cat([_bump(tall, left), -_bump(tall, wide - left)], dim=1)
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
