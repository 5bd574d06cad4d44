"""Question: who holds the float network, and who the one in eight bits?

An attacker has one of the two: the float network is public and its eight-bit form is deployed, or
the reverse. Images are crafted on each, by APGD on the margin loss, and judged on both.
"""

from __future__ import annotations

from collections.abc import Iterator

from retroact.attacks.apgd import APGD
from retroact.changing.int8 import Int8
from retroact.crafting.attack import Attack
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.transfer import transfer_matrix
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports.studied import Part, Table, Text, Value
from retroact.spec import spec
from retroact.studies.desk import Desk, Facts, NotMeasuredError
from retroact.studies.ledger.measurements import found
from retroact.studies.ledger.networks import available, radii

NAMES = ("float", "int8")


@spec
class Transfer:
    """What the float network and its eight-bit form withstand of images that were crafted on each
    of them alone."""

    model: Model
    data: str
    train: str
    threat: ThreatModel
    attack: Attack = APGD(100, loss="margin")

    def __call__(self) -> Facts:
        net = self.model()
        nets = dict(zip(NAMES, (net, Int8()(net, data(self.train))), strict=True))
        made = transfer_matrix(nets, self.data, self.attack, self.threat)
        return {"n": made.n, "clean": list(made.clean), "robust": [list(r) for r in made.robust]}


def make(desk: Desk) -> Iterator[Part]:
    nets = available(desk)
    at = radii(desk, nets)
    asked = {
        net: Transfer(net.model, s.looks[0], s.train, at[net])
        for net in nets
        if net in at and (s := net.slices(desk))
    }
    facts = found(desk, asked.values())
    told = {net: facts[what] for net, what in asked.items() if what in facts}
    if not told:
        raise NotMeasuredError("the transfer matrices")
    rows: list[tuple[Value, ...]] = []
    for net, f in told.items():
        start = net.name, net.radius(at[net]), str(f["n"])
        rows.append((*start, "nothing", *(100 * v for v in f["clean"])))
        rows += [
            (*start, f"the {name} network", *(100 * v for v in row))
            for name, row in zip(NAMES, f["robust"], strict=True)
        ]
    head = ("network", "radius", "n", "crafted on", *(f"{name} stays right, %" for name in NAMES))
    yield Table("Accuracy under images that were crafted elsewhere", head, tuple(rows))
    gaps = [100 * (f["robust"][0][1] - f["robust"][1][1]) for f in told.values()]
    yield Text(
        f"Whoever holds the float network alone leaves {min(gaps):+.1f} to {max(gaps):+.1f} points"
        " more of the eight-bit one than who holds that itself."
    )
