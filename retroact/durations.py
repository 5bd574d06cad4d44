"""How long something may take, as people write it. Everyone may use this, and it needs no torch."""

from __future__ import annotations

import math
import re

from retroact.spec import CallError

_UNITS = {"h": 3600, "m": 60, "s": 1}
_SAID = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def seconds_of(budget: float | str) -> float:
    """The seconds of "90s", "5m", "1h30m", or of a number of them. Raises CallError for anything
    else, and for none at all."""
    if isinstance(budget, str):
        found = _SAID.fullmatch(budget.strip())
        parts = zip(found.groups(), _UNITS.values(), strict=True) if found else ()
        seconds = sum(float(number) * unit for number, unit in parts if number)
    else:
        seconds = float(budget)
    if not 0 < seconds < math.inf:
        raise CallError(f"expected a budget such as 90s, 5m or 1h30m, got {budget!r}")
    return seconds
