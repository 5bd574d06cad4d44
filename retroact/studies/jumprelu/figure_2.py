"""Figure 2: the retrofit, every ReLU of a trained network becomes a JumpReLU

No weight changes, and one kappa serves all sites. The sites are found by running the network; at
kappa 0 the retrofit must be the same network bit for bit, which is checked here on images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import FancyBboxPatch

from retroact.activations.piecewise import JumpReLU
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports import plots
from retroact.reports.studied import Figure, Part, Table, Value
from retroact.retrofitting.sites import survey
from retroact.retrofitting.surgery import retrofit
from retroact.spec import spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.networks import NETS, Net

SITE = plots.CYCLE[1]
LAYERS = (
    "image",
    "conv 5×5, 10\nmax pool",
    "J",
    "conv 5×5, 20\nmax pool",
    "J",
    "linear 120",
    "J",
    "linear 90",
    "J",
)
ENDS = (*LAYERS, "linear 10\nlogits")


@spec
class Neutral:
    """How many sites the retrofit of `net` has, its parameters, and whether kappa 0 leaves its
    logits bit for bit."""

    model: Model
    kappa: float
    data: str

    def __call__(self) -> Facts:
        net, images = self.model(), data(self.data).images
        neutral, jumped = (retrofit(net, JumpReLU(k)) for k in (0.0, self.kappa))
        with torch.no_grad():
            logits = [f(images) for f in (net, neutral, jumped)]
        return {
            "sites": len(survey(net).sites),
            "parameters": sum(p.numel() for p in net.parameters()),
            "same_at_0": torch.equal(logits[0], logits[1]),
            "other_at_kappa": not torch.equal(logits[0], logits[2]),
        }


def make(desk: Desk) -> Iterator[Part]:
    yield Figure(
        "The LeNet-like network, above as trained with its ReLUs, below retrofitted: J(z) = z where"
        " z > kappa, else 0. Nothing else changes, and nothing is trained again.",
        schematic(),
    )
    head = ("network", "sites", "parameters", "kappa", "logits at kappa 0", "logits at kappa")
    yield Table("Where a ReLU was replaced", head, tuple(_row(desk, net) for net in NETS))


def _row(desk: Desk, net: Net) -> tuple[Value, ...]:
    if not net.here:
        return f"{net.title}, {net.missing}", None, None, f"{net.kappa:g}", None, None
    facts = desk.facts(Neutral(net.model(0), net.kappa, net.slice(16)))
    at_0 = "the same, bit for bit" if facts["same_at_0"] else "DIFFERENT"
    changed = "others" if facts["other_at_kappa"] else "the same"
    return net.title, facts["sites"], f"{facts['parameters']:,}", f"{net.kappa:g}", at_0, changed


def schematic() -> str:
    """The network twice: ReLU sites in grey, and the same sites as JumpReLU in colour."""
    figure = Canvas(figsize=(9.6, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for y, title, colour in ((1.35, "trained", plots.BEFORE), (0.0, "retrofitted", SITE)):
        axes.text(-0.1, y + 0.72, title, fontsize=9, fontweight="bold", color=colour)
        at = 0.0
        for i, name in enumerate(ENDS):
            at = _box(axes, at, y, name, colour, last=i == len(ENDS) - 1)
    axes.set_xlim(-0.2, at)
    axes.set_ylim(-0.35, 2.3)
    axes.set_axis_off()
    return plots.svg(figure)


def _box(axes: Axes, at: float, y: float, name: str, colour: str, *, last: bool) -> float:
    """A layer, or a site with the graph of its function, and the arrow to the next; gives where
    that begins."""
    site = name == "J"
    width = 0.62 if site else 1.32
    edge = colour if site else plots.INK
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(
            (at, y), width, 0.56, boxstyle=style, fill=False, edgecolor=edge, linewidth=1.2
        )
    )
    if site:
        _glyph(axes, at, y, colour, jump=0.18 if colour == SITE else 0.0)
    else:
        axes.text(at + width / 2, y + 0.28, name, ha="center", va="center", fontsize=7)
    if not last:
        arrow = {
            "arrowstyle": "-|>",
            "color": plots.INK,
            "linewidth": 0.8,
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate("", (at + width + 0.24, y + 0.28), (at + width, y + 0.28), arrowprops=arrow)
    return at + width + (0.0 if last else 0.24)


def _glyph(axes: Axes, at: float, y: float, colour: str, jump: float) -> None:
    """The graph of a ReLU, or of a JumpReLU where `jump` is above 0."""
    left, turn, base = at + 0.08, at + 0.26, y + 0.12
    axes.plot([left, turn + jump / 2], [base, base], color=colour, linewidth=1.6)
    axes.plot([turn + jump / 2, at + 0.54], [base + jump, base + 0.34], color=colour, linewidth=1.6)
    if jump:
        axes.plot(
            [turn + jump / 2] * 2, [base, base + jump], color=colour, linewidth=0.8, linestyle=":"
        )
