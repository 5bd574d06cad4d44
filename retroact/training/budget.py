"""The recipe that a time box holds: as many steps as fit, by a short trial of the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, TypeVar

from torch import nn

from retroact.durations import seconds_of
from retroact.evaluation.trial import try_gradient
from retroact.nets.data import Images

FORWARD = 3
"""Forward passes in the time of a gradient."""

_FEWEST = 60
"""Steps: a budget that holds fewer of the recipe's batches takes smaller ones."""
_SMALLEST = 25  # images of a batch


class Stepping(Protocol):
    """A recipe of `steps` of `batch` examples, each passed forward and backward `passes` times."""

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def passes(self) -> int: ...


R = TypeVar("R", bound=Stepping)


def within(net: nn.Module, train: Images, recipe: R, budget: float | str, looks: int = 0) -> R:
    """The recipe with as many steps as `budget` ("60s", or seconds) holds beside so many forward
    passes of one example.

    Where it holds fewer than 60 of the recipe's batches, these are halved down to 25 examples.
    Raises ValueError where not even 60 of those are held.
    """
    seconds = seconds_of(budget)
    batch = min(len(train), recipe.batch)
    tried = try_gradient(net, train.images.shape[1:], batch).seconds
    learning = seconds - tried * looks / FORWARD
    while (steps := int(learning / (tried * batch * recipe.passes))) < _FEWEST:
        if batch <= _SMALLEST:
            needed = seconds - learning + tried * _FEWEST * batch * recipe.passes
            raise ValueError(
                f"a budget of {seconds:g} s is too small: {_FEWEST} steps of {batch} examples take"
                f" this network about {needed:.0f} s; give more, or fewer attack_steps"
            )
        batch = max(_SMALLEST, batch // 2)
    coarse = steps - steps % (10 if steps < 200 else 50)  # so that like machines take the same
    return replace(recipe, steps=coarse, batch=batch)  # type: ignore[type-var]  # a dataclass
