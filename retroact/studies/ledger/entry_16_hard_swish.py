"""Entry 16: Hard-swish

Hard-swish in the place of ReLU.
"""

from __future__ import annotations

from retroact.activations.smooth import HardSwish
from retroact.studies.ledger.rows import Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="hard_swish",
    title="Hard-swish",
    values=(Swapped(HardSwish()),),
)
make = make_entry(ROW)
