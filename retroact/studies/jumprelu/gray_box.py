"""Gray box: the sets that were made on the ReLU network and shown to its retrofit, as Table 1 and
the truth beside it print them."""

from __future__ import annotations

from dataclasses import replace

from retroact.reports.studied import Value
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.crafted import crafted
from retroact.studies.jumprelu.networks import ATTACKS, NOISES, Net, available

SCALED = tuple(
    f"{title}{scale}" for title in NOISES.values() for scale in ("", " × 1.1", " × 1.25")
)
"""The columns of perturbations that are shown a little longer than they were made."""


def sets(desk: Desk, net: Net) -> dict[str, Facts]:
    """The facts of each attack's gray-box set, by the attack's name."""
    asked = [crafted(net, net.n(desk), name, gray=True) for name in ATTACKS]
    return dict(zip(ATTACKS, desk.all_facts(asked), strict=True))


def run_longer(desk: Desk) -> tuple[tuple[Value, ...], ...]:
    """The retrofit's accuracy where the attacker does not stop at the source's boundary, a row per
    network."""
    nets = available(desk)
    free = desk.all_facts(
        [replace(crafted(net, net.n(desk), "pgd", gray=True), frozen=False) for net in nets]
    )
    return tuple(_longer_row(net, sets(desk, net), f) for net, f in zip(nets, free, strict=True))


def _longer_row(net: Net, facts: dict[str, Facts], free: Facts) -> tuple[Value, ...]:
    pgd = [100 * facts["pgd"]["accuracy"][0][1], 100 * free["accuracy"][0][1]]
    return (
        net.title,
        f"{net.kappa:g}",
        *pgd,
        *(100 * a[1] for name in NOISES for a in facts[name]["accuracy"]),
    )
