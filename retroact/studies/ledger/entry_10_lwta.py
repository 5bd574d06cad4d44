"""Entry 10: Stochastic LWTA

Of every two units one that is drawn answers; a network trained with it.
"""

from __future__ import annotations

from retroact.studies.ledger.rows import FIRST_OF_AUTOATTACK, Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import TrainedWith

ROW = Row(
    name="lwta",
    title="Stochastic LWTA",
    values=(TrainedWith(),),
    claimed=FIRST_OF_AUTOATTACK,
    mnist=True,
    random=True,
    by_autoattack=True,
)
make = make_entry(ROW)
