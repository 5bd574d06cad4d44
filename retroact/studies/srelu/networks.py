"""The three networks of Borji 2020 with their eps grids and slices, and the six attacks of Figure
3, as cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from retroact.activations.activation import Activation
from retroact.activations.piecewise import SReLU
from retroact.crafting.attack import Attack
from retroact.crafting.threat import Linf
from retroact.experiments.cell import Model
from retroact.studies.counted import Counted, Group

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

    def model(self, activation: Activation | None) -> Model:
        """The network with `activation` at the paper's sites."""
        return Model(self.net, activation, self.sites)

    def sloped(self, alpha: float) -> Model:
        """The network at slope `alpha`."""
        return self.model(SReLU(alpha))

    def slice(self, n: int) -> str:
        """The first `n` test images."""
        return f"{self.data}[:{n}]"

    def counted(
        self, model: Model, attack: Attack, n: int, *, eps: tuple[float, ...] = (), **others: Any
    ) -> Counted:
        """Counts under `attack` at each radius above 0."""
        threats = tuple(Linf(e) for e in eps or self.eps if e > 0)
        return self.counted_groups(model, (((attack,), threats),), n, **others)

    def counted_groups(
        self, model: Model, groups: tuple[Group, ...], n: int, **others: Any
    ) -> Counted:
        """Counts under several groups of attacks, of the published pixels by themselves too where
        the first `n` images are more than those."""
        first = self.original if self.mixed(n) else 0
        return Counted(model, self.slice(n), groups, first=first, **others)

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
SHIFTED = replace(MNIST, title="MNIST CNN, trained on normalised images", net="mnist-cnn-shifted")
"""Trained as the published weights were, and tested on raw pixels as they were."""


def label(number: float) -> str:
    """A slope or radius as published.json names it: 0.5, 1, 100."""
    return f"{number:g}"
