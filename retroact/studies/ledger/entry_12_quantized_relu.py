"""Entry 12: Quantised ReLU

A ReLU of so few bits that it is a staircase.
"""

from __future__ import annotations

from retroact.activations.quantized import QuantizedReLU
from retroact.studies.ledger.rows import AsPublished, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="quantized_relu",
    title="Quantised ReLU",
    values=tuple(Swapped(QuantizedReLU(v)) for v in (8, 4, 3, 2)),
    rule=AsPublished((2,), "3 bits"),
)
make = make_entry(ROW)
