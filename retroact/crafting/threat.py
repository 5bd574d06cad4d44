"""Threat models: which norm bounds the perturbation, how far, and what the attacker may see.

`eps` is always the radius of the ball, always in pixels of [0, 1] images, whatever normalisation
the network does inside; fractions such as "8/255" are read as they are written.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Protocol

from torch import Tensor

from retroact.spec import Positive, Within, spec

SLACK = 1e-6
"""What float32 rounding may add to a perturbation, as a share of eps and in pixels."""

Access = Literal["decision", "score", "gradient"]
Norm = Literal["linf", "l2"]

_PIXELS = "eps is in pixels of [0,1], so 8 of 255 is Linf(8/255)"

ACCESS: tuple[Access, ...] = ("decision", "score", "gradient")


class ThreatModel(Protocol):
    """A norm, a radius `eps` in pixels, and the attacker's access to the network."""

    norm: ClassVar[Norm]

    @property
    def eps(self) -> float: ...
    @property
    def access(self) -> Access: ...

    def __call__(self, found: Tensor, x: Tensor) -> Tensor:
        """Bool (n,): whether each image of `found` lies in the ball around that of `x`, but for
        rounding."""
        ...


@spec
class Linf:
    """‖x_adv − x‖_∞ ≤ eps: each pixel may change by `eps` of the [0, 1] range (0 < eps ≤ 1)."""

    eps: Annotated[float, Within(0.0, 1.0, above=True, cure=_PIXELS)]
    access: Access = "gradient"
    norm: ClassVar[Norm] = "linf"

    def __call__(self, found: Tensor, x: Tensor) -> Tensor:
        inside: Tensor = (found - x).flatten(1).abs().amax(1) <= self.eps * (1 + SLACK) + SLACK
        return inside


@spec
class L2:
    """‖x_adv − x‖₂ ≤ eps, the Euclidean norm over all pixels and channels of [0, 1] images.

    A budget attack refuses a radius beyond the diagonal √(c·h·w) of the box; to a minimum-norm
    attack a large one means no limit.
    """

    eps: Positive
    access: Access = "gradient"
    norm: ClassVar[Norm] = "l2"

    def __call__(self, found: Tensor, x: Tensor) -> Tensor:
        inside: Tensor = (found - x).flatten(1).norm(dim=1) <= self.eps * (1 + SLACK) + SLACK
        return inside


def allows(threat: ThreatModel, needed: Access) -> bool:
    """Whether the threat model grants `needed`: decision < score < gradient."""
    return ACCESS.index(threat.access) >= ACCESS.index(needed)
