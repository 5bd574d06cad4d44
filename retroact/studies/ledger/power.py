"""How many images a gain takes to be seen, how small a gain so many images can show, and intervals
that hold for many questions at once. No torch here.

Of two networks that are asked about the same n images, `moved` is the share of images that change
hands (robust on one of the two alone); a gain g is a difference of two such shares, so |g| ≤ moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

_STEPS = 60  # halvings: more than a float can tell apart


def images_for(gain: float, moved: float, *, rate: float = 0.05, power: float = 0.8) -> int:
    """The n at which McNemar's test at a two-sided error `rate` sees a `gain` with this `power`:
    n = (z_{1-rate/2} √d + z_power √(d − g²))² / g², d the share `moved` (Connor 1987, Biometrics
    43(1)).

    Raises ValueError for a gain of 0 or beyond `moved`, and for shares outside (0, 1].
    """
    if not 0 < moved <= 1 or not 0 < abs(gain) <= moved:
        raise ValueError(
            f"expected a gain within the share of images that change hands, both in (0, 1], got"
            f" {gain} of {moved}"
        )
    return math.ceil(_images_for(abs(gain), moved, rate, power))


def visible_gain(n: int, moved: float, *, rate: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest gain that n images can show at this power, where a share `moved` of them changes
    hands; None where even a gain of all that moves could not be seen."""
    if n < 1 or not 0 <= moved <= 1:
        raise ValueError(f"expected n of at least 1 and a share in [0, 1], got {n} and {moved}")
    if moved == 0 or _images_for(moved, moved, rate, power) > n:
        return None
    low, high = 0.0, moved
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if middle > 0 and _images_for(middle, moved, rate, power) <= n:
            high = middle
        else:
            low = middle
    return high


def _images_for(gain: float, moved: float, rate: float, power: float) -> float:
    normal = NormalDist()
    alike, apart = normal.inv_cdf(1 - rate / 2), normal.inv_cdf(power)
    spread = math.sqrt(max(0.0, moved - gain * gain))
    return float((alike * math.sqrt(moved) + apart * spread) ** 2 / (gain * gain))


def interval(gained: int, lost: int, n: int, rate: float = 0.05) -> tuple[float, float]:
    """The interval of the gain (gained − lost)/n at 1 − `rate`: d ± z √((a + b − d²)/(n + 2)), a
    and b the shares of gained and lost after one is added to each and d = a − b (Bonett & Price
    2012, J. Educ. Behav. Stat. 37(4)).

    In closed form, as a bootstrap's draws say nothing of the far ends that many questions ask for.
    """
    if n < 1 or min(gained, lost) < 0 or gained + lost > n or not 0 < rate < 1:
        raise ValueError(
            f"expected gained + lost ≤ n with n > 0 and a rate in (0, 1), got {gained}, {lost}, n ="
            f" {n}, {rate}"
        )
    a, b = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    middle, z = a - b, NormalDist().inv_cdf(1 - rate / 2)
    half = z * math.sqrt((a + b - middle * middle) / (n + 2))
    return max(-1.0, middle - half), min(1.0, middle + half)


def shares_of(rate: float, ps: Sequence[float]) -> list[float]:
    """The error rate that each of several questions gets by Holm's order (1979): the one with the
    k-th smallest p of m gets rate/(m − k + 1)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    places = {i: k for k, i in enumerate(order)}
    return [rate / (len(ps) - places[i]) for i in range(len(ps))]
