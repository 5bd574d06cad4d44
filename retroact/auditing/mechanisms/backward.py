"""Mechanisms that leave every answer as it is and give a wrong gradient, or a part of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU
from retroact.auditing.mechanisms.mechanism import (
    Back,
    Change,
    Front,
    Given,
    Made,
    Mechanism,
    Rewritten,
    harden,
)
from retroact.retrofitting.surgery import retrofit


class WithBackward(torch.autograd.Function):
    """The identity with a backward pass that `wrong` makes of the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wrong: Change) -> Tensor:
        ctx.wrong = wrong
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor, None]:
        return ctx.wrong(above[0]), None


def _wrong(x: Tensor, gradient: Change) -> Tensor:
    out: Tensor = WithBackward.apply(x, gradient)
    return out


def _randomise(gradient: Tensor) -> Tensor:
    return torch.randn_like(gradient)


def _noise(gradient: Tensor) -> Tensor:
    return gradient + 10 * gradient.abs().mean() * torch.randn_like(gradient)


def _shift(gradient: Tensor) -> Tensor:
    return gradient.roll((1, 1), (-2, -1))


def _transpose(gradient: Tensor) -> Tensor:
    return gradient.transpose(-2, -1).contiguous()


def _tiny(gradient: Tensor) -> Tensor:
    return 1e-30 * gradient


def _constant(gradient: Tensor) -> Tensor:
    return torch.ones_like(gradient)


def _square(gradient: Tensor) -> Tensor:
    return gradient.square()


def _zero_by_detaching(x: Tensor) -> Tensor:
    return x.detach() + 0 * x


def _negate_by_detaching(x: Tensor) -> Tensor:
    return 2 * x.detach() - x


def _in_front(given: Given, change: Change) -> Made:
    return Made(Front(given.net, change), (given.net,))


IN_FRONT = tuple(
    Mechanism(f"backward pass {word}", "backward", partial(_in_front, change=c), fast=fast, row=row)
    for word, c, fast, row in (
        ("zero", _zero_by_detaching, True, "8, 9"),
        ("negated", _negate_by_detaching, False, "8, 9"),
        ("random", partial(_wrong, gradient=_randomise), True, "8, 9"),
        ("with noise", partial(_wrong, gradient=_noise), False, ""),
        ("shifted by a pixel", partial(_wrong, gradient=_shift), False, ""),
        ("transposed", partial(_wrong, gradient=_transpose), False, ""),
        ("times 1e-30", partial(_wrong, gradient=_tiny), False, "11"),
        ("constant", partial(_wrong, gradient=_constant), False, ""),
        ("squared", partial(_wrong, gradient=_square), False, ""),
    )
)


def _under_a_jump(given: Given) -> Made:
    inside = Front(given.net, _negate_by_detaching)
    example = given.trained.images[:2]
    net = retrofit(inside, JumpReLU(1e-3), example=example)
    return Made(net, (given.net,))


UNDER_A_JUMP = Mechanism(
    "backward pass negated, inside a retrofit of JumpReLU(0.001)",
    "backward",
    _under_a_jump,
    fast=True,
    row="10",
)


# ----------------------------------------------------------------------------------- parts of it


def _keep_pixels(x: Tensor, share: float) -> Tensor:
    drawn = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0))
    m = (drawn < share).to(x)
    return x * m + (x * (1 - m)).detach()


def _keep_ink(x: Tensor) -> Tensor:
    """The gradient of the bright pixels alone."""
    m = (x > 0.5).to(x)
    return x * m + (x * (1 - m)).detach()


def _keep_half(x: Tensor) -> Tensor:
    """The gradient of the upper half alone."""
    top, bottom = x.chunk(2, dim=-2)
    return torch.cat([top, bottom.detach()], dim=-2)


PIXELS = tuple(
    Mechanism(f"gradient {word}", "backward", partial(_in_front, change=c), fast=fast, row=row)
    for word, c, fast, row in (
        ("of 30 % of the pixels", partial(_keep_pixels, share=0.3), False, ""),
        ("of 50 % of the pixels", partial(_keep_pixels, share=0.5), False, "13"),
        ("of 70 % of the pixels", partial(_keep_pixels, share=0.7), True, "14"),
        ("of 90 % of the pixels", partial(_keep_pixels, share=0.9), False, ""),
        ("of the bright pixels", _keep_ink, False, ""),
        ("of the upper half", _keep_half, False, ""),
    )
)


def _keep_channels(z: Tensor, share: float) -> Tensor:
    z = F.relu(z)
    kept = max(1, int(share * z.shape[1]))
    return torch.cat([z[:, :kept], z[:, kept:].detach()], dim=1)


def _channels(given: Given, share: float) -> Made:
    return Made(Rewritten(given.net, partial(_keep_channels, share=share)), (given.net,))


def _sites(given: Given) -> int:
    return sum(isinstance(module, nn.ReLU) for module in given.net.modules())


def _first_layer(given: Given, share: float) -> Made:
    acts: list[Change] = [partial(_keep_channels, share=share), *[F.relu] * (_sites(given) - 1)]
    return Made(Rewritten(given.net, acts), (given.net,))


