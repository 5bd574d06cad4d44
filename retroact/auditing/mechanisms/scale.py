"""Mechanisms that change how large the logits are, and nothing that is decided: their margin rises
with the size rather than with what decides, so whoever climbs it is led astray."""

from __future__ import annotations

import copy
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


class SurerByImage(nn.Module):
    """To the largest logit is added what a look at the image gives, at least 0."""

    def __init__(self, net: nn.Module, look: nn.Module, size: float) -> None:
        super().__init__()
        self.net, self.look, self.size = net, look, size

    def forward(self, x: Tensor) -> Tensor:
        z, bonus = self.net(x), F.softplus(self.look(x))
        out: Tensor = z + self.size * bonus * F.one_hot(z.argmax(1), z.shape[1]).to(z)
        return out


class FitOfComponents(nn.Module):
    """How well the first principal components of the usual images fit an image, (n, 1): 3 less the
    squared error over the usual one (after MagNet: Meng & Chen 2017, arXiv:1705.09064)."""

    def __init__(self, usual: Tensor, components: int) -> None:
        super().__init__()
        flat = usual.flatten(1)
        self.mean = flat.mean(0)
        self.axes = torch.linalg.svd(flat - self.mean, full_matrices=False).Vh[:components]
        self.usual = float(self._error(usual).mean())

    def forward(self, x: Tensor) -> Tensor:
        return 3 - self._error(x) / self.usual

    def _error(self, x: Tensor) -> Tensor:
        centred = x.flatten(1) - self.mean
        rest: Tensor = centred - centred @ self.axes.T @ self.axes
        return rest.square().sum(1, keepdim=True)


class Familiarity(nn.Module):
    """A sum of all entries, half of them negative, from that of the usual image, (n, 1)."""

    def __init__(self, usual: Tensor, size: float) -> None:
        super().__init__()
        self.size, self.usual = size, 0.0
        self.usual = float(self(usual).mean())

    def forward(self, x: Tensor) -> Tensor:
        return self.size * _tint(x) / 150 - self.usual + 0.1 * self.size


class GapsByImage(nn.Module):
    """The logits in their order, each gap to the next times a number that the image gives (after
    Rahimi et al. 2020, arXiv:2003.06820)."""

    def __init__(self, net: nn.Module, usual: Tensor, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        entries = usual[0].numel()
        signs = torch.randn(classes, entries, generator=generator).sign()
        self.net, self.weights = net, 150 / entries * signs
        self.usual = (usual.flatten(1) @ self.weights.T).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        sorted_, at = self.net(x).sort(1, descending=True)
        factors = torch.exp(self.usual - x.flatten(1) @ self.weights.T)
        gaps: Tensor = F.pad(sorted_[:, :-1] - sorted_[:, 1:], (1, 0)) * factors
        return torch.zeros_like(gaps).scatter(1, at, -gaps.cumsum(1))


class AsConvolution(nn.Module):
    """A linear layer as a convolution of one pixel."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x[:, :, None, None], self.weight[:, :, None, None], self.bias).mean((2, 3))


class MeanOverShift(nn.Module):
    """The mean of what a network answers to an image and to it moved by a pixel."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        moved = F.pad(x, (1, 0))[..., :-1]
        out: Tensor = (self.net(x) + self.net(moved)) / 2
        return out


class Branching(nn.Module):
    """A network that looks at its values before it answers, so that it cannot be traced."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        factor = 2.0 if float(x.detach().sum()) < 0 else 1.0
        out: Tensor = factor * self.net(x)
        return out


def _ends_in_convolution(net: nn.Module) -> nn.Module:
    """The network with a convolution in the place of its last linear layer."""
    made = copy.deepcopy(net)
    path, last = [(p, m) for p, m in made.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, name = path.rpartition(".")
    setattr(made.get_submodule(parent), name, AsConvolution(last))
    return made.eval()


def _gap_of(z: Tensor) -> Tensor:
    top = z.topk(2, 1).values
    return top[:, :1] - top[:, 1:]


def _by_image(given: Given, look: Look) -> Made:
    return _around(CoolerByImage(given.net, look, given.trained.images[:1000]), given)


def _where_sure(given: Given) -> Made:
    return _around(CoolerWhereSure(given.net), given)


def _mirrored(given: Given) -> Made:
    return _around(CloseCallsMirrored(given.net, _least_of(given)), given)


def _least_of(given: Given) -> float:
    """The gap below which three in ten of the trained images are."""
    with torch.no_grad():
        return float(_gap_of(given.net(given.trained.images[:500])).quantile(0.3))


def _fit(given: Given) -> FitOfComponents:
    usual = given.trained.images[:2000]
    return FitOfComponents(usual, min(40, usual[0].numel() // 5))


def _surer_by_fit(given: Given) -> Made:
    return _around(SurerByImage(_ends_in_convolution(given.net), _fit(given), 30), given)


def _surer_by_familiarity(given: Given) -> Made:
    look = Familiarity(given.trained.images[:1000], 250)
    return _around(SurerByImage(_ends_in_convolution(given.net), look, 1), given)


def _surer_mean(given: Given) -> Made:
    mean = MeanOverShift(given.net).eval()
    return Made(SurerByImage(mean, _fit(given), 30).eval(), (mean,), judge=mean)


def _surer_branching(given: Given) -> Made:
    return _around(Branching(SurerByImage(given.net, _fit(given), 30)), given)


def _gaps_by_image(given: Given) -> Made:
    usual = given.trained.images[:1000]
    with torch.no_grad():
        classes = given.net(usual[:1]).shape[1]
    return _around(GapsByImage(given.net, usual, classes), given)


def _mirrored_convolution(given: Given) -> Made:
    least = _least_of(given)
    return _around(CloseCallsMirrored(_ends_in_convolution(given.net), least), given)


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
    Mechanism("surer the better few components fit", "outputs", _surer_by_fit, fast=True),
    Mechanism("surer by a familiar sum of pixels", "outputs", _surer_by_familiarity),
    Mechanism("surer mean over a shift", "outputs", _surer_mean),
    Mechanism("surer in a network that branches", "outputs", _surer_branching),
    Mechanism("gaps by image, in their order", "outputs", _gaps_by_image),
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
    Mechanism(
        "close calls mirrored behind a convolution, on both",
        "both",
        _mirrored_convolution,
        before=_mirrored_convolution,
    ),
)
