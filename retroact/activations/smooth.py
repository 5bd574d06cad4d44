"""The smooth ones, for the swap experiment (Borji 2020, Fig. 2), for JumpReLU's Fig. 3, and for
maps between kinds (`ByKind`): the same weights, another function. Autograd is right about them,
they have no neutral value, and they ignore a cap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from retroact.activations.activation import Activation
from retroact.activations.ramp import FinitePositive
from retroact.spec import spec


@spec
class Swish(Activation):
    """z · sigmoid(2 beta z) (Erichson et al. 2019, eq. 10); beta = 0.5 is SiLU."""

    beta: FinitePositive = 0.5

    def __call__(self, z: Tensor) -> Tensor:
        return z * torch.sigmoid(2.0 * self.beta * z)


@spec
class Sigmoid(Activation):
    """1 / (1 + exp(-z))."""

    def __call__(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z)


@spec
class Tanh(Activation):
    """(exp(z) - exp(-z)) / (exp(z) + exp(-z))."""

    def __call__(self, z: Tensor) -> Tensor:
        return torch.tanh(z)


@spec
class Softsign(Activation):
    """z / (1 + |z|)."""

    def __call__(self, z: Tensor) -> Tensor:
        return F.softsign(z)


@spec
class Softplus(Activation):
    """log(1 + exp(z))."""

    def __call__(self, z: Tensor) -> Tensor:
        return F.softplus(z)


@spec
class CELU(Activation):
    """max(0, z) + min(0, alpha (exp(z / alpha) - 1)) (Barron 2017)."""

    alpha: FinitePositive = 1.0

    def __call__(self, z: Tensor) -> Tensor:
        return F.celu(z, self.alpha)


@spec
class GELU(Activation):
    """z Φ(z), Φ the standard normal distribution function (Hendrycks & Gimpel 2016,
    arXiv:1606.08415)."""

    def __call__(self, z: Tensor) -> Tensor:
        return F.gelu(z)


@spec
class HardSwish(Activation):
    """z min(max(z + 3, 0), 6)/6: the swish of mobile networks (Howard et al. 2019,
    arXiv:1905.02244, section 5.2)."""

    def __call__(self, z: Tensor) -> Tensor:
        return F.hardswish(z)
