"""What an activation is: an elementwise function (z) -> z that can take the place of a trained
net's ReLU, and what the rest of the package asks of it.

An activation is a spec that inherits `Activation` and says its formula; everything else has a
default, so that one of your own is one class in one file:

    @spec
    class Softened(Activation):
        "log(1 + exp(beta z)) / beta."

        beta: FinitePositive = 1.0

        def __call__(self, z: Tensor) -> Tensor:
            return F.softplus(z, self.beta)

One of the family z ↦ min(α z 1[z > κ], cap) inherits `piecewise.Piecewise` and says its `ramp`:
then it folds, and has a smoothed backward where it jumps. One with other jumps, or several,
inherits `surrogate.Jumping` and says its `slope`; one whose numbers are measured at each site
inherits `measured.Measured`. Any shape in, the same shape out, elementwise as a rule. A NaN should
pass through, so that it is seen and not hidden.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from retroact.activations.ramp import Ramp
from retroact.activations.site import Site
from retroact.spec import SpecError, show

Kernel = Literal["sigmoid", "rectangle"]


class Activation(ABC):
    """An elementwise function with a neutral value, a place in a net, and a smoothed backward.

    `grid` holds values of its first field worth trying, from the plain net outwards, where it has a
    knob.
    """

    grid: ClassVar[tuple[float, ...]] = ()

    @abstractmethod
    def __call__(self, z: Tensor, /) -> Tensor:
        """The function of z, elementwise."""

    @property
    def neutral(self) -> Activation | None:
        """The same activation at the value where it is the site's own, or None where there is
        none."""
        return None

    @property
    def ramp(self) -> Ramp | None:
        """Its numbers where it is min(α z 1[z > κ], cap), else None."""
        return None

    @property
    def jump(self) -> bool:
        """Whether the function is discontinuous, so that its autograd derivative misses a spike."""
        return False

    @property
    def places(self) -> int | None:
        """For how many sites it is written, one after the other; None where any site will do."""
        return None

    @property
    def replaces(self) -> tuple[str, ...]:
        """Kinds of activations that it is written for, each of which a net must call; those beyond
        ReLU it takes the place of without being asked by `also`."""
        return ()

    def at(self, site: Site) -> Activation | nn.Module:
        """What is installed at this site of a net: a jump or a slope keeps the cap of a ReLU6."""
        return self

    def surrogate(self, beta: float, kernel: Kernel = "sigmoid") -> Activation:
        """The same forward, bit for bit, with a backward that sees the jump, where there is one:
        see `Surrogate`. SpecError for a jump of an unknown place."""
        if self.jump:
            raise SpecError(
                f"{show(self)} jumps and does not say how its derivative is smoothed: inherit"
                " Piecewise and say ramp, inherit Jumping and say slope, write surrogate(beta,"
                " kernel), or give surrogate=, a network to climb in its place"
            )
        return self

    def smoothed(self, sharpness: float, kernel: Kernel = "sigmoid") -> Activation:
        """Itself with a kernel of beta = sharpness/kappa at its jump, where there is one."""
        if not self.jump:
            return self
        return self.surrogate(sharpness / (1.0 if self.ramp is None else self.ramp.kappa), kernel)

    def folded(self, s: float) -> Folded | None:
        """What stands here in a net whose tensors are divided by s > 0: f(s z) = factor · g(z +
        shift). None where no factor can be moved through."""
        return Folded(self) if s == 1.0 else None

    def files(self) -> dict[str, bytes]:
        """The files that it needs, by their SHA-256: what must travel with a saved network.

        They come back through `files.content` under the same name.
        """
        return {}


class Folded(NamedTuple):
    """z ↦ factor · activation(z + shift); the shift (c,), one per channel, is 0 where it is
    None."""

    activation: Activation | nn.Module
    factor: float = 1.0
    shift: Tensor | None = None
