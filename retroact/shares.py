"""Shares of examples, and how sure one may be of them. No torch here."""

from __future__ import annotations

import math


def wilson(k: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share k/n (95 % by default); Wilson 1927.

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n).
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"expected 0 ≤ k ≤ n with n > 0, got k={k}, n={n}")
    p, zz = k / n, z * z / n
    centre, half = p + zz / 2, z * math.sqrt(p * (1 - p) / n + zz / (4 * n))
    # p itself always lies within; min and max keep rounding from saying otherwise at 0 and at 1
    return min(p, (centre - half) / (1 + zz)), max(p, (centre + half) / (1 + zz))
