"""MeanSparse: what is near a channel's mean becomes the mean, before the activation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from retroact.activations.activation import Activation, Kernel
from retroact.activations.channel_shift import channel_view
from retroact.activations.measured import Measured, Moments
from retroact.activations.piecewise import ReLU, without_slope
from retroact.activations.ramp import RELU, FiniteAtLeast0, Ramp
from retroact.activations.site import Site
from retroact.activations.surrogate import Jumping, bump, smoothed_slope, through
from retroact.spec import show, spec


@spec
class MeanSparse(Jumping, Measured):
    """f(μ_c where |z - μ_c| < alpha σ_c, else z), f the site's own activation: what is within
    `alpha` standard deviations of its channel's mean becomes the mean (Amini et al. 2024,
    arXiv:2406.05927).

    `calibrate` measures μ and σ of every channel over training data, σ the true one of all examples
    and positions together (the published code averages the variances of batches); a file has them.
    Two jumps per channel, at μ - alpha σ and μ + alpha σ, each of height alpha σ before f. The
    paper takes the largest `alpha` that keeps clean accuracy. At alpha = 0 it is the site's own
    activation, bit for bit.
    """

    alpha: FiniteAtLeast0 = 0.2
    file: str = ""
    sha256: str = ""
    grid: ClassVar[tuple[float, ...]] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
    what = "means"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", self.kept.settle())

    @property
    def neutral(self) -> MeanSparse:
        return MeanSparse(0.0)

    @property
    def jump(self) -> bool:
        return self.alpha > 0.0

    def numbers(self, seen: Moments) -> Tensor:
        return torch.stack([seen.mean, seen.variance.sqrt()])

    def at(self, site: Site) -> Activation | nn.Module:
        if self.alpha == 0.0 and not self.file:
            return ReLU().at(site)
        own = self.own_at(site)
        mean, std = self.numbers_at(site.name)
        return ChannelSparse(mean, std, self.alpha, own)

    def slope(self, z: Tensor, beta: float, kernel: Kernel) -> Tensor:
        if self.alpha > 0.0:
            raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")
        return smoothed_slope(z, RELU, beta, kernel)

    def __call__(self, z: Tensor) -> Tensor:
        if self.alpha > 0.0:
            raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")
        return ReLU()(z)


class ChannelSparse(nn.Module, Activation):
    """What stands at a site: own(μ_c where |z - μ_c| < alpha σ_c, else z) for z of shape (n, c, …)
    or (n, …, c); `mean` and `std` have c numbers.

    With a `beta` its backward pass has, beside own'(z) outside of the window, a kernel at either
    end of it that holds the height of the jump there; its bandwidth is alpha σ_c/beta. At alpha = 0
    there is own's kink alone, smoothed over σ_c/beta.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Tensor,
        std: Tensor,
        alpha: float,
        own: Ramp,
        beta: float | None = None,
        kernel: Kernel = "sigmoid",
    ) -> None:
        super().__init__()
        self.alpha, self.own, self.beta, self.kernel = alpha, own, beta, kernel
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def jump(self) -> bool:
        return self.alpha > 0.0

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> ChannelSparse:
        return ChannelSparse(self.mean, self.std, self.alpha, self.own, beta, kernel)

    def forward(self, z: Tensor) -> Tensor:
        return self.exact(z) if self.beta is None else through(self, z)

    def exact(self, z: Tensor) -> Tensor:
        """The function, as it is."""
        mean, half = self._window(z)
        return without_slope(self.own)(torch.where((z - mean).abs() < half, mean, z))

    def derivative(self, z: Tensor) -> Tensor:
        """own'(z) (1 - w(z)) + Σ of both ends: height · kernel, w the (smoothed) window."""
        assert self.beta is not None
        (mean, half), own = self._window(z), without_slope(self.own)
        beta = self.beta / self._unit(z)
        low, high, kernel = mean - half, mean + half, self.kernel
        up, down = own(mean) - own(low), own(high) - own(mean)
        spikes = up * bump(z - low, beta, kernel) + down * bump(z - high, beta, kernel)
        if kernel == "sigmoid":
            inside = torch.sigmoid(beta * (z - low)) - torch.sigmoid(beta * (z - high))
        else:
            inside = ((z - mean).abs() < half).to(z)
        return smoothed_slope(z, self.own, beta, kernel) * (1.0 - inside) + spikes

    def _window(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The middle of the window and half of its width, as they broadcast to z."""
        shape = channel_view(len(self.mean), z, "means")
        # .to: a net that calls its activations as functions has no place to move the buffers from
        return self.mean.to(z).view(shape), self.alpha * self.std.to(z).view(shape)

    def _unit(self, z: Tensor) -> Tensor:
        """What beta is counted in, as it broadcasts to z; 1 for a channel that never moved."""
        unit = (self.alpha or 1.0) * self.std.to(z)
        return unit.where(unit > 0.0, 1.0).view(channel_view(len(self.mean), z, "means"))
