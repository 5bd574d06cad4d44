"""Mechanisms in front of a network: images rounded, smoothed, made smaller, cleaned."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import (
    Change,
    Front,
    Given,
    Made,
    Mechanism,
    in_front,
)


def _front(given: Given, change: Change) -> Made:
    return in_front(given.net, change)


def _round(x: Tensor, levels: float) -> Tensor:
    return torch.round(levels * x) / levels


ROUNDED = tuple(
    Mechanism(
        f"images of {levels + 1} levels",
        "inputs",
        partial(_front, change=partial(_round, levels=levels)),
        fast=levels == 255,
        row=row,
    )
    for levels, row in ((255, "6"), (15, ""), (7, "5"), (3, "5"), (1, "5"))
)


def _look_up(x: Tensor, levels: int = 16) -> Tensor:
    """Each pixel as a word, and its value from a table of words."""
    edges = (torch.arange(1, levels) - 0.5) / (levels - 1)
    table = torch.linspace(0, 1, levels)[:, None]
    return F.embedding(torch.bucketize(x.detach(), edges), table)[..., 0]


def _measure(x: Tensor, levels: int = 9) -> Tensor:
    """A thermometer (Buckman et al. 2018): which marks each pixel passes, and how many."""
    marks = (torch.arange(levels) + 0.5) / levels
    return (x.unsqueeze(-1) > marks).to(x).mean(-1)


DISCRETE = (
    Mechanism("pixels looked up in a table", "inputs", partial(_front, change=_look_up)),
    Mechanism("pixels on a thermometer", "inputs", partial(_front, change=_measure)),
)


def _median(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3)
    return windows.view(n, c, 9, h * w).median(2).values.view(n, c, h, w)


def _median_front(given: Given) -> Made:
    blurred = Front(given.net, partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1))
    net = Front(given.net, _median)
    return Made(net, (net, blurred, given.net))


MEDIAN = Mechanism("median of 3 x 3 pixels", "inputs", _median_front, row="7")


def _halve(x: Tensor) -> Tensor:
    """Every second pixel, twice as large."""
    return F.interpolate(x[..., ::2, ::2], size=x.shape[-2:], mode="nearest")


def _shrink(x: Tensor) -> Tensor:
    small = F.interpolate(x, scale_factor=0.75, mode="bilinear", antialias=True)
    return F.interpolate(small, size=x.shape[-2:], mode="bilinear")


def _resized(given: Given, change: Change) -> Made:
    net = Front(given.net, change)
    return Made(net, (net,))


RESIZED = (
    Mechanism("images of three quarters the size", "inputs", partial(_resized, change=_shrink)),
    Mechanism("every second pixel, twice as large", "inputs", partial(_resized, change=_halve)),
)


def _cosines(size: int) -> Tensor:
    k = torch.arange(size, dtype=torch.float32)
    table = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / size) * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table


def _compress(x: Tensor, step: float) -> Tensor:
    """Like JPEG: blocks of 4 x 4, their cosine coefficients rounded, the fine ones more."""
    table = _cosines(4)
    blocks = x.unfold(-2, 4, 4).unfold(-2, 4, 4)
    coarse = step * (1 + torch.arange(4.0)[:, None] + torch.arange(4.0)[None])
    inner = torch.round(table @ blocks @ table.T / coarse) * coarse
    back = table.T @ inner @ table
    return back.transpose(-3, -2).reshape(x.shape).clamp(0, 1)


COMPRESSED = Mechanism(
    "compressed like JPEG",
    "inputs",
    partial(_front, change=partial(_compress, step=0.06)),
)


def _quantise_softly(x: Tensor) -> Tensor:
    """A staircase of tanh on the pixels: smooth, and flat nearly everywhere."""
    z = 8 * x
    whole = torch.floor(z).detach()
    return (whole + 0.5 + 0.5 * torch.tanh(40 * (z - whole - 0.5))) / 8


SOFT = Mechanism("pixels on a smooth staircase", "inputs", partial(_front, change=_quantise_softly))


class Purified(nn.Module):
    """Answers for an image after `steps` steps that make the network surer of it, taken by its own
    gradients; `straight` through backwards, else detached."""

    def __init__(
        self, net: nn.Module, straight: bool, steps: int = 3, length: float = 0.02
    ) -> None:
        super().__init__()
        self.net, self.straight, self.steps, self.length = net, straight, steps, length

    def purify(self, x: Tensor) -> Tensor:
        clean = x.detach()
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = clean.clone().requires_grad_()
                p = F.log_softmax(self.net(leaf), 1)
                (gradient,) = torch.autograd.grad(-(p.exp() * p).sum(), leaf)
            clean = (clean - self.length * gradient.sign()).clamp(0, 1).detach()
        return clean

    def forward(self, x: Tensor) -> Tensor:
        clean = self.purify(x)
        out: Tensor = self.net(x + (clean - x).detach() if self.straight else clean)
        return out


class Cleaned(nn.Module):
    """The same with the total variation of the image in the place of the network's doubt."""

    def __init__(self, net: nn.Module, straight: bool) -> None:
        super().__init__()
        self.net, self.straight = net, straight

    def forward(self, x: Tensor) -> Tensor:
        clean = x.detach()
        for _ in range(5):
            across, down = clean.diff(dim=-1).sign(), clean.diff(dim=-2).sign()
            slope = F.pad(across, (1, 0)) - F.pad(across, (0, 1))
            slope = slope + F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1))
            clean = (clean - 0.01 * slope).clamp(0, 1)
        out: Tensor = self.net(x + (clean - x).detach() if self.straight else clean)
        return out


def _purified(given: Given, cleaner: type[nn.Module], straight: bool) -> Made:
    return Made(cleaner(given.net, straight), (cleaner(given.net, True), given.net))


PURIFIED = tuple(
    Mechanism(
        f"purified by {word}, {'straight through' if straight else 'detached'}",
        "inputs",
        partial(_purified, cleaner=cleaner, straight=straight),
        graph=straight,
        fast=cleaner is Cleaned and not straight,
        row=("30" if straight else "19") if cleaner is Purified else "",
    )
    for word, cleaner in (("its own gradients", Purified), ("total variation", Cleaned))
    for straight in (True, False)
)


def _both_rounded(given: Given) -> Made:
    return _front(given, partial(_round, levels=255))


BOTH_ROUNDED = Mechanism(
    "images of 128 levels, before of 256",
    "both",
    partial(_front, change=partial(_round, levels=127)),
    before=_both_rounded,
    row="4",
)
