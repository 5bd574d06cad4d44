"""Entry 6: k-winners-take-all, the control

The largest responses of a layer alone, trained with; its truth is known.
"""

from __future__ import annotations

from retroact.studies.ledger.rows import AsPublished, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import LoweredKWTA

ROW = Row(
    name="kwta",
    title="k-WTA",
    values=(LoweredKWTA(0.2), LoweredKWTA(0.1)),
    rule=AsPublished((0, 1)),
    control=True,
)
make = make_entry(ROW)
