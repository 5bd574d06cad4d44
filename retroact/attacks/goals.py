"""What the attacker wants. A goal owns the labels and the sign; a bool `targeted=` never appears.

A goal is a spec; called with labels and clean logits it becomes an `Aim`, which knows for each
example of a chunk when it is reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from retroact.attacks.noise import uniform
from retroact.attacks.oracle import TIED, settled
from retroact.spec import Within, spec


@dataclass(frozen=True)
class Aim:
    """A goal bound to the examples of a chunk: true `labels` (n,) and, if targeted, `targets` (n,)."""

    labels: Tensor
    targets: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Aim:
        return Aim(self.labels[rows], None if self.targets is None else self.targets[rows])

    def __len__(self) -> int:
        return len(self.labels)

    def reached(self, logits: Tensor) -> Tensor:
        """Bool (n,): the decision is wrong (untargeted) or is the target. Never where a logit is NaN or
        infinite, nor where all are alike but for rounding: such a network has not been fooled, it has been broken."""
        decision = logits.argmax(1)
        hit = decision != self.labels if self.targets is None else decision == self.targets
        return hit & settled(logits, TIED)


class Goal(Protocol):
    """`goal(labels, logits, index) -> Aim`: labels (n,), clean logits (n, k), index (n,) of each example."""

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim: ...


@spec
class Untargeted:
    """Any decision other than the true label."""

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        return Aim(labels)


@spec
class Targeted:
    """The decision `target` for every example. Examples of that class, or already decided so, count as ineligible.

    Those already decided so are not attacked. An example of that class that is decided wrongly is, since a
    goal asks for a decision and knows no right or wrong, but `success_rate` leaves it out: to be led to its own
    class is no success. Where no example is eligible, `success_rate` is NaN. Raises ValueError for a target
    that the network does not have.
    """

    target: Annotated[int, Within(0)]

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        if self.target >= logits.shape[1]:
            raise ValueError(f"Targeted.target: expected a class from 0 to {logits.shape[1] - 1}, got {self.target}")
        return Aim(labels, torch.full_like(labels, self.target))


@spec
class LeastLikely:
    """The class that the clean image's logits rank last (Kurakin et al. 2016), the true one left out."""

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        others = logits.scatter(1, labels[:, None], float("inf"))
        return Aim(labels, others.argmin(1))


@spec
class Random:
    """A class drawn evenly among the wrong ones, by `seed` and each example's index."""

    seed: int = 0

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        k = logits.shape[1]
        shift = 1 + (uniform((1,), index, self.seed, stream=_TARGETS)[:, 0] * (k - 1)).long()
        return Aim(labels, (labels + shift.to(labels.device)) % k)


_TARGETS = 7_000_001  # a stream of its own, so that targets do not move with an attack's own noise
