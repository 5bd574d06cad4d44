"""White box: each network through its own gradients, at kappa 0 and at the paper's kappa, as
Table 2 and the claims beside it read it."""

from __future__ import annotations

from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.crafted import crafted
from retroact.studies.jumprelu.networks import ATTACKS, NOISES, Net
from retroact.studies.jumprelu.sizes import TABLES

Runs = dict[float, dict[str, Facts]]
"""The facts of each attack, by kappa and by the attack's name."""


def runs(desk: Desk, net: Net) -> Runs:
    """The facts of each attack at kappa 0 and at the paper's kappa."""
    return runs_at(desk, net, (0.0, net.kappa))


def runs_at(desk: Desk, net: Net, kappas: tuple[float, ...]) -> Runs:
    """The facts of each attack at each of `kappas`, on as many images as the tables have."""
    pairs = [(kappa, name) for kappa in kappas for name in ATTACKS]
    asked = {n: [crafted(net, n, name, k) for k, name in pairs] for n in TABLES.of(net)}
    measured = desk.all_facts(asked[desk.largest(TABLES.of(net), lambda n: asked[n])])
    by_kappa: Runs = {kappa: {} for kappa in kappas}
    for (kappa, name), facts in zip(pairs, measured, strict=True):
        by_kappa[kappa][name] = facts
    return by_kappa


def ratios(by_kappa: Runs) -> dict[str, float]:
    """The noise at the paper's kappa over that at 0, for each attack that has one."""
    low, high = sorted(by_kappa)
    return {
        name: by_kappa[high][name]["noise"] / max(by_kappa[low][name]["noise"], 1e-12)
        for name in NOISES
    }


def published_ratio(net: Net, name: str) -> float | None:
    """The same ratio from the paper's own Table 2."""
    before, after = (net.published("2", name, kappa) for kappa in (0.0, net.kappa))
    return after / before if before and after else None
