"""Entry 14: Linearised sites

No activation at the last sites.
"""

from __future__ import annotations

from retroact.studies.ledger.rows import Row, Strongest
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import LinearFromEnd

ROW = Row(
    name="linearized",
    title="Linearised",
    values=tuple(LinearFromEnd(share) for share in (0.1, 0.2, 0.3, 0.4, 0.5)),
    rule=Strongest("as many as keep clean accuracy to a point"),
)
make = make_entry(ROW)
