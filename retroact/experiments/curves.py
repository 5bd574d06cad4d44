"""Cells of a sweep as curves: robust accuracy over eps. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.evaluation.record import Record
from retroact.experiments.fields import CellFields

if TYPE_CHECKING:
    from retroact.figures import Figure

Done = tuple[CellFields, Record]


def draw_over_eps(cells: Iterable[Done]) -> Figure:
    """Robust accuracy over eps (pixels of [0, 1], or the data's own units), one curve per network
    and attack; at 0 the clean accuracy."""
    from retroact.figures import CYCLE, Curve, curves  # and with it matplotlib

    series: dict[str, list[Done]] = {}
    for cell in cells:
        series.setdefault(f"{cell[0].network} · {cell[0].how}", []).append(cell)
    drawn = [
        Curve(name, *_follow(members), CYCLE[i % len(CYCLE)])
        for i, (name, members) in enumerate(series.items())
    ]
    units = {record.unit for members in series.values() for _, record in members}
    return curves(drawn, f"eps, {' and '.join(sorted(units))}", "accuracy, %", height=3.4)


def _follow(members: list[Done]) -> tuple[list[float], list[float]]:
    """Each eps, and the robust accuracy there."""
    members = sorted(members, key=lambda cell: cell[0].eps)
    clean = clean_accuracy(members[0][1])
    shares = [clean, *(robust_accuracy(record) for _, record in members)]
    return [0.0, *(fields.eps for fields, _ in members)], shares
