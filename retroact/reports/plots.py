"""Figures from stored records, as SVG or PNG text that goes straight into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from numpy.typing import NDArray

from retroact.evaluation.metrics import clean_accuracy, robust_accuracy, wilson
from retroact.evaluation.record import Record
from retroact.reports.tables import Line

REDS = LinearSegmentedColormap.from_list("white-to-red", ["#ffffff", "#fb6a4a", "#67000d"])
INK, FAINT, BEFORE, AFTER = "#1d2733", "#c9d1da", "#8a94a3", "#2563a8"
THEMED = {
    "#000000": "currentColor",
    INK: "currentColor",
    FAINT: "var(--line)",
    BEFORE: "var(--grey)",
    AFTER: "var(--blue)",
}
"""Colours that follow the page's style sheet, and so the reader's choice of light or dark."""
CYCLE = ("#2563a8", "#c2410c", "#15803d", "#7c3aed", "#b91c1c", "#0e7490", "#a16207", "#4b5563")


def bars(group: Sequence[Line]) -> str:
    """Robust accuracy per network and attack: Wilson's 95 % interval as a line, clean accuracy as a
    tick."""
    rows: list[Line | str] = []
    for name in dict.fromkeys(line.network for line in group):
        rows += [name, *(line for line in group if line.network == name)]
    figure = Figure(figsize=(7.6, 0.6 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(rows):
        if isinstance(row, Line):
            low, high = row.interval
            axes.barh(i, 100 * robust_accuracy(row.record), color=CYCLE[0], height=0.6)
            axes.plot([100 * low, 100 * high], [i, i], color=INK, linewidth=1)
            axes.plot(
                [100 * clean_accuracy(row.record)] * 2, [i - 0.3, i + 0.3], color=INK, linewidth=2
            )
    labels = [row if isinstance(row, str) else _how(row) for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if isinstance(row, str) else "normal")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    axes.set_xlabel("accuracy under attack, %", fontsize=8)
    return svg(plain(figure, axes))


def curves(group: Sequence[Line]) -> str:
    """Robust accuracy against eps (pixels), one curve per network and attack."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    series: dict[str, list[Line]] = {}
    for line in group:
        series.setdefault(f"{line.network} · {_how(line)}", []).append(line)
    for i, (name, members) in enumerate(series.items()):
        members = sorted(members, key=lambda line: line.fields.eps)
        eps = [0.0, *(line.fields.eps for line in members)]
        values = [
            clean_accuracy(members[0].record),
            *(robust_accuracy(line.record) for line in members),
        ]
        axes.plot(
            eps,
            [100 * v for v in values],
            marker="o",
            markersize=3,
            label=name,
            color=CYCLE[i % len(CYCLE)],
        )
    box = {box_of(line.record) for line in group}
    axes.set_xlabel(_eps(box), fontsize=8)
    axes.set_ylabel("accuracy, %", fontsize=8)
    axes.set_ylim(0, 101)
    axes.legend(fontsize=7, frameon=False)
    return svg(plain(figure, axes))


def _eps(boxes: set[tuple[float, float]]) -> str:
    """What eps is measured in, of data in these boxes."""
    if boxes == {(0.0, 1.0)}:
        return "eps, pixels of [0, 1]"
    return "eps, entries of " + " and ".join(f"[{low:g}, {high:g}]" for low, high in sorted(boxes))


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


def tuning(points: Sequence[Any], knob: str, chosen: float) -> str:
    """Clean, claimed and verified accuracy against the knob; `points` have these as attributes."""
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    axes = figure.add_subplot()
    values = [p.knob for p in points]
    for name, colour in (("clean", INK), ("claimed", CYCLE[1]), ("verified", CYCLE[0])):
        axes.plot(
            values,
            [100 * getattr(p, name) for p in points],
            marker="o",
            markersize=3,
            color=colour,
            label=name,
        )
    axes.axvline(chosen, color=FAINT, linewidth=6, zorder=0)
    axes.set_xlabel(knob, fontsize=8)
    axes.set_ylabel("accuracy on validation data, %", fontsize=8)
    axes.set_ylim(0, 101)
    axes.legend(fontsize=7, frameon=False)
    return svg(plain(figure, axes))


