"""Entry 18: Half precision

All numbers in float16.
"""

from __future__ import annotations

from retroact.changing.half import Half
from retroact.studies.ledger.rows import Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Changed

ROW = Row(
    name="half",
    title="Half",
    values=(Changed(Half()),),
)
make = make_entry(ROW)
