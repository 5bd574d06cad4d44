"""KWTA: of every response of a layer the largest entries alone."""

from __future__ import annotations

from typing import Annotated, ClassVar

from torch import Tensor

from retroact.activations.activation import Kernel
from retroact.activations.surrogate import Jumping, step_slope
from retroact.spec import Within, spec

_TINY = 1e-6
"""Of the k-th largest entry: below it the jump is as good as none."""


@spec
class KWTA(Jumping):
    """z where it is among the k largest entries of its example's response, else 0; k = ⌊share · N⌋
    of N entries, at least 1 (k-winners-take-all: Xiao et al. 2020, arXiv:1905.10510).

    Not elementwise: z (n, …) has an example on every row, and channels and positions compete with
    one another. What equals the k-th largest stays too, and a winner below 0 is let through. For
    each example it is z · 1[z >= v], v the k-th largest: a jump of height v at v, which `surrogate`
    smooths as it does JumpReLU's (v itself held fixed). Attacks with gradients so smoothed broke
    the published defence (Tramèr et al. 2020, arXiv:2002.08347).
    """

    share: Annotated[float, Within(0.0, 1.0, above=True)] = 0.2
    grid: ClassVar[tuple[float, ...]] = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)

    def __call__(self, z: Tensor) -> Tensor:
        return z.where((z >= self.least(z)) | z.isnan(), 0.0)

    def least(self, z: Tensor) -> Tensor:
        """The k-th largest entry of each row of z (n, …), of shape (n, 1, …); (n,) are n rows."""
        if z.dim() == 0:
            return z
        flat = z.flatten(1) if z.dim() > 1 else z[:, None]
        k = max(1, int(self.share * flat.shape[1]))
        return flat.topk(k, dim=1).values[:, -1].view(-1, *[1] * (z.dim() - 1))

    def slope(self, z: Tensor, beta: float, kernel: Kernel) -> Tensor:
        """That of JumpReLU at kappa = v, with beta/|v|."""
        v = self.least(z)
        return step_slope(z, v, beta / v.abs().clamp_min(_TINY), kernel)
