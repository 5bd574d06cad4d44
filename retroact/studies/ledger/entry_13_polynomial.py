"""Entry 13: Polynomial

A parabola, calibrated at each site.
"""

from __future__ import annotations

from retroact.activations.polynomial import Polynomial
from retroact.studies.ledger.rows import Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Swapped

ROW = Row(
    name="polynomial",
    title="Polynomial",
    values=(Swapped(Polynomial()),),
)
make = make_entry(ROW)
