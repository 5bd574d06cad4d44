"""Surrogate: an activation whose backward sees the jump that autograd does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retroact.activations.activation import Activation, Folded, Kernel
from retroact.activations.ramp import FinitePositive, Ramp
from retroact.activations.site import Site
from retroact.spec import SpecError, spec


@spec
class Surrogate(Activation):
    """The forward of `activation`, bit for bit, with a backward that sees the jump.

    For z ↦ min(α z 1[z > κ], cap) the derivative used is, below the cap and zero from there on,
        sigmoid    α · d/dz [z σ(β(z - κ))] = α (s + β z s (1 - s)),  s = σ(β(z - κ))
        rectangle  α · (1[z > κ] + κ/w · 1[|z - κ| < w/2]),           w = 1/β
    The first is JumpReLU's smooth step (Erichson et al. 2019, eq. 9) moved to κ; there it reads
    σ(2βz), so its β is half of this one. The second spreads the true spike of mass κ over a width
    w. β κ in [4, 16] is what attacks need: much sharper and the spike is missed, much flatter and
    it misleads.
    """

    activation: Activation
    beta: FinitePositive = 8.0
    kernel: Kernel = "sigmoid"

    def __post_init__(self) -> None:
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

    def __call__(self, z: Tensor) -> Tensor:
        out: Tensor = _Smoothed.apply(z, self)
        return out


def smoothed_slope(z: Tensor, ramp: Ramp, beta: float, kernel: Kernel) -> Tensor:
    """The derivative of `Surrogate` at z, elementwise; the formulas stand there."""
    if kernel == "sigmoid":
        s = torch.sigmoid(beta * (z - ramp.kappa))
        slope = s + beta * z * s * (1.0 - s)
    else:
        spike = ramp.kappa * beta * ((z - ramp.kappa).abs() < 0.5 / beta)
        slope = (z > ramp.kappa) + spike
    return ramp.alpha * slope * (ramp.alpha * z < ramp.cap)


class _Smoothed(torch.autograd.Function):
    """torch offers no door but this base class for a backward that is not the forward's own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, surrogate: Surrogate) -> Tensor:
        return surrogate.activation(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        z, ctx.surrogate = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (z,) = ctx.saved_tensors
        s: Surrogate = ctx.surrogate
        ramp = s.activation.ramp
        assert ramp is not None
        return upstream * smoothed_slope(z, ramp, s.beta, s.kernel), None
