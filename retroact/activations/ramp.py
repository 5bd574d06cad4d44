"""The piecewise functions z ↦ min(α z 1[z > κ], cap), by their three numbers.

What networks have of their own is one of them (ReLU, ReLU6, a jump), and so are most of the
activations that take its place; surrogates, folding and sites need nothing else of a function.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch

from retroact.spec import Within

_FLOAT32_MAX = torch.finfo(torch.float32).max
FiniteAtLeast0 = Annotated[float, Within(0.0, _FLOAT32_MAX)]
FinitePositive = Annotated[float, Within(0.0, _FLOAT32_MAX, above=True)]


class Ramp(NamedTuple):
    """z ↦ min(alpha · z · 1[z > kappa], cap): what all piecewise activations here have in
    common; by default a ReLU."""

    alpha: float = 1.0
    kappa: float = 0.0
    cap: float = math.inf

    @property
    def jump(self) -> bool:
        """Whether it is discontinuous: at kappa it jumps from 0 to kappa."""
        return self.kappa > 0.0


RELU = Ramp()
"""max(0, z)."""
