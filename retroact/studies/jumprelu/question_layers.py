"""Question: does a kappa per layer help, and is BoundedReLU worse?

The paper tried other settings and says of both only that they did not do well. Here, on the
LeNet-like networks, each with its clean accuracy, under the paper's white-box PGD (40 unprojected
steps of 0.01 in normalised space), and verified by the audit in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import BoundedReLU, JumpReLU
from retroact.attacks.erichson import ErichsonPGD
from retroact.crafting.threat import Linf
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.experiments.cell import Cell, Model
from retroact.reports.studied import Claim, Part, Table
from retroact.studies.desk import Desk
from retroact.studies.truth import Audited, answered, numbers, verdict

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

Row = tuple[str, str, float, float, float, str]


def make(desk: Desk) -> Iterator[Part]:
    head = ("network", "activations", "clean", "the paper's PGD", "verified", "verdict")
    found = {net: [_row(desk, net, name, a) for name, a in _asked()] for net in NETS}
    yield Table(
        "Accuracy (%): kappa in one layer or several, and BoundedReLU, beside one kappa for all",
        head,
        tuple(row for rows in found.values() for row in rows),
    )
    yield _per_layer(found)
    yield _bounded(found)


def _asked() -> list[tuple[str, Any]]:
    jumps = [("none", JumpReLU(0.0)), ("kappa 1 in all", JumpReLU(KAPPA))]
    layers = [(f"kappa: {name}", a) for name, a in zip(NAMES, PER_LAYER, strict=True)]
    return [*jumps, *layers, *((f"bound {b:g}", BoundedReLU(b)) for b in BOUNDS)]


def _row(desk: Desk, net: str, name: str, activation: Any) -> Row:
    model, n = Model(net, activation), desk.pick(200, 2000)
    record = desk.records([Cell(model, f"mnist[:{n}]", ErichsonPGD(), Linf(1.0))])[0]
    asked = Audited(
        Model(net), model, f"mnist[:{desk.pick(100, 500)}]", Linf(NETS[net]), battery="quick"
    )
    audited = numbers(desk, asked)
    accuracies = (
        100 * v for v in (clean_accuracy(record), robust_accuracy(record), audited.verified.after)
    )
    return (net, name, *accuracies, "" if name == "none" else verdict(audited))  # type: ignore[return-value]


def _per_layer(found: dict[str, list[Row]]) -> Claim:
    """Did not help: no choice of layers is a point above one kappa for all under the paper's PGD;
    in truth: no choice has a point more verified accuracy than the plain network."""
    gains, truths = [], []
    for rows in found.values():
        plain, whole, layers = rows[0], rows[1], [r for r in rows if r[1].startswith("kappa: ")]
        gains.append(max(r[3] for r in layers) - whole[3])
        truths.append(max(r[4] for r in layers) - plain[4])
    because = (
        f"the best choice of layers gives {_signed(gains)} points beside one kappa for all under"
        f" the paper's PGD (base, robust), and {_signed(truths)} points beside the plain network"
        " verified"
    )
    return Claim("per_layer_kappa", answered(max(gains) < 1, max(truths) < 1), because)


def _bounded(found: dict[str, list[Row]]) -> Claim:
    """Poor: among bounds that cost at most a point clean, none reaches one kappa for all under the
    paper's PGD."""
    best, whole = [], []
    for rows in found.values():
        kept = [r[3] for r in rows if r[1].startswith("bound") and r[2] >= rows[0][2] - 1.0]
        best.append(max(kept, default=rows[0][3]) - rows[0][3])
        whole.append(rows[1][3] - rows[0][3])
    because = (
        f"bounds that cost at most a point clean gain {_signed(best)} points under the paper's PGD"
        f" (base, robust), one kappa for all {_signed(whole)}"
    )
    return Claim(
        "bounded_relu", answered(all(b < w for b, w in zip(best, whole, strict=True))), because
    )


def _signed(values: list[float]) -> str:
    return " and ".join(f"{v:+.1f}" for v in values)
