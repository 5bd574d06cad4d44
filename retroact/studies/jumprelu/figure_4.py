"""Figure 4 and Figure 8: clean accuracy and minimum perturbation against kappa

White-box DeepFool at the paper's budget, both norms, and noise as in Table 2: the mean over all
images, in normalised space, dead ones left alone. The paper draws LeNet-like and AlexLike (Figure
4) and the residual networks (Figure 8), and says neither which norm nor which weights; here the
robust ones stand beside them. Its numbers are known at kappa 0 and at its own kappa only, from
Table 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from retroact.reports.plots import Mark, Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Text, Value, Weighed
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.clean import clean_curve
from retroact.studies.jumprelu.crafted import Crafted, crafted
from retroact.studies.jumprelu.minimum_norms import FURTHER, median_ratio
from retroact.studies.jumprelu.networks import (
    ATTACKS,
    DEEPFOOLS,
    NETS,
    NOISES,
    PAPERS,
    Net,
    available,
    untested,
)
from retroact.studies.jumprelu.sizes import ALL, CURVES, TABLES
from retroact.studies.truth import answer_by_network

SLIGHTLY = 2.0
"""Points of clean accuracy that a larger jump may cost."""
GROWS = 1.05
"""A verified norm counts as larger from five percent on."""

WHOLLY = "DeepFool's noise grows throughout"

Point = dict[str, Facts]


def make(desk: Desk) -> Iterator[Part]:
    curves = {net.name: curve(desk, net) for net in available(desk)}
    clean = {net.name: _clean(desk, net, curves[net.name]) for net in available(desk)}
    for title, words in (("Figure 4", ("mnist", "alexlike")), ("Figure 8", ("resnet", "mobile"))):
        nets = [net for net in available(desk) if any(w in net.key for w in words)]
        drawn = [p for net in nets for p in _panels(net, curves[net.name], clean[net.name][1])]
        if nets:
            yield Figure(
                f"{title}: clean accuracy (left) and mean relative noise of DeepFool (right), %,"
                " against kappa. Thin and dashed: published, at kappa 0 and at the paper's.",
                panels(drawn, columns=2),
            )
    if untested(desk, NETS):
        yield Text(f"Not drawn{untested(desk, NETS)}.")
    noises = tuple(f"{ATTACKS[a]} {what}" for what in ("noise", "dead") for a in DEEPFOOLS)
    head = ("network", "kappa", "clean", "of", "n", *noises)
    rows = [r for net in available(desk) for r in _rows(net, curves[net.name], *clean[net.name])]
    yield Table("The points of the curves, %", head, tuple(rows), folded=True)
    yield _judge_monotone(desk, curves)
    yield _judge_further(desk)


def _clean(desk: Desk, net: Net, points: dict[float, Point]) -> tuple[int, dict[float, float]]:
    """On how many images, and the clean accuracy at each kappa: all, or those of DeepFool."""
    whole = clean_curve(desk, net, tuple(points))
    if whole is not None:
        return ALL, whole
    own = {kappa: p["deepfool_l2"] for kappa, p in points.items()}
    return own[0.0]["n"], {kappa: float(f["clean"][0]) for kappa, f in own.items()}


def curve(desk: Desk, net: Net) -> dict[float, Point]:
    """The facts of both DeepFools at each kappa; on CIFAR-10 a quick desk takes every third kappa,
    and the paper's own."""
    few = net.kappas if net.data == "mnist" else tuple(sorted({*net.kappas[::3], net.kappa}))
    full, quick = CURVES.of(net)
    asked = {(n, ks): _curve(net, n, ks) for n, ks in ((full, net.kappas), (quick, few))}
    size = desk.largest(list(asked), lambda size: asked[size])
    measured = iter(desk.all_facts(asked[size]))
    return {kappa: {name: next(measured) for name in DEEPFOOLS} for kappa in size[1]}


def _curve(net: Net, n: int, kappas: tuple[float, ...]) -> list[Crafted]:
    return [crafted(net, n, name, kappa) for kappa in kappas for name in DEEPFOOLS]


