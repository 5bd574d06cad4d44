"""The audits of the networks, in pixels: the truth's own, and the block that stands under each
table.

The radius is 0.1 on the base LeNet-like, 0.2 on the robust one, and 2/255 on CIFAR-10 (`Net.eps`).
"""

from __future__ import annotations

from collections.abc import Iterable

from retroact.crafting.threat import Linf
from retroact.reports.studied import Table
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.networks import Net
from retroact.studies.jumprelu.sizes import AUDITS, BESIDE
from retroact.studies.truth import Audited, BatteryName, audits


def audit_of(net: Net, n: int = BESIDE, battery: BatteryName = "quick") -> Audited:
    """The audit of `net` at the paper's kappa on the first `n` test images."""
    return Audited(net.model(0), net.model(net.kappa), net.slice(n), Linf(net.eps), battery)


def true_audit(desk: Desk, net: Net) -> Audited:
    """The truth's own: the whole battery where the desk is a full one."""
    battery, n = desk.largest(AUDITS.of(net), lambda size: [audit_of(net, size[1], size[0])])
    return audit_of(net, n, battery)


def beside(desk: Desk, nets: Iterable[Net]) -> Table:
    """The verified accuracies of a table's networks, and the verdicts; by the quick battery,
    whatever the table's n."""
    asked = [(net.title, audit_of(net)) for net in nets]
    return audits(
        desk, "Beside it, audits in pixel space: accuracy, %, before → after the retrofit", asked
    )
