"""tune: clean, claimed and verified accuracy against an activation's knob, on validation data, and
what to take.

*Claimed* is cross-entropy PGD, as the papers ran it. *Verified* is here the per-example worst case
of that, PGD on the margin loss, and, for an activation with a jump, PGD on the margin loss through
the smoothed backward pass: tuning's own attacks, fewer than an audit's, so an upper bound on what
an audit would find. What is best here is what to audit next. Test data is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from retroact.activations.activation import Activation
from retroact.activations.measured import Measured
from retroact.attacks.pgd import CLAIMED, PGD
from retroact.crafting.threat import ThreatModel
from retroact.doors import checked
from retroact.evaluation.evaluate import evaluate
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy, worst_case
from retroact.executors import SERIAL, Executor, in_order
from retroact.ground import neutral
from retroact.nets.classifier import sized
from retroact.nets.data import name_split
from retroact.reading import Data, Examples, Said, as_activation, as_images, as_module, as_threat
from retroact.retrofitting.surgery import retrofit
from retroact.shown import as_html, percent
from retroact.spec import CallError, show, take
from retroact.training.learnable import SHARPNESS

if TYPE_CHECKING:
    from pandas import DataFrame

    from retroact.figures import Figure

ON_MARGIN = PGD(steps=40, loss="margin")
TUNED = ("clean", "under the papers' PGD", "under tuning's attacks")
"""What a point's three accuracies are in words; they are no audit's."""


@dataclass(frozen=True)
class Point:
    """One value of the knob and the accuracies it gives, in [0, 1]."""

    activation: Any
    knob: float
    clean: float
    claimed: float
    verified: float


@dataclass(frozen=True)
class Tuning:
    """The curve, and two readings of it.

    `activation` has the best accuracy under tuning's own attacks among those that keep `keep` of
    the clean accuracy (the one nearest to the plain network where several are as good): what to
    audit next. `largest` is the papers' rule: the largest knob that keeps `keep` of the clean
    accuracy.
    """

    points: tuple[Point, ...]
    knob: str
    keep: float
    data: str
    threat: str
    n: int
    also: tuple[str, ...] = ()

    @property
    def activation(self) -> Any:
        return self.best.activation

    @property
    def best(self) -> Point:
        return max(self.affordable, key=lambda p: (p.verified, -self.points.index(p)))

    @property
    def largest(self) -> Point:
        return self.affordable[-1]

    @property
    def affordable(self) -> list[Point]:
        """The points that keep enough clean accuracy; the first, of the neutral value, always
        does."""
        return [p for p in self.points if p.clean >= self.keep * self.points[0].clean] or [
            self.points[0]
        ]

    @property
    def gain(self) -> float:
        """Verified accuracy of the best value over the neutral value's; a gain of noise's size is
        none."""
        return self.best.verified - self.points[0].verified

    def __repr__(self) -> str:
        return f"<Tuning on {self.data} within {self.threat}: {self}>"

    def _repr_html_(self) -> str:
        head = (self.knob, *(f"{words} %" for words in TUNED), "")
        rows = [
            (f"{p.knob:g}", *map(percent, (p.clean, p.claimed, p.verified)), self._remark(p))
            for p in self.points
        ]
        return as_html(str(self), head, rows)

    def _remark(self, point: Point) -> str:
        said = {"best by these": self.best, "the papers' rule": self.largest}
        return ", ".join(words for words, taken in said.items() if taken == point)

    def frame(self) -> DataFrame:
        """A row for each value of the knob, as a pandas DataFrame: the knob, `clean`, `claimed` and
        `verified` accuracy under tuning's own attacks, and whether it is `best` or `largest`."""
        from pandas import DataFrame  # which `datasets` brings

        names = ("clean", "claimed", "verified")
        rows = [
            {self.knob: p.knob} | {name: getattr(p, name) for name in names} for p in self.points
        ]
        marks = {"best": self.best, "largest": self.largest}
        return DataFrame(rows).assign(
            **{w: [p == m for p in self.points] for w, m in marks.items()}
        )

    def plot(self) -> Figure:
        """Clean accuracy and that under tuning's attacks on validation data, with Wilson's 95 %,
        over the knob; the best value is marked."""
        from retroact.figures import TOLD, Curve, curves  # and with it matplotlib

        points = sorted(self.points, key=lambda point: point.knob)
        knobs = [p.knob for p in points]
        drawn = [
            Curve(words, knobs, [getattr(p, name) for p in points], colour, self.n)
            for words, (name, colour) in zip(TUNED, TOLD.items(), strict=True)
        ]
        return curves(
            drawn,
            self.knob,
            "accuracy on validation data, %",
            marked=self.best.knob,
            title=f"{self.threat} on {self.data}, n = {self.n}",
        )

    def __str__(self) -> str:
        plain = f"ReLU in the place of {', '.join(self.also)}" if self.also else "the plain network"
        gained = f"{100 * self.gain:+.1f} points over {plain}"
        return (
            f"best under tuning's own attacks on {self.data}: {show(self.activation)} "
            f"({gained}, n = {self.n}; an audit on test data says what it is worth); "
            f"the papers' rule, largest {self.knob} that keeps {self.keep:.0%} of clean accuracy: "
            f"{show(self.largest.activation)}"
        )