def claims(pairs: Sequence[tuple[str, tuple[float, float]]], n: int, word: str = "image") -> str:
    """Accuracies before (grey) and after (blue) a change, a pair of bars per title; Wilson's 95 %
    as a line."""
    figure = Figure(figsize=(4.4, 0.5 + 0.85 * len(pairs)), layout="constrained")
    axes = figure.add_subplot()
    for i, (_, pair) in enumerate(pairs):
        for shift, value, colour, name in (
            (-0.2, pair[0], BEFORE, "before"),
            (0.2, pair[1], AFTER, "after"),
        ):
            low, high = (100 * v for v in wilson(round(value * n), n))
            axes.barh(
                i + shift, 100 * value, color=colour, height=0.36, label=name if i == 0 else None
            )
            axes.plot([low, high], [i + shift] * 2, color=INK, linewidth=1)
            axes.text(
                max(high, 100 * value) + 1.5,
                i + shift,
                f"{100 * value:.1f}",
                va="center",
                fontsize=8,
            )
    axes.set_yticks(range(len(pairs)), [title for title, _ in pairs], fontsize=9)
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlim(0, 113)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"{word}s decided rightly, %", fontsize=8)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return svg(plain(figure, axes))


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


def is_image(example: NDArray[np.float32]) -> bool:
    """Whether an example (…) can be drawn: (c, h, w) in grey, RGB or RGBA."""
    return example.ndim == 3 and len(example) in (1, 3, 4)


def image(pixels: NDArray[np.float32], low: float = 0.0, high: float = 1.0) -> str:
    """One image (c, h, w) as a PNG in a data address, pixel by pixel; black is `low`."""
    out = io.BytesIO()
    shown = _laid_out(pixels, low, high)
    imsave(out, np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, format="png")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def pictures(record: Record, most: int = 6) -> str:
    """Clean images, adversarial images and |difference| (white to red, one scale), side by side, as
    PNG."""
    if record.examples is None or record.originals is None:
        raise ValueError(
            "this record kept no images; run it again with keep= (--keep on the command line)"
        )
    if not is_image(record.examples[0]):
        raise ValueError(f"expected images (c, h, w) to draw, got {record.examples.shape[1:]}")
    box = box_of(record)
    shown = _order_broken_first(record, min(most, len(record.examples)))
    figure = Figure(figsize=(1.15 * len(shown), 3.7), layout="constrained")
    grid = figure.subplots(3, len(shown), squeeze=False)
    difference = np.abs(record.examples[shown] - record.originals[shown])
    for column, i in enumerate(shown):
        draw_image(grid[0, column], record.originals[i], *box)
        draw_image(grid[1, column], record.examples[i], *box)
        grid[2, column].imshow(
            difference[column].max(0), cmap=REDS, vmin=0, vmax=max(float(difference.max()), 1e-6)
        )
        grid[0, column].set_title(f"true {record.label[i]}", fontsize=7)
        fooled = record.clean[i] == record.label[i] != record.adversarial[i]
        said = f"seen as {record.adversarial[i]}" + (
            "" if record.clean[i] == record.label[i] else ", clean too"
        )
        grid[1, column].set_title(said, fontsize=7, color="#b91c1c" if fooled else INK)
        grid[2, column].set_title(
            f"L∞ {record.distance[i, 3]:.3f}  L₂ {record.distance[i, 2]:.2f}", fontsize=6
        )
    for axes in grid.flat:
        axes.set_axis_off()
    return _png(figure)


def _order_broken_first(record: Record, most: int) -> list[int]:
    kept = len(record.examples) if record.examples is not None else 0
    broken = [i for i in range(kept) if record.clean[i] == record.label[i] != record.adversarial[i]]
    others = [i for i in range(kept) if i not in broken]
    return (broken + others)[:most]


def _how(line: Line) -> str:
    source = f" from {line.fields.source}" if line.fields.source else ""
    return f"{line.attack}{source}"


def box_of(record: Record) -> tuple[float, float]:
    """Where the entries of a record's examples lie: [0, 1] where it says nothing."""
    low, high = record.pedigree.get("box", (0.0, 1.0))
    return float(low), float(high)


def draw_image(axes: Axes, image: NDArray[np.float32], low: float = 0.0, high: float = 1.0) -> None:
    """Draws an image (c, h, w) into axes, pixel by pixel; black is `low`."""
    shown = _laid_out(image, low, high)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _laid_out(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """(h, w) in grey, (h, w, c) in colour, in [0, 1]."""
    shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return shown if (low, high) == (0.0, 1.0) else (shown - low) / (high - low)


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 2.6), layout="constrained")
    return figure, figure.add_subplot()


def plain(figure: Figure, axes: Axes) -> Figure:
    """Axes as all figures here have them."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure


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


def _png(figure: Figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'
