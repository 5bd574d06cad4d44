"""How a curve is shown in this paper's figures: a thick line with the published one thin, and rows
of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retroact.reports.plots import Panel, Series
from retroact.reports.studied import Table, Value

COLOURS = (6, 7, 2, 3, 4, 0)
"""Six that are easy to tell apart, grey for the second, which is slope 1: no defence."""


@dataclass(frozen=True)
class Curve:
    """Numbers over the columns x of one `value` of something (`what`, such as "slope"); what was
    published, by column; those of the original images alone, if they differ."""

    value: str
    y: Sequence[float]
    published: Mapping[str, float] = field(default_factory=dict)
    original: Sequence[float] | None = None
    what: str = ""

    @property
    def name(self) -> str:
        """How a legend calls it: "slope 2"."""
        return f"{self.what} {self.value}".lstrip()


def panel(
    title: str,
    x: Sequence[str],
    curves: Sequence[Curve],
    xlabel: str = "eps, pixels",
    ylabel: str = "accuracy, %",
    ylim: tuple[float, float] | None = (0, 101),
) -> Panel:
    """Measured curves over equally spaced columns, as the paper draws them; published ones have the
    same colours."""
    drawn = [Series(c.name, x, c.y, colour=i) for i, c in zip(COLOURS, curves, strict=False)]
    for i, c in zip(COLOURS, curves, strict=False):
        there = [name for name in x if name in c.published]
        if there:
            drawn.append(
                Series(
                    "published", there, [c.published[v] for v in there], published=True, colour=i
                )
            )
    return Panel(title, drawn, xlabel, ylabel, ylim)


def table(
    title: str, what: str, column: str, x: Sequence[str], curves: Sequence[Curve], original: int = 0
) -> Table:
    """Every number of the curves as a row, folded; `what` names the curves, `column` the
    columns."""
    own = any(c.original is not None for c in curves)
    head = (
        what,
        column,
        "measured",
        *([f"first {original}, original"] if own else []),
        "published",
        "difference",
    )
    return Table(title, head, tuple(row for c in curves for row in _rows(x, c, own)), folded=True)


def _rows(x: Sequence[str], curve: Curve, own: bool) -> list[tuple[Value, ...]]:
    rows: list[tuple[Value, ...]] = []
    for i, (name, value) in enumerate(zip(x, curve.y, strict=True)):
        known = curve.published.get(name)
        beside = [None if curve.original is None else curve.original[i]] if own else []
        rows.append(
            (curve.value, name, value, *beside, known, None if known is None else value - known)
        )
    return rows


def mean(values: Sequence[float]) -> float:
    """Their mean; every column of the paper's averages counts alike."""
    return sum(values) / len(values)
