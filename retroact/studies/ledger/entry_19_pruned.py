"""Entry 19: Pruning by magnitude

The smallest weights of the network are 0.
"""

from __future__ import annotations

from retroact.changing.pruned import Pruned
from retroact.studies.ledger.rows import AsPublished, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Changed

ROW = Row(
    name="pruned",
    title="Pruned",
    values=tuple(Changed(Pruned(share)) for share in (0.5, 0.8, 0.95)),
    rule=AsPublished((0, 1, 2), "a line each"),
)
make = make_entry(ROW)
