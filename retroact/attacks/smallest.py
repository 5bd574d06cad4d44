"""The smallest perturbation found so far: what every minimum-norm attack keeps, and its last polish.

An attack shows each point it visits to `keep`, with the logits of the network under attack; only
points that reach the goal count, so a NaN or a dead gradient can never become a success. `pull`
then draws what was found towards the clean image, along the line between the two, with a few
forward passes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retroact.attacks.geometry import each, norm
from retroact.attacks.goals import Aim
from retroact.attacks.losses import margin
from retroact.attacks.oracle import Oracle
from retroact.attacks.threat import Norm

_GUARD = 0.02  # no probe lands nearer to an end of its interval than this part of it
_CLEAR = 1e-6  # of the largest logit: nearer to the boundary, another batch size could round to another decision


class Smallest:
    """For each example of a chunk: `x_adv`, the nearest point in norm p that reached the goal (the clean
    image where none did), and its distance `size` (n,), infinite where none did. With `confidence`, only
    points count whose margin is at least that."""

    def __init__(self, x: Tensor, aim: Aim, p: Norm, confidence: float = 0.0) -> None:
        self.x, self.x_adv = x, x.clone()
        self.size = x.new_full((len(x),), torch.inf)
        self._margin = torch.zeros_like(self.size)
        self._aim, self._p, self._confidence = aim, p, confidence

    def keep(self, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Keeps the points (m, …) that reach the goal nearer than before; returns which reach it, bool (m,)."""
        aim = self._aim[rows]
        beyond = margin(logits, aim)
        hit = aim.reached(logits) & (beyond >= self._confidence + _CLEAR * logits.abs().amax(1))
        self._file(x_adv, beyond, hit, rows)
        return hit

    def pull(self, oracle: Oracle, probes: int) -> Tensor:
        """`x_adv`, drawn towards the clean image to the last decision boundary that `probes` looks find.

        The boundary lies at some t on the line x + t (x_adv − x): false position on the margin in
        [0, 1], Illinois rule (Dowell & Jarratt 1971), whose upper end always reaches the goal.
        """
        rows = self.size.isfinite().nonzero()[:, 0]
        if probes == 0 or len(rows) == 0:
            return self.x_adv
        x, d, aim = self.x[rows], self.x_adv[rows] - self.x[rows], self._aim[rows]
        logits = oracle.logits(x, rows)
        clean, enough = margin(logits, aim), self._confidence + _CLEAR * logits.abs().amax(1)
        below, above = clean - enough, self._margin[rows] - enough
        low, high = torch.zeros_like(clean), torch.ones_like(clean)
        was = torch.zeros_like(clean)  # +1 where the last probe hit, −1 where it missed
        for _ in range(probes):
            part = (below / (below - above)).nan_to_num(0.5).clamp(_GUARD, 1 - _GUARD)
            t = low + part * (high - low)
            point = x + each(t, d) * d
            logits = oracle.logits(point, rows)
            here = margin(logits, aim)
            hit = aim.reached(logits) & (here >= enough)
            self._file(point, here, hit, rows)
            # An end that stays twice counts half, or one side would creep to the boundary alone.
            below = torch.where(hit, below * torch.where(was > 0, 0.5, 1.0), here - enough)
            above = torch.where(hit, here - enough, above * torch.where(was < 0, 0.5, 1.0))
            low, high, was = t.where(~hit, low), t.where(hit, high), hit * 2.0 - 1.0
        return self.x_adv

    def _file(self, x_adv: Tensor, beyond: Tensor, hit: Tensor, rows: Tensor) -> None:
        size = norm(x_adv - self.x[rows], self._p)
        better = hit & (size < self.size[rows])
        self.x_adv[rows[better]] = x_adv[better]
        self.size[rows[better]], self._margin[rows[better]] = size[better], beyond[better]


def cosine(i: int, steps: int, first: float, last: float) -> float:
    """The value at step `i` of `steps` of a fall from `first` to `last` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * i / steps)) / 2
