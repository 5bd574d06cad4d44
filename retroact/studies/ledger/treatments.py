"""What is done to a trained network, as specs: each is called with the network and what there is to
measure and learn on, and gives a changed one; the network stays as it is."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, cast

import torch
from torch import nn

from retroact import checkpoint
from retroact.activations.activation import Activation
from retroact.activations.kwta import KWTA
from retroact.activations.linear import Linearized
from retroact.activations.lwta import LWTA
from retroact.activations.measured import Measured
from retroact.activations.piecewise import ReLU
from retroact.changing.change import Change
from retroact.crafting.threat import ThreatModel
from retroact.files import own_cache, replacing
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.nets.zoo import NETWORKS
from retroact.retrofitting.folding import fold
from retroact.retrofitting.installed import installed
from retroact.retrofitting.surgery import refit, retrofit
from retroact.spec import Count, Positive, UnitInterval, Within, show, spec
from retroact.training.calibrating import calibrate
from retroact.training.fit import fit
from retroact.training.hardening import Hardening, harden
from retroact.training.recipes import Standard


@dataclass(frozen=True)
class Given:
    """What a change may use: images to calibrate and learn a little on (`train`), all that there
    are to train on (`whole`), those to choose on (`held`), the threat, and a seed."""

    train: Images
    whole: Images
    held: Images
    threat: ThreatModel
    seed: int = 0

    @property
    def print(self) -> str:
        """What all of this is, in a text."""
        parts = (self.train, self.whole, self.held)
        return " ".join([*(part.fingerprint for part in parts), show(self.threat), str(self.seed)])


class Treatment(ABC):
    """A change of a network."""

    @abstractmethod
    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        """The network after it."""

    def before(self, net: nn.Module, given: Given) -> nn.Module:
        """The network that it is compared with: the one it is done to, as a rule."""
        return net

    @property
    @abstractmethod
    def knob(self) -> str:
        """What is done, in the notation of specs and a few words."""


@spec
class Swapped(Treatment):
    """Another activation at every ReLU, calibrated where it needs numbers."""

    activation: Activation

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        return retrofit(net, calibrated(self.activation, net, given.train))

    @property
    def knob(self) -> str:
        return show(self.activation)


def calibrated(activation: Activation, net: nn.Module, train: Images) -> Activation:
    """The activation with its numbers measured on `train`, where it needs any."""
    if not isinstance(activation, Measured) or activation.file:
        return activation
    return calibrate(net, activation, train)


@spec
class LinearFromEnd(Treatment):
    """No activation any more at the last `share` of all sites (rounded up)."""

    share: Annotated[float, Within(0.0, 1.0, above=True)]

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        count = len(installed(retrofit(net, ReLU())))
        return retrofit(net, Linearized(), sites=f"-{math.ceil(self.share * count)}:")

    @property
    def knob(self) -> str:
        return f"{show(Linearized())} at the last {100 * self.share:g} % of the sites"


@spec
class Changed(Treatment):
    """A change of the whole network; one that trains does so on all training images."""

    change: Change
    trains: bool = False

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        if not self.trains:
            return self.change(net, given.train if self.change.learns else None)
        return once(self, net, given, lambda: self.change(net, given.whole))

    @property
    def knob(self) -> str:
        return show(self.change)


@spec
class Hardened(Treatment):
    """This project's own: a little of the network learned, everything else frozen, as much of it as
    leaves the share `keep` of clean accuracy on held-out images."""

    recipe: Hardening = Hardening()
    keep: UnitInterval = 0.99

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        return once(self, net, given, lambda: self._learn(net, given))

    def _learn(self, net: nn.Module, given: Given) -> nn.Module:
        how: dict[str, Any] = {"keep": self.keep, "held": given.held, "seed": given.seed}
        return harden(net, given.train, given.threat, self.recipe, **how).net

    @property
    def knob(self) -> str:
        return f"{show(self.recipe)}, keep {self.keep:g}"


@spec
class LoweredKWTA(Treatment):
    """k-winners-take-all, trained on from the network with the share of winners lowered step by
    step to `share`, an epoch at each."""

    share: Annotated[float, Within(0.0, 1.0, above=True)]
    steps: Count = 5
    lr: Positive = 0.01

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        return once(self, net, given, lambda: self._train(net, given))

    def _train(self, net: nn.Module, given: Given) -> nn.Module:
        trained = retrofit(net, KWTA(self.shares[0]))
        plan = Standard(1, self.lr, schedule="constant")
        for i, share in enumerate(self.shares):
            trained = fit(refit(trained, KWTA(share)), given.whole, plan, seed=given.seed + i)
        return trained

    @property
    def shares(self) -> list[float]:
        """From nearly all winners to `share`, each the same factor below the last."""
        factor = self.share ** (1 / self.steps)
        return [factor ** (i + 1) for i in range(self.steps - 1)] + [self.share]

    @property
    def knob(self) -> str:
        return f"{show(KWTA(self.share))}, trained on"


@spec
class TrainedWith(Treatment):
    """A network of the same architecture trained from new weights with an activation in its place,
    beside the same training with ReLU."""

    activation: Activation = LWTA(2, draws=True)
    epochs: Count = 10
    lr: Positive = 0.1

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        return once(self, net, given, lambda: self._train(self.activation, net, given))

    def before(self, net: nn.Module, given: Given) -> nn.Module:
        plain = replace(self, activation=ReLU())
        return once(plain, net, given, lambda: self._train(ReLU(), net, given))

    def _train(self, activation: Activation, net: nn.Module, given: Given) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(given.seed)
            fresh = NETWORKS[cast(Classifier, net).name]()
        plan = Standard(self.epochs, self.lr, channels_last=True)
        return fit(retrofit(fresh, activation), given.whole, plan, seed=given.seed)

    @property
    def knob(self) -> str:
        return f"{show(self.activation)}, trained with it"


@spec
class OnTop(Treatment):
    """An activation on top of another change, beside that change alone."""

    first: Treatment
    activation: Activation

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        return refit(self.before(net, given), self.activation)

    def before(self, net: nn.Module, given: Given) -> nn.Module:
        return fold(self.first(net, given))

    @property
    def knob(self) -> str:
        return f"{show(self.activation)} on top of {self.first.knob}"


def once(what: Treatment, net: nn.Module, given: Given, make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` trains, kept in the user's cache under all that it depends on, and read from
    there the next time."""
    said = " ".join([show(what), checkpoint.digest(net), given.print])
    folder = own_cache() / "ledger"
    path = folder / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        made = make()
        with replacing(path) as draft:
            checkpoint.save(made, draft)
    return checkpoint.load(path)
