"""What the attacker wants. A goal owns the labels and the sign; a bool `targeted=` never appears.

A goal is a spec; called with labels and clean logits it becomes an `Aim`, which knows for each
example of a chunk when it is reached.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from retroact.crafting.noise import uniform
from retroact.crafting.oracle import apart
from retroact.spec import Seed, SpecError, Within, spec


@dataclass(frozen=True)
class Aim:
    """A goal bound to the examples of a chunk: true `labels` (n,) and, if targeted, `targets`
    (n,)."""

    labels: Tensor
    targets: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Aim:
        return Aim(self.labels[rows], None if self.targets is None else self.targets[rows])

    def __len__(self) -> int:
        return len(self.labels)

    def reached(self, logits: Tensor) -> Tensor:
        """Bool (n,): the decision is wrong (untargeted) or is the target. Never where a logit is
        NaN or infinite, nor where all are alike but for rounding: such a network has not been
        fooled, it has been broken.
        """
        return self.met(logits.argmax(1)) & apart(logits)

    def met(self, decisions: Tensor) -> Tensor:
        """Bool (n,): whether the decided classes are those that are wanted; −1, no decision, never
        is."""
        hit = decisions != self.labels if self.targets is None else decisions == self.targets
        return hit & (decisions >= 0)


Targets = Tensor | np.ndarray[Any, Any] | Sequence[int]
"""A class for each example, (n,)."""


@runtime_checkable
class Goal(Protocol):
    """`goal(labels, logits, index) -> Aim`: labels (n,), clean logits (n, k), index (n,) of each
    example."""

    @abstractmethod
    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim: ...


@spec
class Untargeted(Goal):
    """Any decision other than the true label."""

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        return Aim(labels)


@dataclass(frozen=True)
class PastRejection:
    """A wrong decision that is not the last class, "rejected": who rejects an example is as right
    as who knows it.

    Attacks see the k classes alone, of which the true one scores max(z_y, z_rejected), so they
    climb max_{j ≠ y} z_j − max(z_y, z_rejected), also where an example is rejected (Tramèr 2022,
    arXiv:2107.11630; Bryniarski et al. 2021, arXiv:2106.15023).
    """

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        return Aim(labels)

    def view(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, k + 1) as those of k classes, (n, k)."""
        classes, at = logits[:, :-1], labels[:, None].to(logits.device)
        right = torch.maximum(classes.gather(1, at), logits[:, -1:])
        return classes.scatter(1, at, right)


