"""QuantizedReLU: a ReLU of so few bits that it is a staircase."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from retroact.activations.activation import Kernel
from retroact.activations.ramp import FinitePositive
from retroact.activations.site import Site
from retroact.activations.surrogate import Jumping, bump
from retroact.spec import Within, spec

_FAR = 16.0
"""A kernel that is beta times so many steps away holds less than 1e-6 of its height."""


@spec
class QuantizedReLU(Jumping):
    """round(clamp(z, 0, cap)/s) · s with s = cap/(2^bits - 1): a ReLU in the place of which stand
    2^bits values, as low-bit inference has them (Zhou et al. 2016, arXiv:1606.06160).

    A staircase of 2^bits - 1 jumps, each s high, at (i - 1/2) s; `cap` is in units of the
    pre-activation. Its derivative is 0 almost everywhere, and that is what autograd gives here. The
    straight-through estimate with which such networks are trained, 1 within (0, cap), is no
    property of the function but a way to climb it, and so an attack's:
    `surrogate(1.0, "rectangle")`, whose kernels touch, is exactly that.
    """

    bits: Annotated[int, Within(1, 16)] = 3
    cap: FinitePositive = 6.0

    @property
    def steps(self) -> int:
        """How many jumps it has."""
        return (1 << self.bits) - 1

    @property
    def step(self) -> float:
        """The height of each jump, and how far they are apart."""
        return self.cap / self.steps

    def at(self, site: Site) -> QuantizedReLU:
        return replace(self, cap=min(self.cap, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        return torch.round(z.clamp(0.0, self.cap) / self.step) * self.step

    def slope(self, z: Tensor, beta: float, kernel: Kernel) -> Tensor:
        """Σ_i k_beta(z/s - (i - 1/2)): the kernels near enough to count, added up."""
        at, near = z / self.step, math.ceil(_FAR / beta)
        # floats, as an index of a jump that may be none
        first = torch.ones_like(at)
        if 2 * near + 1 < self.steps:  # there are more than count
            first = (at.floor() + 1.0 - near).clamp(1.0, float(self.steps))
        total = torch.zeros_like(at)
        for k in range(min(self.steps, 2 * near + 1)):
            i = first + k
            total = total + (i <= self.steps) * bump(at - (i - 0.5), beta, kernel)
        return total
