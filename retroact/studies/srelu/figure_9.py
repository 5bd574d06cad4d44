"""Figure 9: t-SNE of the last layers per slope, with numbers

The paper shows pictures of "the last fully connected layer" of the MNIST CNN and no code. Here: the
50 numbers after the last activation, and the 10 logits, of the first test digits; scikit-learn's
t-SNE, perplexity 30, from the first two principal components, seed 0. A map from t-SNE says nothing
about scale, since every point chooses its own bandwidth; so beside it stand raw distances, and the
ratio between/within, which no factor changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports import plots
from retroact.reports.studied import Claim, Figure, Part, Table, Value
from retroact.retrofitting.installed import installed
from retroact.spec import spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.packed import pack, unpack
from retroact.studies.srelu.networks import MNIST, SLOPES
from retroact.studies.truth import answer_claim

LAYERS = {"hidden": "the 50 numbers after the last activation", "logits": "the 10 logits"}
DIGITS = (*plots.CYCLE, "#db2777", "#84cc16")
TENTH, PLACES = 0.1, "<i2"
"""A map is some hundred units wide, and its picture some hundred pixels."""
SAME = 0.05
"""A ratio that changes by less than this part is taken to be the same."""


def make(desk: Desk) -> Iterator[Part]:
    slopes = desk.pick((1.0, 10.0, 100.0), SLOPES)
    images = MNIST.slice(desk.pick(500, 2000))
    by_slope = dict(
        zip(
            slopes, desk.all_facts([Clusters(MNIST.sloped(s), images) for s in slopes]), strict=True
        )
    )
    yield Figure(
        "t-SNE maps of the first test digits, a colour per digit. Axes have no unit; the number is"
        " the ratio between/within in the layer itself, which no factor changes.",
        _maps(by_slope, data(images).labels.numpy()),
    )
    head = (
        "layer",
        "slope",
        "distance between digits",
        "distance within a digit",
        "between/within",
    )
    rows = tuple(_row(layer, s, f[layer]) for layer in LAYERS for s, f in by_slope.items())
    yield Table(
        "Raw distances: mean between two digits' centres, and from an image to its digit's centre",
        (*head, "between/within on the map"),
        rows,
        digits=2,
    )
    yield _claim(by_slope)


def _row(layer: str, slope: float, facts: Facts) -> tuple[Value, ...]:
    raw = (f"{facts['between']:.4g}", f"{facts['within']:.4g}")
    return (LAYERS[layer], f"{slope:g}", *raw, facts["ratio"], facts["map_ratio"])


# -------------------------------------------------------------------------------------- the numbers


@spec
class Clusters:
    """How the digits of `data` lie in the last hidden layer and in the logits: distances, ratios,
    and t-SNE maps (`packed`), whose places are kept to a tenth."""

    model: Model
    data: str
    perplexity: float = 30.0
    seed: int = 0
    version: ClassVar[int] = 2

    def __call__(self) -> Facts:
        images = data(self.data)
        labels = images.labels.numpy()
        hidden, logits = last_layers(self.model(), images.images)
        return {
            "hidden": self._of(hidden, labels),
            "logits": self._of(logits, labels),
        }

    def _of(self, points: NDArray[np.float64], labels: NDArray[np.int64]) -> Facts:
        from sklearn.manifold import TSNE

        between, within = spread(points, labels)
        # float32 squares of 1e6 would lose the small ones
        scaled = (points / points.std()).astype(np.float32)
        how = {"perplexity": self.perplexity, "random_state": self.seed, "init": "pca"}
        drawn = TSNE(2, **how).fit_transform(scaled).astype(np.float64)
        on_map = spread(drawn, labels)
        return {
            "between": between,
            "within": within,
            "ratio": between / within,
            "map": pack((drawn / TENTH).round(), PLACES),
            "map_ratio": on_map[0] / on_map[1],
        }


def last_layers(net: nn.Module, images: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What leaves the last activation, (n, hidden), and the logits, (n, classes)."""
    seen: list[Tensor] = []
    last = list(installed(net).values())[-1]
    hook = last.register_forward_hook(lambda module, args, out: seen.append(out.flatten(1)))
    with torch.no_grad():
        logits = net.eval()(images)
    hook.remove()
    return seen[-1].double().numpy(), logits.double().numpy()


def spread(points: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, float]:
    """The mean distance between two classes' centres, and the mean distance of a point to its
    class's centre."""
    classes = np.unique(labels)
    centres = np.stack([points[labels == c].mean(0) for c in classes])
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    between = apart[np.triu_indices(len(classes), 1)].mean()
    within = np.linalg.norm(points - centres[np.searchsorted(classes, labels)], axis=1).mean()
    return float(between), float(within)


# -------------------------------------------------------------------------------------- the picture


def _maps(by_slope: dict[float, Facts], labels: NDArray[np.int64]) -> str:
    figure = Canvas(figsize=(9.6, 0.6 + 9.0 / len(by_slope) * len(LAYERS)), layout="constrained")
    grid = figure.subplots(len(LAYERS), len(by_slope), squeeze=False)
    for column, (slope, facts) in enumerate(by_slope.items()):
        for row, layer in enumerate(LAYERS):
            points = TENTH * unpack(facts[layer]["map"], PLACES).reshape(-1, 2)
            _scatter(grid[row, column], points, labels)
            grid[row, column].set_title(
                f"slope {slope:g}, ratio {facts[layer]['ratio']:.2f}", fontsize=9
            )
    for row, said in enumerate(LAYERS.values()):
        grid[row, 0].set_ylabel(said, fontsize=8)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=10,
        fontsize=8,
        frameon=False,
        markerscale=3,
    )
    return plots.svg(figure)


def _scatter(axes: Axes, points: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    for digit in range(10):
        chosen = points[labels == digit]
        axes.scatter(
            chosen[:, 0], chosen[:, 1], s=3, color=DIGITS[digit], label=str(digit), rasterized=True
        )
    axes.set_xticks([])
    axes.set_yticks([])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


# ---------------------------------------------------------------------------------------- the claim


def _claim(by_slope: dict[float, Facts]) -> Claim:
    """Raw: both distances grow with the slope. Truly: the ratio falls, by more than SAME, at the
    largest slope."""
    low, high = by_slope[1.0]["hidden"], by_slope[max(by_slope)]["hidden"]
    apart, loose = high["between"] / low["between"], high["within"] / low["within"]
    change = high["ratio"] / low["ratio"] - 1
    return Claim(
        "figure9",
        answer_claim(apart > 1 and loose > 1, change < -SAME),
        f"from slope 1 to {max(by_slope):g} the raw distance between digits grows {apart:,.0f}"
        f" times, that within a digit {loose:,.0f} times; the ratio between/within, which no factor"
        f" changes, goes from {low['ratio']:.2f} to {high['ratio']:.2f} ({100 * change:+.0f} %;"
        f" less compact would be a fall of more than {100 * SAME:.0f} %)",
    )
