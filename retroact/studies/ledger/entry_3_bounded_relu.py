"""Entry 3: Bounded ReLU

min(max(z, 0), b) in the place of ReLU.
"""

from __future__ import annotations

from retroact.activations.piecewise import BoundedReLU
from retroact.studies.ledger.rows import Row, Strongest
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="bounded_relu",
    title="Bounded ReLU",
    values=tuple(Swapped(BoundedReLU(v)) for v in (8.0, 4.0, 2.0, 1.0, 0.5)),
    rule=Strongest("the smallest that keeps clean accuracy to a point"),
)
make = make_entry(ROW)
