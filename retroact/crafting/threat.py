"""Threat models: which norm bounds the perturbation, how far, and what the attacker may see.

`eps` is always the radius of the ball, always in pixels of [0, 1] images, whatever normalisation
the network does inside; fractions such as "8/255" are read as they are written. Data in another box
have eps in their own units.

A threat answers for its norm: how long a perturbation is, which step climbs most, where the ball
ends. Nobody else asks which norm it is, so another norm is another class here, or anywhere.
Everything is per example: tensors are (n, …), a length is (n,).
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from retroact.crafting.domain import Domain
from retroact.crafting.geometry import TINY, each, nonzero
from retroact.crafting.noise import normal, uniform
from retroact.crafting.pacing import Halving, Pace
from retroact.crafting.windows import Bumps, Stripes, Windows
from retroact.spec import Positive, SpecError, Within, parse, spec

SLACK = 1e-6
"""What float32 rounding may add to a perturbation, as a share of eps and in pixels, or of the
largest entry where that is beyond 1."""

Access = Literal["decision", "score", "gradient"]

_NEWTON = (
    6  # of its steps find where a line meets the box exactly, unless it cuts in very many places
)
_PIXELS = (
    "eps is in pixels of [0,1], so 8 of 255 is Linf(8/255); for data in a wider box say how wide,"
    " Linf(3, width=20)"
)

_RADIUS = re.compile(r"\d*\.?\d+(e-?\d+)?(/\d*\.?\d+)?")

ACCESS: tuple[Access, ...] = ("decision", "score", "gradient")


@runtime_checkable
class ThreatModel(Protocol):
    """A norm ‖·‖, a radius `eps` in pixels, and the attacker's access to the network.

    A norm of one's own says `norm`, `eps`, `access`, `size`, `dual_norm`, `steepest`, `cut` and
    `measure`; the rest follows from them.
    """

    norm: ClassVar[str]
    """What the norm is called in tables and errors: "linf", "l2", …"""
    stride: ClassVar[float] = 1.0
    """The L2 length of a first step of FMN, in pixels: shares of the box's width."""
    region: ClassVar[float] = 0.15
    """The radius in this norm, in pixels, in which TrustRegion trusts its linear model at first."""
    windows: ClassVar[Windows | None] = None
    """How random search paints square windows in this ball (`Square`); None: it cannot."""
    pace: ClassVar[Pace] = Halving()
    """How APGD sets its step in this ball."""
    travel: ClassVar[float] = 2.5
    """How far all steps of PGD lead together, in radii, unless it is told (Madry et al.'s rule)."""

    eps: float
    access: Access

    @staticmethod
    def read(text: str) -> ThreatModel:
        """The threat model that a text says. SpecError for a radius without its norm."""
        if _RADIUS.fullmatch(text.strip()):
            raise SpecError(
                f"{text} is a radius, and which norm it is of is not said: did you mean"
                f" Linf({text})?"
            )
        return parse(text, ThreatModel)

    @staticmethod
    @abstractmethod
    def size(d: Tensor) -> Tensor:
        """‖d‖ of each example, (n,)."""
        ...

    @staticmethod
    @abstractmethod
    def dual_norm(g: Tensor) -> Tensor:
        """max g·d over ‖d‖ ≤ 1 of each example, (n,): what a step of unit length can gain.

        So a linear f reaches zero |f| / ‖∇f‖_q away. Added up in float64, since squares of
        gradients beyond 1e19 or below 1e-19 leave float32; `size` is for distances in the box,
        which do not.
        """
        ...

    @staticmethod
    @abstractmethod
    def steepest(g: Tensor) -> Tensor:
        """The d of ‖d‖ = 1 with the largest g·d; zero where `g` is zero."""
        ...

    @staticmethod
    @abstractmethod
    def cut(d: Tensor, radius: Tensor | float) -> Tensor:
        """`d` (n, …) pulled back into the ball of `radius`, one or (n,)."""
        ...

    @staticmethod
    @abstractmethod
    def measure(domain: Domain) -> float:
        """The diameter of the box: the longest perturbation that it leaves room for."""
        ...

    def __call__(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bool (n,): whether each `x_adv` lies in the ball around `x`, but for rounding."""
        bound = torch.full_like(x.flatten(1)[:, 0], self.eps * (1 + SLACK) + SLACK)
        # float32 is coarser the farther from 1
        inside: Tensor = self.size(x_adv - x) <= bound + SLACK * (_largest(x) - 1).clamp_min(0)
        return inside

    def project(self, x: Tensor, centre: Tensor, domain: Domain) -> Tensor:
        """The point of the ball around `centre`, cut with the box, that `x` is pulled back to."""
        return self.confine(x - centre, self.eps, centre, domain)

    def confine(self, d: Tensor, radius: Tensor | float, centre: Tensor, domain: Domain) -> Tensor:
        """The point of the ball of `radius`, one or (n,), around `centre`, cut with the box, that
        `centre` + `d` is pulled back to.

        First the ball, then the box: since `centre` lies in the box, cutting only shortens the
        perturbation. `Linf` and `L1` find the nearest point of both together.
        """
        return domain.clamp(centre + self.cut(d, radius))

    def start(self, x: Tensor, domain: Domain, index: Tensor, seed: int, stream: int = 0) -> Tensor:
        """A random point of the ball around `x`, cut with the box; an example's own in any
        batch."""
        d = self.steepest(normal(domain.shape, index, seed, stream).to(x))
        length = uniform((1,), index, seed, stream + _LENGTH)[:, 0].to(x) * self.eps
        return self.project(x + each(length, d) * d, x, domain)

    def draw(self, shape: tuple[int, ...], index: Tensor, seed: int, stream: int = 0) -> Tensor:
        """Noise of length 1: a draw from [−1, 1) for each entry, as long as the norm has it."""
        d = uniform(shape, index, seed, stream) * 2 - 1
        return self.along(d)

    def along(self, g: Tensor, guard: float = 0.0) -> Tensor:
        """g / (‖g‖ + `guard`): of length 1, and every entry of `g` has its part in it."""
        return g / each(nonzero(self.size(g) + guard), g)

    def push(
        self,
        x: Tensor,
        gradient: Tensor,
        length: Tensor | float,
        centre: Tensor,
        domain: Domain,
        entries: Tensor | None = None,
    ) -> Tensor:
        """What a step from `x` adds to it, of that length, one or (n,): length · s(gradient).

        A norm whose steepest step moves few entries may mind the box that `x` is in, and spread the
        step over so many `entries` (n,), or as fits how far `x` is from the `centre`: at the centre
        itself it is the best single step that there is.
        """
        s = self.steepest(gradient)
        return (each(length, s) if isinstance(length, Tensor) else length) * s

    def step(
        self, x: Tensor, gradient: Tensor, length: float, centre: Tensor, domain: Domain
    ) -> Tensor:
        """A step of PGD: Π(x + length · s(gradient)), Π the projection to the ball around
        `centre`."""
        moved = torch.add(x, self.steepest(gradient), alpha=length)
        return self.project(moved, centre, domain)

    def shortest(self, w: Tensor, wanted: Tensor, x: Tensor, domain: Domain) -> Tensor:
        """The shortest d (m, …) with w·d = `wanted` (m,) and x + d in the box.

        d = clip(t · s(w)): w·d grows with t ever more slowly, so that Newton's method nears t from
        below. Where the box holds no such point, d is cut short.
        """
        w = domain.inward(w, x)
        s, low, high = self.steepest(w), domain.low - x, domain.high - x
        t = wanted / self.dual_norm(w)
        for _ in range(_NEWTON):
            d = torch.clamp(each(t, s) * s, low, high)
            rate = (w * s * ((d > low) & (d < high))).flatten(1).sum(1)
            t = t + ((wanted - (w * d).flatten(1).sum(1)) / rate).nan_to_num(0.0, 0.0, 0.0)
        return torch.clamp(each(t, s) * s, low, high).nan_to_num(0.0)

    def share(self, entries: int) -> float:
        """1 over the length, about, of draws from [−1, 1) for so many entries."""
        drawn = uniform((entries,), torch.zeros(1, dtype=torch.int64), 0) * 2 - 1
        return 1 / float(self.size(drawn))

    def whole(self, domain: Domain, part: float = 1.0) -> Self:
        """The same threat with `part` of the box's diameter as its radius: 1 is as good as none."""
        return replace(self, eps=part * self.measure(domain))  # type: ignore[type-var]

    def times(self, factor: float) -> Self:
        """The same threat with `factor` times its radius."""
        return replace(self, eps=factor * self.eps)  # type: ignore[type-var]

    def check(self, domain: Domain, *, limitless: bool = False) -> None:
        """ValueError for a radius beyond the box, unless a large one may mean no limit."""
        diameter = self.measure(domain)
        if self.eps > diameter * (1 + SLACK) and not limitless:
            raise ValueError(_too_wide(self, diameter, domain))


@spec
class Linf(ThreatModel):
    """‖x_adv − x‖_∞ ≤ eps: each pixel may change by `eps` of the [0, 1] range (0 < eps ≤ 1).

    For data in a wider box `width` says how wide, and eps may be as large.
    """

    eps: Annotated[float, Within(0.0, above=True)]
    access: Access = "gradient"
    width: Annotated[float, Within(1.0)] = 1.0
    norm: ClassVar[str] = "linf"
    stride: ClassVar[float] = 5.0  # its ball a step leaves in most pixels at once
    region: ClassVar[float] = 0.005
    windows: ClassVar[Windows | None] = Stripes()

    def __post_init__(self) -> None:
        if self.eps > self.width:
            raise SpecError(
                f"Linf.eps: expected at most {self.width:g}, got {self.eps:g}; {_PIXELS}"
            )

    @staticmethod
    def size(d: Tensor) -> Tensor:
        """max |d|."""
        return d.flatten(1).abs().amax(1)

    @staticmethod
    def dual_norm(g: Tensor) -> Tensor:
        """‖g‖₁."""
        return g.flatten(1).abs().sum(1, dtype=torch.float64).to(g.dtype)

    @staticmethod
    def steepest(g: Tensor) -> Tensor:
        """sign(g)."""
        return g.sign()

    @staticmethod
    def cut(d: Tensor, radius: Tensor | float) -> Tensor:
        """Each entry cut to ± the radius."""
        if isinstance(radius, Tensor):
            return torch.clamp(d, -each(radius, d), each(radius, d))
        return d.clamp(-radius, radius)

    @staticmethod
    def measure(domain: Domain) -> float:
        """high − low."""
        return domain.width

    def project(self, x: Tensor, centre: Tensor, domain: Domain) -> Tensor:
        """The nearest point of both, entry by entry."""
        low, high = (centre - self.eps).clamp_(min=domain.low), centre + self.eps
        return torch.clamp(x, low, high.clamp_(max=domain.high))

    def start(self, x: Tensor, domain: Domain, index: Tensor, seed: int, stream: int = 0) -> Tensor:
        """Drawn evenly from the cube."""
        d = (uniform(domain.shape, index, seed, stream) * 2 - 1) * self.eps
        return self.project(x + d, x, domain)

    def draw(self, shape: tuple[int, ...], index: Tensor, seed: int, stream: int = 0) -> Tensor:
        """A draw from [−1, 1) for each entry: evenly from the ball."""
        return uniform(shape, index, seed, stream) * 2 - 1

    def along(self, g: Tensor, guard: float = 0.0) -> Tensor:
        """sign(g)."""
        return g.sign()

    def share(self, entries: int) -> float:
        """1."""
        return 1.0

    def whole(self, domain: Domain, part: float = 1.0) -> Self:
        """A radius of `part` of the box's width."""
        return replace(self, eps=part * domain.width, width=max(1.0, self.width, domain.width))

    def times(self, factor: float) -> Self:
        """The width grows along where it must."""
        eps = factor * self.eps
        return replace(self, eps=eps, width=max(self.width, eps))

    def check(self, domain: Domain, *, limitless: bool = False) -> None:
        """A radius beyond the box is a mistake about units, whatever the attack."""
        super().check(domain)


@spec
class L2(ThreatModel):
    """‖x_adv − x‖₂ ≤ eps, the Euclidean norm over all pixels and channels of [0, 1] images.

    A budget attack refuses a radius beyond the diagonal √(c·h·w) of the box; to a minimum-norm
    attack a large one means no limit.
    """

    eps: Positive
    access: Access = "gradient"
    norm: ClassVar[str] = "l2"
    windows: ClassVar[Windows | None] = Bumps()

    @staticmethod
    def size(d: Tensor) -> Tensor:
        """‖d‖₂."""
        length: Tensor = d.flatten(1).norm(dim=1)
        return length

    @staticmethod
    def dual_norm(g: Tensor) -> Tensor:
        """‖g‖₂."""
        wide: Tensor = g.flatten(1).norm(dim=1, dtype=torch.float64)
        return wide.to(g.dtype)

    @staticmethod
    def steepest(g: Tensor) -> Tensor:
        """g / ‖g‖₂."""
        # Scaled by the largest entry first: squares of gradients below 1e-19 underflow in float32.
        scaled = g / each(nonzero(g.flatten(1).abs().amax(1)), g)
        return scaled / each(nonzero(L2.size(scaled)), scaled)

    @staticmethod
    def cut(d: Tensor, radius: Tensor | float) -> Tensor:
        """d · min(1, radius / ‖d‖₂)."""
        return d * each((radius / L2.size(d).clamp_min(TINY)).clamp_max(1.0), d)

    @staticmethod
    def measure(domain: Domain) -> float:
        """The diagonal, (high − low) √(entries)."""
        return domain.width * math.sqrt(domain.entries)

    def start(self, x: Tensor, domain: Domain, index: Tensor, seed: int, stream: int = 0) -> Tensor:
        """Drawn evenly from the ball."""
        direction = self.steepest(normal(domain.shape, index, seed, stream))
        # in double, as the power of float32 is rounded otherwise at the end of a batch
        drawn = uniform((1,), index, seed, stream + _LENGTH)[:, 0].double()
        length = (drawn ** (1 / domain.entries)).float() * self.eps
        d = direction * each(length, direction)
        return self.project(x + d, x, domain)

    def draw(self, shape: tuple[int, ...], index: Tensor, seed: int, stream: int = 0) -> Tensor:
        """A draw from [−1, 1) for each entry, scaled to length 1."""
        return self.steepest(uniform(shape, index, seed, stream) * 2 - 1)

    def along(self, g: Tensor, guard: float = 0.0) -> Tensor:
        """g / (‖g‖₂ + guard)."""
        return g / each(nonzero(self.dual_norm(g) + guard), g)

    def share(self, entries: int) -> float:
        """√(3 / entries), from the variance 1/3 of each draw."""
        return math.sqrt(3 / entries)


_LENGTH = 500_000_009  # a stream of its own


def allows(threat: ThreatModel, needed: Access) -> bool:
    """Whether the threat model grants `needed`: decision < score < gradient."""
    return ACCESS.index(threat.access) >= ACCESS.index(needed)


def _largest(x: Tensor) -> Tensor:
    """max |x| of each example, (n,)."""
    return x.flatten(1).abs().amax(1)


def _too_wide(threat: ThreatModel, diameter: float, domain: Domain) -> str:
    units = "the data's own units"
    if (domain.low, domain.high) == (0.0, 1.0):
        units = "pixels of [0,1], so divide a radius for [0,255] by 255"
    return (
        f"expected an {type(threat).__name__} radius of at most {diameter:.4g}, the diagonal of the"
        f" box {domain} for {domain.word}s {domain.shape}, got {threat.eps:g}; eps is in {units}"
    )
