"""Mechanisms: changes of a network by which an audit can be put to the test, each with its truth.

Every one is written as a stranger would write it, in plain torch, and says what an attacker who
knows it would climb. What the audit makes of it stands in `retroact selftest` and
`bench/mechanisms.py`; none of it knows anything of the audit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.nets.classifier import Classifier
from retroact.nets.data import Images

Kind = Literal[
    "activations", "backward", "both", "controls", "inputs", "numbers", "outputs", "random", "state"
]
Change = Callable[[Tensor], Tensor]
Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Given:
    """What a mechanism is made of: the trained network that it wraps, `others` of the same
    architecture from other training seeds, the images they were `trained` on, and the radius `eps`
    (in pixels) of the threat that it is to withstand."""

    net: Classifier
    others: tuple[Classifier, ...]
    trained: Images
    eps: float


class Made(NamedTuple):
    """A network that a mechanism made; the networks that an attacker who knows the mechanism
    `climbs`, one after the other; and what gives its answer where asking changes it (`judge`)."""

    net: nn.Module
    climbs: tuple[nn.Module, ...] = ()
    judge: nn.Module | None = None

    @property
    def judged(self) -> nn.Module:
        """What says whether an image fools: the network, or one that answers as a fresh one."""
        return self.net if self.judge is None else self.judge


@dataclass(frozen=True, eq=False)
class Mechanism:
    """A change under audit: `build` makes the network after it, and `before` that before it where
    that is not the plain one.

    `graph` is False where the network has no gradient; `draws` says over how many an audit averages
    a random one; `refusable` that an audit may refuse it, as its answers depend on what else was
    asked; `fast` that the self-test has the time for it; `row` is where it was first reported.
    """

    name: str
    kind: Kind
    build: Callable[[Given], Made]
    before: Callable[[Given], Made] | None = None
    graph: bool = True
    draws: int = 0
    refusable: bool = False
    fast: bool = False
    row: str = ""

    def __str__(self) -> str:
        return self.name


# -------------------------------------------------------------- a stranger's way to write a network


class Front(nn.Module):
    """A network that answers for what `change` makes of its images."""

    def __init__(self, net: nn.Module, change: Change) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.change(x))
        return out


class Back(nn.Module):
    """A network whose logits are changed on the way out."""

    def __init__(self, net: nn.Module, change: Change) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x))


def by_numpy(function: Callable[[Array], Array]) -> Change:
    """A change of arrays as one of tensors, which loses the graph."""

    def through(x: Tensor) -> Tensor:
        given = function(x.detach().cpu().numpy().astype(np.float32))
        return torch.from_numpy(given).to(x)

    return through


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, act: Change) -> None:
        super().__init__()
        self.act = act

    def forward(self, z: Tensor) -> Tensor:
        return self.act(z)


class Rewritten(nn.Module):
    """A trained network written down anew: its layers in a list, and in the place of every ReLU a
    call of a function, of one for all or of one for each; within its blocks a module that calls
    it."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Classifier, act: Change | Sequence[Change] = F.relu) -> None:
        super().__init__()
        assert isinstance(net.module, nn.Sequential)
        layers = copy.deepcopy(net.module)
        sites = [id(module) for module in layers.modules() if isinstance(module, nn.ReLU)]
        acts = dict(zip(sites, [act] * len(sites) if callable(act) else act, strict=True))
        self.active = [isinstance(layer, nn.ReLU) for layer in layers]
        self.acts = [acts[id(layer)] for layer in layers if id(layer) in acts]
        self.layers = nn.ModuleList(layer for layer in layers if id(layer) not in acts)
        for block in self.layers:
            _call_within(block, acts)
        self.kept = nn.ModuleList(a for a in self.acts if isinstance(a, nn.Module))
        self.register_buffer("mean", net.mean.clone())
        self.register_buffer("std", net.std.clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        acts, layers = iter(self.acts), iter(self.layers)
        for active in self.active:
            x = next(acts)(x) if active else next(layers)(x)
        return x


def _call_within(block: nn.Module, acts: Mapping[int, Change]) -> None:
    for parent in list(block.modules()):
        for name, child in parent.named_children():
            if id(child) in acts:
                setattr(parent, name, Called(acts[id(child)]))


def responses(net: Classifier, x: Tensor) -> list[Tensor]:
    """What comes to each ReLU from images (n, …)."""
    seen: list[Tensor] = []

    def note(z: Tensor) -> Tensor:
        seen.append(z)
        return F.relu(z)

    with torch.no_grad():
        Rewritten(net, note)(x)
    return seen


def fine_tune(
    net: nn.Module, given: Given, *, epochs: int = 25, lr: float = 0.02, eps: float = 0.0
) -> nn.Module:
    """Trains `net` in place on the first 4000 images, on FGSM's of radius `eps` where that is above
    0, as a stranger would."""
    images, labels = given.trained.images[:4000], given.trained.labels[:4000]
    drawn = torch.Generator().manual_seed(0)
    sgd = torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(labels) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, steps)
    with torch.enable_grad():
        for _ in range(epochs):
            rows = torch.randperm(len(labels), generator=drawn)
            for part in rows.split(64)[: len(labels) // 64]:
                x = images[part]
                if eps:
                    x = _sharpen(net, x, labels[part], eps)
                sgd.zero_grad()
                F.cross_entropy(net(x), labels[part]).backward()
                sgd.step()
                schedule.step()
    return net.eval()


def harden(given: Given, epochs: int = 15) -> Given:
    """What is given, with its network trained on FGSM images."""
    net = copy.deepcopy(given.net)
    fine_tune(net, given, epochs=epochs, eps=given.eps)
    return replace(given, net=net)


def _sharpen(net: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    leaf = (x + eps * (2 * torch.rand(x.shape, generator=_seeded(x)) - 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    step = leaf.detach() + 1.25 * eps * gradient.sign()
    return torch.maximum(torch.minimum(step, x + eps), x - eps).clamp(0, 1)


def _seeded(x: Tensor) -> torch.Generator:
    return torch.Generator().manual_seed(int(1e3 * float(x.sum())) % 2**31)


# -------------------------------------------------------------------- what an attacker would climb


def straight(function: Change, by: Change = lambda z: z) -> Change:
    """The function with the backward pass of another one (of the identity)."""

    def through(z: Tensor) -> Tensor:
        guide = by(z)
        with torch.no_grad():
            offset = function(z) - guide
        return guide + offset

    return through


def sloped(function: Change, width: float) -> Change:
    """The function with the mean of (f(z + qs) − f(z − qs)) / 2qs over q = .25, .5, 1, 1.5 as its
    derivative, s = `width` · std(z)."""

    def through(z: Tensor) -> Tensor:
        with torch.no_grad():
            s = width * float(z.std()) + 1e-12
            slopes = [(function(z + q * s) - function(z - q * s)) / (2 * q * s) for q in _SHARES]
            value, slope = function(z), torch.stack(slopes).mean(0)
        return value + slope * (z - z.detach())

    return through


_SHARES = (0.25, 0.5, 1.0, 1.5)


def rough(net: Classifier, act: Change | Sequence[Change]) -> Made:
    """A network with a rough activation in the place of every ReLU, and what finds its way: slopes
    of two widths, and the network as it was."""

    def dressed(dress: Callable[[Change], Change]) -> nn.Module:
        return Rewritten(net, dress(act) if callable(act) else [dress(a) for a in act])

    climbs = [dressed(partial(sloped, width=width)) for width in (0.3, 1.0)]
    relu = dressed(partial(straight, by=F.relu))
    return Made(Rewritten(net, act), (*climbs, relu, net))


def in_front(net: nn.Module, change: Change) -> Made:
    """A network behind a change of its images, and what climbs it: straight through the change, and
    the network as it was."""
    return Made(Front(net, change), (Front(net, straight(change)), net))
