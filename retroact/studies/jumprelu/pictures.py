"""Pictures of adversarial images as the paper shows them: clean, adversarial, and the difference
from clear to red."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from retroact.crafting.threat import ThreatModel
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell
from retroact.nets.classifier import Classifier
from retroact.nets.data import data
from retroact.reports import plots
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.crafted import relative
from retroact.studies.jumprelu.networks import Net

KEPT = 24
"""The pictures are of the first among so many test images that both networks decide rightly and
lose."""


@dataclass(frozen=True)
class Shot:
    """One image and what the attack made of it at kappa 0 and at the paper's kappa: pixels,
    decisions, noise (%)."""

    label: str
    clean: NDArray[np.float32]
    adversarial: tuple[NDArray[np.float32], NDArray[np.float32]]
    decided: tuple[str, str]
    noise: tuple[float, float]
    largest: tuple[float, float]


def shots(desk: Desk, net: Net, attack: str, most: int) -> list[Shot]:
    """The first images that are right clean and fooled at both kappas."""
    records, threat = _records(desk, net, attack), net.attack(attack)[1]
    fooled = np.logical_and.reduce(
        [(r.clean == r.label) & (r.adversarial != r.label) for r in records]
    )
    model = net.model(0)()
    assert isinstance(model, Classifier)
    noise = [_noise(model, r, threat) for r in records]
    return [
        _shot(int(i), records, noise, data(net.slice(KEPT)).class_names)
        for i in fooled.nonzero()[0][:most]
    ]


def commonest(desk: Desk, net: Net, attack: str) -> list[tuple[int, int, int]]:
    """At kappa 0 and the paper's: the class that most fooled images are taken for, how many are,
    and how many are broken."""
    counted = []
    for record in _records(desk, net, attack):
        seen = record.adversarial[
            (record.clean == record.label) & (record.adversarial != record.label)
        ]
        counts = np.bincount(seen, minlength=10)
        counted.append((int(counts.argmax()), int(counts.max()), len(seen)))
    return counted


def _records(desk: Desk, net: Net, attack: str) -> list[Record]:
    how, threat = net.attack(attack)
    cells = [Cell(net.model(kappa), net.slice(KEPT), how, threat) for kappa in (0.0, net.kappa)]
    return desk.records(cells, keep=KEPT)


def _noise(model: Classifier, record: Record, threat: ThreatModel) -> NDArray[np.float64]:
    assert record.examples is not None and record.originals is not None
    ratio = relative(
        model, torch.from_numpy(record.examples), torch.from_numpy(record.originals), threat
    )
    return np.asarray(100 * ratio.numpy(), dtype=np.float64)


def _shot(
    i: int, records: list[Record], noise: list[NDArray[np.float64]], names: Sequence[str]
) -> Shot:
    low, high = records
    assert low.examples is not None and high.examples is not None and low.originals is not None
    return Shot(
        label=names[low.label[i]],
        clean=low.originals[i],
        adversarial=(low.examples[i], high.examples[i]),
        decided=(names[low.adversarial[i]], names[high.adversarial[i]]),
        noise=(float(noise[0][i]), float(noise[1][i])),
        largest=(float(low.distance[i, 3]), float(high.distance[i, 3])),
    )


def rows_of_five(images: Sequence[Shot], kappa: float) -> str:
    """Clean, then adversarial and |difference| at kappa 0 and at `kappa`; one scale of red in a
    row."""
    figure = Figure(figsize=(8.2, 0.3 + 1.75 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 5, squeeze=False)
    for row, shot in zip(grid, images, strict=True):
        differences = [np.abs(x - shot.clean) for x in shot.adversarial]
        top = max(float(d.max()) for d in differences)
        show(row[0], shot.clean, f"true {shot.label}")
        for j, kappa_here in enumerate((0.0, kappa)):
            show(
                row[1 + 2 * j],
                shot.adversarial[j],
                f"kappa {kappa_here:g}: seen as {shot.decided[j]}",
            )
            noise = f"noise {shot.noise[j]:.2g} %, L∞ {shot.largest[j]:.2g}"
            reds(row[2 + 2 * j], differences[j], top, noise)
    return plots.svg(figure)


def show(axes: Axes, image: NDArray[np.float32], title: str) -> None:
    """An image under its title."""
    axes.imshow(
        image[0] if len(image) == 1 else image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=1
    )
    _bare(axes, title)


def reds(axes: Axes, difference: NDArray[np.float32], top: float, title: str) -> None:
    """|difference|, the largest channel of each pixel, from clear (0) to red (`top`, in
    pixels)."""
    axes.imshow(difference.max(0), cmap=plots.REDS, vmin=0, vmax=max(top, 1e-6))
    _bare(axes, title)


def _bare(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(plots.FAINT)
