"""Which broken examples decide an audit most: those that a page shows. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

SHOWN = 5
"""How many of the examples that were broken stand on a page; evidence has them all."""


class Fell(Protocol):
    """An example that was broken: its row, and the attack's turn in the battery."""

    @property
    def row(self) -> int: ...
    @property
    def turn(self) -> int: ...


E = TypeVar("E", bound=Fell, covariant=True)


class Judged(Protocol[E]):
    """A network of an audit: which examples are robust (n,), and those that were broken."""

    @property
    def verified(self) -> NDArray[np.bool_]: ...
    @property
    def examples(self) -> Sequence[E]: ...


def deciding(
    sides: tuple[Judged[E], Judged[E]], gain: float, most: int = SHOWN
) -> list[tuple[int, E]]:
    """The broken examples that decide most, each with the side (0 before, 1 after) that broke.

    First those that are robust on the other network: the verified difference, `gain`, is their
    count. Of them first those on the side that lost by it; then what the last attacks of the
    battery broke, as no other did.
    """
    weaker = 1 if gain <= 0 else 0

    def rank(found: tuple[int, E]) -> tuple[bool, bool, int, int]:
        side, example = found
        differs = bool(sides[1 - side].verified[example.row])
        return not differs, side != weaker, -example.turn, example.row

    found = [(side, example) for side in (1, 0) for example in sides[side].examples]
    return sorted(found, key=rank)[:most]
