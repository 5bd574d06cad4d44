"""Question: what do saliency maps of both nets show?

The paper leaves it to "saliency and interpretability tools" to explain what it saw. A saliency map
is the gradient of a number with respect to the pixels. Of the cross-entropy it is what the attacks
climb; of the margin (the best other logit less the true one) it is what decides. Each map is scaled
to its own largest entry, red up and blue down; a map that is exactly zero everywhere is left grey
and says so. Grad-CAM, the tool that the paper names (Selvaraju et al. 2017, arXiv:1610.02391),
shows where the last maps with places speak for the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
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
from retroact.retrofitting.installed import installed
from retroact.spec import Count, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.packed import pack, unpack
from retroact.studies.srelu.networks import CNN1, MNIST, Net

SHOWN, STEEP, SAME = 4, 10.0, 0.7
LOSSES: dict[Loss, str] = {"cross_entropy": "cross-entropy", "margin": "margin"}


CAM, STEPS = "cam", 127


def make(desk: Desk) -> Iterator[Part]:
    nets, slopes = (MNIST, CNN1), (1.0, STEEP)
    by_net = {net: [desk.facts(_ask(desk, net, s)) for s in slopes] for net in nets}
    cams = {net: [desk.facts(_ask_cam(desk, net, s)) for s in slopes] for net in nets}
    yield Figure(
        f"Input gradients at slope 1 and at slope {STEEP:g}, of the cross-entropy and of the"
        " margin, and Grad-CAM of the true class, on the first images that both networks decide"
        " rightly.",
        _draw([_show(desk, net, by_net[net], cams[net]) for net in nets]),
    )
    yield Text(" ".join(_sentence(net, *pair) for net, pair in by_net.items()))
    yield Text(_describe_cams(cams))


@dataclass(frozen=True)
class Shown:
    """The first images of a network, and by kind of map and place of the slope their maps."""

    net: Net
    images: Tensor
    maps: dict[tuple[str, int], Tensor]


def _show(desk: Desk, net: Net, by_slope: list[Facts], cams: list[Facts]) -> Shown:
    images = data(_ask(desk, net, 1.0).data).images[by_slope[0]["rows"]]
    size = images.shape[2:]
    maps = {
        (loss, i): _unpack(f["maps"][loss]).view(-1, *size)
        for i, f in enumerate(by_slope)
        for loss in LOSSES
    }
    small = {(CAM, i): torch.tensor(f["shown"]) for i, f in enumerate(cams)}
    return Shown(net, images, maps | {k: _enlarge(cam, size[0]) for k, cam in small.items()})


def _describe_cams(cams: dict[Net, list[Facts]]) -> str:
    told = "; ".join(
        f"{net.title} {plain['dead']:.1f} % zero maps at slope 1 and {steep['dead']:.1f} % at slope"
        f" {STEEP:g}, a mean cosine of {plain['alike']:.2f} between the others"
        for net, (plain, steep) in cams.items()
    )
    return (
        "**Grad-CAM**, which the paper names as a tool, starts from the logit of a class and meets"
        " no softmax, so no slope blinds it: max(0, Σ_k α_k A^k), A the maps after the last"
        " convolution's activation, α_k the mean of ∂z_y/∂A^k over their places (Selvaraju et al."
        f" 2017, eq. 1 and 2). On the images that both networks decide rightly: {told}. A map is"
        " zero where what speaks against the class outweighs the rest everywhere, which has nothing"
        " to do with a slope. Grad-CAM says where the evidence for a class lies, not why the"
        " attacks fail; the input gradients above do."
    )


def _ask_cam(desk: Desk, net: Net, slope: float) -> GradCam:
    asked = _ask(desk, net, slope)
    return GradCam(asked.model, asked.other, asked.data)


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
    `alike`: the mean cosine between the margin's gradients of `model` and `other`. `rows`: the
    places of the first images that both decide rightly, and `maps` theirs, by loss (`packed`). A
    map is divided by its largest entry; the colours of an image are summed.
    """

    model: Model
    other: Model
    data: str
    shown: Count = SHOWN
    version: ClassVar[int] = 2

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
            "rows": right.nonzero()[rows, 0].tolist(),
            "maps": {k: _pack(torch.stack([_scale(g[i]) for i in rows])) for k, g in maps.items()},
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


