"""A site: one call of an activation in a network, where another activation can be put."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retroact.activations.ramp import RELU, Ramp

RELU6 = "relu6"
RELUS = ("relu", RELU6)
"""Kinds that every survey counts; all others are named where they are to be replaced."""


@dataclass(frozen=True)
class Site:
    """One call of an activation: where it is, what it is, and what goes in.

    `order` counts the calls of one forward pass from 0. `own` is what the net itself computes
    there, or None for a kind that is neither a ReLU nor a jump. `kind` is "relu", "gelu", …, or the
    operation that was recognised by its values, "composed" where it takes several. `module` is the
    path of the activation module that is called, "" for a function. `shape` is that of the input
    without its batch. `inplace`: the call overwrites its input. `argument`: which argument of its
    function the input is, for a call that was recognised by its values; its name counts every call
    of that function in its module.
    """

    name: str
    order: int = 0
    own: Ramp | None = RELU
    kind: str = "relu"
    module: str = ""
    shape: tuple[int, ...] = ()
    inplace: bool = False
    argument: int | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names that it goes by: its kind, and "relu6" for a ReLU that ends at 6."""
        return (self.kind, RELU6) if self.kind == RELUS[0] and self.cap == 6.0 else (self.kind,)

    @property
    def cap(self) -> float:
        """Where the net's own activation saturates: 6 for ReLU6, infinity for a ReLU."""
        return math.inf if self.own is None else self.own.cap
