"""Figure 2: FGSM against eps per slope, all attacks against slope, other activations

torchattacks' FGSM is the ordinary one: x + eps sign(∇CE), clipped. Only images that are right clean
are attacked, all stand in the denominator. The middle row averages the curves of Figure 3, eps = 0
(or DeepFool's first step) included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from retroact.activations.piecewise import SReLU
from retroact.activations.smooth import CELU, Sigmoid, Softplus, Softsign, Tanh
from retroact.attacks.fgsm import FGSM
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.reports.plots import panels
from retroact.reports.studied import Claim, Figure, Part, Table, Text
from retroact.studies.desk import Desk, Facts
from retroact.studies.published import published
from retroact.studies.srelu.attacks import (
    ATTACKS,
    accuracies,
    as_published,
    attack_cells,
    columns,
    images,
)
from retroact.studies.srelu.networks import MNIST, NETS, SLOPES, Net, first, label, many
from retroact.studies.srelu.panels import Curve, mean, panel, table
from retroact.studies.truth import answer_claim

ON_MARGIN = FGSM(loss="margin")
OTHERS: Facts = {
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "softsign": Softsign(),
    "softplus": Softplus(),
    "celu": CELU(),
    "relu": SReLU(1.0),
}

Means = dict[tuple[str, str, float], float]
"""Accuracy averaged over the columns, by network, attack and slope."""


def make(desk: Desk) -> Iterator[Part]:
    yield from _top(desk)
    yield from _middle(desk)
    yield from _bottom(desk)
    yield _not_impacted(desk)


# ------------------------------------------------------------------------------------------ top row


def _top(desk: Desk) -> Iterator[Part]:
    n = images(desk, "FGSM", MNIST)
    curves = fgsm_curves(
        desk, {(net, label(s)): SReLU(s) for net in NETS for s in SLOPES}, n, "slope"
    )
    known = {(net, label(s)): as_published(net, "FGSM", s) for net in NETS for s in SLOPES}
    yield Text(
        f"**Top row.** The first {n} test images of each set; one gradient per image serves every"
        " eps."
    )
    yield from _show("FGSM: accuracy (%) against eps, per slope.", "slope", curves, known, n)


def fgsm_curves(
    desk: Desk, activations: Mapping[tuple[Net, str], Any], n: int, what: str = ""
) -> dict[tuple[Net, str], Curve]:
    """FGSM on each network with each activation: a curve over the network's eps."""
    cells = {
        (net, name): attack_cells(net, "FGSM", net.model(a), n)
        for (net, name), a in activations.items()
    }
    by_key = many(desk, cells)

    def curve(net: Net, name: str) -> Curve:
        records = by_key[net, name]
        originals = accuracies(net, "FGSM", first(net.original, records)) if net.mixed(n) else None
        y = accuracies(net, "FGSM", records)
        return Curve(name, y, original=originals, what=what)

    return {(net, name): curve(net, name) for net, name in cells}


def _show(
    caption: str,
    what: str,
    curves_of: dict[tuple[Net, str], Curve],
    known: dict[tuple[Net, str], dict[str, float]],
    n: int,
) -> Iterator[Part]:
    by_net = {
        net: [replace(c, published=known[k]) for k, c in curves_of.items() if k[0] is net]
        for net in NETS
    }
    drawn = [panel(net.title, columns(net, "FGSM"), curves) for net, curves in by_net.items()]
    yield Figure(f"{caption} Thin and dashed: published.", panels(drawn))
    for net, curves in by_net.items():
        yield table(
            f"{net.title}, FGSM per {what}", what, "eps", columns(net, "FGSM"), curves, net.original
        )


# --------------------------------------------------------------------------------------- middle row


def _middle(desk: Desk) -> Iterator[Part]:
    sizes = {net: images(desk, "PGD", net) for net in NETS}
    yield Text(
        "**Middle row.** Each attack of Figure 3, its accuracy averaged over all columns (eps = 0"
        " included, as in the notebooks; iterations for DeepFool), against the slope. The caption"
        " speaks of accuracy-loss recovery, the notebooks plot the mean accuracy; both are here."
        " Recovery is (acc at α − acc at 1) / (clean at 1 − acc at 1): 100 % gives back all that"
        f" the attack takes at slope 1. FGSM rests on {images(desk, 'FGSM', MNIST)} images, the"
        f" others on {', '.join(f'{k} ({net.title})' for net, k in sizes.items())}."
    )
    clean, means = _means(desk)
    known = _quote_means()
    labels = [label(s) for s in SLOPES]
    accuracy = [
        panel(net.title, labels, _curves(net, means, known), "slope", "mean accuracy, %")
        for net in NETS
    ]
    yield Figure(
        "Mean accuracy over all columns against slope. Thin and dashed: published.",
        panels(accuracy),
    )
    recovery = {k: _recover(clean[k[:2]], means, k) for k in means}
    published_clean = {net.key: as_published(net, "FGSM", 1.0)["0"] for net in NETS}
    known_recovery = {k: _recover(published_clean[k[0]], known, k) for k in known}
    yield _draw_recovery(recovery, known_recovery)
    for net in NETS:
        yield _middle_table(net, means, known, recovery, known_recovery)


