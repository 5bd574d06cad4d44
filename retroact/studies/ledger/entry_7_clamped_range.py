"""Entry 7: Data-driven clamping

What goes into an activation stays in the range that training data put there.
"""

from __future__ import annotations

from retroact.activations.clamped_range import ClampedRange
from retroact.studies.ledger.rows import FIRST_OF_AUTOATTACK, AsPublished, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="clamped_range",
    title="Clamped range",
    values=tuple(Swapped(ClampedRange(v)) for v in (0.2, 0.1, 0.05, 0.0)),
    rule=AsPublished((3,)),
    claimed=FIRST_OF_AUTOATTACK,
    by_autoattack=True,
)
make = make_entry(ROW)
