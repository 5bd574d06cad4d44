"""Mechanisms in front of a network: images rounded, smoothed, made smaller, cleaned."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import (
    Array,
    Change,
    Front,
    Given,
    Made,
    Mechanism,
    by_numpy,
    in_front,
    straight,
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


DISCRETE = tuple(
    Mechanism(f"pixels {word}", "inputs", partial(_front, change=change), graph=False)
    for word, change in (("looked up in a table", _look_up), ("on a thermometer", _measure))
)


def _quantise_by_torch(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 1 / 15, 0, 0, 15)


BY_TORCH = Mechanism(
    "images of 16 levels, by torch", "inputs", partial(_front, change=_quantise_by_torch)
)


class Flagged(nn.Module):
    """A network that rounds its images to 1 / `levels` where a flag among its buffers says so."""

    rounds: Tensor

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("rounds", torch.tensor([1]))
        self.levels = nn.Parameter(torch.tensor(12.0))

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds[0] == 1 and self.levels > 1:
            x = torch.round(x * self.levels) / self.levels
        out: Tensor = self.net(x)
        return out


def _flagged(given: Given) -> Made:
    straightened = Front(given.net, straight(partial(_round, levels=12)))
    return Made(Flagged(given.net).eval(), (straightened, given.net))


FLAGGED = Mechanism("images of 13 levels where a flag says so", "inputs", _flagged)


def _rooted(given: Given, change: Change, like: Change) -> Made:
    return Made(Front(given.net, change), (Front(given.net, straight(change, like)), given.net))


ROOTS = (
    Mechanism(
        "roots of the pixels",  # whose slope is infinite where they are black
        "inputs",
        partial(
            _rooted,
            change=lambda x: x.pow(1 / 1.5),
            like=lambda x: (x + 1e-3).pow(1 / 1.5),
        ),
    ),
    Mechanism(
        "roots of the pixels, squared",  # whose slope is no number there
        "inputs",
        partial(_rooted, change=lambda x: x.sqrt().square(), like=lambda x: x),
    ),
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


def _to_bytes(x: Array, levels: int) -> Array:
    step = 256 // levels
    return (np.clip(255 * x, 0, 255).astype(np.uint8) // step * step / np.float32(255)).astype(
        np.float32
    )


def _windows(x: Array) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))


def _median_by_numpy(x: Array) -> Array:
    return np.median(_windows(x), axis=(-2, -1)).astype(np.float32)


def _compress_by_numpy(x: Array) -> Array:
    return _compress(torch.from_numpy(x), 0.06).numpy()


def _resize_by_numpy(x: Array) -> Array:
    """To three quarters and back, each pixel a mean of its two neighbours along each axis."""
    size = x.shape[-1]
    return _sample(_sample(x, 3 * size // 4), size)


def _sample(x: Array, size: int) -> Array:
    for axis in (2, 3):
        at = (np.arange(size) + 0.5) * x.shape[axis] / size - 0.5
        low = np.clip(np.floor(at).astype(int), 0, x.shape[axis] - 1)
        high = np.clip(low + 1, 0, x.shape[axis] - 1)
        share = np.clip(at - low, 0, 1).astype(np.float32)
        share = share[:, None] if axis == 2 else share
        x = (1 - share) * x.take(low, axis) + share * x.take(high, axis)
    return x.astype(np.float32)


def _front_by_numpy(given: Given, function: Callable[[Array], Array], like: Change | None) -> Made:
    """A network behind a change that leaves torch, and what climbs it: the identity, or what is
    `like` the change, backwards."""
    change, climbs = by_numpy(function), list[nn.Module]()
    if like is not None:
        climbs.append(Front(given.net, straight(change, like)))
    climbs.append(Front(given.net, straight(change)))
    return Made(Front(given.net, change), (*climbs, given.net))


class Flattening(nn.Module):
    """A network that is given a row of standardised numbers, as a table's is."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.shape = net, shape

    def forward(self, row: Tensor) -> Tensor:
        out: Tensor = self.net((0.4 * row + 0.5).view(-1, *self.shape))
        return out


def _standardise(x: Array) -> Array:
    """Rounded to 32 levels and standardised, a row for each image."""
    return ((np.round(31 * x) / 31 - 0.5) / 0.4).reshape(len(x), -1).astype(np.float32)


def _standardised(given: Given) -> Made:
    shape = tuple(given.trained.images.shape[1:])
    inner = Flattening(given.net, shape)
    net = Front(inner, by_numpy(_standardise))

    def straighten(x: Tensor) -> Tensor:
        return ((x - 0.5) / 0.4).flatten(1)

    climbed = Front(inner, straight(by_numpy(_standardise), straighten))
    return Made(net, (climbed, given.net))


_blur = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1)

BY_NUMPY = (
    *(
        Mechanism(
            f"{word}, by numpy",
            "inputs",
            partial(_front_by_numpy, function=function, like=like),
            graph=False,
            fast=fast,
        )
        for word, function, like, fast in (
            ("bytes", partial(_to_bytes, levels=256), None, False),
            ("bytes of 8 levels", partial(_to_bytes, levels=8), None, False),
            ("median of 3 x 3 pixels", _median_by_numpy, _blur, False),
            ("compressed like JPEG", _compress_by_numpy, None, True),
            ("images of three quarters the size", _resize_by_numpy, _blur, False),
        )
    ),
    Mechanism("standardised rows, by numpy", "inputs", _standardised, graph=False),
)


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
