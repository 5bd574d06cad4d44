"""Figure 7: examples made at kappa i, shown to kappa j

PGD in steps of 0.01 with a budget that leaves the source nearly nothing (1000 steps), each image
frozen at the first step that fools the source. Grid and budget are ours, for the paper states
neither. The second matrix takes away the freezing: as many steps on every image, broken or not, so
that examples are not minimal ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from retroact.reports import plots
from retroact.reports.studied import Claim, Figure, Part, Takeaway, Text, Weighed
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.crafted import Crafted
from retroact.studies.jumprelu.networks import (
    ALEX,
    ALEX_ROBUST,
    LENET,
    LENET_ROBUST,
    Net,
    available,
    untested,
)
from retroact.studies.jumprelu.sizes import MATRIX
from retroact.studies.truth import answer_by_network

BUDGET, FREE = 1000, 100
GRIDS = {LENET.name: (0.0, 0.5, 1.0, 1.5), ALEX.name: (0.0, 0.2, 0.4, 0.6)}
PANELS = (LENET, LENET_ROBUST, ALEX, ALEX_ROBUST)


def make(desk: Desk) -> Iterator[Part]:
    nets = available(desk, PANELS)
    matrices = {net.title: matrix(desk, net) for net in nets}
    free = {net.title: matrix(desk, net, frozen=False) for net in nets}
    if nets:
        yield Figure(
            "Accuracy, %, of kappa j (columns) on examples made at kappa i (rows), PGD with up to"
            f" {BUDGET} steps of 0.01, frozen on the source. On the diagonal what the source keeps:"
            " dead images.",
            heatmaps(nets, matrices),
        )
        yield Figure(
            f"The same without freezing: {FREE} steps on every image, so that no example is a"
            " minimal one.",
            heatmaps(nets, free),
        )
        yield _compare_unfrozen(nets, free)
    if untested(desk, PANELS):
        yield Text(f"Not drawn{untested(desk, PANELS)}.")
    yield _judge_direction(desk, matrices, free)
    kept = [both_ways(values)[0] for values in matrices.values()]
    moved = [both_ways(values)[0] for values in free.values()]
    if kept:
        yield Takeaway(
            7,
            f"A low kappa's examples leave a high kappa {min(kept):.0f} to {max(kept):.0f} % of"
            f" accuracy (Figure 7), and {min(moved):.0f} to {max(moved):.0f} % where no image is"
            " frozen: frozen examples have no confidence to carry.",
        )


def grid(net: Net) -> tuple[float, ...]:
    """The kappas of a panel; robust weights have those of the base ones."""
    return GRIDS[net.name.removesuffix("-robust")]


def matrix(desk: Desk, net: Net, *, frozen: bool = True) -> NDArray[np.float64]:
    """Accuracy (%) of each target (column) on the set of each source (row); without freezing FREE
    steps are taken."""
    asked = {n: _asked(net, n, frozen) for n in MATRIX.of(net)}
    n = desk.largest(MATRIX.of(net), lambda n: asked[n])
    rows = []
    for i, facts in enumerate(desk.all_facts(asked[n])):
        own, *shown = facts["accuracy"][0]
        rows.append([*shown[:i], own, *shown[i:]])
    return 100 * np.array(rows, dtype=np.float64)


def _asked(net: Net, n: int, frozen: bool) -> list[Crafted]:
    models = [net.model(kappa) for kappa in grid(net)]
    attack, threat = net.attack("pgd", steps=BUDGET if frozen else FREE)
    others = [tuple(m for m in models if m != source) for source in models]
    return [
        Crafted(m, targets, net.slice(n), attack, threat, frozen)
        for m, targets in zip(models, others, strict=True)
    ]


def _compare_unfrozen(nets: list[Net], free: dict[str, NDArray[np.float64]]) -> Text:
    """Whose gradients attack the paper's kappa better, its own or those of kappa 0."""
    said = []
    for net in nets:
        at = grid(net).index(net.kappa)
        from_0, own = free[net.title][0, at], free[net.title][at, at]
        said.append(
            f"{net.title} {from_0:.0f} % along the gradients of kappa 0, {own:.0f} % along its own"
        )
    return Text(
        f"What the paper's kappa keeps against {FREE} steps on every image: {'; '.join(said)}."
        " Where the first number is the smaller one, the jump hides the way from its own gradients"
        " and does not close it."
    )


def heatmaps(nets: list[Net], matrices: dict[str, NDArray[np.float64]]) -> str:
    """A matrix for each network, numbers in its cells, dark where the target is robust."""
    figure = Canvas(figsize=(3.3 * len(nets), 3.7), layout="constrained")
    for axes, net in zip(figure.subplots(1, len(nets), squeeze=False)[0], nets, strict=True):
        values, names = matrices[net.title], [f"{k:g}" for k in grid(net)]
        axes.imshow(values, cmap=plots.BLUES, vmin=0, vmax=100)
        for i, j in np.ndindex(values.shape):
            ink = "#ffffff" if values[i, j] > 55 else plots.INK
            axes.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=9, color=ink)
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_xlabel("kappa of the target", fontsize=8)
        axes.set_ylabel("kappa of the source", fontsize=8)
        axes.set_title(net.title, fontsize=9)
    return plots.svg(figure)


def both_ways(values: NDArray[np.float64]) -> tuple[float, float, bool]:
    """Mean accuracy from low kappas to high ones and back, and whether every pair is lower upwards
    than downwards."""
    pairs = [
        (values[i, j], values[j, i]) for i in range(len(values)) for j in range(i + 1, len(values))
    ]
    up, down = (float(np.mean([p[side] for p in pairs])) for side in (0, 1))
    return up, down, all(a < b for a, b in pairs)


def _judge_direction(
    desk: Desk, matrices: dict[str, NDArray[np.float64]], free: dict[str, NDArray[np.float64]]
) -> Claim:
    """Not the reverse: each low → high cell keeps less than its mirror image; truly: without
    freezing, too."""
    ways = {
        title: (both_ways(values), both_ways(free[title])) for title, values in matrices.items()
    }
    said = "; ".join(
        f"{title} {a[0]:.0f} % low → high and {a[1]:.0f} % high → low, without freezing {b[0]:.0f}"
        f" and {b[1]:.0f} %"
        for title, (a, b) in ways.items()
    )
    answer = answer_by_network(*([w[i][2] for w in ways.values()] for i in (0, 1)))
    marks = [
        plots.Mark(title, f"{way}{freezing}", value)
        for title, both in ways.items()
        for freezing, values in zip(("", ", without freezing"), both, strict=True)
        for way, value in zip(("low → high", "high → low"), values[:2], strict=True)
    ]
    because = f"mean accuracy of the target: {said}{untested(desk, PANELS)}"
    shown = Weighed(tuple(marks), "mean accuracy of the target, %")
    return Claim("unidirectional", answer, because, shown)
