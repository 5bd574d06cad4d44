"""Square: random search over square windows, on scores alone.

Each query repaints one random square window of the perturbation and keeps the result where the loss rises;
the squares shrink as the search goes on (Andriushchenko et al. 2020, algorithms 1 to 3, from stripes for
L_inf and from a grid of bumps for L2). Without gradients there is nothing to mask: where it beats a gradient
attack, that one was blinded. Examples whose goal is reached cost no further query.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.attacks.driver import Standing
from retroact.attacks.geometry import TINY, each, norm, project
from retroact.attacks.goals import Aim
from retroact.attacks.losses import Loss, loss_of
from retroact.attacks.noise import uniform
from retroact.attacks.oracle import Oracle
from retroact.attacks.threat import Access, Norm, ThreatModel
from retroact.spec import Count, Within, spec

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the share of repainted pixels is halved (section 4.1 of the paper)."""

TILES = 5  # the bumps of the L2 start, along each side

Window = tuple[Tensor, Tensor, Tensor, Tensor]


@spec
class Square:
    """At most `queries` looks at the logits; `p_init` is the share of pixels that the first squares repaint."""

    queries: Count = 5000
    p_init: Annotated[float, Within(0.0, 1.0, above=True)] = 0.8
    loss: Loss = "margin"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "score"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Andriushchenko et al. 2020, arXiv:1912.00049"

    @property
    def passes(self) -> int:
        """Queries, which cost less than the gradients that other attacks count here."""
        return self.queries

    def __call__(self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int) -> Tensor:
        loss, standing = loss_of(self.loss), Standing(x, aim)
        repaint = _repainted_linf if threat.norm == "linf" else _repainted_l2
        best, centre = _outset(x, threat, index, seed), x
        record = x.new_full((len(x),), -math.inf)
        tried = best
        for query in range(1, self.queries + 1):
            logits = oracle.logits(tried, standing.rows)
            tried, logits, best, centre, record = standing.drop(tried, logits, logits, best, centre, record)
            if not len(standing):
                break
            value = loss(logits, standing.aim)
            better = value > record  # false for a NaN
            best, record = tried.where(each(better, tried), best), value.where(better, record)
            if query < self.queries:
                drawn = uniform((5 + x.shape[1],), index[standing.rows], seed, stream=query)
                tried = repaint(best, centre, threat, self._share(query), drawn)
        return standing.finish(best)

    def _share(self, query: int) -> float:
        return self.p_init * 0.5 ** bisect_left(HALVED_AT, query * 10_000 // self.queries)


def _outset(x: Tensor, threat: ThreatModel, index: Tensor, seed: int) -> Tensor:
    """Vertical stripes of ± eps for L_inf; for L2 bumps of either sign on a grid, with the norm eps."""
    channels, height, width = x.shape[1:]
    if threat.norm == "linf":
        return project(x + threat.eps * _signs(uniform((channels, 1, width), index, seed)), x, threat)
    side = max(1, min(height, width) // TILES)
    rows, columns = min(TILES, height // side), min(TILES, width // side)
    signs = _signs(uniform((channels, rows, columns), index, seed))
    grid = signs.repeat_interleave(side, 2).repeat_interleave(side, 3) * _bump(side, side).to(x).repeat(rows, columns)
    d = torch.zeros_like(x)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    d[:, :, top : top + rows * side, left : left + columns * side] = grid
    return project(x + d * each(threat.eps / norm(d, "l2"), d), x, threat)


def _repainted_linf(best: Tensor, centre: Tensor, threat: ThreatModel, share: float, drawn: Tensor) -> Tensor:
    """One window of each image at + eps or − eps of the clean image, per channel (algorithm 2)."""
    height, width = best.shape[2:]
    side = min(max(1, round(math.sqrt(share * height * width))), height, width)
    window = _window(best, side, drawn[:, :2])
    shift = threat.eps * _signs(drawn[:, 5:])[:, :, None, None]
    new = (centre[window] + shift).clamp(0.0, 1.0)
    # A repaint that changes nothing would waste the query: such a window takes the other sign.
    idle = ((new - best[window]).abs() < 1e-7).flatten(1).all(1)
    new = new.where(each(~idle, new), (centre[window] - shift).clamp(0.0, 1.0))
    return project(best.index_put(window, new), centre, threat)


def _repainted_l2(best: Tensor, centre: Tensor, threat: ThreatModel, share: float, drawn: Tensor) -> Tensor:
    """The budget of two windows, and what is unused, moved into a two-sided bump in the first (algorithm 3)."""
    channels, height, width = best.shape[1:]
    side = _odd(max(3, round(math.sqrt(share * height * width))), min(height, width))
    first, second = _window(best, side, drawn[:, :2]), _window(best, side, drawn[:, 2:4])
    d = best - centre
    rest = d.index_put(first, d.new_zeros(())).index_put(second, d.new_zeros(()))
    unused = (threat.eps**2 - norm(d, "l2") ** 2).clamp_min(0.0)[:, None] / channels
    available = (_energy(d) - _energy(rest)).clamp_min(0.0) + unused
    pair = _pair(side).to(best)
    bump = torch.where(each(drawn[:, 4] < 0.5, d), pair, pair.T) * _signs(drawn[:, 5:])[:, :, None, None]
    old = d[first]
    new = bump + old / _energy(old).sqrt().clamp_min(TINY)[:, :, None, None]
    new = new * (available / _energy(new).clamp_min(TINY)).sqrt()[:, :, None, None]
    return project(centre + rest.index_put(first, new), centre, threat)


def _window(x: Tensor, side: int, drawn: Tensor) -> Window:
    """The index of a square of each image, all its channels, with its corner drawn evenly from `drawn` (n, 2)."""
    span = torch.arange(side, device=x.device)
    places = torch.tensor([x.shape[2] - side + 1, x.shape[3] - side + 1], device=x.device)
    corner = (drawn * places).long()
    images = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return images, channels, (corner[:, :1] + span)[:, None, :, None], (corner[:, 1:] + span)[:, None, None, :]


def _signs(drawn: Tensor) -> Tensor:
    return (drawn < 0.5).to(drawn.dtype) * 2 - 1


def _energy(d: Tensor) -> Tensor:
    """‖d‖₂² of each channel, (n, c)."""
    return d.square().sum((2, 3))


def _odd(side: int, most: int) -> int:
    """The nearest odd side from `side` up, as far as the image allows."""
    most -= 1 - most % 2
    return min(side + 1 - side % 2, most)


def _pair(side: int) -> Tensor:
    """Two bumps of opposite sign, one above the other, with norm 1 (side, side)."""
    upper = side // 2
    pair = torch.cat([_bump(upper, side), -_bump(side - upper, side)])
    unit: Tensor = pair / pair.norm()
    return unit


def _bump(height: int, width: int) -> Tensor:
    """η_{rs} = Σ_{j=d}^{m} 1/(j+1)², d the distance of (r, s) from the middle in L_inf, m its bound (eq. 2)."""
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    rings = torch.maximum(down[:, None], across[None])
    terms = torch.arange(1.0, max(height, width) // 2 + 2).pow(-2)
    return terms.flip(0).cumsum(0).flip(0)[rings]
