"""Mechanisms behind a network: logits scaled, squeezed, rounded, hardened, voted on, withheld."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import (
    Array,
    Back,
    Change,
    Given,
    Made,
    Mechanism,
    by_numpy,
)


def _back(given: Given, change: Change) -> Made:
    return Made(Back(given.net, change), (given.net,))


def _back_in_order(given: Given, change: Change) -> Made:
    """Where the first class stays the first, so that the network itself can say what fools."""
    return Made(Back(given.net, change), (given.net,), judge=given.net)


def _scale(z: Tensor, factor: float) -> Tensor:
    return factor * z


def _squash(z: Tensor) -> Tensor:
    return torch.tanh(z / 3)


def _soften(z: Tensor) -> Tensor:
    return F.softmax(z, 1)


def _log_of_sharp(z: Tensor) -> Tensor:
    return torch.log(F.softmax(40 * z, 1) + 1e-6)


def _clip(z: Tensor) -> Tensor:
    return (z - z.amax(1, keepdim=True)).clamp(min=-1.0) if z.shape[1] else z


def _round(z: Tensor, places: int) -> Tensor:
    return torch.round(z, decimals=places)


def _round_straight_to_zero(z: Tensor) -> Tensor:
    """Rounded to two decimals, with a term that keeps a graph."""
    return torch.round(z, decimals=2) + 0 * z


def _rank(z: Tensor) -> Tensor:
    """The ranks of the classes in the place of their scores."""
    return z.argsort(1).argsort(1).to(z) + 0 * z


def _detach_top(z: Tensor) -> Tensor:
    """No gradient through the decided class."""
    top = F.one_hot(z.argmax(1), z.shape[1]).to(z)
    return z * (1 - top) + (z * top).detach()


CHANGED = tuple(
    Mechanism(name, "outputs", partial(back, change=c), fast=fast, row=row)
    for name, back, c, fast, row in (
        ("logits times 1e4", _back, partial(_scale, factor=1e4), False, "16"),
        ("logits times 1e-4", _back, partial(_scale, factor=1e-4), False, ""),
        ("tanh of the logits", _back, _squash, False, "16"),
        ("softmax as logits", _back_in_order, _soften, False, ""),
        ("log of a sharp softmax", _back_in_order, _log_of_sharp, False, ""),
        ("logits clipped a point below the first", _back_in_order, _clip, False, ""),
        ("logits to two decimals", _back, partial(_round, places=2), False, "17"),
        ("logits to no decimals", _back, partial(_round, places=0), False, ""),
        (
            "logits to two decimals, with a term of zero",
            _back,
            _round_straight_to_zero,
            False,
            "17",
        ),
        ("ranks of the logits, with a term of zero", _back_in_order, _rank, False, ""),
        ("no gradient through the decided class", _back, _detach_top, False, ""),
    )
)


def _harden(z: Tensor) -> Tensor:
    return F.one_hot(z.argmax(1), z.shape[1]).to(z)


def _harden_with_graph(z: Tensor) -> Tensor:
    return _harden(z) + 0 * z


HARD = (
    Mechanism(
        "one-hot of the decision, with a term of zero",
        "outputs",
        partial(_back_in_order, change=_harden_with_graph),
        fast=True,
        row="18",
    ),
    Mechanism(
        "one-hot of the decision",
        "outputs",
        partial(_back_in_order, change=_harden),
        graph=False,
        fast=True,
        row="19",
    ),
)


def _steps_of_a_sigmoid(z: Array) -> Array:
    """Shares between 0 and 1 in steps of a tenth, with what breaks ties."""
    shares = 1 / (1 + np.exp(-(z - z.mean(1, keepdims=True)) / 4))
    first = z == z.max(1, keepdims=True)
    given: Array = (np.round(10 * shares) / 10 + 0.01 * first).astype(np.float32)
    return given


def _one_hot(z: Array) -> Array:
    given: Array = np.eye(z.shape[1], dtype=np.float32)[z.argmax(1)]
    return given


BY_NUMPY = tuple(
    Mechanism(
        f"{word}, by numpy",
        "outputs",
        partial(_back_in_order, change=by_numpy(function)),
        graph=False,
        fast=fast,
    )
    for word, function, fast in (
        ("sigmoids of the logits in steps", _steps_of_a_sigmoid, True),
        ("one-hot of the decision", _one_hot, False),
    )
)


class Vote(nn.Module):
    """How many of several networks decide for each class; the mean of their probabilities breaks
    ties."""

    def __init__(self, nets: tuple[nn.Module, ...], graph: bool) -> None:
        super().__init__()
        self.nets, self.graph = nn.ModuleList(nets), graph

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            given = [net(x) for net in self.nets]
            votes = torch.stack([_harden(z) for z in given]).sum(0)
            ties = torch.stack([F.softmax(z, 1) for z in given]).mean(0)
            out: Tensor = votes + 0.5 * ties.round(decimals=1)
        return out + 0 * sum(net(x) for net in self.nets) if self.graph else out


class Mean(nn.Module):
    """The mean of several networks' probabilities, as an ensemble gives them."""

    def __init__(self, nets: tuple[nn.Module, ...], logits: bool = False) -> None:
        super().__init__()
        self.nets, self.logits = nn.ModuleList(nets), logits

    def forward(self, x: Tensor) -> Tensor:
        out = torch.stack([net(x) for net in self.nets])
        return out.mean(0) if self.logits else torch.log(out.softmax(2).mean(0) + 1e-12)


