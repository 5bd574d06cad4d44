"""Figure 3: ReLU and Swish, JumpReLU, and its subgradient

Drawn from the activations that the study installs, not from formulas of the figure's own. (a) R(z)
= max(z, 0) and S(z) = z / (1 + exp(−2 beta z)) with beta 0.5, eq. 9-10, which is SiLU; (b) J(z) = z
where z > kappa, eq. 11, so 0 at kappa itself; (c) what autograd gives, 1 where z > kappa: the jump
itself has no slope that it could see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from retroact.activations.piecewise import JumpReLU, ReLU
from retroact.activations.smooth import Swish
from retroact.reports import plots
from retroact.reports.studied import Figure, Part
from retroact.studies.desk import Desk

KAPPA = 1.0
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def make(desk: Desk) -> Iterator[Part]:
    yield Figure(
        f"(a) ReLU, and Swish with beta 0.5 (dashed). (b) JumpReLU with kappa {KAPPA:g}: the filled"
        " dot belongs to it, the open one does not. (c) Its subgradient: that of ReLU, shifted by"
        " kappa.",
        draw(),
    )


def values(activation: Any, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """activation(z)."""
    return np.asarray(activation(torch.from_numpy(z)).numpy(), dtype=np.float64)


def slopes(activation: Any, z: NDArray[np.float64]) -> NDArray[np.float64]:
    """d activation / dz by autograd, which is what an attack climbs."""
    leaf = torch.from_numpy(z).requires_grad_()
    (gradient,) = torch.autograd.grad(activation(leaf).sum(), leaf)
    return np.asarray(gradient.numpy(), dtype=np.float64)


def draw() -> str:
    """The three panels."""
    figure = Canvas(figsize=(9.6, 2.7), layout="constrained")
    z = np.linspace(-4, 4, 401)
    jump = JumpReLU(KAPPA)
    left, middle, right = figure.subplots(1, 3)
    left.plot(z, values(ReLU(), z), color=plots.CYCLE[0], linewidth=1.8, label="ReLU")
    left.plot(
        z,
        values(Swish(0.5), z),
        color=plots.CYCLE[1],
        linewidth=1.4,
        linestyle="--",
        label="Swish, beta 0.5",
    )
    left.legend(fontsize=7, frameon=False)
    for axes, of in ((middle, values), (right, slopes)):
        for part in (z[z <= KAPPA], z[z > KAPPA]):
            axes.plot(part, of(jump, part), color=plots.CYCLE[0], linewidth=1.8)
        _ends(axes, [float(of(jump, np.array([v]))[0]) for v in (KAPPA, np.nextafter(KAPPA, 2))])
    for axes, title in ((left, "(a) R(z) and S(z)"), (middle, "(b) J(z)"), (right, "(c) ∂J(z)")):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("z", fontsize=8)
        plots.plain(figure, axes)
    right.set_ylim(-0.1, 1.4)
    return plots.svg(figure)


def _ends(axes: Axes, heights: list[float]) -> None:
    """A filled dot at kappa itself, an open one at the limit from above, and kappa on the axis."""
    at, above = heights
    axes.plot([KAPPA], [at], "o", color=plots.CYCLE[0], markersize=5)
    axes.plot([KAPPA], [above], "o", color=plots.CYCLE[0], markersize=5, fillstyle="none")
    axes.plot([KAPPA, KAPPA], [at, above], color=plots.CYCLE[0], linewidth=0.8, linestyle=":")
    axes.set_xticks([-4, -2, 0, KAPPA, 2, 4], ["−4", "−2", "0", "κ", "2", "4"])
