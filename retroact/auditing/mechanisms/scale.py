"""Mechanisms that change how large the logits are, and nothing that is decided: their margin rises
with the size rather than with what decides, so whoever climbs it is led astray."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import Given, Made, Mechanism

Look = Callable[[Tensor], Tensor]


def _roughness(x: Tensor) -> Tensor:
    """300 times the mean square of what a blur takes away, (n, 1)."""
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return 300 * (x - blurred).square().flatten(1).mean(1, keepdim=True)


def _tint(x: Tensor) -> Tensor:
    """A sum of all entries, half of them negative, (n, 1): the fewer, the more each counts."""
    generator = torch.Generator().manual_seed(5)
    signs = torch.randn(x[0].numel(), generator=generator).sign().to(x)
    return 150 / len(signs) * (x.flatten(1) @ signs)[:, None]


class CoolerByImage(nn.Module):
    """Logits the smaller, the more an image looks unlike the usual ones."""

    def __init__(self, net: nn.Module, look: Look, usual: Tensor) -> None:
        super().__init__()
        self.net, self.look, self.usual = net, look, float(look(usual).mean())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) * torch.exp(self.usual - self.look(x))
        return out


class CoolerWhereSure(nn.Module):
    """Logits over 1 + (gap/2)², with the gap of the two largest: the margin falls again where it
    is large."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return z / (1 + (_gap_of(z) / 2).square())


class CloseCallsMirrored(nn.Module):
    """Gaps below `least` mirrored at it, so that the closest calls look the surest."""

    def __init__(self, net: nn.Module, least: float) -> None:
        super().__init__()
        self.net, self.least = net, least

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        first = F.one_hot(z.argmax(1), z.shape[1]).to(z)
        return z + first * F.relu(2 * (self.least - _gap_of(z)))


def _gap_of(z: Tensor) -> Tensor:
    top = z.topk(2, 1).values
    return top[:, :1] - top[:, 1:]


def _by_image(given: Given, look: Look) -> Made:
    return _around(CoolerByImage(given.net, look, given.trained.images[:1000]), given)


def _where_sure(given: Given) -> Made:
    return _around(CoolerWhereSure(given.net), given)


def _mirrored(given: Given) -> Made:
    with torch.no_grad():
        least = float(_gap_of(given.net(given.trained.images[:500])).quantile(0.3))
    return _around(CloseCallsMirrored(given.net, least), given)


def _around(net: nn.Module, given: Given) -> Made:
    """The first class stays the first, so the network within says what fools."""
    return Made(net, (given.net,), judge=given.net)


def _itself(given: Given) -> Made:
    return Made(given.net, (given.net,))


RESCALED = (
    Mechanism("cooler the rougher the image", "outputs", partial(_by_image, look=_roughness)),
    Mechanism("cooler by a sum of pixels", "outputs", partial(_by_image, look=_tint), fast=True),
    Mechanism("cooler where sure", "outputs", _where_sure),
    Mechanism("close calls mirrored", "outputs", _mirrored, fast=True),
)

BOTH = (
    Mechanism(
        "cooler where sure, on both",
        "both",
        _where_sure,
        before=_where_sure,
        fast=True,
    ),
    Mechanism("cooler where sure, taken away", "both", _itself, before=_where_sure),
    Mechanism("close calls mirrored, taken away", "both", _itself, before=_mirrored),
)
