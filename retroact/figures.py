"""Figures of results: what `.plot()` gives in a notebook, and what pages are made of."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import figure as mpl
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from retroact.shares import wilson

INK, FAINT, BEFORE, AFTER, FOOLED = "#1d2733", "#c9d1da", "#8a94a3", "#2563a8", "#b91c1c"
CYCLE = ("#2563a8", "#c2410c", "#15803d", "#7c3aed", "#b91c1c", "#0e7490", "#a16207", "#4b5563")
REDS = LinearSegmentedColormap.from_list("clear-to-red", ["#b4231800", "#b42318"])
BLUES = LinearSegmentedColormap.from_list("clear-to-blue", ["#2563a800", "#2563a8"])
BOTH_WAYS = LinearSegmentedColormap.from_list(
    "blue-to-red", [*zip((0, 0.5, 0.5, 1), (*BLUES((255, 0)), *REDS((0, 255))), strict=True)], 257
)
"""Where nothing is, these are clear, so that the ground of a page is seen, be it light or dark."""
TOLD = {"clean": INK, "claimed": CYCLE[1], "verified": CYCLE[0]}
"""The three accuracies that are told of a network, each with its colour."""


class Figure(mpl.Figure):
    """A matplotlib figure that a notebook shows by itself. pyplot, which would also do that, holds
    every figure until it is closed, and shows it twice where a cell ends in it."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=110)
        return out.getvalue()


def bars(
    titles: Sequence[str],
    series: Mapping[str, Sequence[float]],
    n: int,
    *,
    word: str = "image",
    told: float | None = None,
    title: str = "",
) -> Figure:
    """Shares of `n` examples as bars, one of each series per title, with Wilson's 95 % as a line;
    `told` is a share that somebody reported."""
    # a legend of long names, which stand one under the other, takes room of its own
    above = 0 if max(map(len, series)) < 12 else 0.2 * len(series)
    figure = Figure(figsize=(4.4, 0.5 + above + 0.85 * len(titles)), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for j, (name, values) in enumerate(series.items()):
        places = [i + (j + 0.5) * width - 0.4 for i in range(len(titles))]
        colour = (BEFORE, AFTER)[-len(series) :][j]
        for at, value in zip(places, values, strict=True):
            label = name if at == places[0] else None
            axes.barh(at, 100 * value, color=colour, height=0.9 * width, label=label)
            _draw_interval(axes, at, value, n)
    if told is not None:
        axes.axvline(100 * told, color=FOOLED, linewidth=1.5, linestyle="--", label="reported")
    axes.set_yticks(range(len(titles)), titles, fontsize=9)
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.set_xlim(0, 113)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"{word}s decided rightly, %", fontsize=8)
    columns = 1 if above else 2
    axes.legend(fontsize=8, frameon=False, ncols=columns, loc="lower right", bbox_to_anchor=(1, 1))
    if title:
        figure.suptitle(title, fontsize=9)
    plain(figure, axes)
    return figure


def _draw_interval(axes: Axes, at: float, value: float, n: int) -> None:
    low, high = (100 * v for v in wilson(round(value * n), n))
    axes.plot([low, high], [at, at], color=INK, linewidth=1)
    end = max(high, 100 * value) + 1.5
    axes.text(end, at, f"{100 * value:.1f}", va="center", fontsize=8)