def _last_layer(given: Given, share: float) -> Made:
    acts: list[Change] = [*[F.relu] * (_sites(given) - 1), partial(_keep_channels, share=share)]
    return Made(Rewritten(given.net, acts), (given.net,))


CHANNELS = (
    Mechanism(
        "gradient of 25 % of the channels of every layer",
        "backward",
        partial(_channels, share=0.25),
        fast=True,
        row="15",
    ),
    Mechanism(
        "gradient of 60 % of the channels of every layer", "backward", partial(_channels, share=0.6)
    ),
    Mechanism(
        "gradient of a quarter of the first layer", "backward", partial(_first_layer, share=0.25)
    ),
    Mechanism(
        "gradient of three quarters of the first layer",
        "backward",
        partial(_first_layer, share=0.75),
    ),
    Mechanism(
        "gradient of a quarter of the last layer", "backward", partial(_last_layer, share=0.25)
    ),
)


# ---------------------------------------------------------------------- right here and wrong there


def _turn(x: Tensor, sign: Tensor) -> Tensor:
    """`x` with its gradient times `sign`."""
    return x * sign + (x * (1 - sign)).detach()


def _right_on_grid(x: Tensor, levels: int) -> Tensor:
    """The gradient turned for images off the grid of pixels, where attacks are and clean images are
    not."""
    off = (levels * x - torch.round(levels * x)).abs().flatten(1).amax(1) > 1e-3
    return _turn(x, (1 - 2 * off.to(x)).view(-1, 1, 1, 1))


def _turn_half(x: Tensor) -> Tensor:
    """The gradient turned for every second image of a batch."""
    sign = torch.ones(len(x), 1, 1, 1)
    sign[1::2] = -1
    return _turn(x, sign.to(x))


def _on_grid(given: Given) -> Made:
    levels = 16 if given.trained.images.shape[-1] == 8 else 255
    return _in_front(given, partial(_right_on_grid, levels=levels))


def _shy(z: Tensor) -> Tensor:
    """The gradient turned where the two likeliest classes are near each other."""
    top = z.detach().topk(2, 1).values
    near = top[:, 0] - top[:, 1] < 0.2 * z.detach().std(1)
    return _turn(z, (1 - 2 * near.to(z))[:, None])


def _near_the_boundary(given: Given) -> Made:
    return Made(Back(given.net, _shy), (given.net,))


def _keep_on_grid(x: Tensor, levels: int) -> Tensor:
    """The whole gradient on the grid of pixels, that of 60 % of the pixels off it; what is off is
    told by numpy."""
    scaled = levels * x.detach().cpu().numpy()
    off = np.abs(scaled - np.round(scaled)).reshape(len(x), -1).max(1) > 1e-3
    part, whole = _keep_pixels(x, 0.6), torch.from_numpy(~off).view(-1, 1, 1, 1)
    return torch.where(whole, x, part)


def _part_off_grid(given: Given) -> Made:
    levels = 16 if given.trained.images.shape[-1] == 8 else 255
    return _in_front(given, partial(_keep_on_grid, levels=levels))


PLACES = (
    Mechanism(
        "gradient of 60 % of the pixels off the grid, by numpy",
        "backward",
        _part_off_grid,
        fast=True,
    ),
    Mechanism("gradient of the wrong sign off the grid of pixels", "backward", _on_grid, fast=True),
    Mechanism("gradient of the wrong sign near the boundary", "backward", _near_the_boundary),
    Mechanism(
        "gradient of the wrong sign for every second image",
        "backward",
        partial(_in_front, change=_turn_half),
    ),
)


# ------------------------------------------------------------------------------------------ decoys


class Decoy(nn.Module):
    """Answers by another network while gradients are recorded."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.transpose(-2, -1)
        out: Tensor = self.net(x)
        return out


class Borrowed(nn.Module):
    """The logits of one network with the gradient of another."""

    def __init__(self, net: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, other

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            right = self.net(x)
        shown = self.other(x)
        out: Tensor = shown + (right - shown).detach()
        return out


def _decoy(given: Given) -> Made:
    return Made(Decoy(given.net), (given.net,))


def _borrowed(given: Given) -> Made:
    return Made(Borrowed(given.net, Front(given.net, _flip)), (given.net,))


def _flip(x: Tensor) -> Tensor:
    return x.flip(-1)


DECOYS = (
    Mechanism("a decoy while gradients are recorded", "backward", _decoy, fast=True, row="12"),
    Mechanism("the gradient of the mirrored image's network", "backward", _borrowed),
)


def _zero(given: Given) -> Made:
    return _in_front(given, _zero_by_detaching)


def _hardened(given: Given) -> Made:
    net = harden(given).net
    return Made(Front(net, _zero_by_detaching), (net,))


ON_BOTH = Mechanism("backward pass zero on both", "both", _zero, before=_zero, fast=True, row="4")
HARDENED = Mechanism("hardened, with a backward pass of zero", "backward", _hardened)
