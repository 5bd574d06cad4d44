"""LWTA: of every few units of a layer one alone answers."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from retroact.activations.activation import Kernel
from retroact.activations.surrogate import Jumping
from retroact.spec import Within, spec


@spec
class LWTA(Jumping):
    """z_i · 1[i wins its block], the channels of axis 1 in blocks of `units`: the largest wins, or
    with `draws` one that is drawn anew in every pass with the chance softmax(z)_i (local winner
    takes all: Srivastava et al. 2013; stochastic: Panousis, Chatzis & Theodoridis 2021,
    arXiv:2112.02671).

    Not elementwise: the units of a block compete at each position; what equals the largest wins
    too, and a winner may be negative. z (n, c, …) with c a multiple of `units`. A network has to be
    trained with it. Where the largest wins it jumps, from 0 to the second largest, as z_i passes
    that; `surrogate` spreads this over a softmax of beta · z and holds who wins fixed: its slope is
    the chance to win. Where the winner is drawn nothing jumps but by chance: an attack averages.
    """

    units: Annotated[int, Within(2, 64)] = 2
    draws: bool = False

    @property
    def jump(self) -> bool:
        return not self.draws

    def __call__(self, z: Tensor) -> Tensor:
        blocks = self._blocks(z)
        if not self.draws:
            wins = (blocks >= blocks.amax(2, keepdim=True)) | blocks.isnan()
            return (blocks * wins).view_as(z)
        # Gumbel's noise: the largest of z + g is i with the chance softmax(z)_i
        noise = -torch.empty_like(blocks).exponential_().clamp_min(1e-30).log()
        noisy = blocks.detach() + noise
        wins = (noisy >= noisy.amax(2, keepdim=True)) | blocks.isnan()
        return (blocks * wins).view_as(z)

    def slope(self, z: Tensor, beta: float, kernel: Kernel) -> Tensor:
        """softmax(beta z/h) + z d/dz of it, h the mean size of a block's entries."""
        blocks = self._blocks(z)
        unit = blocks.abs().mean(2, keepdim=True).clamp_min(1e-6)
        chance = torch.softmax(beta * blocks / unit, 2)
        spread = beta / unit * chance * (1.0 - chance)
        if kernel == "rectangle":
            wins = (blocks >= blocks.amax(2, keepdim=True)).to(z)
            near = chance * (1.0 - chance) > 0.1
            return (wins + blocks * spread * near).view_as(z)
        return (chance + blocks * spread).view_as(z)

    def _blocks(self, z: Tensor) -> Tensor:
        """z as (n, c/units, units, …)."""
        channels = z.shape[1] if z.dim() > 1 else 1
        if channels % self.units:
            raise ValueError(
                f"LWTA: expected a multiple of {self.units} channels on axis 1, got a tensor of"
                f" shape {tuple(z.shape)}; choose other sites or units"
            )
        return z.reshape(len(z), channels // self.units, self.units, *z.shape[2:])
