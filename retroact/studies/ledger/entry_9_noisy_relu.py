"""Entry 9: Noise at the activations

max(0, z + sigma n), n drawn anew in every pass.
"""

from __future__ import annotations

from retroact.activations.noisy import NoisyReLU
from retroact.studies.ledger.rows import Row, Strongest
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="noisy_relu",
    title="Noisy ReLU",
    values=tuple(Swapped(NoisyReLU(v)) for v in (0.02, 0.05, 0.1, 0.2)),
    rule=Strongest("the largest that keeps clean accuracy to a point"),
    random=True,
)
make = make_entry(ROW)