def _vote(given: Given, graph: bool) -> Made:
    nets = (given.net, *given.others[:2])
    return Made(Vote(nets, graph), (Mean(nets, True), Mean(nets), *nets))


def _ensemble(given: Given) -> Made:
    net = Mean((given.net, *given.others[:2]))
    return Made(net, (net, Mean((given.net, *given.others[:2]), True)))


VOTES = (
    Mechanism(
        "a vote of three, with a term of zero",
        "outputs",
        partial(_vote, graph=True),
        row="20",
    ),
    Mechanism("a vote of three", "outputs", partial(_vote, graph=False), graph=False, row="19"),
    Mechanism("the mean of three", "outputs", _ensemble),
)


class Smoothed(nn.Module):
    """How many of `draws` noisy copies of an image, the same noise for all images, each class gets
    (Cohen et al. 2019); the mean of their probabilities where `soft`."""

    def __init__(self, net: nn.Module, soft: bool, draws: int = 8, scale: float = 0.15) -> None:
        super().__init__()
        self.net, self.soft, self.draws, self.scale = net, soft, draws, scale

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.Generator().manual_seed(1)
        noise = self.scale * torch.randn(self.draws, *x.shape[1:], generator=drawn)
        with torch.set_grad_enabled(self.soft and torch.is_grad_enabled()):
            z = self.net((x[:, None] + noise).flatten(0, 1))
            if self.soft:
                shares: Tensor = z.softmax(1).view(len(x), self.draws, -1)
                return shares.mean(1).log()
            chosen: Tensor = z.argmax(1).view(-1, self.draws)
            return F.one_hot(chosen, z.shape[1]).sum(1).float()


def _smoothed(given: Given) -> Made:
    net = Smoothed(given.net, soft=False).eval()
    return Made(net, (Smoothed(given.net, soft=True).eval(), given.net))


SMOOTHED = Mechanism("votes under noise", "outputs", _smoothed, graph=False)


class Rejecting(nn.Module):
    """Constant logits, those of the first class, for images off the grid of `levels` steps."""

    def __init__(self, net: nn.Module, levels: int) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        off = (self.levels * x - torch.round(self.levels * x)).abs().flatten(1).amax(1) > 1e-3
        constant = F.one_hot(torch.zeros_like(off).long(), z.shape[1]).to(z)
        return torch.where(off[:, None], constant + 0 * z, z)


def _rejecting(given: Given) -> Made:
    side = given.trained.images.shape[-1]
    return Made(Rejecting(given.net, 16 if side == 8 else 255), (given.net,))


REJECTING = Mechanism(
    "off-grid images get constant logits", "outputs", _rejecting, fast=True, row="23"
)


def _rounded(given: Given, places: int) -> Made:
    return _back(given, partial(_round, places=places))


BOTH_ROUNDED = Mechanism(
    "logits to one decimal, before to two",
    "both",
    partial(_rounded, places=1),
    before=partial(_rounded, places=2),
    row="4",
)
