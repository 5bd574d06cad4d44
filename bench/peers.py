"""The peers of `bench/attacks.py`: other people's attacks, called as their own pages call them.

Each is used only where it is installed, in place; none is needed by anything else:

    pip install foolbox pyautoattack
    pip install --no-deps torchattacks
    pip install --no-deps adversarial-robustness-toolbox six
    pip install --no-deps git+https://github.com/jeromerony/adversarial-library

torchattacks asks for versions of requests and urllib3 that its attacks do not use.
adversarial-library imports torchvision and visdom, for a distance and for plots that no attack here
uses; where they are not installed, empty modules stand in while it is imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""`run(network, images, labels)` gives the adversarial examples."""


@dataclass(frozen=True)
class Peer:
    """Somebody else's attack: the package as it is imported, the name in a table, the call."""

    package: str
    name: str
    run: Run

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return PathFinder.find_spec(self.package) is not None

    @property
    def version(self) -> str:
        """As the package itself says; one that is fetched as source may say nothing else."""
        return str(getattr(importlib.import_module(self.package), "__version__", "unknown"))


def foolbox(name: str, eps: float | None = None, *, note: str = "", **options: Any) -> Peer:
    """An attack of foolbox; `eps` None asks for the smallest perturbation."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        foolbox = importlib.import_module("foolbox")
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device=x.device)
        attack = getattr(foolbox.attacks, name)(**options)
        found: Tensor = attack(model, x, y, epsilons=eps)[1]
        return found

    return Peer("foolbox", _titled("foolbox", note), run)


def torchattacks(name: str, *, note: str = "", **options: Any) -> Peer:
    """An attack of torchattacks."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        made: Tensor = getattr(importlib.import_module("torchattacks"), name)(net, **options)(x, y)
        return made

    return Peer("torchattacks", _titled("torchattacks", note), run)


def pyautoattack(eps: float, norm: str, **options: Any) -> Peer:
    """APGD as its authors' package has it."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        module = importlib.import_module("pyautoattack.autopgd_base")
        more = {"n_restarts": 1, "device": x.device, "verbose": False}
        made: Tensor = module.APGDAttack(net, norm=norm, eps=eps, **more, **options).perturb(x, y)
        return made

    return Peer("pyautoattack", "pyautoattack", run)


def adversarial_library(name: str, *, note: str = "", **options: Any) -> Peer:
    """An attack of adversarial-library. Some of its attacks keep no note of what they found, and
    some write into the images that they are given."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with _stood_in("torchvision", "torchvision.models", "visdom"):
            attacks = importlib.import_module("adv_lib.attacks")
        made: Tensor = getattr(attacks, name)(net, x.clone(), y, **options)
        return made

    return Peer("adv_lib", _titled("adversarial-library", note), run)


def art(name: str, *, note: str = "", **options: Any) -> Peer:
    """An attack of the Adversarial Robustness Toolbox, on arrays, in one batch."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        classifier = importlib.import_module("art.estimators.classification").PyTorchClassifier
        loss, box = nn.CrossEntropyLoss(), (0.0, 1.0)
        shape, classes = tuple(x.shape[1:]), net(x[:1]).shape[1]
        where = "cpu" if x.device.type == "cpu" else "gpu"
        model = classifier(net, loss, shape, classes, clip_values=box, device_type=where)
        attack = getattr(importlib.import_module("art.attacks.evasion"), name)
        images, labels = x.cpu().numpy(), y.cpu().numpy()
        made = attack(model, batch_size=len(x), **options).generate(images, y=labels)
        return torch.from_numpy(made)

    return Peer("art", _titled("ART", note), run)


def in_chunks(peer: Peer, chunk: int) -> Peer:
    """The peer called once for each chunk of the images, as a user would who wants the cache's
    good, or an end for each chunk."""

    def run(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        parts = zip(x.split(chunk), y.split(chunk), strict=True)
        return torch.cat([peer.run(net, images, labels) for images, labels in parts])

    return Peer(peer.package, f"{peer.name}, in chunks", run)


def _titled(name: str, note: str) -> str:
    return f"{name} ({note})" if note else name


@contextmanager
def _stood_in(*names: str) -> Iterator[None]:
    """Empty modules in place of those that are not installed, while something imports them."""
    absent = [n for n in names if n.split(".")[0] not in sys.modules and not _findable(n)]
    for name in absent:
        made = ModuleType(name)
        made.__path__ = []
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, made)
        sys.modules[name] = made
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name)


def _findable(name: str) -> bool:
    return PathFinder.find_spec(name.split(".")[0]) is not None
