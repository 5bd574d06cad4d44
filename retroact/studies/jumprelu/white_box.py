"""White box: each network through its own gradients, at kappa 0 and at the paper's kappa, as
Table 2 and the claims beside it read it."""

from __future__ import annotations

from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.crafted import crafted
from retroact.studies.jumprelu.networks import ATTACKS, NOISES, Net


def runs(desk: Desk, net: Net) -> dict[float, dict[str, Facts]]:
    """The facts of each attack at kappa 0 and at the paper's kappa."""
    asked = [(kappa, name) for kappa in (0.0, net.kappa) for name in ATTACKS]
    measured = desk.all_facts([crafted(net, net.n(desk), name, kappa) for kappa, name in asked])
    by_kappa: dict[float, dict[str, Facts]] = {0.0: {}, net.kappa: {}}
    for (kappa, name), facts in zip(asked, measured, strict=True):
        by_kappa[kappa][name] = facts
    return by_kappa


def ratios(by_kappa: dict[float, dict[str, Facts]]) -> dict[str, float]:
    """The noise at the paper's kappa over that at 0, for each attack that has one."""
    low, high = sorted(by_kappa)
    return {
        name: by_kappa[high][name]["noise"] / max(by_kappa[low][name]["noise"], 1e-12)
        for name in NOISES
    }
