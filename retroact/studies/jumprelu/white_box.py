"""White box: each network through its own gradients, at kappa 0 and at the paper's kappa, as
Table 2 and the claims beside it read it."""

from __future__ import annotations

from typing import Any

from retroact.studies.desk import Desk
from retroact.studies.jumprelu.crafted import crafted
from retroact.studies.jumprelu.networks import ATTACKS, NOISES, Net


def runs(desk: Desk, net: Net) -> dict[float, dict[str, dict[str, Any]]]:
    """The facts of each attack at kappa 0 and at the paper's kappa."""
    asked = [(kappa, name) for kappa in (0.0, net.kappa) for name in ATTACKS]
    found = desk.all_facts([crafted(net, net.n(desk), name, kappa) for kappa, name in asked])
    made: dict[float, dict[str, dict[str, Any]]] = {0.0: {}, net.kappa: {}}
    for (kappa, name), facts in zip(asked, found, strict=True):
        made[kappa][name] = facts
    return made


def ratios(found: dict[float, dict[str, dict[str, Any]]]) -> dict[str, float]:
    """The noise at the paper's kappa over that at 0, for each attack that has one."""
    low, high = sorted(found)
    return {
        name: found[high][name]["noise"] / max(found[low][name]["noise"], 1e-12) for name in NOISES
    }
