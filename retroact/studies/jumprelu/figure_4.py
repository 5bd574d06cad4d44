"""Figure 4 and Figure 8: clean accuracy and minimum perturbation against kappa

White-box DeepFool at the paper's budget, both norms, and noise as in Table 2: the mean over all
images, in normalised space, dead ones left alone. The paper draws LeNet-like and AlexLike (Figure
4) and the residual networks (Figure 8), and says neither which norm nor which weights; here the
robust ones stand beside them. Its numbers are known at kappa 0 and at its own kappa only, from
Table 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Text, Value
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.crafted import crafted
from retroact.studies.jumprelu.minimum_norms import median_ratio
from retroact.studies.jumprelu.networks import (
    ATTACKS,
    DEEPFOOLS,
    NETS,
    PAPERS,
    Net,
    available,
    untested,
)
from retroact.studies.truth import answer_claim

FURTHER = 1.5
"""How many times the paper's kappa "a larger jump" is."""
SLIGHTLY = 2.0
"""Points of clean accuracy that a larger jump may cost."""
GROWS = 1.05
"""A verified norm counts as larger from five percent on."""

Point = dict[str, Facts]


def make(desk: Desk) -> Iterator[Part]:
    curves = {net.name: curve(desk, net) for net in available(desk)}
    for title, words in (("Figure 4", ("mnist", "alexlike")), ("Figure 8", ("resnet", "mobile"))):
        nets = [net for net in available(desk) if any(w in net.key for w in words)]
        if nets:
            yield Figure(
                f"{title}: clean accuracy (left) and mean relative noise of DeepFool (right), %,"
                " against kappa. Thin and dashed: published, at kappa 0 and at the paper's.",
                panels([p for net in nets for p in _panels(net, curves[net.name])], columns=2),
            )
    if untested(desk, NETS):
        yield Text(f"Not drawn{untested(desk, NETS)}.")
    head = (
        "network",
        "kappa",
        "n",
        "clean",
        *(f"{ATTACKS[a]} noise" for a in DEEPFOOLS),
        "DF∞ dead",
        "DF₂ dead",
    )
    rows = [row for net in available(desk) for row in _rows(net, curves[net.name])]
    yield Table("The points of the curves, %", head, tuple(rows), folded=True)
    yield _judge_monotone(desk, curves)
    yield _judge_further(desk)


def kappas(desk: Desk, net: Net) -> tuple[float, ...]:
    """The figure's kappas; on CIFAR-10 a quick run takes every third, and the paper's own."""
    if not desk.quick or net.data == "mnist":
        return net.kappas
    return tuple(sorted({*net.kappas[::3], net.kappa}))


def curve(desk: Desk, net: Net) -> dict[float, Point]:
    """The facts of both DeepFools at each kappa."""
    n = net.n(desk, per=desk.pick(1, 5 if net.data == "mnist" else 4))
    asked = [(kappa, name) for kappa in kappas(desk, net) for name in DEEPFOOLS]
    measured = desk.all_facts([crafted(net, n, name, kappa) for kappa, name in asked])
    points: dict[float, Point] = {kappa: {} for kappa, _ in asked}
    for (kappa, name), facts in zip(asked, measured, strict=True):
        points[kappa][name] = facts
    return points


def _panels(net: Net, points: dict[float, Point]) -> list[Panel]:
    x = list(points)
    clean = [
        Series("clean accuracy", x, [100 * p["deepfool_l2"]["clean"][0] for p in points.values()])
    ]
    clean += _draw_published(net, "clean", colour=0)
    noise = []
    for i, name in enumerate(DEEPFOOLS):
        noise.append(
            Series(
                f"{ATTACKS[name]} noise",
                x,
                [100 * p[name]["noise"] for p in points.values()],
                colour=1 + i,
            )
        )
        noise += _draw_published(net, name, colour=1 + i)
    lowest = min(min(one.y) for one in clean)
    return [
        Panel(net.title, clean, "kappa", "accuracy, %", (min(90.0, lowest - 2), 101)),
        Panel(net.title, noise, "kappa", "noise, %", None),
    ]


