"""Figure 1: one image, and how much noise fools either network

Top row the network as it was trained, bottom row its retrofit: the clean image, what DeepFool (DF₂,
the paper's steps) adds, and the sum. The paper has no code for this figure, so the image and the
attack are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure as Canvas

from retroact.reports import plots
from retroact.reports.studied import Figure, Part, Text
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.networks import ALEX, LENET, Net
from retroact.studies.jumprelu.pictures import Shot, reds, shots, show


def make(desk: Desk) -> Iterator[Part]:
    net = ALEX if ALEX.here else LENET
    images = shots(desk, net, "deepfool_l2", 1)
    if not images:
        yield Text(f"No image among the first test images fools {net.title} at both kappas.")
        return
    caption = (
        f"{net.title}, DF₂: the first test image that both networks decide rightly and lose. Top"
        f" kappa 0, bottom kappa {net.kappa:g}; red is |difference|, on one scale. Noise is ‖x_adv"
        " − x‖₂ / ‖x‖₂ in normalised space."
    )
    yield Figure(caption, draw(images[0], net))


def draw(shot: Shot, net: Net) -> str:
    """Two rows of three pictures with the signs between them."""
    figure = Canvas(figsize=(6.0, 4.2), layout="constrained")
    differences = [np.abs(x - shot.clean) for x in shot.adversarial]
    top = max(float(d.max()) for d in differences)
    for j, (row, kappa) in enumerate(zip(figure.subplots(2, 3), (0.0, net.kappa), strict=True)):
        show(row[0], shot.clean, f"“{shot.label}”")
        reds(row[1], differences[j], top, f"+ noise, {shot.noise[j]:.1f} %")
        show(row[2], shot.adversarial[j], f"= “{shot.decided[j]}”")
        row[0].set_ylabel(f"kappa {kappa:g}", fontsize=9)
    return plots.svg(figure)
