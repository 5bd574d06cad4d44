"""Question: a residual network, an attack without gradients, transfer, and inputs that moved

The paper leaves larger networks, black-box attacks and transfer for later. Here they are in small:
Square, which sees scores and no gradient, and the gradients of slope 1, on the paper's three
networks; slopes on a ResNet-20, whose skips carry what no slope has multiplied past those that did;
and the MNIST CNN as it was published, trained on normalised images and tested on raw pixels, beside
ours, which sees raw pixels both times.
"""

from __future__ import annotations

from collections.abc import Iterator

from retroact.attacks.fgsm import FGSM
from retroact.attacks.square import Square
from retroact.crafting.threat import Linf
from retroact.nets.zoo import entry
from retroact.reports.studied import Part, Table, Text, Value
from retroact.studies.counted import Counted, counts
from retroact.studies.desk import Desk
from retroact.studies.srelu.attacks import make_attack
from retroact.studies.srelu.networks import CIFAR_EPS, MNIST, NETS, SHIFTED, SLOPES, Net, label
from retroact.studies.truth import BATTERIES, Audited, audits

RESIDUAL = Net("ResNet-20", "", "resnet20-cifar10", "*", CIFAR_EPS, "cifar10", 1017)
GENTLE = (0.5, 1.0, 1.1, 1.25, 1.5, 2.0, 10.0)
"""Slopes for a network with skips, which folds at none but 1."""
USEFUL = 0.8
"""The share of the clean accuracy at slope 1 that a slope must keep to be worth an audit."""
EPS = {"mnist": 0.1, "cifar10": 0.01}
"""Radii of the paper's grids at which something is still robust at slope 1."""


def make(desk: Desk) -> Iterator[Part]:
    yield from _without_gradients(desk)
    yield from _residual(desk)
    yield from _shift_inputs(desk)
    yield Text(
        "ImageNet, which the paper names as well, is not done: its images and networks are not at"
        " hand."
    )


# ----------------------------------------------------------------------------- scores, and transfer


def _without_gradients(desk: Desk) -> Iterator[Part]:
    slopes, n = (1.0, 10.0, 100.0), desk.pick(100, 500)
    asked = {(net, s): _ways(net, s, n) for net in NETS for s in slopes}
    found = counts(
        desk, {(*k, i): what for k, ways in asked.items() for i, what in enumerate(ways)}
    )
    rows: list[tuple[Value, ...]] = [
        (
            k[0].title,
            label(k[1]),
            found[*k, 0].clean,
            *(f for i in range(len(ways)) for f in found[*k, i].robust),
        )
        for k, ways in asked.items()
    ]
    head = (
        "network",
        "slope",
        "clean",
        "PGD, cross-entropy",
        "Square, 500 queries",
        "PGD, gradients of slope 1",
    )
    yield Table(
        f"Accuracy (%) at eps {EPS['mnist']:g} (MNIST) and {EPS['cifar10']:g} (CIFAR-10)",
        head,
        tuple(rows),
    )
    yield Text(
        "Square asks for scores and never for a gradient, so what it finds is there whatever the"
        " gradients say: where it leaves less than PGD, the slope has blinded PGD and closed"
        " nothing. So has the network at slope 1, whose gradients no slope touches."
    )


def _ways(net: Net, slope: float, n: int) -> list[Counted]:
    """PGD on the cross-entropy and Square, and PGD by the gradients of slope 1."""
    eps, model = EPS[net.data], net.sloped(slope)
    pgd, threats = make_attack("PGD", eps), (Linf(eps),)
    return [
        net.counted_groups(model, (((pgd, Square(500)), threats),), n),
        net.counted_groups(model, (((pgd,), threats),), n, source=net.sloped(1.0)),
    ]


# ------------------------------------------------------------------------------- a residual network


def _residual(desk: Desk) -> Iterator[Part]:
    n, eps = desk.pick(100, 1000), 0.007
    steps = (((FGSM(), FGSM(loss="margin")), (Linf(eps),)),)
    found = counts(desk, {s: RESIDUAL.counted_groups(RESIDUAL.sloped(s), steps, n) for s in GENTLE})
    clean = {s: f.clean for s, f in found.items()}
    rows: list[tuple[Value, ...]] = [(label(s), f.clean, *f.robust) for s, f in found.items()]
    head = ("slope", "clean", "FGSM", "FGSM, margin")
    yield Table(
        f"ResNet-20, every activation: accuracy (%), n = {n}, eps {eps:g}", head, tuple(rows)
    )
    kept = [s for s in GENTLE if s > 1 and clean[s] >= USEFUL * clean[1.0]]
    steepest = (
        f"The steepest slope here that keeps {USEFUL:.0%} of it is {max(kept):g}."
        if kept
        else "None keeps it."
    )
    yield Text(
        "A skip adds what no slope has multiplied to what one has, so a slope is no common factor"
        " there, the network does not fold, and its batch norms see other means than they learned:"
        f" the clean accuracy goes. {steepest}"
    )
    if kept:
        yield _audit(desk, max(kept))


def _audit(desk: Desk, slope: float) -> Table:
    images, threat = RESIDUAL.slice(desk.pick(40, 200)), Linf(2 / 255)
    pair, battery = (RESIDUAL.sloped(1.0), RESIDUAL.sloped(slope)), desk.pick(*BATTERIES)
    what = Audited(*pair, images, threat, battery)
    title = "Its audit: slope 1 → that slope, accuracies in %"
    return audits(desk, title, [(f"ResNet-20, {slope:g}", what)])


# ------------------------------------------------------------------------------------- moved inputs


def _shift_inputs(desk: Desk) -> Iterator[Part]:
    n, eps = desk.pick(500, 10_000), MNIST.eps[-1]
    steps = (((FGSM(), FGSM(loss="margin")), (Linf(eps),)),)
    asked = {
        (net, s): net.counted_groups(net.sloped(s), steps, n)
        for net in (MNIST, SHIFTED)
        for s in SLOPES
    }
    found = counts(desk, asked)
    rows: list[tuple[Value, ...]] = [
        (net.title, label(s), f.clean, *f.robust, f.blind[0]) for (net, s), f in found.items()
    ]
    measured = (f"FGSM, eps {eps:g}", "the same, margin", "gradients exactly zero")
    head = ("network", "slope", "clean", *measured)
    yield Table(
        f"Trained on raw pixels or on normalised images, tested on raw ones, n = {n}, %",
        head,
        tuple(rows),
    )
    apart = {s: abs(found[MNIST, s].robust[0] - found[SHIFTED, s].robust[0]) for s in SLOPES}
    far = max(apart, key=lambda s: apart[s])
    yield Text(
        "The published weights were trained on normalised images and tested on raw pixels;"
        f" `mnist-cnn-shifted` is made like that ({100 * entry(SHIFTED.net).accuracy:.2f} % of all"
        f" test images, `mnist-cnn` {100 * entry(MNIST.net).accuracy:.2f}). Under FGSM the two are"
        f" farthest apart at slope {far:g}, by {apart[far]:.1f} points."
    )
