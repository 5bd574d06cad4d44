"""Mechanisms that draw: noise, dropout, pruning, resizing. An audit averages them over draws."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import (
    Back,
    Change,
    Front,
    Given,
    Made,
    Mechanism,
    Rewritten,
    straight,
)
from retroact.crafting.expectation import Expectation

DRAWS = 20
_CLIMBED = 8  # draws of a gradient of the attacker who knows that the network draws


def _noisy(x: Tensor, sigma: float) -> Tensor:
    return x + sigma * torch.randn_like(x)


def _shifted(x: Tensor) -> Tensor:
    """Moved by up to a pixel in both directions."""
    down, right = (int(torch.randint(-1, 2, ())) for _ in range(2))
    return x.roll((down, right), (-2, -1))


def _resized(x: Tensor) -> Tensor:
    """Made smaller at random, and put somewhere on a black ground (Xie et al. 2018)."""
    whole = x.shape[-1]
    side = int(torch.randint(whole - whole // 7 - 1, whole + 1, ()))
    small = F.interpolate(x, size=(side, side), mode="bilinear")
    left, top = (int(torch.randint(0, whole - side + 1, ())) for _ in range(2))
    return F.pad(small, (left, whole - side - left, top, whole - side - top))


def _masked(x: Tensor, share: float) -> Tensor:
    """Some of the pixels black."""
    return x * (torch.rand_like(x) >= share).to(x)


def _dithered(x: Tensor) -> Tensor:
    """Rounded to 8 levels, up or down by chance."""
    return torch.floor(7 * x + torch.rand_like(x)) / 7


def _noisy_off_grid(x: Tensor, levels: int) -> Tensor:
    """Noise for images off the grid of pixels alone, where attacks are and clean images are not."""
    off = (levels * x - torch.round(levels * x)).abs().flatten(1).amax(1) > 1e-3
    return torch.where(off.view(-1, *[1] * (x.dim() - 1)), _noisy(x, 0.1), x)


def _off_grid(given: Given) -> Made:
    levels = 16 if given.trained.images.shape[-1] == 8 else 255
    return _front(given, partial(_noisy_off_grid, levels=levels))


def _front(given: Given, change: Change) -> Made:
    net = Front(given.net, change)
    through = Front(given.net, straight(change))
    climbs = tuple(Expectation(f, _CLIMBED, seed=1) for f in (net, through))
    return Made(net, (*climbs, given.net))


FRONT = tuple(
    Mechanism(name, "random", partial(_front, change=c), draws=DRAWS, fast=fast, row=row)
    for name, c, fast, row in (
        ("noise of 0.1 on the image", partial(_noisy, sigma=0.1), False, "21"),
        ("noise of 0.3 on the image", partial(_noisy, sigma=0.3), False, ""),
        ("moved by up to a pixel", _shifted, False, ""),
        ("resized and padded at random", _resized, False, ""),
        ("a tenth of the pixels black", partial(_masked, share=0.1), False, ""),
        ("rounded to 8 levels by chance", _dithered, False, ""),
    )
)


OFF_GRID = Mechanism("noise off the grid of pixels", "random", _off_grid, draws=DRAWS)


def _drop(z: Tensor, share: float) -> Tensor:
    return F.dropout(F.relu(z), share, training=True)


def _prune(z: Tensor) -> Tensor:
    """Entries drawn in proportion to their size, with return, and scaled by how likely each was
    (Dhillon et al. 2018)."""
    z = F.relu(z)
    flat = z.flatten(1)
    p = flat.detach() / (flat.detach().sum(1, keepdim=True) + 1e-12) + 1e-12
    draws = flat.shape[1] // 2
    kept = (1 - (1 - p).clamp(min=0) ** draws).clamp(min=1e-3)
    mask = (torch.rand_like(p) < kept).to(z) / kept
    return (flat * mask).view_as(z)


def _add_noise(z: Tensor) -> Tensor:
    return F.relu(z + 0.5 * z.detach().std() * torch.randn_like(z))


def _active(given: Given, act: Change) -> Made:
    net = Rewritten(given.net, act)
    return Made(net, (Expectation(net, _CLIMBED, seed=1), given.net))


ACTIVE = tuple(
    Mechanism(name, "random", partial(_active, act=act), draws=DRAWS, fast=fast, row=row)
    for name, act, fast, row in (
        ("dropout of 0.3 left on", partial(_drop, share=0.3), False, "21"),
        ("stochastic activation pruning", _prune, False, "22"),
        ("noise at the activations", _add_noise, False, ""),
    )
)


def _blur_logits(z: Tensor) -> Tensor:
    return z + 0.3 * z.detach().std() * torch.randn_like(z)


def _noisy_logits(given: Given) -> Made:
    return Made(Back(given.net, _blur_logits), (given.net,))


class Chance(nn.Module):
    """One of several networks, by chance at every call."""

    def __init__(self, nets: tuple[nn.Module, ...]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.nets[int(torch.randint(len(self.nets), ()))](x)
        return out


def _by_chance(given: Given) -> Made:
    nets = (given.net, *given.others[:2])
    return Made(Chance(nets), (Expectation(Chance(nets), _CLIMBED, seed=1), *nets))


DRAWN = (
    Mechanism("noise on the logits", "random", _noisy_logits, draws=DRAWS),
    Mechanism("one of three networks by chance", "random", _by_chance, draws=DRAWS),
)
