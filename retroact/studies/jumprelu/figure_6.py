"""Figure 6: what DF₂ does to CIFAR-10, at kappa 0 and at the paper's kappa

Five pictures for each image, as in Figure 5. Whether noise is visible nobody was asked here; the
claim about it is judged by the usual bound of what is called imperceptible on such images, 8/255 in
any pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from retroact.reports.plots import Mark
from retroact.reports.studied import Claim, Figure, Part, Text, Weighed
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.crafted import crafted
from retroact.studies.jumprelu.networks import (
    ALEX,
    ATTACKS,
    DEEPFOOLS,
    LENET,
    PAPERS,
    RESNET,
    Net,
    available,
    untested,
)
from retroact.studies.jumprelu.pictures import rows_of_five, shots
from retroact.studies.jumprelu.sizes import TABLES
from retroact.studies.truth import answer_by_network

VISIBLE = 8 / 255


def make(desk: Desk) -> Iterator[Part]:
    net = ALEX if ALEX.here else LENET
    if net is not ALEX:
        yield Text(
            f"{net.title} stands in for AlexLike, which has {ALEX.missing}. So this is MNIST and"
            " not CIFAR-10."
        )
    yield Figure(
        f"{net.title}, DF₂: the first test images that both networks decide rightly and lose. Noise"
        " is ‖x_adv − x‖₂ / ‖x‖₂ in normalised space, L∞ is in pixels; red is |difference|, one"
        " scale for each row.",
        rows_of_five(shots(desk, net, "deepfool_l2", 3), net.kappa),
    )
    yield _lucid(desk)


def _lucid(desk: Desk) -> Claim:
    """Visible: DeepFool perturbations scaled to a mean noise of 5 % move some pixel by 8/255 or
    more, on average."""
    nets = available(desk, (*PAPERS, RESNET))
    pixels = {
        (net.title, name): at_five_percent(desk, net, name) for net in nets for name in DEEPFOOLS
    }
    said = ", ".join(
        f"{title} {ATTACKS[a]} {255 * v:.0f} to {510 * v:.0f}" for (title, a), v in pixels.items()
    )
    because = (
        "no person was asked; the mean L∞, in 255ths of a pixel, that 5 to 10 % of noise amount"
        f" to: {said}"
    )
    seen = [v >= VISIBLE for v in pixels.values()]
    because += f"; asked for 8 at least{untested(desk, PAPERS)}"
    marks = tuple(Mark(title, ATTACKS[a], 255 * v) for (title, a), v in pixels.items())
    unit = "mean L∞ of 5 % of noise, 255ths of a pixel"
    shown = Weighed(marks, unit, (255 * VISIBLE, math.inf))
    return Claim("lucid", answer_by_network(seen, seen), because, shown)


def at_five_percent(desk: Desk, net: Net, name: str) -> float:
    """The mean L∞ (pixels) of the attack's perturbations at kappa 0, scaled so that their mean
    noise is 5 %."""
    n = desk.largest(TABLES.of(net), lambda n: [crafted(net, n, name)])
    facts = desk.facts(crafted(net, n, name))
    return 0.05 * float(facts["largest"]) / max(float(facts["noise"]), 1e-12)
