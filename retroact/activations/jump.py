"""Jump: JumpReLU's idea on any activation."""

from __future__ import annotations

import torch
from torch import Tensor

from retroact.activations.activation import Activation, Kernel
from retroact.activations.ramp import FiniteAtLeast0
from retroact.activations.site import Site
from retroact.activations.smooth import GELU
from retroact.activations.surrogate import Jumping, bump
from retroact.spec import SpecError, show, spec


@spec
class Jump(Jumping):
    """f(z) · 1[z > kappa], f another activation: what JumpReLU does to ReLU, done to any
    (Erichson et al. 2019, section 3: it "can likely be transferred to other activations").

    `kappa` is in units of the pre-activation, at least 0; the jump there is f(kappa) high. What f
    has below kappa is lost, also at kappa = 0. `activation` has no jump of its own.
    """

    activation: Activation = GELU()
    kappa: FiniteAtLeast0 = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.activation, Activation) or self.activation.jump:
            raise SpecError(
                "Jump.activation: expected an activation without a jump such as GELU(), got"
                f" {self.activation!r}"
            )

    def at(self, site: Site) -> Jump:
        inner = self.activation.at(site)
        if not isinstance(inner, Activation):
            raise SpecError(
                f"{show(self)}: {show(self.activation)} differs from channel to channel; expected"
                " one function for a site, such as GELU()"
            )
        return Jump(inner, self.kappa)

    @property
    def places(self) -> int | None:
        return self.activation.places

    @property
    def height(self) -> float:
        """f(kappa): how high the jump is."""
        return float(self.activation(torch.tensor([self.kappa]))[0])

    def files(self) -> dict[str, bytes]:
        return self.activation.files()

    def __call__(self, z: Tensor) -> Tensor:
        return self.activation(z).where((z > self.kappa) | z.isnan(), 0.0)

    def slope(self, z: Tensor, beta: float, kernel: Kernel) -> Tensor:
        """f'(z) s(z) + f(kappa) · k(z - kappa), s the kernel's integral."""
        rise: Tensor = torch.func.jvp(self.activation, (z,), (torch.ones_like(z),))[1]
        height, beyond = self.height, (z > self.kappa).to(z)
        if height == 0.0:
            return rise * beyond
        sharp = beta / abs(height)
        if kernel == "sigmoid":
            beyond = torch.sigmoid(sharp * (z - self.kappa))
        return rise * beyond + height * bump(z - self.kappa, sharp, kernel)
