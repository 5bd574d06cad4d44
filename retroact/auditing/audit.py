"""audit: what a retrofit is worth, claimed beside verified, with the mechanism and a verdict.

The order of the procedure is that of `audit`: the doors, the indicators on points that both
networks decide rightly, the same battery on both, the doubts, and the verdict. *Verified* is the
worst case over every attack that was run, example by example: an upper bound on what the network
withstands, never a certificate.
"""

from __future__ import annotations

import inspect
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retroact.activations.activation import Activation
from retroact.attacks.pgd import PGD
from retroact.auditing.battery import (
    KERNELS,
    QUICK,
    STAGES,
    THOROUGH,
    Battery,
    Party,
    Schedule,
    Side,
    Siege,
    chosen_guide,
    parties,
)
from retroact.auditing.indicators import Glance, Reading, indicators
from retroact.auditing.verdict import MARGIN, Counts, Verdict, counted, judge
from retroact.crafting.attack import Attack
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.expectation import Expectation
from retroact.crafting.oracle import Network, device_of, evaluating, in_float
from retroact.crafting.threat import ThreatModel
from retroact.doors import check_images, check_labels, checked, warn_of_probabilities, whole
from retroact.evaluation.evaluate import decide, described, left_alone
from retroact.evaluation.proof import Proved
from retroact.executors import SERIAL, Executor, in_order
from retroact.ground import neutral
from retroact.reading import (
    Data,
    Examples,
    Net,
    Said,
    as_attack,
    as_changed,
    as_images,
    as_network,
    as_threat,
)
from retroact.retrofitting.surgery import Retrofit
from retroact.spec import show, take

CLAIMED = PGD(steps=40, relative_step=1 / 30)
"""The protocol that both papers share: cross-entropy, 40 steps of eps/30 from a random start."""


@dataclass(frozen=True, eq=False)
class Audit:
    """The outcome of an audit: `verdict`, the two `sides` (twin, retrofit), the `readings`, and
    what was run."""

    verdict: Verdict
    sides: tuple[Side, Side]
    readings: tuple[Reading, ...]
    names: tuple[str, str]
    data: str
    threat: str
    claimed_attack: str
    battery: Battery
    domain: Domain
    curves: dict[str, Any] = field(default_factory=dict)
    pedigree: dict[str, Any] = field(default_factory=dict)

    @property
    def twin(self) -> Side:
        return self.sides[0]

    @property
    def retrofit(self) -> Side:
        return self.sides[1]

    @property
    def alarms(self) -> tuple[Reading, ...]:
        """The indicators that fired."""
        return tuple(r for r in self.readings if r.fired)

    def __str__(self) -> str:
        return str(self.verdict)

    def numbers(self) -> dict[str, Any]:
        """The audit as plain numbers and texts, for JSON and the report; what an indicator asks
        stands beside it."""
        c, v = self.verdict.counts, self.verdict
        asked = {
            i.title: {
                "about": inspect.getdoc(i.function) or "",
                "source": i.source,
                "ratio": i.ratio,
            }
            for i in indicators()
        }
        return {
            "twin": self.names[0],
            "network": self.names[1],
            "data": self.data,
            "threat": self.threat,
            "n": c.n,
            "effect": v.effect,
            "claim": v.claim,
            "verdict": str(v),
            "plainly": v.plainly(self.domain.word),
            "mechanism": v.mechanism,
            "clean": c.clean[1],
            "clean_twin": c.clean[0],
            "claimed": c.claimed[1],
            "claimed_twin": c.claimed[0],
            "verified": c.verified[1],
            "verified_twin": c.verified[0],
            "gained": c.gained,
            "lost": c.lost,
            "p": c.p,
            "interval": list(c.interval),
            "doubts": list(v.doubts),
            "needs": v.needs,
            "claimed_attack": self.claimed_attack,
            "battery": show(self.battery),
            "indicators": [vars(r) | asked.get(r.title, {}) for r in self.readings],
            "attacks": {
                "twin": [vars(r) for r in self.twin.runs],
                "network": [vars(r) for r in self.retrofit.runs],
            },
            "curves": self.curves,
            "pedigree": self.pedigree,
        }


