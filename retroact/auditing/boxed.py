"""A time box: as many examples as fit into it, by what the first of them took. No torch here.

The first part has the fewest examples that could tell anything (`verdict.fewest`). What it took
says for how many the rest of the box will do, a number on a coarse ladder, so that two runs on like
machines take the same examples and read the same baseline. The clock decides n and nothing else:
what comes of an audit within a box is, bit for bit, what comes of one on `data[:n]` without it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LADDER = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
"""The steps of n within a power of ten."""

Progress = Callable[[int, int], None]


class BudgetError(ValueError):
    """A time box in which nothing could be told."""


@dataclass(frozen=True)
class Box:
    """A time box of `seconds` from now on, for the examples that are called `word`."""

    seconds: float
    word: str
    began: float = field(default_factory=lambda: time.perf_counter())

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.began

    def watch(self, n: int, tell: Progress | None) -> Progress:
        """A callback that ends the first part, of n examples, where not even that fits."""

        def watched(done: int, total: int) -> None:
            if self.spent > self.seconds and done < total:
                raise BudgetError(
                    f"a budget of {self.seconds:g} s is too small: the {n} {self.word}s without"
                    f" which nothing could be told do not fit ({done} of {total} stages were done);"
                    " give more, or a larger margin"
                )
            if tell is not None:
                tell(done, total)

        return watched

    def size(self, n: int, most: int) -> int:
        """How many of `most` fit into what is left, now that n took what is spent: at least n."""
        took = self.spent
        fit = (self.seconds - took) * n / took
        return most if fit >= most else max(n, _step_below(fit))

    def tell(self, n: int, most: int, first: int) -> str:
        """How many examples were taken, in words."""
        which = f"all {n}" if n == most else f"the first {n} of {most}"
        return (
            f"{which} {self.word}s, what a budget of {self.seconds:g} s holds by what the first"
            f" {first} took"
        )


def _step_below(n: float) -> int:
    """The largest number of the ladder that is at most n; 0 below 1."""
    if n < 1:
        return 0
    power = 10 ** math.floor(math.log10(n))
    return max(int(step * power) for step in LADDER if step * power <= n)
