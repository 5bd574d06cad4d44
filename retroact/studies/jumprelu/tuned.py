"""Kappa chosen on validation images, which no table sees; the paper's own was chosen on the test
images.

By the paper's rule: of the figure's kappas that cost at most COST points of clean accuracy, the one
that keeps most under the paper's white-box PGD. By the audit: the one whose verified accuracy rises
most, and 0 where it rises nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from retroact.auditing.numbers import AuditNumbers
from retroact.crafting.threat import Linf
from retroact.reports.studied import Table, Takeaway, Text, Value
from retroact.studies.desk import Desk, NotMeasuredError
from retroact.studies.jumprelu.crafted import Crafted
from retroact.studies.jumprelu.networks import Net, available
from retroact.studies.jumprelu.sizes import TUNED_BY_AUDIT, TUNED_BY_RULE
from retroact.studies.truth import Audited

COST = 0.02
"""The clean accuracy that a choice may cost; the paper's own kappas cost up to 1.94 points."""
PLACE = 8


def kappa_by_rule(desk: Desk, net: Net) -> float:
    """The kappa that the paper's rule chooses."""
    asked = {n: [_protocol(net, k, n) for k in net.kappas] for n in TUNED_BY_RULE.of(net)}
    facts = desk.all_facts(asked[desk.largest(TUNED_BY_RULE.of(net), lambda n: asked[n])])
    shares = {
        k: (f["clean"][0], f["accuracy"][0][0]) for k, f in zip(net.kappas, facts, strict=True)
    }
    return choose_by_rule(shares)


def choose_by_rule(shares: dict[float, tuple[float, float]]) -> float:
    """Of kappa's clean accuracy and that under PGD; the smaller kappa of two that are alike."""
    allowed = [k for k, (clean, _) in shares.items() if clean >= shares[0.0][0] - COST - 1e-9]
    return max(sorted(allowed), key=lambda k: shares[k][1])


def _protocol(net: Net, kappa: float, n: int) -> Crafted:
    return Crafted(net.model(kappa), (), net.held(n), *net.attack("pgd"))


def kappa_by_audit(desk: Desk, net: Net) -> float:
    """The kappa whose verified accuracy rises most in a quick audit, 0 where it rises nowhere."""
    kappas = tuned_kappas(net)
    asked = {n: [_audit(net, k, n) for k in kappas] for n in TUNED_BY_AUDIT.of(net)}
    facts = desk.all_facts(asked[desk.largest(TUNED_BY_AUDIT.of(net), lambda n: asked[n])])
    gains = {k: AuditNumbers.from_json(f).gain for k, f in zip(kappas, facts, strict=True)}
    return choose_by_audit(gains)


def choose_by_audit(gains: dict[float, float]) -> float:
    """The kappa of the largest gain; 0 where none is above 0."""
    best = max(sorted(gains), key=lambda k: gains[k])
    return best if gains[best] > 0 else 0.0


def tuned_kappas(net: Net) -> tuple[float, ...]:
    """The jumps that are audited: all of MNIST's, every third of CIFAR-10's, and the paper's."""
    grid = net.kappas if net.data == "mnist" else net.kappas[::3]
    return tuple(sorted({*grid, net.kappa} - {0.0}))


def _audit(net: Net, kappa: float, n: int) -> Audited:
    return Audited(net.model(0), net.model(kappa), net.held(n), Linf(net.eps), "quick")


RULES: dict[str, Callable[[Desk, Net], float]] = {
    "the paper's rule": kappa_by_rule,
    "verified accuracy": kappa_by_audit,
}


def tuned_table(
    desk: Desk,
    title: str,
    head: tuple[str, ...],
    row: Callable[[Net, float], tuple[Value, ...]],
) -> Table:
    """A row for each network and rule: the kappa, and what `row` prints of the network at it."""
    rows: list[tuple[Value, ...]] = []
    for net in available(desk):
        for rule, choose in RULES.items():
            try:
                kappa = choose(desk, net)
                rows.append((net.title, rule, f"{kappa:g}", *row(net, kappa)))
            except NotMeasuredError:
                rows.append((net.title, rule, "not measured yet", *[None] * len(head)))
    return Table(title, ("network", "chosen by", "kappa", *head), tuple(rows))


def tuned_lines(desk: Desk) -> Iterator[Text | Takeaway]:
    """What the choices are, in words."""
    yield Text(
        "Kappa is chosen on validation images, which no other number of this page sees: by the"
        " paper's rule, the kappa that keeps most under its PGD at a cost of at most"
        f" {100 * COST:g} points clean, and by the verified accuracy of a quick audit, where"
        " kappa 0 stands among the choices."
    )
    chosen = {net: kappa for net in available(desk) if (kappa := _try(desk, net)) is not None}
    none = sum(kappa == 0 for kappa in chosen.values())
    if chosen:
        yield Takeaway(
            PLACE,
            f"Chosen on validation images by verified accuracy, kappa is 0 on {none} of"
            f" {len(chosen)} networks: no jump at all is the best jump there.",
        )


def _try(desk: Desk, net: Net) -> float | None:
    try:
        return kappa_by_audit(desk, net)
    except NotMeasuredError:
        return None
