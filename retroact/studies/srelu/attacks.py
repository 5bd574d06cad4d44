"""The six attacks of Figure 3 as cells, and the two of them that the other items take: by name, at
the paper's eps."""

from __future__ import annotations

from typing import Any

from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.attacks.torchattacks13 import (
    Torchattacks13BIM,
    Torchattacks13DeepFool,
    Torchattacks13RFGSM,
    Torchattacks13StepLL,
)
from retroact.crafting.losses import Loss
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell, Model
from retroact.studies.desk import Desk
from retroact.studies.published import published
from retroact.studies.srelu.networks import Net, first, label
from retroact.studies.srelu.panels import Curve

ATTACKS = ("FGSM", "BIM", "StepLL", "RFGSM", "PGD", "DeepFool")
PGD_STEP = 2 / 255


def make_attack(name: str, eps: float, loss: Loss = "cross_entropy") -> FGSM | PGD:
    """FGSM, or the paper's PGD: 40 steps of 2/255 from the clean image, whatever the eps."""
    return FGSM(loss) if name == "FGSM" else PGD(40, 2 / 255 / eps, random_start=False, loss=loss)


def images(desk: Desk, attack: str) -> int:
    """How many images an attack gets: all for a full desk, and few of a quick one's for those that
    take hundreds of gradients each."""
    return desk.pick(500 if attack == "FGSM" else 100, 10_000)


def attack_cells(net: Net, attack: str, model: Model, n: int) -> list[Cell]:
    """The cells behind one curve of Figure 3. Our PGD leaves broken images alone and is else the
    published one."""
    radii = tuple(e for e in net.eps if e > 0)
    if attack == "FGSM":
        return net.cells(model, FGSM(), n)
    if attack == "PGD":
        steps = {e: PGD(40, relative_step=PGD_STEP / e, random_start=False) for e in radii}
        return [cell for e, pgd in steps.items() for cell in net.cells(model, pgd, n, eps=(e,))]
    attacks: dict[str, list[Any]] = {
        "BIM": [Torchattacks13BIM(e) for e in radii],
        "StepLL": [Torchattacks13StepLL(e) for e in radii],
        "RFGSM": [Torchattacks13RFGSM(e) for e in net.eps],  # at eps 0 it moves, too
        "DeepFool": [Torchattacks13DeepFool(len(net.eps) + 2)],
    }
    return [cell for one in attacks[attack] for cell in net.cells(model, one, n, eps=(1.0,))]


def columns(net: Net, attack: str) -> list[str]:
    """What the columns of a curve are called: radii, or DeepFool's numbers of steps."""
    if attack == "DeepFool":
        return [str(k + 1) for k in range(len(net.eps))]
    return [label(e) for e in net.eps]


def accuracies(net: Net, attack: str, records: list[Record]) -> list[float]:
    """Accuracy in percent, column by column, from the records of `attack_cells`."""
    if attack == "DeepFool":
        return [100 * _left_after(k + 1, records[0]) for k in range(len(net.eps))]
    clean = [] if attack == "RFGSM" else [clean_accuracy(records[0])]
    return [100 * v for v in (*clean, *map(robust_accuracy, records))]


def curve(net: Net, attack: str, slope: float, records: list[Record], n: int) -> Curve:
    """The curve of `attack_cells` at a slope, beside the published one, and that of the published
    pixels alone where the `n` images are more than those."""
    own = accuracies(net, attack, first(net.original, records)) if net.mixed(n) else None
    there = as_published(net, attack, slope)
    return Curve(label(slope), accuracies(net, attack, records), there, own, "slope")


def _left_after(steps: int, record: Record) -> float:
    """Robust accuracy of fewer steps than were made: an image broken at step j is dropped after
    10 (j + 1) gradients.

    Two steps more than the longest column make that count unambiguous.
    """
    right = record.clean == record.label
    return float((right & (record.gradients > 10 * (steps + 1))).mean())


def as_published(net: Net, attack: str, slope: float) -> dict[str, float]:
    """The published curve by the names of `columns`; published.json files DeepFool's steps under
    radii."""
    there = published("srelu", f"figure2_3.{net.key}", "accuracy", attack, label(slope)) or {}
    by_eps = dict(zip(map(label, net.eps), columns(net, attack), strict=True))
    return {by_eps[eps]: value for eps, value in there.items()}
