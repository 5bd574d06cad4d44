"""Entry 2: Sloped ReLU

alpha · max(0, z) in the place of ReLU.
"""

from __future__ import annotations

from retroact.activations.piecewise import SReLU
from retroact.studies.ledger.rows import AsPublished, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="srelu",
    title="Sloped ReLU",
    values=tuple(Swapped(SReLU(v)) for v in (2.0, 5.0, 10.0, 100.0)),
    rule=AsPublished((2, 3)),
)
make = make_entry(ROW)
