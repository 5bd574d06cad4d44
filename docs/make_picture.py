"""Draws docs/audit.svg, what README and the first page show: `python docs/make_picture.py`.

The audit is README's own: retroact audit digits-cnn "SReLU(100)" --threat "Linf(0.1)" --data
digits --quick (n = 359, seed 0).
"""

from __future__ import annotations

from pathlib import Path

import retroact as ra
from retroact.reports import plots

PICTURE = Path(__file__).with_name("audit.svg")


def draw() -> str:
    numbers = ra.audit("digits-cnn", "SReLU(100)", "digits", "Linf(0.1)", battery="quick").numbers()
    pairs = [
        ("without an attack", numbers.clean),
        ("claimed:\nthe usual attack", numbers.claimed),
        ("verified:\nevery attack", numbers.verified),
    ]
    figure = plots.standalone(plots.claims(pairs, numbers.n))
    # white behind it, for those who read in the dark
    return figure.replace("<svg", '<svg style="background:#fff"', 1)


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
