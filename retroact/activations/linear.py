"""Linearized: a site without an activation."""

from __future__ import annotations

from torch import Tensor

from retroact.activations.activation import Activation, Folded
from retroact.spec import spec


@spec
class Linearized(Activation):
    """z: the site has no activation any more, as private inference has it where ReLUs are dear
    (DeepReDuce: Jha et al. 2021, arXiv:2103.01396; SNL: Cho et al. 2022, arXiv:2202.02340).

    Say with `sites` which: a network without any is linear. It has no neutral value and ignores a
    cap.
    """

    def __call__(self, z: Tensor) -> Tensor:
        return z

    def folded(self, s: float) -> Folded:
        """s z = s · z."""
        return Folded(self, s)
