"""Polynomial: the parabola nearest to ReLU, for where only sums and products can be computed."""

from __future__ import annotations

import math

from torch import Tensor

from retroact.activations.activation import Activation
from retroact.activations.measured import Measured, Moments
from retroact.activations.ramp import FinitePositive
from retroact.activations.site import Site
from retroact.spec import SpecError, show, spec

PHI_0 = 1.0 / math.sqrt(2.0 * math.pi)
"""The standard normal density at 0."""


@spec
class Polynomial(Measured):
    """s φ₀ + z/2 + φ₀/(2 s) · (z² - s²), φ₀ = 1/√(2π): of all parabolas the nearest to ReLU in
    least squares where z ~ N(0, s²), for private inference under encryption, where ReLU is dear
    (what that costs in robustness asks RLNet, arXiv:2402.05521).

    `s` is one for all sites, in units of the pre-activation. Without it `calibrate` measures the
    root mean square of what goes into each site, and a file has it. It is smooth, has no neutral
    value and ignores a cap.
    """

    s: FinitePositive | None = None
    file: str = ""
    sha256: str = ""
    what = "width"

    def __post_init__(self) -> None:
        if self.s is not None and self.file:
            raise SpecError(f"Polynomial: s={self.s} is for all sites; give it or a file, not both")
        object.__setattr__(self, "sha256", self.kept.settle())

    def numbers(self, seen: Moments) -> Tensor:
        return (seen.variance + seen.mean**2).mean().sqrt().clamp_min(1e-6)[None]

    def at(self, site: Site) -> Activation:
        if self.s is not None:
            return self
        return Polynomial(float(self.numbers_at(site.name)))

    def __call__(self, z: Tensor) -> Tensor:
        if self.s is None:
            raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")
        return 0.5 * PHI_0 * self.s + z * (0.5 + 0.5 * PHI_0 / self.s * z)
