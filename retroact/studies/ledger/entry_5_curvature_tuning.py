"""Entry 5: Curvature Tuning

A ReLU whose corner is rounded, the same at all sites.
"""

from __future__ import annotations

from retroact.activations.curvature import CurvatureTuning
from retroact.studies.ledger.rows import FIRST_OF_AUTOATTACK, BestClaimed, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="curvature_tuning",
    title="Curvature Tuning",
    values=tuple(Swapped(CurvatureTuning(v)) for v in (0.99, 0.95, 0.9, 0.85, 0.8, 0.7)),
    rule=BestClaimed("the best of a sweep under the claimed attack"),
    claimed=FIRST_OF_AUTOATTACK,
    everywhere=True,
    by_autoattack=True,
)
make = make_entry(ROW)
