"""Entry 1: JumpReLU

z · 1[z > kappa] in the place of ReLU.
"""

from __future__ import annotations

from retroact.activations.piecewise import JumpReLU
from retroact.studies.ledger.rows import Row, Strongest
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="jumprelu",
    title="JumpReLU",
    values=tuple(Swapped(JumpReLU(v)) for v in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)),
    on_cifar10=tuple(Swapped(JumpReLU(v)) for v in (0.02, 0.04, 0.07, 0.1, 0.2, 0.3)),
    rule=Strongest("the largest that keeps clean accuracy to a point"),
    everywhere=True,
)
make = make_entry(ROW)
