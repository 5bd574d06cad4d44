"""Measured: an activation whose numbers are measured at each site of a trained net.

One of your own is one class: it says what of its input it keeps, in `numbers`; `ra.calibrate`
measures, keeps the numbers in a safetensors file, and gives the spec that names it.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from retroact.activations.activation import Activation
from retroact.activations.files import Kept, keep
from retroact.activations.ramp import Ramp
from retroact.activations.site import Site
from retroact.spec import CallError, SpecError, show


@dataclass(frozen=True)
class Moments:
    """What went into a site: `mean`, `variance`, `least` and `most` (c,) of each channel over all
    examples and positions, `count` of them, in float64."""

    mean: Tensor
    variance: Tensor
    least: Tensor
    most: Tensor
    count: int

    def __add__(self, other: Moments) -> Moments:
        """Those of both lots together: the true variance, not the mean of the two."""
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / count
        within = (1 - share) * self.variance + share * other.variance
        between = share * (1 - share) * apart * apart
        least, most = self.least.minimum(other.least), self.most.maximum(other.most)
        return Moments(self.mean + share * apart, within + between, least, most, count)


class Measured(Activation):
    """An activation with one tensor of numbers per site, which lies in a file; a subclass has the
    fields `file` and `sha256`, "" until it is measured."""

    file: str
    sha256: str
    what: ClassVar[str]
    """What the numbers are, in a word."""

    @abstractmethod
    def numbers(self, seen: Moments) -> Tensor:
        """What is kept of a site, of what went into it."""

    def measured(self, seen: dict[str, Moments], file: str | None = None) -> Self:
        """The same with its numbers, of what went into each site, in a new file; without one they
        are kept in memory, and travel with a saved network."""
        tensors = {site: self.numbers(moments) for site, moments in seen.items()}
        name, sha256 = keep({site: t.float() for site, t in tensors.items()}, file)
        return replace(self, file=name, sha256=sha256)  # type: ignore[type-var]  # a spec

    def files(self) -> dict[str, bytes]:
        return {self.sha256: self.kept.content()} if self.file else {}

    @property
    def kept(self) -> Kept:
        """Its file."""
        return Kept(type(self).__name__, self.what, "calibrate", self.file, self.sha256)

    def own_at(self, site: Site) -> Ramp:
        """The site's own activation, which stays. SpecError where that is no ReLU."""
        if site.own is None:
            raise SpecError(
                f"{show(self)} keeps a site's own activation, and that of {site.name!r}"
                f" ({site.kind}) is no ReLU; leave that kind out of also="
            )
        return site.own

    def numbers_at(self, site: str) -> Tensor:
        """The numbers of a site, float32. CallError where nothing has been measured."""
        if not self.file:
            raise CallError(
                f"{show(self)} has no {self.what} yet: ra.calibrate(net, {show(self)}, train)"
                " measures them on training data (retroact calibrate)"
            )
        return self.kept.tensor(site)