def _draw_recovery(recovery: Means, known: Means) -> Figure:
    labels = [label(s) for s in SLOPES]
    axes = ("slope", "recovery, %", (-130, 105))
    drawn = [panel(net.title, labels, _curves(net, recovery, known), *axes) for net in NETS]
    return Figure(
        "Accuracy-loss recovery against slope, 0 at slope 1. Thin and dashed: from published"
        " accuracies.",
        panels(drawn),
    )


def _means(desk: Desk) -> tuple[dict[tuple[str, str], float], Means]:
    asked = {
        (net, attack, s): attack_cells(net, attack, net.sloped(s), images(desk, attack, net))
        for net in NETS
        for attack in ATTACKS
        for s in SLOPES
    }
    records = many(desk, asked)
    clean = {
        (net.key, attack): 100 * clean_accuracy(r[0])
        for (net, attack, s), r in records.items()
        if s == 1
    }
    return clean, {
        (net.key, attack, s): mean(accuracies(net, attack, r))
        for (net, attack, s), r in records.items()
    }


def _quote_means() -> Means:
    """Only of curves that were published whole."""
    curves = {(net, a, s): as_published(net, a, s) for net in NETS for a in ATTACKS for s in SLOPES}
    whole = {k: list(v.values()) for k, v in curves.items() if len(v) == len(k[0].eps)}
    return {(net.key, a, s): mean(values) for (net, a, s), values in whole.items()}


def _recover(clean: float, means: Means, k: tuple[str, str, float]) -> float:
    base = means[k[0], k[1], 1.0]
    return 100 * (means[k] - base) / (clean - base)


def _curves(net: Net, means: Means, known: Means) -> list[Curve]:
    return [
        Curve(
            attack,
            [means[net.key, attack, s] for s in SLOPES],
            {label(s): known[net.key, attack, s] for s in SLOPES if (net.key, attack, s) in known},
        )
        for attack in ATTACKS
    ]


def _middle_table(
    net: Net, means: Means, known: Means, recovery: Means, known_recovery: Means
) -> Table:
    keys = [(net.key, attack, s) for attack in ATTACKS for s in SLOPES]
    head = (
        "attack",
        "slope",
        "mean accuracy",
        "published",
        "difference",
        "recovery",
        "published recovery",
    )
    rows = tuple(
        (
            k[1],
            label(k[2]),
            means[k],
            known.get(k),
            _gap(means[k], known.get(k)),
            recovery[k],
            known_recovery.get(k),
        )
        for k in keys
    )
    return Table(f"{net.title}, all attacks against slope", head, rows, folded=True)


def _gap(measured: float, known: float | None) -> float | None:
    return None if known is None else measured - known


# --------------------------------------------------------------------------------------- bottom row


def _bottom(desk: Desk) -> Iterator[Part]:
    n = images(desk, "FGSM", MNIST)
    curves = fgsm_curves(desk, {(net, name): a for net in NETS for name, a in OTHERS.items()}, n)
    known = {
        k: published("srelu", f"figure2.activation_swap.{k[0].key}", k[1]) or {} for k in curves
    }
    lost = {k: c.y[0] - c.y[-1] for k, c in curves.items()}
    kept = ", ".join(f"{net.title} {_costlier(net, lost)}" for net in NETS)
    yield Text(
        "**Bottom row.** The same weights with every activation swapped (on CNN2 the two of the"
        " fully connected layers alone), nothing trained again. The paper reads these curves as"
        " “the attacks became even more damaging”. But much is lost before any attack, since the"
        " network was trained with ReLU. Functions among the five from which FGSM at the largest"
        f" eps takes more points than from ReLU: {kept}."
    )
    yield from _show("FGSM with other activations at slope 1.", "activation", curves, known, n)


def _costlier(net: Net, lost: dict[tuple[Net, str], float]) -> str:
    worse = [name for name in OTHERS if lost[net, name] > lost[net, "relu"]]
    return f"{len(worse)} ({', '.join(worse)})" if worse else "0"


# -------------------------------------------------------------------------------------------- claim


def _not_impacted(desk: Desk) -> Claim:
    """Not impacted: less than one point lost at the largest eps, at both slopes; truly: under the
    margin loss too."""
    n, slopes = images(desk, "FGSM", MNIST), (10.0, 100.0)
    eps = MNIST.eps[-1:]
    attacks = {"lost": FGSM(), "truly": ON_MARGIN}
    records = many(
        desk,
        {
            (k, s): MNIST.cells(MNIST.sloped(s), a, n, eps=eps)
            for k, a in attacks.items()
            for s in slopes
        },
    )
    costs = {k: 100 * (clean_accuracy(r) - robust_accuracy(r)) for k, (r,) in records.items()}
    said_costs = " and ".join(f"{costs['lost', s]:.1f} ({costs['truly', s]:.1f})" for s in slopes)
    return Claim(
        "untargeted.slope_10_100.mnist",
        answer_claim(
            max(costs["lost", s] for s in slopes) < 1, max(costs["truly", s] for s in slopes) < 1
        ),
        f"at slopes 10 and 100, FGSM with eps {eps[0]:g} costs {said_costs} points; "
        "in brackets one step on the margin loss",
    )
