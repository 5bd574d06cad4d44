"""Entry 11: Learned shifts

This project's own: one shift per channel, learned.
"""

from __future__ import annotations

from retroact.studies.ledger.rows import Row
from retroact.studies.ledger.shown import make_entry
from retroact.studies.ledger.treatments import Hardened

ROW = Row(
    name="hardening",
    title="Hardening",
    values=(Hardened(),),
    everywhere=True,
)
make = make_entry(ROW)
