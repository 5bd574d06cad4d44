"""Mechanisms in the place of the activations: steps, jumps, waves, winners, and means that swallow
what is near them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import (
    Change,
    Given,
    Made,
    Mechanism,
    Rewritten,
    fine_tune,
    harden,
    responses,
    rough,
    sloped,
    straight,
)


def _round_relu(z: Tensor, levels: float) -> Tensor:
    return torch.round(levels * F.relu(z)) / levels


def _rounded(given: Given, levels: float) -> Made:
    return rough(given.net, partial(_round_relu, levels=levels))


ROUNDED = tuple(
    Mechanism(
        f"activations rounded to 1/{levels}",
        "activations",
        partial(_rounded, levels=levels),
        fast=levels == 4,
        row=row,
    )
    for levels, row in ((1, "2"), (2, "2"), (4, "2, 3"), (16, "2"))
)


BOTH_ROUNDED = Mechanism(
    "activations rounded to 1/8, before to 1/16",
    "both",
    partial(_rounded, levels=8),
    before=partial(_rounded, levels=16),
    fast=True,
    row="4",
)


class QuantizedReLU(nn.Module):
    """min(max(z, 0), cap) in 2^bits − 1 steps, straight through backwards, as it is trained."""

    def __init__(self, bits: int, cap: float) -> None:
        super().__init__()
        self.step: float = cap / (2**bits - 1)
        self.cap = cap

    def forward(self, z: Tensor) -> Tensor:
        clipped = z.clamp(0, self.cap)
        stepped: Tensor = torch.round(clipped / self.step) * self.step
        return clipped + (stepped - clipped).detach()


def _quantized(given: Given, bits: int) -> Made:
    seen = responses(given.net, given.trained.images[:500])
    acts = [QuantizedReLU(bits, float(z.flatten().quantile(0.99))) for z in _few(seen)]
    made = rough(given.net, acts)
    return Made(made.net, (made.net, *made.climbs))


def _few(seen: list[Tensor]) -> list[Tensor]:
    """Few enough numbers for a quantile."""
    return [z.flatten()[:: 1 + z.numel() // 1_000_000] for z in seen]


QUANTIZED = Mechanism(
    "quantised ReLU of 3 bits, straight through",
    "activations",
    partial(_quantized, bits=3),
    row="32",
)


class MeanSparse(nn.Module):
    """z → μ_c where |z − μ_c| < α σ_c, before a ReLU; μ_c, σ_c of channel c over training
    images."""

    mean: Tensor
    width: Tensor

    def __init__(self, seen: Tensor, alpha: float) -> None:
        super().__init__()
        axes = [0, *range(2, seen.dim())]
        self.register_buffer("mean", seen.mean(axes, keepdim=True))
        self.register_buffer("width", alpha * seen.std(axes, keepdim=True))

    def forward(self, z: Tensor) -> Tensor:
        near = (z - self.mean).abs() < self.width
        return F.relu(torch.where(near, self.mean, z))


def _mean_sparse(given: Given, alpha: float) -> Made:
    seen = responses(given.net, given.trained.images[:1000])
    return rough(given.net, [MeanSparse(z, alpha) for z in seen])


MEAN_SPARSE = tuple(
    Mechanism(
        f"MeanSparse, {alpha} deviations",
        "activations",
        partial(_mean_sparse, alpha=alpha),
        fast=alpha == 0.4,
        row="32",
    )
    for alpha in (0.2, 0.4)
)


class WinnersTakeAll(nn.Module):
    """The largest entries of a layer's response, a `share` of them, and 0 for the rest."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def threshold(self, z: Tensor) -> Tensor:
        flat = z.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1]
        return least.view(-1, *[1] * (z.dim() - 1))

    def forward(self, z: Tensor) -> Tensor:
        return z * (z >= self.threshold(z))


class SoftWinners(WinnersTakeAll):
    """The same with a soft edge backwards."""

    def forward(self, z: Tensor) -> Tensor:
        hard = super().forward(z)
        least = self.threshold(z).detach()
        soft = z * torch.sigmoid(4 * (z - least) / (z.detach().std() + 1e-12))
        return soft + (hard - soft).detach()


def _winners(given: Given, share: float) -> Made:
    net = fine_tune(Rewritten(given.net, WinnersTakeAll(share)), given)
    assert isinstance(net, Rewritten)
    soft = Rewritten(given.net, SoftWinners(share))
    soft.load_state_dict(net.state_dict())
    return Made(net, (net, soft, given.net))


WINNERS = tuple(
    Mechanism(
        f"k-WTA, share {share}, retrained",
        "activations",
        partial(_winners, share=share),
        row="1",
    )
    for share in (0.1, 0.3)
)


def _jump_by_where(z: Tensor, kappa: float) -> Tensor:
    return torch.where(z > kappa, z, torch.zeros_like(z))


def _jump_in_place(z: Tensor, kappa: float) -> Tensor:
    kept = z.clone()
    kept[kept <= kappa] = 0
    return kept


