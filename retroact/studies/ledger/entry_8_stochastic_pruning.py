"""Entry 8: Stochastic activation pruning

Responses dropped at random, the smaller ones more often.
"""

from __future__ import annotations

from retroact.activations.noisy import StochasticPruning
from retroact.studies.ledger.rows import AsPublished, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="stochastic_pruning",
    title="Stochastic pruning",
    values=tuple(Swapped(StochasticPruning(v)) for v in (4.0, 2.0, 1.0, 0.5)),
    rule=AsPublished((2,)),
    random=True,
)
make = make_entry(ROW)
