"""Square: random search over square windows, on scores alone.

Each query repaints one random square window of the perturbation and keeps the result where the loss
rises; the squares shrink as the search goes on (Andriushchenko et al. 2020, algorithms 1 to 3, from
stripes for L_inf and from a grid of bumps for L2). Without gradients there is nothing to mask:
where it beats a gradient attack, that one was blinded. Examples whose goal is reached cost no
further query.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.crafting.driver import Standing
from retroact.crafting.geometry import TINY, each, norm
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.noise import uniform
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import Count, Within, spec

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the share of repainted pixels is halved (section 4.1 of the
paper)."""

PACE: dict[Norm, float] = {"linf": 0.75, "l2": 0.5}
"""N queries go through that schedule (10,000 / N)^pace times as fast.

The paper's 1 leaves a short search four fifths of its queries for the smallest squares; 0 never
gets to them. Chosen at 100 to 1000 queries on MNIST validation images."""

TILES = 5  # the bumps of the L2 start, along each side
BLOCK = 50  # queries whose random numbers are drawn together


@spec
class Square:
    """At most `queries` looks at the logits; `p_init` is the share of pixels that the first squares
    repaint."""

    queries: Count = 5000
    p_init: Annotated[float, Within(0.0, 1.0, above=True)] = 0.8
    loss: Loss = "margin"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "score"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Andriushchenko et al. 2020, arXiv:1912.00049"
    # the start of L2 has two-sided bumps, the schedule a pace of its own
    version: ClassVar[int] = 2
    # most queries look at the few examples left, so more of them share a look
    chunk: ClassVar[int] = 256

    @property
    def passes(self) -> int:
        """Queries, which cost less than the gradients that other attacks count here."""
        return self.queries

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        loss, standing = loss_of(self.loss), Standing(x, aim)
        repaint, most = (
            (_repainted_linf, _side) if threat.norm == "linf" else (_repainted_l2, _odd_side)
        )
        best, centre = _outset(x, threat, index, seed), x
        record = x.new_full((len(x),), -math.inf)
        tried = best
        for query in range(self.queries):
            turn = query % BLOCK
            if turn == 0:
                sides = [
                    most(self._share(query + 1 + k, threat.norm), *x.shape[2:])
                    for k in range(BLOCK)
                ]
                corners, signs = _drawn(
                    x, sides, index[standing.rows], seed, stream=1 + query // BLOCK
                )
            logits = oracle.logits(tried, standing.rows)
            tried, logits, best, centre, record, corners, signs = standing.drop(
                tried, logits, logits, best, centre, record, corners, signs
            )
            if not len(standing):
                break
            value = loss(logits, standing.aim)
            better = value > record  # false for a NaN
            best, record = tried.where(each(better, tried), best), value.where(better, record)
            tried = repaint(best, centre, threat.eps, sides[turn], corners[:, turn], signs[:, turn])
        return standing.finish(best)

    def _share(self, query: int, p: Norm) -> float:
        return self.p_init * 0.5 ** bisect_left(
            HALVED_AT, int(query * (10_000 / self.queries) ** PACE[p])
        )


