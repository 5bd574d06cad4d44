"""Table 1: claimed beside verified

Every row of the docket on every network: what its authors published, what their attack shows here,
and what is left under attacks that know the change. The rules were written down before the first
number (docs/ledger/protocol.md). Published numbers stand in columns of their own.
"""

from __future__ import annotations

from collections.abc import Iterator

from retroact.reports.studied import Part, Text
from retroact.studies.desk import Desk
from retroact.studies.ledger.judged import LOOKS, RATE
from retroact.studies.ledger.lines import make_ledger
from retroact.studies.ledger.rows import docket
from retroact.studies.ledger.shown import claims_table, figure, ledger_table, summarise


def make(desk: Desk) -> Iterator[Part]:
    rows = docket()
    ledger = make_ledger(desk)
    yield from summarise(ledger)
    yield Text(
        f"Each look is judged at {100 * RATE / LOOKS:g} %, and Holm's correction counts all"
        f" {ledger.planned} lines that are planned, measured or not. “Could have shown” is the"
        " smallest gain, in points, that a line's images could have shown at a power of 80 %."
        " Pairs are before → after, in per cent. A verdict is about these networks; where a claim"
        " is about others, the row says “outside the claim”, and its own item says what would"
        " settle it there."
    )
    yield ledger_table(ledger, rows)
    yield figure(ledger)
    yield claims_table(rows)