@neutral()
def tune(
    network: str | PathLike[str] | nn.Module,
    kind: type[Any] | Measured | str,
    data: Data,
    threat: Said[ThreatModel],
    *,
    keep: float = 0.99,
    grid: Sequence[float] | None = None,
    sites: str = "*",
    also: Iterable[str] = (),
    seed: int = 0,
    chunk: int | None = None,
    executor: Said[Executor] = SERIAL,
    progress: Callable[[float, int], None] | None = None,
) -> Tuning:
    """Tries each value of the first field of `kind` (an activation class, or its name; for one
    that needs numbers the activation that `calibrate` gave) on `data`.

    `grid` None takes the class's own `grid`; the neutral value, which is the plain network, is put
    first where it is missing. `also` names kinds beyond ReLU that are replaced too, at the neutral
    value by a ReLU. The `executor` runs the values, which do not depend on one another. `progress`
    is called with (values done, values in all).

    Raises ValueError for test data, for data of unknown split that is named as test, for a kind
    without a knob, and for `keep` outside (0, 1].
    """
    network, kind, threat = as_module(network), _kind(kind), as_threat(threat)
    data, executor = as_images(data, network), take(executor, Executor)
    seed, chunk, _ = checked(seed, chunk)
    _refuse_test_data(data)
    if not 0 < keep <= 1:
        raise CallError(f"expected keep in (0, 1], the share of clean accuracy to keep, got {keep}")
    network = sized(network, data.images.shape[1:])
    candidates, kinds = _candidates(kind, grid), tuple(also)
    trial = _Trial(network, data, threat, sites, kinds, seed, chunk)

    def ended(count: int) -> None:
        if progress is not None:
            progress(float(count), len(candidates))

    points = tuple(in_order(executor, trial, candidates, ended))
    return Tuning(points, _knob_of(kind), keep, data.name, show(threat), len(data.labels), kinds)


def passes_of(
    kind: type[Any] | Measured | str, grid: Sequence[float] | None = None
) -> tuple[int, int]:
    """How many values `tune` tries, and how many gradients they take of each image at most."""
    candidates = _candidates(_kind(kind), grid)
    passes = CLAIMED.passes, ON_MARGIN.passes
    jumps = sum(bool(activation.jump) for activation, _ in candidates)
    return len(candidates), len(candidates) * sum(passes) + jumps * ON_MARGIN.passes


@dataclass(frozen=True)
class _Trial:
    """Tries one value of the knob."""

    network: nn.Module
    data: Examples
    threat: ThreatModel
    sites: str
    also: tuple[str, ...]
    seed: int
    chunk: int | None

    def __call__(self, candidate: tuple[Activation, float]) -> Point:
        activation, knob = candidate
        fitted = self._fit(activation)
        runs: list[tuple[PGD, nn.Module | None]] = [(CLAIMED, None), (ON_MARGIN, None)]
        if activation.jump:
            runs.append((ON_MARGIN, self._fit(activation.smoothed(SHARPNESS))))
        how: dict[str, Any] = {"seed": self.seed, "chunk": self.chunk}
        records = [
            evaluate(fitted, self.data, attack, self.threat, source=source, **how)
            for attack, source in runs
        ]
        clean, claimed = clean_accuracy(records[0]), robust_accuracy(records[0])
        return Point(activation, knob, clean, claimed, float(np.mean(worst_case(records))))

    def _fit(self, activation: Activation) -> nn.Module:
        return retrofit(self.network, activation, sites=self.sites, also=self.also)


def _candidates(kind: Any, grid: Sequence[float] | None) -> list[tuple[Any, float]]:
    knob = _knob_of(kind)
    make = kind if isinstance(kind, type) else partial(replace, kind)
    values = list(kind.grid if grid is None else grid)
    if not values:
        name = kind.__name__ if isinstance(kind, type) else type(kind).__name__
        raise CallError(f"{name} has no values of its own to try; give grid=")
    neutral = make().neutral
    if neutral is not None:
        values = [getattr(neutral, knob), *(v for v in values if v != getattr(neutral, knob))]
    return [(make(**{knob: v}), float(v)) for v in values]


def _kind(said: type[Any] | Measured | str) -> Any:
    """The class that a bare name says; anything else as it is."""
    if not isinstance(said, str):
        return said
    found = as_activation(said)
    return found if "(" in said else type(found)


def _knob_of(kind: Any) -> str:
    cls = type(kind) if isinstance(kind, Measured) else kind
    named = [f.name for f in fields(cls)] if isinstance(cls, type) and is_dataclass(cls) else []
    if not named or not issubclass(cls, Activation):
        raise CallError(
            f"expected an activation class with a number to tune, such as JumpReLU, got {kind!r}"
        )
    return named[0]


def _refuse_test_data(data: Examples) -> None:
    if getattr(data, "split", "") == "test":
        raise ValueError(
            f"{data.name} is test data, and nothing is tuned on it: the number would not be worth"
            f" reading; use {name_split(data.name, 'validation')}"
        )
