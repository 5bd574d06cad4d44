"""The three networks of Borji 2020 with their eps grids and slices, and the six attacks of Figure
3, as cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from retroact.activations.piecewise import SReLU
from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.attacks.torchattacks13 import (
    Torchattacks13BIM,
    Torchattacks13DeepFool,
    Torchattacks13RFGSM,
    Torchattacks13StepLL,
)
from retroact.crafting.threat import Linf
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell, Model
from retroact.studies.desk import Desk
from retroact.studies.published import published

K = TypeVar("K")

SLOPES = (0.5, 1.0, 2.0, 5.0, 10.0, 100.0)
ABOVE_1 = (2.0, 5.0, 10.0, 100.0)


@dataclass(frozen=True)
class Net:
    """A network of the paper: its name there and in published.json, its zoo name, which sites get
    the slope, the pixel radii of its figures, and its data set, whose first `original` images are
    the published pixels.
    """

    title: str
    key: str
    net: str
    sites: str
    eps: tuple[float, ...]
    data: str
    original: int

    def model(self, activation: Any) -> Model:
        """The network with `activation` at the paper's sites."""
        return Model(self.net, activation, self.sites)

    def sloped(self, alpha: float) -> Model:
        """The network at slope `alpha`."""
        return self.model(SReLU(alpha))

    def slice(self, n: int) -> str:
        """The first `n` test images."""
        return f"{self.data}[:{n}]"

    def cells(
        self,
        model: Model,
        attack: Any,
        n: int,
        *,
        eps: tuple[float, ...] | None = None,
        **others: Any,
    ) -> list[Cell]:
        """One cell for each radius above 0."""
        return [
            Cell(model, self.slice(n), attack, Linf(e), **others) for e in eps or self.eps if e > 0
        ]

    def mixed(self, n: int) -> bool:
        """Whether the first `n` images are more than the published pixels, so that those get a
        column of their own."""
        return n > self.original


MNIST_EPS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
CIFAR_EPS = (0.0, 0.003, 0.007, 0.01, 0.05, 0.1)

MNIST = Net("MNIST CNN", "mnist", "mnist-cnn", "*", MNIST_EPS, "mnist", 10_000)
CNN1 = Net("CIFAR10-CNN1", "cifar10_cnn1", "cifar10-cnn1", "*", CIFAR_EPS, "cifar10", 1017)
CNN2 = Net("CIFAR10-CNN2", "cifar10_cnn2", "cifar10-cnn1", "fc*", CIFAR_EPS, "cifar10", 1017)
"""CNN1's weights with the slope after the first two fully connected layers alone."""

NETS = (MNIST, CNN1, CNN2)

ATTACKS = ("FGSM", "BIM", "StepLL", "RFGSM", "PGD", "DeepFool")
PGD_STEP = 2 / 255


def said(number: float) -> str:
    """A slope or radius as published.json names it: 0.5, 1, 100."""
    return f"{number:g}"


# ---------------------------------------------------------------------------------- the six attacks


def images(desk: Desk, attack: str, net: Net) -> int:
    """How many images an attack gets: one gradient each for FGSM, hundreds for the others."""
    if attack == "FGSM":
        return desk.pick(500, 10_000)
    return desk.pick(100, min(2000, net.original))


def attack_cells(net: Net, attack: str, model: Model, n: int) -> list[Cell]:
    """The cells behind one curve of Figure 3. Our PGD leaves fallen images alone and is else the
    published one."""
    radii = tuple(e for e in net.eps if e > 0)
    if attack == "FGSM":
        return net.cells(model, FGSM(), n)
    if attack == "PGD":
        steps = {e: PGD(40, relative_step=PGD_STEP / e, random_start=False) for e in radii}
        return [cell for e, pgd in steps.items() for cell in net.cells(model, pgd, n, eps=(e,))]
    made: dict[str, list[Any]] = {
        "BIM": [Torchattacks13BIM(e) for e in radii],
        "StepLL": [Torchattacks13StepLL(e) for e in radii],
        "RFGSM": [Torchattacks13RFGSM(e) for e in net.eps],  # at eps 0 it moves, too
        "DeepFool": [Torchattacks13DeepFool(len(net.eps) + 2)],
    }
    return [cell for one in made[attack] for cell in net.cells(model, one, n, eps=(1.0,))]


def columns(net: Net, attack: str) -> list[str]:
    """What the columns of a curve are called: radii, or DeepFool's numbers of steps."""
    if attack == "DeepFool":
        return [str(k + 1) for k in range(len(net.eps))]
    return [said(e) for e in net.eps]


def accuracies(net: Net, attack: str, found: list[Record]) -> list[float]:
    """Accuracy in percent, column by column, from the records of `attack_cells`."""
    if attack == "DeepFool":
        return [100 * _left_after(k + 1, found[0]) for k in range(len(net.eps))]
    clean = [] if attack == "RFGSM" else [clean_accuracy(found[0])]
    return [100 * v for v in (*clean, *map(robust_accuracy, found))]


def _left_after(steps: int, record: Record) -> float:
    """Robust accuracy of fewer steps than were made: whoever falls at step j is dropped after 10 (j
    + 1) gradients.

    Two steps more than the longest column make that count unambiguous.
    """
    right = record.clean == record.label
    return float((right & (record.gradients > 10 * (steps + 1))).mean())


def as_published(net: Net, attack: str, slope: float) -> dict[str, float]:
    """The published curve by the names of `columns`; published.json files DeepFool's steps under
    radii."""
    there = published("srelu", f"figure2_3.{net.key}", "accuracy", attack, said(slope)) or {}
    by_eps = dict(zip(map(said, net.eps), columns(net, attack), strict=True))
    return {by_eps[eps]: value for eps, value in there.items()}


def many(desk: Desk, asked: Mapping[K, list[Cell]]) -> dict[K, list[Record]]:
    """The records of every list of cells; what is missing runs in one sweep."""
    found = iter(desk.records([cell for cells in asked.values() for cell in cells]))
    return {k: [next(found) for _ in cells] for k, cells in asked.items()}


def first(n: int, records: list[Record]) -> list[Record]:
    """The facts of the first `n` examples alone."""
    cut: list[dict[str, Any]] = [{k: v[:n] for k, v in r.facts().items()} for r in records]
    return [replace(r, **facts) for r, facts in zip(records, cut, strict=True)]
