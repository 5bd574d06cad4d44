"""The piecewise family, z ↦ min(α z 1[z > κ], cap): ReLU and what differs from it by a jump, a
slope or a bound."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from retroact.activations.activation import Activation, Folded, Kernel
from retroact.activations.ramp import FiniteAtLeast0, FinitePositive, Ramp
from retroact.activations.site import Site
from retroact.activations.surrogate import Surrogate
from retroact.spec import Positive, spec


class Piecewise(Activation):
    """One of the family by its `ramp`, which says whether it jumps, how it is smoothed, and what is
    left of it without its slope."""

    @property
    @abstractmethod
    def ramp(self) -> Ramp: ...

    @property
    def jump(self) -> bool:
        return self.ramp.jump

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Activation:
        return Surrogate(self, beta, kernel)

    def folded(self, s: float) -> Folded:
        """α J_κ(s z) = α s J_{κ/s}(z), and min(s z, cap) = s min(z, cap/s)."""
        alpha, kappa, cap = self.ramp
        if s == 1.0 and alpha == 1.0:
            return Folded(self)
        return Folded(without_slope(Ramp(kappa=kappa / s, cap=cap / (alpha * s))), alpha * s)


@spec
class ReLU(Piecewise):
    """min(max(0, z), cap): a site's own activation; cap = 6 is ReLU6. NaN stays NaN."""

    cap: Positive = math.inf

    @property
    def ramp(self) -> Ramp:
        return Ramp(cap=self.cap)

    @property
    def neutral(self) -> ReLU:
        return ReLU()

    def at(self, site: Site) -> ReLU:
        return ReLU(min(self.cap, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        return _relu_up_to(z, self.cap)


@spec
class JumpReLU(Piecewise):
    """z · 1[z > kappa], then min with cap; at z = kappa it is 0 (Erichson et al. 2019, eq. 11).

    `kappa` is in units of the pre-activation, at least 0. At kappa = 0 it is ReLU, bit for bit.
    """

    kappa: FiniteAtLeast0 = 0.0
    cap: Positive = math.inf
    grid: ClassVar[tuple[float, ...]] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5)

    @property
    def ramp(self) -> Ramp:
        return Ramp(kappa=self.kappa, cap=self.cap)

    @property
    def neutral(self) -> JumpReLU:
        return JumpReLU(0.0)

    def at(self, site: Site) -> JumpReLU:
        return replace(self, cap=min(self.cap, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        if self.kappa == 0.0:  # threshold turns -0.0 into 0.0, relu does not
            return _relu_up_to(z, self.cap)
        jumped = F.threshold(z, self.kappa, 0.0)
        # hardtanh and not clamp: as at a ReLU6, the derivative is 0 at the cap itself
        return jumped if self.cap == math.inf else F.hardtanh(jumped, 0.0, self.cap)


@spec
class SReLU(Piecewise):
    """alpha · max(0, z), then min with cap: the Sloped ReLU (Borji 2020). At alpha = 1 it is
    ReLU."""

    alpha: FinitePositive = 1.0
    cap: Positive = math.inf
    grid: ClassVar[tuple[float, ...]] = (1.0, 2.0, 5.0, 10.0, 100.0)

    @property
    def ramp(self) -> Ramp:
        return Ramp(alpha=self.alpha, cap=self.cap)

    @property
    def neutral(self) -> SReLU:
        return SReLU(1.0)

    def at(self, site: Site) -> SReLU:
        return replace(self, cap=min(self.cap, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        sloped = self.alpha * F.relu(z)
        return sloped if self.cap == math.inf else F.hardtanh(sloped, 0.0, self.cap)


@spec
class BoundedReLU(Piecewise):
    """min(max(0, z), bound) (Zantedeschi et al. 2017). With an infinite bound it is ReLU."""

    bound: Positive = math.inf
    grid: ClassVar[tuple[float, ...]] = (math.inf, 8.0, 4.0, 2.0, 1.0, 0.5)

    @property
    def ramp(self) -> Ramp:
        return Ramp(cap=self.bound)

    @property
    def neutral(self) -> BoundedReLU:
        return BoundedReLU()

    def at(self, site: Site) -> BoundedReLU:
        return BoundedReLU(min(self.bound, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        return _relu_up_to(z, self.bound)


def without_slope(ramp: Ramp) -> ReLU | JumpReLU:
    """z ↦ min(z 1[z > kappa], cap) as an activation; alpha is left out."""
    return JumpReLU(ramp.kappa, ramp.cap) if ramp.jump else ReLU(ramp.cap)


def _relu_up_to(z: Tensor, cap: float) -> Tensor:
    return F.relu(z) if cap == math.inf else F.hardtanh(z, 0.0, cap)