@dataclass(frozen=True)
class BeyondChance:
    """The goal `of`, or any wrong decision, by more than `by` of logits, in which a mean over few
    draws errs by luck: an attack sees many such means and would stop at the luckiest."""

    by: float
    of: Goal | None = None

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        return Aim(labels)

    def view(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What `of` makes of the logits, with `by` added to the true class."""
        logits = seen_by(self.of, logits, labels)
        at = labels[:, None].to(logits.device)
        return logits.scatter_add(1, at, logits.new_full(at.shape, self.by))


def view_of(goal: Goal) -> Callable[[Tensor, Tensor], Tensor] | None:
    """What a goal makes of logits and labels before anybody looks at them; None for nothing."""
    return goal.view if isinstance(goal, PastRejection | BeyondChance) else None


def seen_by(goal: Goal | None, logits: Tensor, labels: Tensor) -> Tensor:
    """What is left to look at of the logits under a goal; all of it where there is none."""
    view = None if goal is None else view_of(goal)
    return logits if view is None else view(logits, labels)


@spec
class Targeted(Goal):
    """The decision `target` for every example. Examples of that class, or already decided so, count
    as ineligible.

    Those already decided so are not attacked. An example of that class that is decided wrongly is,
    since a goal asks for a decision and knows no right or wrong, but `success_rate` leaves it out:
    to be led to its own class is no success. Where no example is eligible, `success_rate` is NaN.
    Raises ValueError for a target that the network does not have.
    """

    target: Annotated[int, Within(0)]

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        if self.target >= logits.shape[1]:
            raise ValueError(
                f"Targeted.target: expected a class from 0 to {logits.shape[1] - 1}, got"
                f" {self.target}"
            )
        return Aim(labels, torch.full_like(labels, self.target))


@spec
class PerImage(Goal):
    """A decision for each example: `targets[i]` for the one whose index is `index[i]` (no `index`:
    0, 1, 2, …).

    Bound by the examples' own indices, so order, slices and chunks do not matter. Who is eligible
    is as for `Targeted`. Raises SpecError where the two differ in length or give one example two
    targets, and ValueError for a target that the network does not have or an example that has no
    target.
    """

    targets: tuple[Annotated[int, Within(0)], ...]
    index: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        named = self.index or tuple(range(len(self.targets)))
        if not self.targets or len(named) != len(self.targets):
            raise SpecError(
                f"PerImage: expected one target per example, got {len(self.targets)} for"
                f" {len(named)}"
            )
        pairs = dict(sorted(set(zip(named, self.targets, strict=True))))
        if any(pairs[i] != target for i, target in zip(named, self.targets, strict=True)):
            raise SpecError(
                "PerImage: expected one target per example, got two different ones for the same"
                " index"
            )
        # in one order, and no index where there is nothing to say: one goal, one print, one key
        object.__setattr__(self, "targets", tuple(pairs.values()))
        object.__setattr__(
            self, "index", () if tuple(pairs) == tuple(range(len(pairs))) else tuple(pairs)
        )

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        if max(self.targets) >= logits.shape[1]:
            raise ValueError(
                f"PerImage.targets: expected classes from 0 to {logits.shape[1] - 1}, got"
                f" {max(self.targets)}"
            )
        chosen = dict(zip(self.index or range(len(self.targets)), self.targets, strict=True))
        missing = [i for i in index.tolist() if i not in chosen]
        if missing:
            raise ValueError(
                f"PerImage: no target for the example of index {missing[0]}; give one for each"
                " example"
            )
        return Aim(labels, labels.new_tensor([chosen[i] for i in index.tolist()]))


@spec
class LeastLikely(Goal):
    """The class that the clean image's logits rank last (Kurakin et al. 2016), the true one left
    out."""

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        others = logits.scatter(1, labels[:, None], float("inf"))
        return Aim(labels, others.argmin(1))


@spec
class Random(Goal):
    """A class drawn evenly among the wrong ones, by `seed` and each example's index."""

    seed: Seed = 0

    def __call__(self, labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
        k = logits.shape[1]
        shift = 1 + (uniform((1,), index, self.seed, stream=_TARGETS)[:, 0] * (k - 1)).long()
        return Aim(labels, (labels + shift.to(labels.device)) % k)


def check_untargeted(attack: object, aim: Aim) -> None:
    """ValueError for a goal with targets, for an attack that was published without."""
    if aim.targets is not None:
        raise ValueError(
            f"{attack} was published untargeted, expected Untargeted(), got a goal with targets"
        )


def goal_of(given: Goal | Targets | None, index: Tensor) -> Goal:
    """The goal that was meant for the examples of `index` (n,): a goal as it is, None as
    `Untargeted()`, and classes, one for each example in this order (a tensor, an array or a list),
    as `PerImage`.

    Raises TypeError where these are no whole numbers, and ValueError for another number of them.
    """
    if given is None:
        return Untargeted()
    if not isinstance(given, Tensor | np.ndarray | list | tuple):
        if callable(given) and not isinstance(given, type):
            return given
        raise TypeError(
            f"expected a goal such as Targeted(3), or a class for each example, got {given!r}"
        )
    try:
        targets = torch.as_tensor(given, device="cpu")
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(
            f"expected targets as whole numbers, one per example, got {str(given)[:60]}: {e}"
        ) from None
    if targets.shape != index.shape:
        cure = "; scores or one-hot rows need argmax(1)" if targets.dim() == 2 else ""
        shapes = f"shape {tuple(index.shape)}, got {tuple(targets.shape)}"
        raise ValueError(f"expected one target per example, {shapes}{cure}")
    if targets.dtype.is_floating_point or targets.dtype.is_complex or targets.dtype == torch.bool:
        raise TypeError(f"expected targets as whole numbers, got {targets.dtype}; use long()")
    return PerImage(tuple(targets.tolist()), tuple(index.tolist()))


_TARGETS = 7_000_001  # a stream of its own, so that targets do not move with an attack's own noise
