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
class Frame:
    """How random search sees an example: `channels` sheets of `height` x `width` places each.

    A window is the same in every channel. Of images it is `square`; of a series (height 1) it is a
    segment of time; of a row (height 1, one channel) it is a segment of the columns in an order
    that is drawn (`drawn`), and so any subset of them.
    """

    channels: int
    height: int
    width: int
    square: bool = False
    drawn: bool = False

    @property
    def longest(self) -> int:
        """The longest side that a window may have."""
        return min(self.height, self.width) if self.square else self.width

    def side(self, share: float) -> int:
        """The side of a window that covers `share` of the places, rounded."""
        places = share * self.height * self.width
        return round(math.sqrt(places) if self.square else places)

    def window(self, side: int) -> tuple[int, int]:
        """Height and width of the window of that side."""
        return (side if self.square else 1), side

    def view(self, x: Tensor) -> Tensor:
        """`x` (n, …) as (n, channels, height, width)."""
        return x.reshape(len(x), self.channels, self.height, self.width)


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

    @property
    def word(self) -> str:
        """What an example is called: an image has three axes."""
        return "image" if len(self.shape) == 3 else "example"

    @property
    def frame(self) -> Frame:
        """Where the windows of random search lie: (c, h, w) as it is, (c, t) as c sheets of one
        line, (d,) as one line; of more axes the last two are height and width."""
        if len(self.shape) == 1:
            return Frame(1, 1, self.entries, drawn=True)
        if len(self.shape) == 2:
            return Frame(self.shape[0], 1, self.shape[1])
        *sheets, height, width = self.shape
        return Frame(math.prod(sheets), height, width, square=True)

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