def _pack(maps: Tensor) -> str:
    """Maps from −1 to 1 in steps of 1/127, as many as the colours that they are drawn in."""
    return pack((STEPS * maps).round().numpy(), "i1")


def _unpack(text: str) -> Tensor:
    return torch.from_numpy(unpack(text, "i1").astype("f8")) / STEPS


def _list(values: Tensor) -> list[Any]:
    listed: list[Any] = values.double().mul(1000).round().div(1000).tolist()
    return listed


# ----------------------------------------------------------------------------------------- Grad-CAM


@spec
class GradCam:
    """Grad-CAM of the true class on the images that `model` and `other` both decide rightly.

    `alike`: the mean cosine between the maps of both, where neither is zero. `dead`: the share (%)
    of the maps of `model` that are zero everywhere. `shown`: the first maps of `model`, each
    divided by its largest entry.
    """

    model: Model
    other: Model
    data: str
    shown: Count = SHOWN

    def __call__(self) -> Facts:
        images, nets = data(self.data), [self.model().eval(), self.other().eval()]
        right = [decide(net, images.images) == images.labels for net in nets]
        both = right[0] & right[1]
        ours, others = (grad_cam(n, images.images[both], images.labels[both]) for n in nets)
        is_dead, is_other_dead = (~maps.flatten(1).any(1) for maps in (ours, others))
        alive = ~(is_dead | is_other_dead)
        return {
            "n": int(both.sum()),
            "alike": _compare(ours[alive], others[alive]),
            "dead": 100 * float(is_dead.float().mean()),
            "shown": [_list(_scale(one[None])) for one in ours[: self.shown]],
        }


def grad_cam(net: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """max(0, Σ_k α_k A^k) of images `x` (n, …): (n, h, w).

    A^k are the maps (h, w) after the last activation that has places, α_k the mean over them of
    ∂z_c/∂A^k, z_c the logit of the class (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2).
    """
    parts = zip(x.split(250), classes.split(250), strict=True)
    return torch.cat([_grad_cam(net, part, named) for part, named in parts])


def _grad_cam(net: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hooks = [
        m.register_forward_hook(lambda _, args, out: seen.append(out))
        for m in installed(net).values()
    ]
    with torch.enable_grad():
        logits = net(x.clone().requires_grad_())
    for hook in hooks:
        hook.remove()
    maps = [a for a in seen if a.dim() == 4][-1]
    (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps)
    return (slope.mean((2, 3), keepdim=True) * maps).sum(1).relu().detach()


def _enlarge(cams: Tensor, size: int) -> Tensor:
    """Maps (n, h, w) at the size of the image, as the paper's authors do, bilinearly."""
    return F.interpolate(cams[None], size=(size, size), mode="bilinear")[0]


# ---------------------------------------------------------------------------------------- the panel


def _draw(by_net: list[Shown]) -> str:
    """A row per slope and kind of map below a row of the images, SHOWN columns per network."""
    kinds = {str(loss): name for loss, name in LOSSES.items()} | {CAM: "Grad-CAM"}
    rows = [(slope, kind) for kind in kinds for slope in (0, 1)]
    figure = Canvas(figsize=(9.6, 1.25 * (1 + len(rows))), layout="constrained")
    grid = figure.subplots(1 + len(rows), SHOWN * len(by_net), squeeze=False)
    for block, shown in enumerate(by_net):
        for i, image in enumerate(shown.images):
            column = block * SHOWN + i
            plots.draw_image(grid[0, column], image.numpy())
            for row, (slope, kind) in enumerate(rows, start=1):
                _map(grid[row, column], shown.maps[kind, slope][i].numpy())
        grid[0, block * SHOWN].set_title(shown.net.title, fontsize=9, loc="left")
    for row, (slope, kind) in enumerate(rows, start=1):
        text = f"{kinds[kind]},\nslope {(1, STEEP)[slope]:g}"
        grid[row, 0].set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
    return plots.svg(figure)


def _map(axes: Axes, values: NDArray[np.float64]) -> None:
    axes.imshow(values, cmap=plots.BOTH_WAYS, vmin=-1, vmax=1, interpolation="nearest")
    if not values.any():
        axes.imshow(np.full((*values.shape, 3), 0.87), interpolation="nearest")
        middle = (values.shape[1] - 1) / 2
        axes.text(
            middle, middle, "exactly\nzero", ha="center", va="center", fontsize=8, color="#4a5568"
        )
