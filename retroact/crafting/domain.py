"""The box that examples live in, and the shape of one of them.

Images are the common case, (c, h, w) in [0, 1]; a time series is (c, t) and a row of a table (d,),
in a box of their own. Attacks stay in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Boxed(Protocol):
    """Examples (n, …), and the box that they lie in."""

    @property
    def images(self) -> Tensor: ...


@dataclass(frozen=True)
class Domain:
    """low ≤ x ≤ high for every entry of an example of this `shape`, of any rank from 1.

    Raises ValueError for an empty shape and for a box that holds nothing.
    """

    shape: tuple[int, ...]
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.shape or math.prod(self.shape) < 1:
            raise ValueError(f"expected examples of at least one entry, got the shape {self.shape}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"expected a box with low < high, got [{self.low:g}, {self.high:g}]")

    def __str__(self) -> str:
        return f"[{self.low:g},{self.high:g}]"

    @property
    def entries(self) -> int:
        """How many numbers an example has."""
        return math.prod(self.shape)

    @property
    def width(self) -> float:
        """high − low, the length of the box along one entry."""
        return self.high - self.low

    @property
    def middle(self) -> float:
        """The middle of the box: plain gray, of images."""
        return (self.low + self.high) / 2

    def clamp(self, x: Tensor) -> Tensor:
        """The nearest point of the box, in every norm."""
        return x.clamp(self.low, self.high)

    def inward(self, g: Tensor, x: Tensor) -> Tensor:
        """`g` without the entries that push `x` out of the box where it is at its edge."""
        below, above = (x <= self.low) & (g < 0), (x >= self.high) & (g > 0)
        return g.masked_fill(below | above, 0.0)

    def image(self, asker: object) -> tuple[int, int, int]:
        """(c, h, w), for what makes sense for images only; ValueError for examples of another rank,
        which names `asker`."""
        if len(self.shape) != 3:
            raise ValueError(
                f"{asker} needs images (n, c, h, w), got examples of the shape {self.shape};"
                " choose one that works entry by entry"
            )
        return self.shape[0], self.shape[1], self.shape[2]


def domain_of(data: Boxed) -> Domain:
    """The box and the shape of the examples of `data`."""
    low, high = getattr(data, "low", 0.0), getattr(data, "high", 1.0)
    return Domain(tuple(data.images.shape[1:]), low, high)