@dataclass(frozen=True)
class Curve:
    """Shares `y` of `n` examples over `x`, with Wilson's 95 % as a band where n is not 0."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = AFTER
    n: int = 0
    steps: bool = False  # what holds from one x to the next, in the place of a line through points


def curves(
    drawn: Sequence[Curve],
    xlabel: str,
    ylabel: str,
    *,
    marked: float | None = None,
    height: float = 3.0,
    title: str = "",
) -> Figure:
    """Curves over one another; a broad grey line at `marked`, such as the value that was taken."""
    figure = Figure(figsize=(7.6, height), layout="constrained")
    axes = figure.add_subplot()
    for curve in drawn:
        _draw_curve(axes, curve)
    if marked is not None:
        axes.axvline(marked, color=FAINT, linewidth=6, zorder=0)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.set_ylim(0, 101)
    axes.legend(fontsize=7, frameon=False)
    axes.set_title(title, fontsize=9)
    plain(figure, axes)
    return figure


def _draw_curve(axes: Axes, curve: Curve) -> None:
    y = [100 * v for v in curve.y]
    how: dict[str, Any] = {"drawstyle": "steps-post"} if curve.steps else {"marker": "o"}
    axes.plot(curve.x, y, markersize=3, color=curve.colour, label=curve.name, **how)
    if curve.n:
        ends = [wilson(round(v * curve.n), curve.n) for v in curve.y]
        low, high = ([100 * end[i] for end in ends] for i in (0, 1))
        step: Any = "post" if curve.steps else None
        axes.fill_between(
            curve.x, low, high, color=curve.colour, alpha=0.12, linewidth=0, step=step
        )


@dataclass(frozen=True)
class Function:
    """A function of one number and the ReLU that it stands for, both over `x`."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def functions(drawn: Sequence[Function], title: str = "") -> Figure:
    """Each function beside the ReLU (dashed), in a panel of its own; points, as it may jump."""
    figure = Figure(figsize=(3.6 * len(drawn), 2.8), layout="constrained")
    for axes, one in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        relu = [max(0.0, x) for x in one.x]
        axes.plot(one.x, relu, color=BEFORE, linestyle="--", label="ReLU")
        axes.plot(one.x, one.y, color=AFTER, linestyle="", marker=".", markersize=3, label=one.name)
        axes.set_xlabel("before the activation", fontsize=8)
        axes.set_ylabel("after it", fontsize=8)
        axes.legend(fontsize=7, frameon=False)
        plain(figure, axes)
    figure.suptitle(title, fontsize=9)
    return figure


@dataclass(frozen=True)
class Shown:
    """An example (c, h, w) before and after an attack, what is said above each and above their
    difference, and whether it was fooled."""

    original: NDArray[np.float32]
    attacked: NDArray[np.float32]
    says: tuple[str, str, str]
    fooled: bool


def pictures(shown: Sequence[Shown], low: float = 0.0, high: float = 1.0) -> Figure:
    """Clean images, adversarial images and |difference| (clear to red, one scale), side by side;
    black is `low`."""
    figure = Figure(figsize=(1.15 * len(shown), 3.7), layout="constrained")
    grid = figure.subplots(3, len(shown), squeeze=False)
    differences = [np.abs(one.attacked - one.original).max(0) for one in shown]
    top = max(1e-6, *(float(d.max()) for d in differences))
    for column, one, difference in zip(grid.T, shown, differences, strict=True):
        draw_image(column[0], one.original, low, high)
        draw_image(column[1], one.attacked, low, high)
        column[2].imshow(difference, cmap=REDS, vmin=0, vmax=top)
        column[0].set_title(one.says[0], fontsize=7)
        column[1].set_title(one.says[1], fontsize=7, color=FOOLED if one.fooled else INK)
        column[2].set_title(one.says[2], fontsize=6)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure


def is_image(example: NDArray[np.float32]) -> bool:
    """Whether an example (…) can be drawn: (c, h, w) in grey, RGB or RGBA."""
    return example.ndim == 3 and len(example) in (1, 3, 4)


def draw_image(axes: Axes, image: NDArray[np.float32], low: float = 0.0, high: float = 1.0) -> None:
    """Draws an image (c, h, w) into axes, pixel by pixel; black is `low`."""
    shown = laid_out(image, low, high)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def laid_out(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """(h, w) in grey, (h, w, c) in colour, in [0, 1]."""
    shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return shown if (low, high) == (0.0, 1.0) else (shown - low) / (high - low)


def plain(figure: mpl.Figure, axes: Axes) -> mpl.Figure:
    """Axes as all figures here have them."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="x", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    return figure
