"""Entry 4: MeanSparse

What is near a channel's mean becomes the mean, before the activation.
"""

from __future__ import annotations

from retroact.activations.mean_sparse import MeanSparse
from retroact.studies.ledger.rows import FIRST_OF_AUTOATTACK, Row, Strongest
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="mean_sparse",
    title="MeanSparse",
    values=tuple(Swapped(MeanSparse(v)) for v in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)),
    rule=Strongest("the largest that keeps clean accuracy", cost=0.0),
    claimed=FIRST_OF_AUTOATTACK,
    everywhere=True,
    by_autoattack=True,
)
make = make_entry(ROW)
