"""The smallest perturbation found so far: what every minimum-norm attack keeps, and its last
polish.

An attack shows each point it visits to `keep`, with the logits of the network under attack; only
points that reach the goal count, so a NaN or a dead gradient can never become a success. `pull`
then draws what was found towards the clean image, along the line between the two, with a few
forward passes.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from retroact.crafting.geometry import each, put
from retroact.crafting.losses import margin, spread
from retroact.crafting.scene import Scene

_GUARD = 0.02  # no probe lands nearer to an end of its interval than this part of it
# of the logits' spread: nearer to the boundary, another batch size could round to another decision,
_CLEAR = 1e-6
# and so it could nearer than so many roundings of the largest logit, which an offset makes coarse
_ROUNDINGS = 4
_SAFE = 3.0  # times that: where to aim for, so that rounding does not fall short of it
# of its steps find where a line meets the box exactly, unless the box cuts it in very many places


class Smallest:
    """For each example of a scene: `x_adv`, the nearest point in the threat's norm that reached the
    goal (the clean example where none did), and its distance `size` (n,), infinite where none did.
    With `confidence`, only points count whose margin is at least that."""

    def __init__(self, scene: Scene, confidence: float = 0.0) -> None:
        x = scene.x
        self.x, self.x_adv = x, x.clone()
        self.size = x.new_full((len(x),), torch.inf)
        self._margin = torch.zeros_like(self.size)
        # the logits of x, once they have been seen, and their spread
        self._clean: Tensor | None = None
        self._across = torch.zeros_like(self.size)
        self._scene, self._aim, self._confidence = scene, scene.aim, confidence

    def keep(self, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """Keeps the points (m, …) that reach the goal nearer than before; returns which reach it,
        bool (m,)."""
        if x_adv is self.x:
            self._clean, self._across = logits, spread(logits)
        aim = self._aim[rows]
        beyond = margin(logits, aim)
        hit = aim.reached(logits) & (beyond >= self._enough(logits, rows))
        self._file(x_adv, beyond, hit, rows)
        return hit

    def pull(self, probes: int) -> Tensor:
        """`x_adv`, drawn towards the clean image to the last decision boundary that `probes` looks
        find.

        The boundary lies at some t on the line x + t (x_adv − x): false position on the margin in
        [0, 1], Illinois rule (Dowell & Jarratt 1971), whose upper end always reaches the goal.
        """
        rows = self.size.isfinite().nonzero()[:, 0]
        if probes == 0 or len(rows) == 0:
            return self.x_adv
        x, d, aim = self.x[rows], self.x_adv[rows] - self.x[rows], self._aim[rows]
        clean, enough = self._at_clean(rows)
        below, above = clean - enough, self._margin[rows] - enough
        low, high = torch.zeros_like(clean), torch.ones_like(clean)
        was = torch.zeros_like(clean)  # +1 where the last probe hit, −1 where it missed
        for _ in range(probes):
            part = (below / (below - above)).nan_to_num(0.5).clamp(_GUARD, 1 - _GUARD)
            t = low + part * (high - low)
            point = x + each(t, d) * d
            logits = self._scene.oracle.logits(point, rows)
            here = margin(logits, aim)
            hit = aim.reached(logits) & (here >= enough)
            self._file(point, here, hit, rows)
            # An end that stays twice counts half, or one side would creep to the boundary alone.
            below = torch.where(hit, torch.where(was > 0, below / 2, below), here - enough)
            above = torch.where(hit, here - enough, torch.where(was < 0, above / 2, above))
            low, high, was = (
                t.where(~hit, low),
                t.where(hit, high),
                torch.ones_like(was).where(hit, -1.0),
            )
        return self.x_adv

    def polish(self, probes: int) -> Tensor:
        """`x_adv`, moved to the nearest point of the linearised boundary in the box, where that is
        nearer.

        min ‖δ‖_p with ∇m·δ ≥ ∇m·δ₀ − m(δ₀) and x + δ in the box: δ = clip(t · s(∇m)), exact where
        the network is linear. One gradient; `probes` forward passes then look for the boundary on
        the ray through x + δ.
        """
        rows = self.size.isfinite().nonzero()[:, 0]
        if probes == 0 or len(rows) == 0:
            return self.x_adv
        x, at, aim = self.x[rows], self.x_adv[rows], self._aim[rows]
        _, seen, slope = self._scene.oracle.tangent(at, rows, partial(margin, aim=aim))
        way = (slope * (at - x)).flatten(1).sum(1)
        # The network that gives slopes may have logits of another size: its own say what is enough
        # there.
        wanted = way - (
            margin(seen, aim) - self._clear(seen, torch.maximum(spread(seen), way.abs()), _SAFE)
        )
        d = self._scene.threat.shortest(slope, wanted, x, self._scene.domain)
        (clean, enough), goal = (
            self._at_clean(rows),
            self._enough(self._logits()[rows], rows, _SAFE),
        )
        t = torch.ones_like(clean)
        for _ in range(probes):
            point = self._scene.clamp(x + each(t, d) * d)
            logits = self._scene.oracle.logits(point, rows)
            here = margin(logits, aim)
            self._file(point, here, aim.reached(logits) & (here >= enough), rows)
            t = t * ((clean - goal) / (clean - here)).nan_to_num(1.0).clamp(0.5, 2.0)
        return self.x_adv

    def _enough(self, logits: Tensor, rows: Tensor, clearance: float = 1.0) -> Tensor:
        """The margin from which on a point counts, (m,)."""
        # At their boundary two classes have no spread: there the clean image's says how large the
        # logits are.
        return self._clear(logits, torch.maximum(spread(logits), self._across[rows]), clearance)

    def _clear(self, logits: Tensor, across: Tensor, clearance: float) -> Tensor:
        finest = _ROUNDINGS * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        return self._confidence + clearance * torch.maximum(_CLEAR * across, finest)

    def _at_clean(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The margin of the clean images and the one that is enough, (m,) each."""
        logits = self._logits()[rows]
        return margin(logits, self._aim[rows]), self._enough(logits, rows)

    def _logits(self) -> Tensor:
        """The logits of all clean images, from the first look at them."""
        if self._clean is None:
            self._clean = self._scene.oracle.logits(
                self.x, torch.arange(len(self.x), device=self.x.device)
            )
            self._across = spread(self._clean)
        return self._clean

    def _file(self, x_adv: Tensor, beyond: Tensor, hit: Tensor, rows: Tensor) -> None:
        size = self._scene.threat.size(x_adv - self.x[rows])
        better = hit & (size < self.size[rows])
        put(self.x_adv, rows, x_adv, better)
        put(self.size, rows, size, better)
        put(self._margin, rows, beyond, better)


def cosine(i: int, steps: int, first: float, last: float) -> float:
    """The value at step `i` of `steps` of a fall from `first` to `last` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * i / steps)) / 2
