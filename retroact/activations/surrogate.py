"""Surrogate: an activation whose backward sees the jumps that autograd does not."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from retroact.activations.activation import Activation, Folded, Kernel
from retroact.activations.ramp import FinitePositive, Ramp
from retroact.activations.site import Site
from retroact.spec import SpecError, spec


class Jumping(Activation):
    """An activation with one jump or several that says its smoothed derivative itself, `slope`.

    Its beta counts in units of its jumps: the kernel at a jump of height h has the bandwidth
    h/beta, as `smoothed(sharpness)` has it, so beta · h of a piecewise one is beta here.
    """

    @property
    def jump(self) -> bool:
        return True

    @abstractmethod
    def slope(self, z: Tensor, beta: float, kernel: Kernel) -> Tensor:
        """The derivative at z, elementwise, with a kernel at each jump that holds its height."""

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Activation:
        return Surrogate(self, beta, kernel)


@spec
class Surrogate(Activation):
    """The forward of `activation`, bit for bit, with a backward that sees the jump.

    For z ↦ min(α z 1[z > κ], cap) the derivative used is, below the cap and zero from there on,
        sigmoid    α · d/dz [z σ(β(z - κ))] = α (s + β z s (1 - s)),  s = σ(β(z - κ))
        rectangle  α · (1[z > κ] + κ/w · 1[|z - κ| < w/2]),           w = 1/β
    The first is JumpReLU's smooth step (Erichson et al. 2019, eq. 9) moved to κ; there it reads
    σ(2βz), so its β is half of this one. The second spreads the true spike of mass κ over a width
    w. β κ in [4, 16] is what attacks need: much sharper and the spike is missed, much flatter and
    it misleads. An activation with other jumps, or several, says its derivative itself (`Jumping`).
    """

    activation: Activation
    beta: FinitePositive = 8.0
    kernel: Kernel = "sigmoid"

    def __post_init__(self) -> None:
        if isinstance(self.activation, Jumping):
            return
        if not isinstance(self.activation, Activation) or self.activation.ramp is None:
            raise SpecError(
                "Surrogate.activation: expected a piecewise activation such as JumpReLU(1.0), "
                f"got {self.activation!r}; the others need no surrogate"
            )

    @property
    def jump(self) -> bool:
        return self.activation.jump

    def at(self, site: Site) -> Activation | nn.Module:
        inner = self.activation.at(site)
        return inner.surrogate(self.beta, self.kernel) if isinstance(inner, Activation) else inner

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Surrogate:
        return Surrogate(self.activation, beta, kernel)

    def folded(self, s: float) -> Folded | None:
        inner = self.activation.folded(s)
        if inner is None or not isinstance(inner.activation, Activation):
            return inner
        return inner._replace(activation=inner.activation.surrogate(self.beta * s, self.kernel))

    def files(self) -> dict[str, bytes]:
        return self.activation.files()

    def exact(self, z: Tensor) -> Tensor:
        """The activation of z, as it is."""
        return self.activation(z)

    def derivative(self, z: Tensor) -> Tensor:
        """What the backward pass takes for its derivative at z."""
        if isinstance(self.activation, Jumping):
            return self.activation.slope(z, self.beta, self.kernel)
        assert self.activation.ramp is not None
        return smoothed_slope(z, self.activation.ramp, self.beta, self.kernel)

    def __call__(self, z: Tensor) -> Tensor:
        return through(self, z)


def smoothed_slope(z: Tensor, ramp: Ramp, beta: float | Tensor, kernel: Kernel) -> Tensor:
    """The derivative of `Surrogate` at z, elementwise; the formulas stand there. `beta` may be a
    tensor that broadcasts to z."""
    slope = step_slope(z, ramp.kappa, beta, kernel)
    return ramp.alpha * slope * (ramp.alpha * z < ramp.cap)


def step_slope(z: Tensor, kappa: float | Tensor, beta: float | Tensor, kernel: Kernel) -> Tensor:
    """The smoothed derivative of z · 1[z > kappa] at z, elementwise; kappa and beta broadcast."""
    if kernel == "sigmoid":
        s = torch.sigmoid(beta * (z - kappa))
        return s + beta * z * s * (1.0 - s)
    return (z > kappa) + kappa * beta * ((z - kappa).abs() < 0.5 / beta)


def bump(distance: Tensor, beta: float | Tensor, kernel: Kernel) -> Tensor:
    """The kernel of a jump of height 1 at so large a distance from it, elementwise: the derivative
    of σ(beta d), or a rectangle of the width 1/beta."""
    if kernel == "sigmoid":
        s = torch.sigmoid(beta * distance)
        return beta * s * (1.0 - s)
    return beta * (distance.abs() < 0.5 / beta)


class WithDerivative(Protocol):
    """Something with a forward of its own, and a derivative of its own."""

    def exact(self, z: Tensor, /) -> Tensor: ...
    def derivative(self, z: Tensor, /) -> Tensor: ...


def through(how: WithDerivative, z: Tensor) -> Tensor:
    """`how.exact(z)`, whose backward pass multiplies by `how.derivative(z)`."""
    out: Tensor = _Smoothed.apply(z, how)
    return out


class _Smoothed(torch.autograd.Function):
    """torch offers no door but this base class for a backward that is not the forward's own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, how: WithDerivative) -> Tensor:
        return how.exact(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, WithDerivative], output: Tensor) -> None:
        z, ctx.how = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        return upstream * ctx.how.derivative(z), None
