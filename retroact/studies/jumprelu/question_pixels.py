"""Question: does a single pixel fool a network, and does a jump keep it from doing so?

The paper's introduction says that changes of single pixels can fool networks, and shows none. Here
every pixel of an image is moved to every corner of the colours (black and white of MNIST, eight
colours of CIFAR-10), one at a time: nothing is estimated. MobileNetV2 and WideResNet are left out:
8192 looks at each image would take them minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

from retroact.attacks.pixel_search import PixelSearch
from retroact.evaluation.metrics import wilson
from retroact.experiments.cell import Cell, all_locked
from retroact.reports.studied import Claim, Part, Table, Value
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.networks import (
    ALEX,
    ALEX_ROBUST,
    FAR_2,
    LENET,
    LENET_ROBUST,
    RESNET,
    RESNET_ROBUST,
    Net,
    available,
    untested,
)
from retroact.studies.jumprelu.sizes import SINGLE_PIXELS
from retroact.studies.told import Outcomes, Told, outcomes
from retroact.studies.truth import answer_by_network

NETS = (LENET, LENET_ROBUST, ALEX, ALEX_ROBUST, RESNET, RESNET_ROBUST)


def make(desk: Desk) -> Iterator[Part]:
    rows: list[tuple[Value, ...]] = []
    said, can = [], []
    for net in available(desk, NETS):
        shares = []
        for kappa, found in zip((0.0, net.kappa), search(desk, net), strict=True):
            count, right = int(found.fooled.sum()), int(found.right.sum())
            low, high = wilson(count, right)
            rows.append(
                (net.title, f"{kappa:g}", right, count, 100 * count / right, span(low, high))
            )
            shares.append(f"{count} of {right}")
        can.append(not shares[0].startswith("0 "))
        said.append(f"{net.title} {' and '.join(shares)}")
    yield Table(
        "Images that one pixel fools, of those decided rightly",
        ("network", "kappa", "n", "fooled", "%", "95 %"),
        tuple(rows),
    )
    because = f"images that one pixel fools, at kappa 0 and at kappa: {'; '.join(said)}"
    answer = answer_by_network(can, can)
    yield Claim("single_pixel", answer, because + untested(desk, NETS))


def search(desk: Desk, net: Net) -> list[Outcomes]:
    """The outcomes at kappa 0 and at the paper's kappa."""
    sizes = SINGLE_PIXELS.of(net)
    asked = {
        n: [Cell(net.model(k), net.slice(n), PixelSearch(), FAR_2) for k in (0.0, net.kappa)]
        for n in sizes
    }

    def told(n: int) -> list[Told]:
        return [Told(cell) for cell in all_locked(asked[n])]

    return outcomes(desk, asked[desk.largest(sizes, told)])


def span(low: float, high: float) -> str:
    """An interval of shares, in percent."""
    return f"{100 * low:.1f} to {100 * high:.1f}"
