"""Figure 3: six attacks against eps, per slope

FGSM, BIM, StepLL, RFGSM, PGD-40 and DeepFool as torchattacks 1.3 ran them: see
`retroact.attacks.torchattacks13` for what each does that its name does not say. DeepFool's columns
are numbers of iterations.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from retroact.reports.plots import panels
from retroact.reports.studied import Claim, Figure, Part, Table, Takeaway, Text, Value
from retroact.studies.counted import Counts, counts
from retroact.studies.desk import Desk
from retroact.studies.srelu.attacks import (
    ATTACKS,
    attack_counts,
    columns,
    curve,
    images,
)
from retroact.studies.srelu.networks import ABOVE_1, NETS, SLOPES, Net, label
from retroact.studies.srelu.panels import Curve, mean, panel, table
from retroact.studies.truth import answer_by_network

Curves = dict[tuple[str, str, float], Curve]
"""A curve by network, attack and slope."""

NEAR = 5.0
"""Percentage points within which a published accuracy "comes out"."""
UNCHANGED = 5.0
"""Percentage points of mean accuracy by which a slope above 1 may differ and "neither help nor
harm"."""


WHAT_EPS_IS = (
    "Only images that are right clean are attacked; all stand in the denominator. “eps” is"
    " what the attacks were called with, not how far they go: BIM and StepLL make int(min(255"
    " eps + 4, 1.25 · 255 eps)) steps of 1/255 in a box that moves along (0.314 for 0.3, and"
    " no step at all for 0.003), RFGSM moves by up to 8/255 + 5 (eps − 8/255) and walks"
    " backwards below eps = 8/255. DeepFool's columns are 1, 2, … iterations."
)
ZERO_GRADIENTS = (
    "**Exactly zero gradients.** The share of the gradients asked for that were zero in"
    " float32, at the largest eps. FGSM, BIM, RFGSM and PGD follow the cross-entropy of the"
    " true class and stand still where it is flat. StepLL follows that of another class and"
    " DeepFool the logits."
)


def make(desk: Desk) -> Iterator[Part]:
    keys = [(net, attack, s) for net in NETS for attack in ATTACKS for s in SLOPES]
    asked = {k: attack_counts(*k[:2], k[0].sloped(k[2]), images(desk, k[1])) for k in keys}
    found = counts(desk, asked)
    by_key = {(k[0].key, *k[1:]): curve(*k, f) for k, f in found.items()}
    yield Text(
        f"The first {images(desk, 'FGSM')} test images for FGSM, {images(desk, 'PGD')} for the"
        " others."
        f" {WHAT_EPS_IS}"
    )
    yield _draw(by_key)
    for net in NETS:
        yield _largest(net, by_key)
    yield Text(ZERO_GRADIENTS)
    yield _zeros({(k[0].key, *k[1:]): f for k, f in found.items()})
    yield from (_table(net, attack, by_key) for net in NETS for attack in ATTACKS)
    yield _stepll_deepfool(by_key)
    yield _say_agreement(by_key)


def _draw(by_key: Curves) -> Figure:
    drawn = [
        panel(
            f"{net.title}, {attack}",
            columns(net, attack),
            [by_key[net.key, attack, s] for s in SLOPES],
            "",
            "",
        )
        for attack in ATTACKS
        for net in NETS
    ]
    return Figure(
        "Accuracy (%) per attack and slope. Thin and dashed: published.", panels(drawn, height=1.8)
    )


def _table(net: Net, attack: str, by_key: Curves) -> Table:
    curves = [by_key[net.key, attack, s] for s in SLOPES]
    column = "iterations" if attack == "DeepFool" else "eps"
    title = f"{net.title}, {attack}"
    return table(title, "slope", column, columns(net, attack), curves, net.original)


def _largest(net: Net, by_key: Curves) -> Table:
    """The last column at three slopes."""
    shown = (1.0, 10.0, 100.0)
    head = (
        "attack",
        "column",
        *(text for s in shown for text in (f"slope {label(s)}", "published")),
    )
    rows: list[tuple[Value, ...]] = []
    for attack in ATTACKS:
        last = columns(net, attack)[-1]
        curves = [by_key[net.key, attack, s] for s in shown]
        rows.append(
            (
                attack,
                _column(attack, last),
                *(v for c in curves for v in (c.y[-1], c.published.get(last))),
            )
        )
    return Table(f"{net.title}: accuracy (%) in the last column", head, tuple(rows))


def _column(attack: str, last: str) -> str:
    return f"{last} iterations" if attack == "DeepFool" else f"eps {last}"


def _zeros(found: dict[tuple[str, str, float], Counts]) -> Table:
    rows: list[tuple[Value, ...]] = [
        (net.title, attack, *(found[net.key, attack, s].blind[-1] for s in SLOPES))
        for net in NETS
        for attack in ATTACKS
    ]
    head = ("network", "attack", *(f"slope {label(s)}" for s in SLOPES))
    return Table("Exactly zero gradients (%)", head, tuple(rows))


def _stepll_deepfool(by_key: Curves) -> Claim:
    """Neither helped nor harmed: mean accuracies at slopes above 1 within `UNCHANGED` points of
    that at slope 1."""
    changes: dict[tuple[str, str], list[float]] = {
        (net.title, attack): [
            mean(by_key[net.key, attack, s].y) - mean(by_key[net.key, attack, 1.0].y)
            for s in ABOVE_1
        ]
        for net in NETS
        for attack in ("StepLL", "DeepFool")
    }
    told = "; ".join(
        f"{net} {attack} {min(v):+.1f} to {max(v):+.1f}" for (net, attack), v in changes.items()
    )
    worst = dict.fromkeys((net.title for net in NETS), 0.0)
    for (net, _), values in changes.items():
        worst[net] = max(worst[net], *map(abs, values))
    calm = [value <= UNCHANGED for value in worst.values()]
    because = (
        "slopes above 1 against 1, points of mean accuracy over the columns (allowed:"
        f" {UNCHANGED:g}): {told}"
    )
    return Claim("stepll_deepfool", answer_by_network(calm, calm), because)


def _say_agreement(by_key: Curves) -> Takeaway:
    """How many of the published numbers come out, in a line."""
    near: dict[str, list[bool]] = {net.title: [] for net in NETS}
    for net, attack, s in product(NETS, ATTACKS, SLOPES):
        curve = by_key[net.key, attack, s]
        measured = dict(zip(columns(net, attack), curve.y, strict=True))
        near[net.title] += [abs(measured[x] - v) <= NEAR for x, v in curve.published.items()]
    told = ", ".join(f"{name} {sum(is_so)} of {len(is_so)}" for name, is_so in near.items())
    return Takeaway(
        3,
        f"{sum(map(sum, near.values()))} of {sum(map(len, near.values()))} accuracies that were"
        f" published of Figures 2 and 3 come out within {NEAR:g} points: {told}; our networks are"
        " not the paper's own.",
    )