def _panels(net: Net, points: dict[float, Point], clean: dict[float, float]) -> list[Panel]:
    x = list(points)
    left = [Series("clean accuracy", x, [100 * clean[kappa] for kappa in x])]
    left += _draw_published(net, "clean", colour=0)
    noise = []
    for i, name in enumerate(DEEPFOOLS, start=1):
        y = [100 * p[name]["noise"] for p in points.values()]
        noise.append(Series(f"{ATTACKS[name]} noise", x, y, colour=i))
        noise += _draw_published(net, name, colour=i)
    lowest = min(min(one.y) for one in left)
    return [
        Panel(net.title, left, "kappa", "accuracy, %", (min(90.0, lowest - 2), 101)),
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


def _rows(
    net: Net, points: dict[float, Point], n: int, clean: dict[float, float]
) -> list[tuple[Value, ...]]:
    return [
        (
            net.title,
            f"{kappa:g}",
            100 * clean[kappa],
            n,
            p["deepfool_l2"]["n"],
            *(100 * p[a]["noise"] for a in DEEPFOOLS),
            *(p[a]["dead"] for a in DEEPFOOLS),
        )
        for kappa, p in points.items()
    ]


# ------------------------------------------------------------------------------------------ claims


def _judge_monotone(desk: Desk, curves: dict[str, dict[float, Point]]) -> Claim:
    """More: each kappa of the figure needs more noise than the one before; truly: verified norms
    grow at kappa."""
    grows, protocol, truth, said = [], [], [], []
    marks: list[Mark] = []
    for net in available(desk, PAPERS):
        grown = {a: _grows(curves[net.name], a) for a in DEEPFOOLS}
        grows += [f"{net.title}, {ATTACKS[a]}" for a, does in grown.items() if not does]
        low, high = (median_ratio(desk, net, k) for k in (net.kappa, FURTHER * net.kappa))
        protocol.append(all(grown.values()))
        truth.append(low >= GROWS and low * GROWS <= high)
        said.append(f"{net.title} × {low:.2f} and × {high:.2f}")
        marks += [Mark(net.title, "at kappa", low), Mark(net.title, f"at {FURTHER:g} kappa", high)]
    noise = f"noise does not grow throughout: {', '.join(grows)}" if grows else WHOLLY
    because = (
        f"{noise}; verified minimum norm at kappa and at {FURTHER:g} kappa, over that at 0:"
        f" {'; '.join(said)}{untested(desk, PAPERS)}"
    )
    shown = Weighed(tuple(marks), "verified minimum norm over that at kappa 0", (GROWS, math.inf))
    return Claim("kappa_monotone", answer_by_network(protocol, truth), because, shown)


def _grows(points: dict[float, Point], name: str) -> bool:
    """Whether the attack's noise is larger at each kappa than at the one before."""
    return all(a < b for a, b in pairwise(p[name]["noise"] for p in points.values()))


def _judge_further(desk: Desk) -> Claim:
    """On robust nets 1.5 kappa needs more DeepFool and TR noise, and costs up to SLIGHTLY points
    clean."""
    protocol, truth, said = [], [], []
    marks: list[Mark] = []
    for net in available(desk, tuple(net for net in PAPERS if net.robust)):
        facts = _further(desk, net)
        noise = [(100 * facts[a, 0]["noise"], 100 * facts[a, 1]["noise"]) for a in NOISES]
        cost = 100 * (facts["trust_region", 0]["clean"][0] - facts["trust_region", 1]["clean"][0])
        low, high = (median_ratio(desk, net, k) for k in (net.kappa, FURTHER * net.kappa))
        protocol.append(all(b > a for a, b in noise) and cost <= SLIGHTLY)
        truth.append(high >= GROWS * low)
        clean = round(-cost, 2) + 0.0  # never -0.00
        grown = {
            NOISES[a]: after / before for a, (before, after) in zip(NOISES, noise, strict=True)
        }
        grown["verified minimum norm"] = high / low
        marks += [Mark(net.title, what, value) for what, value in grown.items()]
        changes = ", ".join(f"{a:.1f} → {b:.1f}" for a, b in noise)
        said.append(
            f"{net.title}, kappa {net.kappa:g} → {FURTHER * net.kappa:g}: noise of DF∞, DF₂, TR"
            f" {changes} %, clean accuracy {clean:+.2f} points, verified minimum norm ×"
            f" {high / low:.2f}"
        )
    because = "; ".join(said) + untested(desk, PAPERS)
    unit = f"at {FURTHER:g} kappa over that at kappa"
    shown = Weighed(tuple(marks), unit, (1.0, math.inf))
    return Claim("further_kappa_robust", answer_by_network(protocol, truth), because, shown)


def _further(desk: Desk, net: Net) -> dict[tuple[str, int], Facts]:
    """The facts of each attack with a noise at the paper's kappa (0) and at the larger one (1)."""
    keys = [(a, i) for a in NOISES for i in (0, 1)]
    kappas = (net.kappa, FURTHER * net.kappa)
    asked = {n: [crafted(net, n, a, kappas[i]) for a, i in keys] for n in TABLES.of(net)}
    n = desk.largest(TABLES.of(net), lambda n: asked[n])
    return dict(zip(keys, desk.all_facts(asked[n]), strict=True))
