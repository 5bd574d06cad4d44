"""Figure 1: the activation, ReLU and ReLU with other slopes

SReLU(α, z) = α max(0, z): weights are trained at α = 1 and kept; only the forward pass of the test
changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from retroact.activations.piecewise import ReLU, SReLU
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Figure, Part, Text
from retroact.spec import show
from retroact.studies.desk import Desk
from retroact.studies.srelu.networks import SLOPES

SHOWN = (-1.0, 2.0)


def make(desk: Desk) -> Iterator[Part]:
    z = torch.linspace(*SHOWN, 61)
    curves = [
        Series(
            f"slope {s:g}" + (" (ReLU)" if s == 1 else ""),
            z.tolist(),
            SReLU(s)(z).tolist(),
            colour=i,
        )
        for i, s in enumerate(SLOPES)
    ]
    yield Text(
        f"`{show(SReLU(10.0))}` is 10 · max(0, z). The network is trained with slope 1 and keeps"
        " its weights; only the slope of the activations is raised when it is used."
    )
    yield Figure(
        "SReLU for the paper's slopes; 10 and 100 leave the picture.", panels([_panel(curves)])
    )
    same = torch.equal(SReLU(1.0)(z), ReLU()(z))
    yield Text(
        f"At slope 1 it {'is' if same else 'is not'} ReLU, bit for bit, on these {len(z)} values."
    )


def _panel(curves: list[Series]) -> Panel:
    return Panel("", curves, "pre-activation z", "SReLU(α, z)", (-0.5, 10.5))
