"""Entry 17: Int8

Weights, inputs of layers and logits in eight bits, calibrated.
"""

from __future__ import annotations

from retroact.changing.int8 import Int8
from retroact.studies.ledger.rows import Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Changed

ROW = Row(
    name="int8",
    title="Int8",
    values=(Changed(Int8()),),
    everywhere=True,
)
make = make_entry(ROW)
