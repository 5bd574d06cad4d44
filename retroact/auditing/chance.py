"""Luck: whoever looks at many means over few draws finds one that is wrong.

An attack on a network that draws sees another mean at every step and ends at the luckiest, and
every attack of a battery is one more draw of the lot. So attacks must go beyond chance, and what
they find is judged by more draws than they saw, beyond chance as well, and twice: a network may
draw once for a whole batch, whose images are then lucky together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retroact.crafting.expectation import Expectation
from retroact.crafting.goals import Aim, BeyondChance, Goal, seen_by
from retroact.crafting.losses import margin
from retroact.crafting.oracle import device_of, evaluating, in_float
from retroact.evaluation.evaluate import Examples, decided

SURE = 10
"""Times the draws that attacks average: those whose mean judges."""
_LUCK, _SURELY = 4.0, 1.0
"""How many standard errors of its mean an attack, and who judges it, must go beyond."""
_FEW, _CHUNK = 32, 64


@dataclass(frozen=True)
class Chance:
    """How far means over the draws of `mean` err: the standard `error` of its margin, in logits, as
    the `aimed` goal sees it."""

    mean: Expectation
    error: float
    aimed: Goal | None = None

    @classmethod
    def of(cls, mean: Expectation, data: Examples, aimed: Goal | None = None) -> Chance:
        """The median over the first examples."""
        device = device_of(mean)
        x, labels = (t[:_FEW].to(device) for t in (data.images, data.labels))
        with evaluating(mean):
            return cls(mean, float(mean.errors_of(x, labels, aimed).median()), aimed)

    @property
    def goal(self) -> BeyondChance:
        """What an attack on the mean must reach."""
        return BeyondChance(_LUCK * self.error, self.aimed)

    @property
    def judge(self) -> Expectation:
        """The mean over more draws."""
        return self.judges[0]

    @property
    def judges(self) -> tuple[Expectation, Expectation]:
        """Two such, of draws of their own."""
        return self.mean.longer(SURE), self.mean.longer(SURE, turn=2)

    def decide(self, x: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
        """The decided class of each attacked example, int64 (n,) on the CPU: the true one unless
        another is ahead by more than chance, by two judges; −1 where the logits decide nothing.

        Chance is what it is at that very point: a network may draw much at some and nothing at
        others.
        """
        first, second = self.judges
        decisions = self._decide(first, x, labels, chunk)
        hit = (decisions >= 0) & (decisions != labels)
        if hit.any():
            decisions[hit] = self._decide(second, x[hit], labels[hit], chunk)
        return decisions

    def _decide(self, judge: Expectation, x: Tensor, labels: Tensor, chunk: int | None) -> Tensor:
        parts = zip(x.split(chunk or _CHUNK), labels.split(chunk or _CHUNK), strict=True)
        with evaluating(judge), torch.no_grad():
            return torch.cat([self._decide_part(judge, *part) for part in parts])

    def _decide_part(self, judge: Expectation, x: Tensor, labels: Tensor) -> Tensor:
        there = x.to(device_of(self.mean))
        logits = in_float(judge, there).cpu()
        errors = self.mean.errors_of(there, labels.to(there.device), self.aimed) / math.sqrt(SURE)
        decisions = decided(logits, attacked=True)
        ahead = margin(seen_by(self.aimed, logits, labels), Aim(labels))
        by_luck = (decisions >= 0) & (ahead <= _SURELY * errors)
        return torch.where(by_luck, labels, decisions)
