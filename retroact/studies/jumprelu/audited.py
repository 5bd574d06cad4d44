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
from retroact.studies.truth import Audited, audits


def audit_of(net: Net, *, quick: bool) -> Audited:
    """The audit of `net` at the paper's kappa: the quick battery on 200 images, or all of it, 1000
    of MNIST's."""
    n = 200 if quick or net.data != "mnist" else 1000
    return Audited(
        net.model(0),
        net.model(net.kappa),
        net.slice(n),
        Linf(net.eps),
        "quick" if quick else "whole",
    )


def beside(desk: Desk, nets: Iterable[Net]) -> Table:
    """The verified accuracies of a table's networks, and the verdicts; by the quick battery,
    whatever the table's n."""
    asked = [(net.title, audit_of(net, quick=True)) for net in nets]
    return audits(
        desk, "Beside it, audits in pixel space: accuracy, %, before → after the retrofit", asked
    )
