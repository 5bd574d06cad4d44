"""Carlini and Wagner's L2 attack: the perturbation as the minimum of one smooth function.

min_w ‖x' − x‖₂² + c · max(confidence − m(x'), 0), x' = (tanh w + 1) / 2, m the margin (positive where the goal
is reached), by Adam, and c by search: the smallest that still succeeds (Carlini & Wagner 2017, eq. 7, f_6).

What makes few steps enough: where the perturbation is smallest, 2‖δ‖ = c‖∇m‖, and a linear network
has ‖δ‖ = |m| / ‖∇m‖; so the search starts at c = 2|m| / ‖∇m‖², whatever the scale of the logits, and each
round goes on from the best point so far.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.attacks.geometry import dual_norm, each, inward
from retroact.attacks.goals import Aim
from retroact.attacks.losses import margin
from retroact.attacks.oracle import Oracle
from retroact.attacks.smallest import Smallest
from retroact.attacks.threat import Access, Norm, ThreatModel
from retroact.spec import AtLeast0, Count, Positive, Within, spec

_FACTOR = 4.0  # between one c and the next, until it is known from both sides
_INNER = 0.999  # tanh reaches the edges of the box at infinity, and is too flat to leave them from nearby


@spec
class CarliniWagner:
    """`search_steps` rounds of `steps` Adam steps of length `learning_rate` (of w), each with its own c.

    `probes` forward passes then draw the result towards the clean image (0: the published end).
    """

    steps: Count = 49
    search_steps: Count = 3
    confidence: AtLeast0 = 0.0
    learning_rate: Positive = 0.2
    probes: Annotated[int, Within(0)] = 2
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Carlini & Wagner 2017, arXiv:1608.04644"
    starts_clean: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return 1 + self.steps * self.search_steps

    def __call__(self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int) -> Tensor:
        found = Smallest(x, aim, "l2", self.confidence)
        rows = torch.arange(len(x), device=x.device)
        _, seen, slope = oracle.tangent(x, rows, partial(margin, aim=aim))
        c = 2 * (margin(seen, aim).abs() + self.confidence) / dual_norm(inward(slope, x), "l2") ** 2
        rows = rows[c.isfinite()]  # a dead gradient at the clean image leads nowhere
        c, low, high = c[rows], torch.zeros_like(c[rows]), torch.full_like(c[rows], torch.inf)
        for _ in range(self.search_steps if len(rows) else 0):
            reached = self._descend(oracle, found, x, aim[rows], rows, c)
            low, high = c.where(~reached, low), c.where(reached, high)
            c = torch.where(low == 0, high / _FACTOR, torch.where(high.isinf(), low * _FACTOR, (low * high).sqrt()))
        return found.pull(oracle, self.probes)

    def _descend(self, oracle: Oracle, found: Smallest, x: Tensor, aim: Aim, rows: Tensor, c: Tensor) -> Tensor:
        """One round of Adam from the best points so far; returns which examples reached the goal in it, bool (m,)."""
        clean, w = x[rows], _unbounded(found.x_adv[rows])
        adam, reached = _Adam(w, self.learning_rate), torch.zeros_like(c, dtype=torch.bool)
        for _ in range(self.steps):
            at = _in_box(w)
            logits, seen, slope = oracle.tangent(at, rows, partial(margin, aim=aim))
            reached |= found.keep(at, logits, rows)
            short = margin(seen, aim) < self.confidence
            pull = 2 * (at - clean) - each(c * short, at) * slope
            w = w - adam(pull * 2 * at * (1 - at))
        return reached


def _unbounded(x: Tensor) -> Tensor:
    return torch.atanh(_INNER * (2 * x - 1))


def _in_box(w: Tensor) -> Tensor:
    return (torch.tanh(w) + 1) / 2


class _Adam:
    """Adam's step (Kingma & Ba 2015, Algorithm 1), each example for itself."""

    def __init__(self, like: Tensor, rate: float) -> None:
        self._mean, self._square, self._rate, self._t = torch.zeros_like(like), torch.zeros_like(like), rate, 0

    def __call__(self, gradient: Tensor) -> Tensor:
        self._t += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._t), self._square / (1 - 0.999**self._t)
        return self._rate * mean / (square.sqrt() + 1e-8)
