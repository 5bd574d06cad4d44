"""ClampedRange: nothing goes into an activation that training data did not put there."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import channel_view
from retroact.activations.measured import Measured, Moments
from retroact.activations.piecewise import ReLU, without_slope
from retroact.activations.ramp import FiniteAtLeast0, Ramp
from retroact.activations.site import Site
from retroact.spec import show, spec


@spec
class ClampedRange(Measured):
    """f(min(max(z, a_c), b_c)), f the site's own activation: the input of every channel stays in
    the range [a_c, b_c] that training data put there, widened at both ends by `slack` times its
    length (data-driven clamping: Chen et al. 2024, arXiv:2406.19622).

    `calibrate` measures the ranges in one pass, and a file has them. At a slack of 0 nothing
    changes for the data that were measured. A grown `slack` is the network again; without a file it
    is, bit for bit.
    """

    slack: FiniteAtLeast0 = 0.0
    file: str = ""
    sha256: str = ""
    grid: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.2, 0.1, 0.05, 0.0)
    what = "ranges"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", self.kept.settle())

    @property
    def neutral(self) -> ClampedRange:
        return ClampedRange()

    def numbers(self, seen: Moments) -> Tensor:
        return torch.stack([seen.least, seen.most])

    def at(self, site: Site) -> Activation | nn.Module:
        if not self.file:
            return ReLU().at(site)
        own = self.own_at(site)
        least, most = self.numbers_at(site.name)
        return ChannelRange(least, most, self.slack, own)

    def __call__(self, z: Tensor) -> Tensor:
        if self.file:
            raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")
        return ReLU()(z)


class ChannelRange(nn.Module):
    """What stands at a site: own(clamp(z, a_c, b_c)) for z of shape (n, c, …) or (n, …, c); `least`
    and `most` have c numbers, and the range of each is widened by `slack` of its length."""

    least: Tensor
    most: Tensor

    def __init__(self, least: Tensor, most: Tensor, slack: float, own: Ramp) -> None:
        super().__init__()
        self.own = without_slope(own)
        wider = slack * (most - least)
        self.register_buffer("least", least - wider, persistent=False)
        self.register_buffer("most", most + wider, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        shape = channel_view(len(self.least), z, "ranges")
        # .to: a net that calls its activations as functions has no place to move the buffers from
        low, high = self.least.to(z).view(shape), self.most.to(z).view(shape)
        return self.own(torch.minimum(torch.maximum(z, low), high))