@neutral()
def audit(
    twin: Net,
    defended: Net | Said[Activation] | Retrofit,
    data: Data,
    threat: Said[ThreatModel],
    *,
    claimed: Said[Attack] = CLAIMED,
    surrogate: Net | None = None,
    battery: Battery | Literal["quick", "thorough"] | None = None,
    kernels: Sequence[Schedule] | None = None,
    draws: int = 0,
    margin: float = MARGIN,
    seed: int = 0,
    chunk: int | None = None,
    executor: Said[Executor] = SERIAL,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """What `defended` is worth beside `twin`, the network before the change, on the examples of
    `data`.

    Any two networks with the same inputs and classes will do; where `defended` is a retrofit, the
    attacks that know it are derived from its spec, and where it is an activation, `twin` is
    retrofitted with it. All of these may be their texts: audit("lenet-mnist", "JumpReLU(1.0)",
    "mnist[:300]", "Linf(0.1)").

    `claimed` is the attack behind the claim; `surrogate` a network to climb in the place of
    `defended`, if it has no spec. `battery` "quick" runs the decisive attacks only, "thorough"
    begins anew until nothing more falls. `draws` averages randomised networks over so many draws.
    `margin` is the accuracy difference that matters. The `executor` attacks the two
    networks, with the same outcome: Threads(2) both at once.

    Raises ValueError for networks that do not fit each other or the data, that decide at chance or
    at random (without `draws`), for a threat without gradient access, and for a radius at which
    nothing can survive.
    """
    spent = _spent(battery)
    twin = as_network(twin)
    data = as_images(data, twin)
    defended = as_changed(defended, twin, data.images)
    threat, claimed = as_threat(threat), as_attack(claimed)
    surrogate = None if surrogate is None else as_network(surrogate)
    (seed, chunk, _), draws = checked(seed, chunk), whole(draws, "draws")
    executor = take(executor, Executor)
    if draws:
        twin, defended = Expectation(twin, draws), Expectation(defended, draws)
    classes = _check(twin, defended, data, threat)
    stage = _Stages(progress, 2 * STAGES + 2)
    # all copies are made and proved here, before two threads run them
    both = parties(
        twin, defended, data, threat, surrogate, KERNELS if kernels is None else kernels, seed
    )
    readings, curves = _look(both[0].net, both[1].net, data, threat, seed, spent.points)
    stage()
    how: dict[str, Any] = {"classes": classes, "seed": seed, "chunk": chunk, "progress": stage}
    with evaluating(twin, defended):  # here, so that neither side switches the other's network back
        before, after = in_order(
            executor, lambda party: spent(party, data, threat, claimed, **how), both
        )
    counts = _counts(before, after)
    if not spent.queries and counts.interval[0] > 0:  # nothing is GENUINE that no control has seen
        after = spent.controlled(after, both[1], data, threat, seed, chunk)
        counts = _counts(before, after)
    doubter = _Doubter(both[1], after, data, threat, spent, classes, seed, chunk)
    doubts = doubter.doubts(readings, counts.verified_gain)
    stage()
    alarms = [r.mechanism for r in readings if r.fired]
    verdict = judge(counts, alarms, doubts, margin)
    return Audit(
        verdict=verdict,
        sides=(before, after),
        readings=tuple(readings),
        names=(described(twin), described(defended)),
        data=data.name,
        threat=show(threat),
        claimed_attack=show(claimed),
        battery=spent,
        curves=curves,
        pedigree=_pedigree(both, seed, before, after),
        domain=domain_of(data),
    )


def _counts(before: Side, after: Side) -> Counts:
    return counted(
        *((getattr(before, w), getattr(after, w)) for w in ("clean", "claimed", "verified"))
    )


def _spent(battery: Battery | Literal["quick", "thorough"] | None) -> Battery:
    if isinstance(battery, str):
        named = {"quick": QUICK, "thorough": THOROUGH}
        if battery not in named:
            raise ValueError(f'battery: expected a Battery, "quick" or "thorough", got {battery!r}')
        return named[battery]
    return Battery() if battery is None else battery


class _Stages:
    """Counts the stages of an audit for whoever watches, from any thread."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress, self._done, self._total = progress, itertools.count(1), total

    def __call__(self) -> None:
        done = next(self._done)
        if self._progress is not None:
            self._progress(done, self._total)


# ---------------------------------------------------------------------------------------- the doors


def _check(twin: Network, defended: Network, data: Examples, threat: ThreatModel) -> int:
    """The number of classes; raises where the audit would mean nothing."""
    domain = domain_of(data)
    check_images(data.images, domain.shape, domain.low, domain.high)
    if threat.access != "gradient":
        raise ValueError(f"an audit attacks with gradients, got {threat}; leave out access=")
    grey, same = threat.measure(domain) / 2, "grey one" if domain.word == "image" else "one"
    if threat.eps >= grey:
        raise ValueError(
            f"at {show(threat)} every {domain.word} can be turned into the same {same}, so nothing"
            f" can survive; expected eps below {grey:g}"
        )
    x = data.images[:32]
    logits = [
        _settled(net, x, name)
        for net, name in ((twin, "the twin"), (defended, "the defended network"))
    ]
    if logits[0].shape != logits[1].shape:
        raise ValueError(
            f"the twin gives {logits[0].shape[1]} classes and the defended network"
            f" {logits[1].shape[1]}; an audit compares two networks for the same task"
        )
    classes = int(logits[0].shape[1])
    check_labels(data.labels, classes)
    warn_of_probabilities(logits[1])
    return classes


def _settled(net: Network, x: Tensor, name: str) -> Tensor:
    """Logits of a net that gives the same ones twice. ValueError for one that does not, or fails on
    these images."""
    try:
        with torch.no_grad(), evaluating(net):
            first, second = (in_float(net, x.to(device_of(net))) for _ in range(2))
    except RuntimeError as e:
        word = Domain(tuple(x.shape[1:])).word
        raise ValueError(f"{name} fails on {word}s of shape {tuple(x.shape[1:])}: {e}") from e
    spread = (first.amax(1) - first.amin(1)).nan_to_num(0.0, 0.0, 0.0)[:, None]
    same = (
        ((first - second).abs() <= 1e-3 * spread)
        | ~first.isfinite() & ~second.isfinite()
        | (first == second)
    )
    if not same.all():
        raise ValueError(
            f"{name} gives other logits each time it is asked; pass draws=20 to audit its mean over"
            " 20 draws (expectation over transformation), or fix its randomness"
        )
    return first


# ----------------------------------------------------------------------------------- the indicators


def _look(
    twin: Proved, defended: Proved, data: Examples, threat: ThreatModel, seed: int, points: int
) -> tuple[list[Reading], dict[str, Any]]:
    """The readings on the first `points` that both decide rightly, and the curves behind them for a
    picture."""
    x, y = data.images, data.labels
    decisions = [decide(side.network, x) for side in (twin, defended)]
    _refuse_chance(decisions, y)
    right = [decided == y for decided in decisions]
    rows = (right[0] & right[1]).nonzero()[:points, 0]
    glances = [
        Glance(side, x[rows], y[rows], data.index[rows], threat, seed, domain_of(data))
        for side in (defended, twin)
    ]
    readings = [ask(*glances) for ask in indicators()]
    return readings, {
        name: _curves(g) for name, g in zip(("network", "twin"), glances, strict=True)
    }


def _refuse_chance(decisions: list[Tensor], y: Tensor) -> None:
    most = float(y.bincount().max()) / len(y)
    for decided, name in zip(decisions, ("the twin", "the defended network"), strict=True):
        accuracy, beside = (
            float((decided == y).float().mean()),
            float((decided == y - 1).float().mean()),
        )
        if len(y) >= 20 and accuracy <= most + 0.02:
            cure = "check weights, labels, normalisation and the retrofit's size"
            if beside > most + 0.02 and beside > 0.5:
                cure = (
                    f"labels - 1 would be right for {beside:.0%}, so they count from 1: use"
                    " labels - 1"
                )
            raise ValueError(
                f"{name} decides {accuracy:.0%} of these images rightly, and always naming the"
                f" commonest class would get {most:.0%}: there is nothing to audit; {cure}"
            )


def _curves(glance: Glance) -> dict[str, Any]:
    """What the report draws: mean loss along PGD, sorted prediction ratios, median margin."""
    losses, _ = glance.climb
    errors = glance.prediction_errors
    return {
        "loss": [float(v) for v in losses.mean(1)],
        "fidelity": [float(v) for v in errors[~errors.isnan()].sort().values],
        "margin": float(glance.margins.median()),
    }


# --------------------------------------------------------------------------------------- the doubts


@dataclass(frozen=True)
class _Doubter:
    """Looks for reasons to abstain: the attacks on the defended network may have missed
    something."""

    party: Party
    side: Side
    data: Examples
    threat: ThreatModel
    battery: Battery
    classes: int
    seed: int
    chunk: int | None

    def doubts(self, readings: Sequence[Reading], gain: float) -> list[str]:
        """The reasons, each as a clause."""
        found = [*self._dead(), *self._controls(), *self._unanswered(readings, gain)]
        if self.battery.queries:
            found += [*self._doubling(), *self._rising()]
        return [*found, *self._unbounded()]

    def _dead(self) -> Iterator[str]:
        """Where the loss has no gradient at all, attacks that follow it see nothing, and stand for
        nothing."""
        sample = self._some(self.side.clean, self.battery.points)
        if sample is None:
            return
        guide = chosen_guide(self.party, self.side)
        on = self.party.folded if guide is None else guide
        points, domain = (sample.images, sample.labels, sample.index), domain_of(self.data)
        dead = Glance(on, *points, self.threat, self.seed, domain).dead
        if dead > _DEAD:
            yield (
                f"the gradient is exactly zero at {100 * dead:.0f} % of the points: give surrogate="
            )

    def _controls(self) -> Iterator[str]:
        n = len(self.side.clean)
        for run in self.side.runs:
            if run.role != "control" or run.felled < 2:
                continue  # one example is no sign of anything
            standing = float(np.mean(self.side.verified)) + run.felled / n
            if run.felled / run.asked * standing > _POINT:
                yield (
                    f"{run.title}, a control, felled {run.felled} of {run.asked} that the white-box"
                    " attacks left"
                )

    def _unanswered(self, readings: Sequence[Reading], gain: float) -> Iterator[str]:
        """A gain beside an alarm counts only where the alarm's remedy was run."""
        jumps = [r.title for r in readings if r.fired and r.mechanism == "jump"]
        if jumps and not self.party.guides and gain > 0:
            yield f"{' and '.join(jumps)} fired and no kernel answers it: give surrogate="

    def _doubling(self) -> Iterator[str]:
        sample = self._some(self.side.verified, self.battery.sample)
        if sample is None:
            return
        stands = self._besieged(sample, self.threat, self.battery.longer(2), seed=self.seed + 1)
        felled = int((~stands).sum())
        moved = felled / len(stands) * float(np.mean(self.side.verified))
        if felled > 1 and moved > _POINT:
            yield (
                f"twice the steps, begun anew, fell {felled} of {len(stands)} more, about"
                f" {100 * moved:.1f} points"
            )

    def _rising(self) -> Iterator[str]:
        """What falls at eps must fall at a larger one, or the attack is steered by something else
        than the loss."""
        sample = self._some(self.side.clean & ~self.side.verified, self.battery.sample // 2)
        if sample is None:
            return
        stands = self._besieged(sample, self.threat.times(1.5), self.battery)
        if stands.sum() > 1 and float(stands.mean()) > _RISING:
            yield f"{int(stands.sum())} of {len(stands)} that fall at eps stand at 1.5 eps"

    def _unbounded(self) -> Iterator[str]:
        sample = self._some(self.side.verified, self.battery.sample // 2)
        if sample is None:
            return
        whole = self.threat.whole(domain_of(self.data))
        stands = self._besieged(sample, whole, self.battery)
        if float(stands.mean()) > 1 / self.classes + 0.05:
            yield (
                f"{int(stands.sum())} of {len(stands)} stand at any eps, so the attacks do not bite"
            )

    def _besieged(
        self, sample: Examples, threat: ThreatModel, battery: Battery, seed: int | None = None
    ) -> NDArray[np.bool_]:
        """Which of `sample` stand under the decisive attacks."""
        siege = Siege(
            self.party.net.network, sample, threat, self.seed if seed is None else seed, self.chunk
        )
        guide = chosen_guide(self.party, self.side)
        net = self.party.folded if guide is None else guide
        siege.attack("again", "white box", battery.untargeted(), self.party.folded)
        siege.attack(
            "again, targeted",
            "white box",
            battery.targeted(self.classes),
            **self.party.seen_through(net),
        )
        return siege.stands

    def _some(self, which: NDArray[np.bool_], at_most: int) -> Examples | None:
        rows = torch.from_numpy(np.flatnonzero(which)[:at_most])
        if not len(rows):
            return None
        domain, data = domain_of(self.data), self.data
        parts = data.images[rows], data.labels[rows], data.index[rows]
        return _Some(*parts, data.name, domain.low, domain.high)


_POINT = 0.01  # of accuracy: what controls and doubled attacks may move
_RISING = 0.10
_DEAD = 0.10  # of the points, without a gradient


@dataclass(frozen=True)
class _Some:
    """Some rows of a data set."""

    images: Tensor
    labels: Tensor
    index: Tensor
    name: str
    low: float
    high: float


def _pedigree(both: tuple[Party, Party], seed: int, *sides: Side) -> dict[str, Any]:
    return {
        "seed": seed,
        "device": str(device_of(both[0].net.network)),
        "left_alone": left_alone(both[1].net.network),
        "forms": [str(party.net) for party in both],
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()} {platform.system()}",
        "versions": (
            f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
        ),
        "gradients_per_image": [round(s.gradients / len(s.clean), 1) for s in sides],
        "seconds": [round(s.seconds, 2) for s in sides],
    }
