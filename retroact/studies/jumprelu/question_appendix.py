"""Question: gradients at a large kappa, inference at a small one?

The appendix closes with a thought: since examples made at a large kappa leave a small one alone, a
network could give its gradients at a large kappa and decide at a small one. That is a defence by a
gradient of another network: whoever uses the deciding network's own gradient meets the plain
network again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retroact.activations.piecewise import JumpReLU
from retroact.attacks.pgd import PGD
from retroact.crafting.threat import Linf
from retroact.experiments.cell import Cell, Model
from retroact.reports.studied import Part, Table, Text
from retroact.studies.desk import Desk
from retroact.studies.told import outcomes
from retroact.studies.truth import Audited, audits

NETS = {"lenet-mnist": 0.1, "lenet-mnist-robust": 0.2}
LARGE, SMALL = (1.5, 2.5), 0.5
ATTACK = PGD(steps=40, relative_step=1 / 30)


def make(desk: Desk) -> Iterator[Part]:
    n = desk.pick(300, 2000)
    yield Table(
        f"Accuracy (%) under {ATTACK} of a network that decides at kappa {SMALL:g}",
        ("network", "eps", "gradients at", "accuracy"),
        tuple(_row(desk, net, kappa, n) for net in NETS for kappa in (SMALL, *LARGE)),
    )
    asked = [(net, _audit(net, desk.pick(100, 500))) for net in NETS]
    yield audits(desk, f"What the deciding network, kappa {SMALL:g}, is worth", asked)
    yield Text(
        "The first row of each network is an attacker who takes the gradients at the kappa that"
        " decides. The others believe the gradients that the defence hands out; their accuracy is"
        " the claim such a defence would make."
    )


def _row(desk: Desk, net: str, kappa: float, n: int) -> tuple[Any, ...]:
    source = None if kappa == SMALL else Model(net, JumpReLU(kappa))
    cell = Cell(Model(net, JumpReLU(SMALL)), f"mnist[:{n}]", ATTACK, Linf(NETS[net]), source=source)
    where = f"kappa {kappa:g}" + (" (its own)" if source is None else "")
    return net, f"{NETS[net]:g}", where, 100 * outcomes(desk, [cell])[0].robust_accuracy


def _audit(net: str, n: int) -> Audited:
    return Audited(
        Model(net), Model(net, JumpReLU(SMALL)), f"mnist[:{n}]", Linf(NETS[net]), battery="quick"
    )