def _outset(x: Tensor, threat: ThreatModel, index: Tensor, seed: int) -> Tensor:
    """Vertical stripes of ± eps for L_inf; for L2 two-sided bumps of random signs on a grid, with
    the norm eps."""
    channels, height, width = x.shape[1:]
    if threat.norm == "linf":
        return (x + threat.eps * _signs(uniform((channels, 1, width), index, seed))).clamp(0.0, 1.0)
    side = max(1, min(height, width) // TILES)
    rows, columns = min(TILES, height // side), min(TILES, width // side)
    signs = _signs(uniform((channels + 1, rows, columns), index, seed)).repeat_interleave(side, 2)
    signs, pair = signs.repeat_interleave(side, 3), _pair(side).to(x)
    upright, signs = signs[:, :1] > 0, signs[:, 1:]
    d = torch.zeros_like(x)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    grid = signs * pair.repeat(rows, columns).where(upright, pair.T.repeat(rows, columns))
    d[:, :, top : top + rows * side, left : left + columns * side] = grid
    return (x + d * each(threat.eps / norm(d, "l2"), d)).clamp(0.0, 1.0)


def _drawn(
    x: Tensor, sides: list[int], index: Tensor, seed: int, stream: int
) -> tuple[Tensor, Tensor]:
    """The chances of as many queries as there are `sides`, for each example of `index` (n,).

    Where the windows' upper left corners lie in a flat image, (n, q, 2), and signs for the
    orientation and each channel, (n, q, 1 + c).
    """
    channels, height, width = x.shape[1:]
    drawn = uniform((len(sides), 5 + channels), index, seed, stream)
    places = torch.tensor([[height - s + 1, width - s + 1] * 2 for s in sides], device=x.device)
    # A draw next to 1 may round up to the first place outside.
    at = (drawn[..., :4] * places).long().minimum(places - 1).view(*drawn.shape[:2], 2, 2)
    return at[..., 0] * width + at[..., 1], _signs(drawn[..., 4:])


def _repainted_linf(
    best: Tensor, centre: Tensor, eps: float, side: int, corners: Tensor, signs: Tensor
) -> Tensor:
    """One window of each image at + eps or − eps of the clean image, per channel (algorithm 2)."""
    window = _window(best, side, corners[:, 0])
    shift = eps * signs[:, 1:, None]
    middle = _seen(centre, window)
    new = (middle + shift).clamp(0.0, 1.0)
    # A repaint that changes nothing would waste the query: such a window takes the other sign.
    moved = (new != _seen(best, window)).flatten(1).any(1)
    return _painted(best, window, new.where(each(moved, new), (middle - shift).clamp(0.0, 1.0)))


def _repainted_l2(
    best: Tensor, centre: Tensor, eps: float, side: int, corners: Tensor, signs: Tensor
) -> Tensor:
    """The budget of two windows, and what is unused, moved into a two-sided bump in the first
    (algorithm 3)."""
    first, second = _window(best, side, corners[:, 0]), _window(best, side, corners[:, 1])
    d = best - centre
    old = _seen(d, first)
    rest = _painted(_painted(d, first, torch.zeros_like(old)), second, torch.zeros_like(old))
    energy = _energy(d)
    # Unclamped, so that what rounding puts above eps is taken back.
    unused = (eps**2 - energy.sum(1, keepdim=True)) / d.shape[1]
    available = (energy - _energy(rest) + unused).clamp_min(0.0)
    pair = _pair(side).to(d)
    bump = (
        torch.where(signs[:, :1, None] > 0, pair.flatten(), pair.T.flatten()) * signs[:, 1:, None]
    )
    new = bump + old / _energy(old).sqrt().clamp_min(TINY)[:, :, None]
    new = new * (available / _energy(new).clamp_min(TINY)).sqrt()[:, :, None]
    return (centre + _painted(rest, first, new)).clamp(0.0, 1.0)


def _window(x: Tensor, side: int, corner: Tensor) -> Tensor:
    """Where the pixels of a square of each image lie in its flat channels, (n, c, side²)."""
    spots = corner[:, None] + _spots(side, x.shape[3]).to(x.device)
    return spots[:, None].expand(-1, x.shape[1], -1)


def _seen(x: Tensor, window: Tensor) -> Tensor:
    """The pixels of `x` in the window, (n, c, side²)."""
    return x.flatten(2).gather(2, window)


def _painted(x: Tensor, window: Tensor, new: Tensor) -> Tensor:
    """A copy of `x` with the pixels `new` in the window."""
    return x.flatten(2).scatter(2, window, new).view_as(x)


@lru_cache(maxsize=64)
def _spots(side: int, width: int) -> Tensor:
    """Where the pixels of a square in the corner of an image lie in the flat image, (side²,)."""
    span = torch.arange(side, device="cpu")
    return (span[:, None] * width + span).flatten()


def _signs(drawn: Tensor) -> Tensor:
    return (drawn < 0.5).to(drawn.dtype) * 2 - 1


def _energy(d: Tensor) -> Tensor:
    """‖d‖₂² of each channel, (n, c)."""
    return d.flatten(2).square().sum(2)


def _side(share: float, height: int, width: int) -> int:
    """The side of a square that covers `share` of the image."""
    return min(max(1, round(math.sqrt(share * height * width))), height, width)


def _odd_side(share: float, height: int, width: int) -> int:
    """That of the squares of L2, which have a middle: at least 3, odd, as far as the image
    allows."""
    return _odd(max(3, round(math.sqrt(share * height * width))), min(height, width))


def _odd(side: int, most: int) -> int:
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
