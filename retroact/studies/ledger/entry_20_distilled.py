"""Entry 20: A distilled student

A student of the same architecture that learns the network's answers.
"""

from __future__ import annotations

from retroact.studies.ledger.rows import AsPublished, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Changed
from retroact.training.changes import Distilled

ROW = Row(
    name="distilled",
    title="Distilled",
    values=tuple(Changed(Distilled(t), trains=True) for t in (1.0, 4.0, 20.0)),
    rule=AsPublished((2,)),
)
make = make_entry(ROW)
