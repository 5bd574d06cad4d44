"""Question: does a kappa per layer help, and is BoundedReLU worse?

The paper tried other settings and says of both only that they did not do well. Here, on the
LeNet-like networks, each with its clean accuracy, under the paper's white-box PGD (40 unprojected
steps of 0.01 in normalised space), and verified by the audit in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass

from retroact.activations.activation import Activation
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import BoundedReLU, JumpReLU
from retroact.attacks.erichson import ErichsonPGD
from retroact.crafting.threat import Linf
from retroact.experiments.cell import Cell, Model
from retroact.reports.studied import Claim, Part, Table
from retroact.studies.desk import Desk
from retroact.studies.told import outcomes
from retroact.studies.truth import Audited, answer_claim, numbers, verdict

NETS = {"lenet-mnist": 0.1, "lenet-mnist-robust": 0.2}
"""Each network with its radius in pixels."""
KAPPA = 1.0
BOUNDS = (8.0, 4.0, 2.0, 1.0)


def _layers(*kappas: float) -> PerSite:
    return PerSite(tuple(JumpReLU(k) for k in kappas))


PER_LAYER = (
    _layers(1, 0, 0, 0),
    _layers(0, 1, 0, 0),
    _layers(0, 0, 1, 0),
    _layers(0, 0, 0, 1),
    _layers(1, 1, 0, 0),
    _layers(0, 0, 1, 1),
    _layers(0.5, 1, 1.5, 2),
    _layers(2, 1.5, 1, 0.5),
)
NAMES = (
    "first",
    "second",
    "third",
    "fourth",
    "convolutions",
    "fully connected",
    "rising .5 to 2",
    "falling 2 to .5",
)

PLAIN, WHOLE = ("none", JumpReLU(0.0)), ("kappa 1 in all", JumpReLU(KAPPA))
LAYERS = tuple((f"kappa: {name}", a) for name, a in zip(NAMES, PER_LAYER, strict=True))
BOUNDED = tuple((f"bound {b:g}", BoundedReLU(b)) for b in BOUNDS)


@dataclass(frozen=True)
class Row:
    """A network with some activation: accuracies (%) clean, under the paper's PGD and verified, and
    the verdict beside the network without it."""

    net: str
    name: str
    clean: float
    pgd: float
    verified: float
    verdict: str


Rows = dict[str, dict[str, Row]]
"""By network and by the name of the activation."""


def make(desk: Desk) -> Iterator[Part]:
    head = ("network", "activations", "clean", "the paper's PGD", "verified", "verdict")
    asked = (PLAIN, WHOLE, *LAYERS, *BOUNDED)
    rows = {net: {name: _measure(desk, net, name, a) for name, a in asked} for net in NETS}
    yield Table(
        "Accuracy (%): kappa in one layer or several, and BoundedReLU, beside one kappa for all",
        head,
        tuple(astuple(row) for of in rows.values() for row in of.values()),
    )
    yield _judge_layers(rows)
    yield _judge_bounds(rows)


def _measure(desk: Desk, net: str, name: str, activation: Activation) -> Row:
    model, n = Model(net, activation), desk.pick(200, 2000)
    (found,) = outcomes(desk, [Cell(model, f"mnist[:{n}]", ErichsonPGD(), Linf(1.0))])
    images, threat = f"mnist[:{desk.pick(100, 500)}]", Linf(NETS[net])
    audited = numbers(desk, Audited(Model(net), model, images, threat, battery="quick"))
    clean, pgd = 100 * found.clean_accuracy, 100 * found.robust_accuracy
    said = "" if name == PLAIN[0] else verdict(audited)
    return Row(net, name, clean, pgd, 100 * audited.verified.after, said)


def _judge_layers(rows: Rows) -> Claim:
    """Did not help: no choice of layers is a point above one kappa for all under the paper's PGD;
    in truth: no choice has a point more verified accuracy than the plain network."""
    gains, truths = [], []
    for of in rows.values():
        layers = [of[name] for name, _ in LAYERS]
        gains.append(max(r.pgd for r in layers) - of[WHOLE[0]].pgd)
        truths.append(max(r.verified for r in layers) - of[PLAIN[0]].verified)
    because = (
        f"the best choice of layers gives {_sign(gains)} points beside one kappa for all under"
        f" the paper's PGD (base, robust), and {_sign(truths)} points beside the plain network"
        " verified"
    )
    return Claim("per_layer_kappa", answer_claim(max(gains) < 1, max(truths) < 1), because)


def _judge_bounds(rows: Rows) -> Claim:
    """Poor: among bounds that cost at most a point clean, none reaches one kappa for all under the
    paper's PGD."""
    best, whole = [], []
    for of in rows.values():
        plain, bounded = of[PLAIN[0]], [of[name] for name, _ in BOUNDED]
        kept = [r.pgd for r in bounded if r.clean >= plain.clean - 1.0]
        best.append(max(kept, default=plain.pgd) - plain.pgd)
        whole.append(of[WHOLE[0]].pgd - plain.pgd)
    because = (
        f"bounds that cost at most a point clean gain {_sign(best)} points under the paper's PGD"
        f" (base, robust), one kappa for all {_sign(whole)}"
    )
    return Claim(
        "bounded_relu", answer_claim(all(b < w for b, w in zip(best, whole, strict=True))), because
    )


def _sign(values: list[float]) -> str:
    return " and ".join(f"{v:+.1f}" for v in values)