class JumpByProduct(nn.Module):
    """z where it lies above a threshold, by a product with a mask."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa

    def forward(self, z: Tensor) -> Tensor:
        return z * (z > self.kappa).float()


def _jump(given: Given, jump: Callable[[float], Change], share: float) -> Made:
    """A jump as large as a `share` of what is positive lies under it, in each layer."""
    seen = responses(given.net, given.trained.images[:500])
    return rough(given.net, [jump(float(z[z > 0].quantile(share))) for z in _few(seen)])


def _by_where(kappa: float) -> Change:
    return partial(_jump_by_where, kappa=kappa)


def _in_place(kappa: float) -> Change:
    return partial(_jump_in_place, kappa=kappa)


JUMPS = (
    Mechanism(
        "a jump by torch.where",
        "activations",
        partial(_jump, jump=_by_where, share=0.5),
        fast=True,
        row="26",
    ),
    Mechanism(
        "a jump by an in-place mask",
        "activations",
        partial(_jump, jump=_in_place, share=0.3),
        row="26",
    ),
    Mechanism(
        "a jump by a product with a mask",
        "activations",
        partial(_jump, jump=JumpByProduct, share=0.5),
    ),
)


JUMPS_ON_BOTH = Mechanism(
    "jumps on both",
    "both",
    partial(_jump, jump=_by_where, share=0.5),
    before=partial(_jump, jump=_by_where, share=0.3),
)


def _hardened(given: Given) -> Made:
    net = harden(given).net
    return Made(net, (net,))


def _jump_when_hardened(given: Given) -> Made:
    return _jump(harden(given), _by_where, 0.6)


JUMP_WHEN_HARDENED = Mechanism(
    "a jump by torch.where in a hardened network",
    "activations",
    _jump_when_hardened,
    before=_hardened,
    row="26",
)


def _wave(z: Tensor, height: float, frequency: float) -> Tensor:
    return F.relu(z) + height * torch.sin(frequency * z)


def _waves(given: Given, height: float, frequency: float) -> Made:
    return rough(given.net, partial(_wave, height=height, frequency=frequency))


WAVES = tuple(
    Mechanism(
        f"relu(z) + {height} sin {frequency} z",
        "activations",
        partial(_waves, height=height, frequency=frequency),
        fast=frequency == 30,
        row="24",
    )
    for height, frequency in ((0.05, 200), (0.3, 30), (0.1, 60))
)


def _stairs(z: Tensor, steps: float) -> Tensor:
    """A staircase of steep sigmoids: smooth, and flat between them."""
    z = F.relu(z) * steps
    whole = torch.floor(z).detach()
    return (whole + torch.sigmoid(60 * (z - whole - 0.5))) / steps


def _steep(given: Given, steps: float) -> Made:
    return rough(given.net, partial(_stairs, steps=steps))


STEEP = Mechanism("a smooth staircase of steep steps", "activations", partial(_steep, steps=4))


def _three_steps(z: Tensor) -> Tensor:
    """A staircase by hand: each threshold that is passed adds its own height."""
    out = torch.zeros_like(z)
    for at in (0.15, 0.5, 1.2):
        out = out + at * (z > at)
    return out + F.relu(z) * (z > 2)


def _staircase(given: Given) -> Made:
    return rough(given.net, _three_steps)


STAIRCASE = Mechanism("a staircase of three jumps by hand", "activations", _staircase)


class StepStraight(nn.Module):
    """H(z) with the derivative of a clipped identity, to train with."""

    def forward(self, z: Tensor) -> Tensor:
        soft = (z / 2 + 0.5).clamp(0, 1)
        return soft + ((z > 0).float() - soft).detach()


def _step(z: Tensor) -> Tensor:
    return (z > 0).float()


def _binary(given: Given) -> Made:
    trained = fine_tune(Rewritten(given.net, StepStraight()), given)
    nets = [Rewritten(given.net, act) for act in (_step, sloped(_step, 0.3), sloped(_step, 1.0))]
    for net in nets:
        net.load_state_dict(trained.state_dict())
    return Made(nets[0], (trained, *nets[1:]))


BINARY = Mechanism(
    "H(z), retrained straight through, without a graph",
    "activations",
    _binary,
    graph=False,
    row="25",
)


def _capped(given: Given, act: Change) -> Made:
    return Made(Rewritten(given.net, act), (Rewritten(given.net, straight(act, F.relu)), given.net))


def _saturate(z: Tensor) -> Tensor:
    return torch.tanh(F.relu(z))


SATURATED = Mechanism("tanh(relu(z))", "activations", partial(_capped, act=_saturate))


class DeadBackward(torch.autograd.Function):
    """relu with a backward pass that forgets every second entry."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return F.relu(z)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        kept = torch.zeros_like(z)
        kept.view(-1)[::2] = 1
        return above[0] * kept * (z > 0)


class FlippedBackward(DeadBackward):
    """relu with a backward pass of the wrong sign where z is small."""

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return above[0] * (z > 0) * torch.where(z < z[z > 0].median(), -1.0, 1.0)


def _own_backward(given: Given, function: type[torch.autograd.Function]) -> Made:
    return Made(Rewritten(given.net, function.apply), (given.net,))


OWN_BACKWARD = (
    Mechanism(
        "relu with a backward pass that forgets half",
        "activations",
        partial(_own_backward, function=DeadBackward),
    ),
    Mechanism(
        "relu with a backward pass of the wrong sign where small",
        "activations",
        partial(_own_backward, function=FlippedBackward),
        fast=True,
    ),
)
