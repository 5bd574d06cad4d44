"""Figures from stored records, as SVG that goes straight into a page and follows its style sheet,
and examples pixel by pixel, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from retroact import figures
from retroact.auditing.numbers import Entries
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.experiments.curves import draw_over_eps
from retroact.figures import AFTER, BEFORE, CYCLE, FAINT, INK, laid_out, plain
from retroact.figures import BLUES as BLUES
from retroact.figures import BOTH_WAYS as BOTH_WAYS
from retroact.figures import REDS as REDS
from retroact.figures import draw_image as draw_image
from retroact.figures import is_image as is_image
from retroact.reports.tables import Line

THEMED = {
    "#000000": "currentColor",
    INK: "currentColor",
    FAINT: "var(--line)",
    BEFORE: "var(--grey)",
    AFTER: "var(--blue)",
    **{colour: f"var(--curve-{i})" for i, colour in enumerate(CYCLE) if colour != AFTER},
}
"""Colours that follow the page's style sheet, and so the reader's choice of light or dark."""
PUBLISHED, INTERVAL, ASKED = "published", "95 % interval", "asked for"
_BESIDE = 24  # characters of a name, of which three have room in a legend
_ABOVE = 60  # characters of a name above its bar


def bars(group: Sequence[Line]) -> str:
    """Robust accuracy per network and attack: Wilson's 95 % interval as a line, clean accuracy as a
    tick."""
    rows: list[Line | str] = []
    for name in dict.fromkeys(line.network for line in group):
        rows += [name, *(line for line in group if line.network == name)]
    figure = Figure(figsize=(4.4, 0.6 + 0.38 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        _write_above(axes, i, row if isinstance(row, str) else row.fields.how, isinstance(row, str))
        if isinstance(row, Line):
            _draw_bar(axes, i, row)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xlim(0, 101)
    axes.set_xlabel("accuracy under attack, %", fontsize=8)
    return svg(plain(figure, axes))


def _write_above(axes: Axes, at: float, name: str, bold: bool = False) -> None:
    """A name above what is drawn at a place, not beside it, where a phone has no room."""
    weight = "bold" if bold else "normal"
    short = name if len(name) <= _ABOVE else f"{name[: _ABOVE - 1]}…"
    where = axes.get_yaxis_transform()  # x as a share of the axes
    axes.text(0.01, at - 0.28, short, fontsize=8, va="center", weight=weight, transform=where)


def _draw_bar(axes: Axes, at: float, line: Line) -> None:
    low, high = line.interval
    # empty where the page says that the number is too good
    blind: dict[str, Any] = {"facecolor": "none", "edgecolor": BEFORE, "linestyle": "--"}
    how = blind if line.alarms() else {"color": CYCLE[0]}
    middle, clean = at + 0.15, 100 * clean_accuracy(line.record)
    axes.barh(middle, 100 * robust_accuracy(line.record), height=0.36, **how)
    axes.plot([100 * low, 100 * high], [middle, middle], color=INK, linewidth=1)
    axes.plot([clean, clean], [middle - 0.2, middle + 0.2], color=INK, linewidth=2)


def curves(group: Sequence[Line]) -> str:
    """Robust accuracy against eps (pixels), one curve per network and attack."""
    return svg(draw_over_eps((line.fields, line.record) for line in group))


@dataclass(frozen=True)
class Series:
    """A curve: its name, y over x, whether it was measured (thick) or published (thin), and which
    colour it has."""

    name: str
    x: Sequence[float | str]
    y: Sequence[float]
    published: bool = False
    colour: int = 0


@dataclass(frozen=True)
class Panel:
    """One set of axes. `x` values that are texts stand equally spaced."""

    title: str
    series: Sequence[Series]
    xlabel: str = ""
    ylabel: str = ""
    ylim: tuple[float, float] | None = (0, 101)


def panels(shown: Sequence[Panel], *, columns: int = 3, height: float = 2.5) -> str:
    """Curves side by side under one legend: measured ones thick with dots, published ones thin and
    dashed."""
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(
        figsize=(9.6 if columns > 1 else 6.4, 0.4 + height * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, shown, strict=False):
        _draw_panel(axes, panel)
        plain(figure, axes)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    named: dict[str, Any] = {}
    for axes in grid.flat:
        named |= {
            name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
        }
    where: dict[str, Any] = {
        "loc": "outside lower center",
        "ncols": min(7, len(named)),
        "fontsize": 7,
    }
    figure.legend(list(named.values()), list(named), frameon=False, **where)
    return svg(figure)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for one in panel.series:
        style: dict[str, Any] = (
            {"linewidth": 0.8, "linestyle": "--"}
            if one.published
            else {"linewidth": 1.8, "marker": "o"}
        )
        colour = CYCLE[one.colour % len(CYCLE)]
        axes.plot(one.x, one.y, markersize=3, color=colour, label=one.name, **style)
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlabel(panel.xlabel, fontsize=8)
    axes.set_ylabel(panel.ylabel, fontsize=8)
    if panel.ylim is not None:
        axes.set_ylim(*panel.ylim)


def standalone(svg: str) -> str:
    """The figure with colours of its own, for a file that no style sheet reaches."""
    for colour, themed in THEMED.items():
        svg = svg.replace(themed, colour if themed != "currentColor" else INK)
    return (
        svg
        if "xmlns=" in svg.split(">", 1)[0]
        else svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    )


def tuning(points: Sequence[Any], knob: str, chosen: float, words: Sequence[str]) -> str:
    """Clean, claimed and verified accuracy of tuning against the knob, called by these `words`;
    `points` have these as attributes."""
    values = [p.knob for p in points]
    drawn = [
        figures.Curve(said, values, [getattr(p, name) for p in points], colour)
        for said, (name, colour) in zip(words, figures.TOLD.items(), strict=True)
    ]
    return svg(figures.curves(drawn, knob, "accuracy on validation data, %", marked=chosen))


def claims(pairs: Sequence[tuple[str, tuple[float, float]]], n: int, word: str = "image") -> str:
    """Accuracies before (grey) and after (blue) a change, a pair of bars per title; Wilson's 95 %
    as a line."""
    titles = [title for title, _ in pairs]
    sides = {"before": [pair[0] for _, pair in pairs], "after": [pair[1] for _, pair in pairs]}
    return svg(figures.bars(titles, sides, n, word=word))


def climb(before: Sequence[float], after: Sequence[float]) -> str:
    """The mean loss along the usual attack's steps; on a symmetric log axis where it spans more
    than two decades."""
    figure, axes = _panel()
    for values, colour, name in ((before, BEFORE, "before"), (after, AFTER, "after")):
        axes.plot(
            range(len(values)),
            values,
            color=colour,
            linewidth=2,
            marker="o",
            markersize=2.5,
            label=name,
        )
    highest = [
        max((v for v in values if np.isfinite(v)), default=0.0) for values in (before, after)
    ]
    if max(highest) > 100 * max(min(highest), 0.1):
        axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel("step of the attack", fontsize=8)
    axes.set_ylabel("mean cross-entropy", fontsize=8)
    axes.legend(fontsize=8, frameon=False)
    return svg(plain(figure, axes))


def fidelity(before: Sequence[float], after: Sequence[float]) -> str:
    """What a small step changed over what the gradient predicted, sorted; the band is 1/2 to 2,
    outliers are cut."""
    figure, axes = _panel()
    axes.axhspan(0.5, 2, color=FAINT, alpha=0.45, linewidth=0)
    for values, colour, name in ((before, BEFORE, "before"), (after, AFTER, "after")):
        if len(values):
            axes.plot(
                np.linspace(0, 100, len(values)),
                np.clip(values, -2, 5),
                color=colour,
                linewidth=2,
                label=name,
            )
    axes.set_ylim(-2, 5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("images, sorted, %", fontsize=8)
    axes.set_ylabel("actual / predicted change", fontsize=8)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return svg(plain(figure, axes))


def scale(before: float, after: float) -> str:
    """The median margin of the logits before and after, on a log axis; no bar for what is not
    finite."""
    figure, axes = _panel()
    drawn = [v if np.isfinite(v) and v > 0 else 0.1 for v in (before, after)]
    for i, (value, length, colour) in enumerate(
        zip((before, after), drawn, (BEFORE, AFTER), strict=True)
    ):
        axes.barh(i, length, color=colour, height=0.55)
        axes.text(length, i, f"  {value:.3g}", va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(min(0.1, *(v / 3 for v in drawn)), 30 * max(1.0, *drawn))
    axes.set_yticks([0, 1], ["before", "after"], fontsize=9)
    axes.set_ylim(1.6, -0.6)
    axes.set_xlabel("median margin of the logits", fontsize=8)
    return svg(plain(figure, axes))


def missing(entries: Entries) -> str:
    """The places of single entries in an example, of a picture by their pixel: red where their
    gradient is missing."""
    figure, axes = _panel()
    height, width = (1, *entries.shape)[-2:]
    for places, colour in ((entries.found, BEFORE), (entries.missing, CYCLE[4])):
        rows, columns = np.divmod(np.array(places, dtype=int) % (height * width), width)
        axes.scatter(columns, rows, s=900 / max(height, width), c=colour, marker="s")
    axes.set_xlim(-1, width)
    axes.set_ylim(height, -1)
    axes.set_aspect("equal" if height > 1 else "auto")
    axes.set_yticks([])
    axes.set_xlabel("column" if height > 1 else "entry", fontsize=8)
    return svg(plain(figure, axes))


class Gain(NamedTuple):
    """A row of `gains`, all in [−1, 1]: the claimed difference of accuracy, the verified one, and
    its interval."""

    name: str
    claimed: float
    verified: float
    interval: tuple[float, float]


def gains(rows: Sequence[Gain]) -> str:
    """What each change claims (a ring) and what is verified (a dot, its interval a line), in
    points of accuracy."""
    figure = Figure(figsize=(4.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=0.8)
    for i, row in enumerate(rows):
        _write_above(axes, i - 0.05, row.name)
        claimed, verified = 100 * row.claimed, 100 * row.verified
        axes.plot([claimed, verified], [i, i], color=BEFORE, linewidth=1, linestyle=":")
        axes.plot([100 * v for v in row.interval], [i, i], color=AFTER, linewidth=2)
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": BEFORE}
        axes.plot(claimed, i, "o", markersize=6, **ring, label=None if i else "claimed")
        axes.plot(verified, i, "o", markersize=6, color=AFTER, label=None if i else "verified")
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel("difference that the change makes, points of accuracy", fontsize=8)
    figure.legend(fontsize=8, frameon=False, ncols=2, loc="outside upper right")
    return svg(plain(figure, axes))


class Mark(NamedTuple):
    """A number that a verdict rests on: in which `row` it stands (a network), `what` it is, its
    95 % interval and the published number, where there are any."""

    row: str
    what: str
    value: float
    interval: tuple[float, float] | None = None
    published: float | None = None

    @property
    def reach(self) -> list[float]:
        """All of it that is drawn."""
        published = [] if self.published is None else [self.published]
        return [self.value, *(self.interval or ()), *published]


def weighed(marks: Sequence[Mark], unit: str, asked: tuple[float, float] | None) -> str:
    """What a verdict rests on: measured numbers (dots) beside published ones (rings), their
    intervals as lines, and what is `asked` for, between two ends, as a band."""
    rows, whats = (
        list(dict.fromkeys(m.row for m in marks)),
        list(dict.fromkeys(m.what for m in marks)),
    )
    height = 0.22 + 0.13 * len(whats)
    figure = Figure(figsize=(4.4, 0.9 + height * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        _write_above(axes, i - 0.08, row)
    for mark in marks:
        turn = whats.index(mark.what)
        at = rows.index(mark.row) + 0.6 * (turn + 0.5) / len(whats) - 0.2
        _draw_mark(axes, at, mark, CYCLE[turn % len(CYCLE)])
    _draw_asked(axes, [v for m in marks for v in m.reach], asked)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel(unit, fontsize=8)
    handles, names = axes.get_legend_handles_labels()
    named = dict(zip(names, handles, strict=True))
    shown = [*whats, *(name for name in (PUBLISHED, INTERVAL, ASKED) if name in named)]
    columns = 3 if max(map(len, shown)) < _BESIDE else 2
    where: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "fontsize": 7}
    figure.legend([named[name] for name in shown], shown, frameon=False, **where)
    return svg(plain(figure, axes))


def _draw_mark(axes: Axes, at: float, mark: Mark, colour: str) -> None:
    if mark.interval is not None:
        axes.plot(mark.interval, [at, at], color=colour, linewidth=1.5, label=INTERVAL)
    if mark.published is not None:
        ring: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": colour}
        axes.plot([mark.published], [at], "o", markersize=5, label=PUBLISHED, **ring)
    axes.plot([mark.value], [at], "o", markersize=4, color=colour, label=mark.what)


def _draw_asked(axes: Axes, drawn: Sequence[float], asked: tuple[float, float] | None) -> None:
    """The band, as far as the numbers go and a little farther."""
    ends = [v for v in (*drawn, *(asked or ())) if np.isfinite(v)] or [0.0]
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - room, max(ends) + room
    axes.set_xlim(low, high)
    if asked is not None:
        band = max(low, asked[0]), min(high, asked[1])
        axes.axvspan(*band, color=FAINT, alpha=0.45, linewidth=0, label=ASKED)


class Walk(NamedTuple):
    """A line of `walks`: the margins along an attack, on the network before the change or `after`
    it: on the straight way to what was `found`, or along the usual attack."""

    margins: Sequence[float]
    after: bool
    found: bool


def walks(lines: Sequence[Walk], where: tuple[str, str]) -> str:
    """Margins along attacks, over the largest that each network shows, which are called `where`;
    below 0 the example is decided wrongly."""
    figure = Figure(figsize=(4.4, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, linewidth=0.8)
    for line in lines:
        of_it = np.concatenate([np.asarray(w.margins) for w in lines if w.after == line.after])
        largest = float(np.abs(of_it[np.isfinite(of_it)]).max(initial=0.0))
        way = "to what was found" if line.found else "usual attack"
        name = f"{where[line.after]}, {way}"
        style: dict[str, Any] = {"color": AFTER if line.after else BEFORE, "linewidth": 1.8}
        style |= {"linestyle": "-" if line.found else "--"}
        shares = np.asarray(line.margins) / max(largest, 1e-30)
        axes.plot(range(len(shares)), shares, label=name, **style)
    axes.set_ylim(-1.08, 1.08)
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel("margin / the network's largest", fontsize=8)
    figure.legend(fontsize=7, frameon=False, ncols=2, loc="outside upper center")
    return svg(plain(figure, axes))


def moved(image: NDArray[np.float32], x_adv: NDArray[np.float32]) -> str:
    """What an attack added (red) and took (blue) pixel by pixel, the largest of the channels, as a
    PNG in a data address; clear is nothing, and the largest change has the full colour."""
    change = x_adv - image
    strongest = np.abs(change).argmax(0)
    shown = np.take_along_axis(change, strongest[None], 0)[0]
    most = max(float(np.abs(shown).max()), 1e-30)
    out = io.BytesIO()
    imsave(out, shown, cmap=BOTH_WAYS, vmin=-most, vmax=most, format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def told(drawn: str, says: str) -> str:
    """A figure, SVG, with what it shows in words, for whoever cannot see it."""
    text = escape(" ".join(says.split()))
    return drawn.replace("<svg", f'<svg role="img" aria-label="{text}"', 1)


def image(pixels: NDArray[np.float32], low: float = 0.0, high: float = 1.0) -> str:
    """One image (c, h, w) as a PNG in a data address, pixel by pixel; black is `low`."""
    out = io.BytesIO()
    shown = laid_out(pixels, low, high)
    imsave(out, np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 2.6), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure) -> str:
    """The figure as text for a page, in colours that follow its style sheet."""
    out = io.StringIO()
    # the same figure, the same file
    with rc_context({"svg.hashsalt": "retroact", "svg.fonttype": "none"}):
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = out.getvalue()
    for colour, themed in THEMED.items():
        text = text.replace(colour, themed)
    return text[text.index("<svg") :]
