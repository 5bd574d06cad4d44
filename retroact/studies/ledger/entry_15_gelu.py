"""Entry 15: GELU

GELU in the place of ReLU.
"""

from __future__ import annotations

from retroact.activations.smooth import GELU
from retroact.studies.ledger.rows import Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="gelu",
    title="GELU",
    values=(Swapped(GELU()),),
)
make = make_entry(ROW)
