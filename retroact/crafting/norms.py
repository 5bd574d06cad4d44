"""The norms at hand, for attacks that serve them all."""

from __future__ import annotations

from retroact.crafting.l1 import L1
from retroact.crafting.threat import L2, Linf


class _EveryNorm(tuple[str, ...]):
    """The names of the norms at hand; one that is added elsewhere belongs to them."""

    def __contains__(self, norm: object) -> bool:
        return isinstance(norm, str)


EVERY_NORM = _EveryNorm(threat.norm for threat in (Linf, L2, L1))
"""The `norms` of an attack that asks its threat for all that depends on the norm."""
