"""Luck: whoever looks at many means over few draws finds one that is wrong.

An attack on a network that draws sees another mean at every step and ends at the luckiest, and
every attack of a battery is one more draw of the lot. So attacks must go beyond chance, and what
they find is judged twice, each time by more draws than they saw: a network may draw once for a
whole batch, whose images are lucky together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retroact.crafting.expectation import Expectation
from retroact.crafting.goals import Aim, BeyondChance, Goal, seen_by
from retroact.crafting.losses import margin
from retroact.crafting.oracle import device_of, evaluating, in_float
from retroact.evaluation.evaluate import Examples, decided

SURE, FINAL = 10, 50
"""Times the draws that attacks average: those whose mean judges, and those whose mean judges what
the first calls wrong."""
_LUCK = 4.0
"""How many standard errors of its mean an attack must go beyond."""
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
        return judges_of(self.mean)[0]

    def decide(self, x: Tensor, labels: Tensor, chunk: int | None = None) -> Tensor:
        """The decided class of each attacked example, int64 (n,) on the CPU: the true one unless
        both judges see another ahead; −1 where the logits decide nothing."""
        first, last = judges_of(self.mean)
        decisions = self._decide(first, x, labels, chunk)
        hit = (decisions >= 0) & (decisions != labels)
        if hit.any():
            decisions[hit] = self._decide(last, x[hit], labels[hit], chunk)
        return decisions

    def _decide(self, judge: Expectation, x: Tensor, labels: Tensor, chunk: int | None) -> Tensor:
        parts = zip(x.split(chunk or _CHUNK), labels.split(chunk or _CHUNK), strict=True)
        with evaluating(judge), torch.no_grad():
            return torch.cat([self._decide_part(judge, *part) for part in parts])

    def _decide_part(self, judge: Expectation, x: Tensor, labels: Tensor) -> Tensor:
        logits = in_float(judge, x.to(device_of(self.mean))).cpu()
        decisions = decided(logits, attacked=True)
        ahead = margin(seen_by(self.aimed, logits, labels), Aim(labels))
        return torch.where((decisions >= 0) & (ahead <= 0), labels, decisions)


def judges_of(mean: Expectation) -> tuple[Expectation, Expectation]:
    """The means over more draws that judge, one after the other, each of draws of its own."""
    return mean.longer(SURE), mean.longer(FINAL, turn=2)
