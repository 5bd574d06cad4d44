"""Gray box: the sets that were made on the ReLU network and shown to its retrofit, as Table 1 and
the truth beside it print them."""

from __future__ import annotations

from dataclasses import replace

from retroact.reports.studied import Value
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.crafted import Crafted, crafted
from retroact.studies.jumprelu.networks import ATTACKS, NOISES, Net, available
from retroact.studies.jumprelu.sizes import TABLES

SCALED = tuple(
    f"{title}{scale}" for title in NOISES.values() for scale in ("", " × 1.1", " × 1.25")
)
"""The columns of perturbations that are shown a little longer than they were made."""


def sets(
    desk: Desk, net: Net, kappa: float | None = None, *, counted: bool = True
) -> dict[str, Facts]:
    """The facts of each attack's gray-box set, by the attack's name, shown to the paper's kappa or
    to another `kappa`; not `counted` where another item's footnote has their minutes."""
    asked = {n: _sets(net, n, kappa) for n in TABLES.of(net)}
    made = asked[desk.largest(TABLES.of(net), lambda n: asked[n])]
    facts = desk.all_facts(made) if counted else [desk.again(what) for what in made]
    return dict(zip(ATTACKS, facts, strict=True))


def _sets(net: Net, n: int, kappa: float | None = None) -> list[Crafted]:
    sets = [crafted(net, n, name, gray=True) for name in ATTACKS]
    if kappa is None or kappa == net.kappa:
        return sets
    return [replace(made, targets=(net.model(kappa),)) for made in sets]


def run_longer(desk: Desk) -> tuple[tuple[Value, ...], ...]:
    """The retrofit's accuracy where the attacker does not stop at the source's boundary, a row per
    network."""
    nets = available(desk)
    free = desk.all_facts([_free(desk, net) for net in nets])
    return tuple(_longer_row(net, sets(desk, net), f) for net, f in zip(nets, free, strict=True))


def _free(desk: Desk, net: Net) -> Crafted:
    """PGD with all of its steps on every image."""
    asked = {n: replace(crafted(net, n, "pgd", gray=True), frozen=False) for n in TABLES.of(net)}
    return asked[desk.largest(TABLES.of(net), lambda n: [asked[n]])]


def _longer_row(net: Net, facts: dict[str, Facts], free: Facts) -> tuple[Value, ...]:
    pgd = [100 * facts["pgd"]["accuracy"][0][1], 100 * free["accuracy"][0][1]]
    return (
        net.title,
        f"{net.kappa:g}",
        *pgd,
        *(100 * a[1] for name in NOISES for a in facts[name]["accuracy"]),
    )
