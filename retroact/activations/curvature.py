"""CurvatureTuning: a ReLU whose corner is rounded as one number says."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from retroact.activations.activation import Activation
from retroact.activations.piecewise import ReLU
from retroact.activations.site import Site
from retroact.spec import Within, spec


@spec
class CurvatureTuning(Activation):
    """c σ(beta z/(1 - beta)) z + (1 - c)(1 - beta) softplus(z/(1 - beta)): a mix of SiLU and
    softplus, both as sharp as beta says (Hu, Gamba & Balestriero 2025, arXiv:2502.07783).

    beta → 1 sharpens both into ReLU, and beta = 1 is the site's own activation, bit for bit; at
    beta = 0 it is c z/2 + (1 - c) softplus(z). `c` is one half in the paper. It is smooth, and
    below beta = 1 it ignores a cap.
    """

    beta: Annotated[float, Within(0.0, 1.0)] = 0.85
    c: Annotated[float, Within(0.0, 1.0)] = 0.5
    grid: ClassVar[tuple[float, ...]] = (1.0, 0.99, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5)

    @property
    def neutral(self) -> CurvatureTuning:
        return CurvatureTuning(1.0)

    def at(self, site: Site) -> Activation:
        return ReLU().at(site) if self.beta == 1.0 else self

    def __call__(self, z: Tensor) -> Tensor:
        if self.beta == 1.0:
            return F.relu(z)
        width = 1.0 - self.beta
        gated = z * torch.sigmoid(z * (self.beta / width))
        return self.c * gated + (1.0 - self.c) * width * F.softplus(z / width)
