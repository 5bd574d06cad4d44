"""Activations that draw: noise before a ReLU, and units that are dropped by chance.

They draw from torch's own generators, as dropout does. An audit notices that a network draws, and
attacks the mean over its draws (`Expectation`).
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.activations.activation import Activation
from retroact.activations.piecewise import ReLU
from retroact.activations.ramp import FiniteAtLeast0
from retroact.activations.site import Site
from retroact.spec import Positive, Within, spec


@spec
class NoisyReLU(Activation):
    """min(max(0, z + sigma n), cap), n drawn anew from N(0, 1) for every entry in every pass.

    `sigma` is in units of the pre-activation; at 0 it is the site's own activation, bit for bit.
    Such defences are broken by averaging (Athalye, Carlini & Wagner 2018, arXiv:1802.00420).
    """

    sigma: FiniteAtLeast0 = 0.1
    cap: Positive = float("inf")
    grid: ClassVar[tuple[float, ...]] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5)

    @property
    def neutral(self) -> NoisyReLU:
        return NoisyReLU(0.0)

    def at(self, site: Site) -> NoisyReLU:
        return NoisyReLU(self.sigma, min(self.cap, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        moved = z if self.sigma == 0.0 else z + self.sigma * torch.randn_like(z)
        return ReLU(self.cap)(moved)


@spec
class StochasticPruning(Activation):
    """h_i · 1[i is picked]/(1 - (1 - p_i)^r), h = min(max(0, z), cap): of an example's N responses
    r = ⌈share · N⌉ draws with replacement pick entry i with the chance p_i = h_i/Σh, and what is
    never picked becomes 0 (stochastic activation pruning: Dhillon et al. 2018, arXiv:1803.01442,
    algorithm 1).

    Not elementwise: z (n, …) has an example on every row. Its mean over many draws is h. Broken by
    averaging (Athalye, Carlini & Wagner 2018, arXiv:1802.00420).
    """

    share: Annotated[float, Within(0.0, 100.0, above=True)] = 1.0
    cap: Positive = float("inf")
    grid: ClassVar[tuple[float, ...]] = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)

    def at(self, site: Site) -> StochasticPruning:
        return StochasticPruning(self.share, min(self.cap, site.cap))

    def __call__(self, z: Tensor) -> Tensor:
        h = ReLU(self.cap)(z)
        rows = h.detach().flatten(1) if h.dim() > 1 else h.detach().view(-1, 1)
        # NaN passes, so it is not picked by but stays; a row of zeros picks anything
        weights = rows.float().nan_to_num(0.0, 0.0, 0.0) + torch.finfo(torch.float32).tiny
        draws = math.ceil(self.share * rows.shape[1])
        picks = torch.multinomial(weights, draws, replacement=True)
        picked = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, picks, True)
        p = (weights / weights.sum(1, keepdim=True)).clamp(max=1.0 - 1e-7)
        chance = -torch.expm1(draws * torch.log1p(-p))
        factor = torch.where(picked, 1.0 / chance, 0.0).to(h)
        return h * factor.view_as(h)
