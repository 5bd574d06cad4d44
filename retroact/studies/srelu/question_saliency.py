"""Question: what do saliency maps of both nets show?

The paper leaves it to "saliency and interpretability tools" to explain what it saw. A saliency map
is the gradient of a number with respect to the pixels. Of the cross-entropy it is what the attacks
climb; of the margin (the best other logit less the true one) it is what decides. Each map is scaled
to its own largest entry, red up and blue down; a map that is exactly zero everywhere is left grey
and says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of
from retroact.evaluation.evaluate import decide
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports import plots
from retroact.reports.studied import Figure, Part, Text
from retroact.spec import Count, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.srelu.networks import CNN1, MNIST, Net

SHOWN, STEEP, SAME = 4, 10.0, 0.7
LOSSES: dict[Loss, str] = {"cross_entropy": "cross-entropy", "margin": "margin"}


def make(desk: Desk) -> Iterator[Part]:
    by_net = {net: [desk.facts(_ask(desk, net, s)) for s in (1.0, STEEP)] for net in (MNIST, CNN1)}
    yield Figure(
        f"Input gradients at slope 1 and at slope {STEEP:g}, of the cross-entropy and of the"
        " margin, on the first images that both networks decide rightly.",
        _draw(list(by_net.items())),
    )
    yield Text(" ".join(_sentence(net, *pair) for net, pair in by_net.items()))


def _ask(desk: Desk, net: Net, slope: float) -> Saliency:
    return Saliency(
        net.sloped(slope), net.sloped(STEEP), net.slice(desk.pick(500, min(2000, net.original)))
    )


def _sentence(net: Net, plain: Facts, steep: Facts) -> str:
    zero, of_steep, cosine = plain["zero"], steep["zero"], plain["alike"]
    return (
        f"**{net.title}**, n = {plain['n']}: of the rightly decided images the cross-entropy has a"
        f" gradient that is exactly zero in float32 on {zero['cross_entropy']:.1f} % at slope 1 and"
        f" {of_steep['cross_entropy']:.1f} % at slope {STEEP:g}, the margin on {zero['margin']:.1f}"
        f" % and {of_steep['margin']:.1f} %. The margin's maps at the two slopes have a mean cosine"
        f" of {cosine:.2f} on the images that both decide rightly: "
        + (
            "the two networks look at much the same pixels."
            if cosine > SAME
            else (
                "the shrunken biases make the steep network another function, which looks at other"
                " pixels, but it has a gradient there to climb."
            )
        )
    )


# ------------------------------------------------------------------------------------ the gradients


@spec
class Saliency:
    """Gradients of cross-entropy and margin at the pixels.

    `zero`: the share (%) of the images that `model` decides rightly where they are exactly zero.
    `alike`: the mean cosine between the margin's gradients of `model` and `other`. `shown`: the
    first images that both decide rightly, and their maps. A map is divided by its largest entry;
    the colours of an image are summed.
    """

    model: Model
    other: Model
    data: str
    shown: Count = SHOWN

    def __call__(self) -> Facts:
        net, images = self.model().eval(), data(self.data)
        right = decide(net, images.images) == images.labels
        other = self.other().eval()
        both = right & (decide(other, images.images) == images.labels)
        x, y = images.images[right], images.labels[right]
        rows = both[right].nonzero()[: self.shown, 0]
        maps = {loss: gradients(net, x, y, loss) for loss in LOSSES}
        return {
            "n": len(images),
            "alike": _compare(
                maps["margin"][both[right]],
                gradients(other, x[both[right]], y[both[right]], "margin"),
            ),
            "zero": {
                loss: 100 * float((g.flatten(1).abs().amax(1) == 0).float().mean())
                for loss, g in maps.items()
            },
            "shown": [
                {"image": _list(x[i]), "label": int(y[i])}
                | {k: _list(_scale(g[i])) for k, g in maps.items()}
                for i in rows.tolist()
            ],
        }


def gradients(net: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """d loss / d x of each image, shaped as `x`."""
    parts = []
    for part, labels in zip(x.split(250), y.split(250), strict=True):
        leaf = part.clone().requires_grad_()
        value = loss_of(loss)(net(leaf), Aim(labels)).sum()
        parts += list(torch.autograd.grad(value, leaf))
    return torch.cat(parts)


def _compare(one: Tensor, other: Tensor) -> float:
    """The mean cosine between two gradients of each image."""
    return float(torch.cosine_similarity(one.double().flatten(1), other.double().flatten(1)).mean())


def _scale(gradient: Tensor) -> Tensor:
    one = gradient.double().sum(0)
    return one / one.abs().max() if one.any() else one


def _list(values: Tensor) -> list[Any]:
    listed: list[Any] = values.double().mul(1000).round().div(1000).tolist()
    return listed


# ---------------------------------------------------------------------------------------- the panel


def _draw(by_net: list[tuple[Net, list[Facts]]]) -> str:
    """A row per network, slope and loss below a row of the images, SHOWN columns per network."""
    rows = [(slope, loss) for loss in LOSSES for slope in (0, 1)]
    figure = Canvas(figsize=(9.6, 1.25 * (1 + len(rows))), layout="constrained")
    grid = figure.subplots(1 + len(rows), SHOWN * len(by_net), squeeze=False)
    for block, (net, pair) in enumerate(by_net):
        for i, one in enumerate(pair[0]["shown"]):
            column = block * SHOWN + i
            plots.draw_image(grid[0, column], np.array(one["image"], dtype=np.float32))
            for row, (slope, loss) in enumerate(rows, start=1):
                _map(grid[row, column], np.array(pair[slope]["shown"][i][loss]))
        grid[0, block * SHOWN].set_title(net.title, fontsize=9, loc="left")
    for row, (slope, loss) in enumerate(rows, start=1):
        text = f"{LOSSES[loss]},\nslope {(1, STEEP)[slope]:g}"
        grid[row, 0].set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
    return plots.svg(figure)


def _map(axes: Axes, values: NDArray[np.float64]) -> None:
    axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    if not values.any():
        axes.imshow(np.full((*values.shape, 3), 0.87), interpolation="nearest")
        middle = (values.shape[1] - 1) / 2
        axes.text(
            middle, middle, "exactly\nzero", ha="center", va="center", fontsize=8, color="#4a5568"
        )