def _draw_published(net: Net, column: str, *, colour: int) -> list[Series]:
    known = [net.published("2", column, kappa) for kappa in (0.0, net.kappa)]
    values = [v for v in known if v is not None]
    return (
        [Series("published", [0.0, net.kappa], values, published=True, colour=colour)]
        if len(values) == 2
        else []
    )


def _rows(net: Net, points: dict[float, Point]) -> list[tuple[Value, ...]]:
    return [
        (
            net.title,
            f"{kappa:g}",
            p["deepfool_l2"]["n"],
            100 * p["deepfool_l2"]["clean"][0],
            *(100 * p[a]["noise"] for a in DEEPFOOLS),
            *(p[a]["dead"] for a in DEEPFOOLS),
        )
        for kappa, p in points.items()
    ]


# ------------------------------------------------------------------------------------------ claims


def _judge_monotone(desk: Desk, curves: dict[str, dict[float, Point]]) -> Claim:
    """More: each kappa of the figure needs more noise than the one before; truly: verified norms
    grow at kappa."""
    if not available(desk, PAPERS):
        return Claim(
            "kappa_monotone", "not tested", f"none of its networks is here{untested(desk, PAPERS)}"
        )
    shrinks, truth = [], {}
    for net in available(desk, PAPERS):
        for name in DEEPFOOLS:
            noise = [p[name]["noise"] for p in curves[net.name].values()]
            if any(b <= a for a, b in pairwise(noise)):
                shrinks.append(f"{net.title}, {ATTACKS[name]}")
        truth[net.title] = [median_ratio(desk, net, k) for k in (net.kappa, FURTHER * net.kappa)]
    grows = all(a >= GROWS and a * GROWS <= b for a, b in truth.values())
    said = "; ".join(f"{title} × {a:.2f} and × {b:.2f}" for title, (a, b) in truth.items())
    noise_said = (
        f"noise does not grow throughout: {', '.join(shrinks)}"
        if shrinks
        else "DeepFool's noise grows throughout"
    )
    because = (
        f"{noise_said}; verified minimum norm at kappa and at {FURTHER:g} kappa, over that at 0:"
        f" {said}"
    )
    return Claim(
        "kappa_monotone", answer_claim(not shrinks, grows), because + untested(desk, PAPERS)
    )


def _judge_further(desk: Desk) -> Claim:
    """On robust nets 1.5 kappa needs more DeepFool and TR noise, and costs up to SLIGHTLY points
    clean."""
    nets = available(desk, tuple(net for net in PAPERS if net.robust))
    if not nets:
        return Claim(
            "further_kappa_robust",
            "not tested",
            f"no robust network is here{untested(desk, PAPERS)}",
        )
    protocol, truth, said = [], [], []
    for net in nets:
        asked = [
            crafted(net, net.n(desk), a, k)
            for a in ATTACKS
            if a != "pgd"
            for k in (net.kappa, FURTHER * net.kappa)
        ]
        facts = desk.all_facts(asked)
        noise = [
            (100 * a["noise"], 100 * b["noise"])
            for a, b in zip(facts[::2], facts[1::2], strict=True)
        ]
        cost = 100 * (facts[0]["clean"][0] - facts[1]["clean"][0])
        verified = [median_ratio(desk, net, k) for k in (net.kappa, FURTHER * net.kappa)]
        protocol.append(all(b > a for a, b in noise) and cost <= SLIGHTLY)
        truth.append(verified[1] >= GROWS * verified[0])
        changes = ", ".join(f"{a:.1f} → {b:.1f}" for a, b in noise)
        said.append(
            f"{net.title}, kappa {net.kappa:g} → {FURTHER * net.kappa:g}: noise of DF∞, DF₂, TR"
            f" {changes} %, clean accuracy {-cost:+.2f} points, verified minimum norm ×"
            f" {verified[1] / verified[0]:.2f}"
        )
    return Claim(
        "further_kappa_robust",
        answer_claim(all(protocol), all(truth)),
        "; ".join(said) + untested(desk, PAPERS),
    )
