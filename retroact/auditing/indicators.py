"""Indicators: what a few dozen gradient passes say about why an attack on a network may fail.

Most are functions of two first looks, one at the network after the change and one at it before,
and give a value for both; such a one fires where the difference (or the ratio) passes its
threshold. Those that are `absolute` look at one network alone and fire on either, so two networks
that are blind alike do not hide each other.
*Saturation*: the loss is flat because logits are huge. *Jump*: the gradient is finite, well scaled
and wrong. *Wrong gradient*: the backward pass is not the derivative of the forward pass, or leads
to the size of the logits rather than to another decision. *Steps*: the network answers alike all
around a point. To add an indicator, add a function here.

Thresholds: docs/calibration.md says on which networks they were calibrated, and what they miss
there.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retroact.auditing.numbers import Curves, Entries, Reading
from retroact.auditing.verdict import Mechanism
from retroact.crafting.domain import Domain
from retroact.crafting.expectation import Expectation, same_draws
from retroact.crafting.goals import Aim
from retroact.crafting.inner import OverOthers, OverSpread
from retroact.crafting.losses import LossFunction, cross_entropy, margin
from retroact.crafting.noise import normal, uniform
from retroact.crafting.oracle import (
    AccessError,
    Network,
    Oracle,
    device_of,
    evaluating,
    in_float,
    is_quantised,
)
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.proof import Proved

STEPS = 10
SPARSE = 0.1
"""Of the entries that move the margin: how many may be without their gradient."""
SHARE = 1 / 30
"""Of eps: how long a step is over which a first-order prediction should hold."""

DIRECTIONS = 16
"""Random directions in which the margin is tried."""
PARALLEL = 0.99
"""The smallest cosine of two gradients that are the same but for rounding."""

_CHUNK = 64
_PROBED = 50  # points at which random directions are tried
_LED = 64  # points from which what misleads the margin is climbed
_PROBES = 700_000_001  # streams of their own
_TRIED, _ENTRIES = 6, 64  # points and entries of each that are moved alone
_MOVES = 0.25  # of the root mean square over a point's entries: what counts as moving
_MISSING = 1e-3  # of what an entry does: a gradient that foretells less is missing there


class FirstLook:
    """A network seen on points that both networks decide rightly: `x` (m, …), `y` (m,),
    `index` (m,).

    What is looked at is computed once, when it is first asked for; `gradients` counts the passes
    per point. Steps that ask whether a gradient is right are `share` · eps long.
    """

    def __init__(
        self,
        on: Proved,
        x: Tensor,
        y: Tensor,
        index: Tensor,
        threat: ThreatModel,
        seed: int = 0,
        domain: Domain | None = None,
        traced: Network | None = None,
        inner: Network | None = None,
        share: float = SHARE,
    ) -> None:
        self.share = share
        self.domain = Domain(tuple(x.shape[1:])) if domain is None else domain
        self.traced, self.inner = traced, inner
        device = device_of(on.network)
        self.network, self.threat, self.seed = on.network, threat, seed
        self._cheap, self._draws = on.lean, isinstance(on.network, Expectation)
        self.x, self.y, self.index = x.to(device), y.to(device), index.to(device)
        self.gradients = 0

    @cached_property
    def margins(self) -> Tensor:
        """z_y − max_{j≠y} z_j of each point, (m,): positive."""
        return -margin(self._logits(self.x), Aim(self.y))

    @cached_property
    def cross_entropy(self) -> _Pass:
        """The cross-entropy and its gradient at the clean points."""
        return self._gradient(self.x, cross_entropy)

    @cached_property
    def uphill(self) -> _Pass:
        """The margin loss and its gradient at the clean points."""
        return self._gradient(self.x, margin)

    @property
    def dead(self) -> float:
        """Share of points at which the margin loss, which nothing saturates, has a gradient of
        exactly zero."""
        return _share((self.uphill.gradient == 0).flatten(1).all(1))

    @property
    def lost(self) -> float:
        """Share of points at which that gradient is zero or has entries that are no numbers."""
        _, gradient, _, nonfinite = self.uphill
        dead = (gradient == 0).flatten(1).all(1)
        return _share(dead | (nonfinite & self.margins.isfinite()))

    @cached_property
    def prediction_errors(self) -> Tensor:
        """How far a step of `share` · eps up the margin loss changes it, over the first-order
        prediction, (m,).

        NaN where nothing is predicted, which is another indicator's business.
        """
        before, gradient, *_ = self.uphill
        length = self.share * self.threat.eps
        step = self.threat.step(self.x, gradient, length, self.x, self.domain)
        predicted = (gradient * (step - self.x)).flatten(1).sum(1)
        change = margin(self._logits(step), Aim(self.y)) - before
        return torch.where(predicted > 0, change / predicted, torch.nan)

    @cached_property
    def climb(self) -> tuple[Tensor, Tensor]:
        """Cross-entropy PGD, `STEPS` steps of eps/4: losses (STEPS + 1, m), and who was fooled on
        the way (m,)."""
        x, losses = self.threat.start(self.x, self.domain, self.index, self.seed), []
        fooled = torch.zeros_like(self.y, dtype=torch.bool)
        for step in range(STEPS):
            seen = self._gradient(x, cross_entropy)
            losses.append(seen.loss)
            if step:  # a start that fools is luck, not a climb
                fooled |= seen.fooled
            x = self._step(x, seen.gradient, self.x, self.threat)
        logits = self._logits(x)
        losses.append(cross_entropy(logits, Aim(self.y)))
        return torch.stack(losses), fooled | Aim(self.y).reached(logits)

    @cached_property
    def robust_rescaled(self) -> float:
        """Share that is robust to the same climb with the logits divided by the median margin."""
        scale = self.margins.median().clamp_min(1e-30)
        return self._robust(self.threat, lambda logits, aim: cross_entropy(logits / scale, aim))

    @cached_property
    def robust_far(self) -> tuple[float, float]:
        """Share that is robust at the largest eps there is, to the cross-entropy and to the margin
        loss."""
        far = self.threat.whole(self.domain)
        return self._robust(far, cross_entropy), self._robust(far, margin)

    @cached_property
    def nonfinite(self) -> float:
        """Share of points with a NaN or infinite logit or gradient, in float32, bfloat16 or
        float16."""
        bad = self.cross_entropy.nonfinite | ~self.margins.isfinite()
        return max(
            _share(bad), *(self._nonfinite_in(dtype) for dtype in (torch.bfloat16, torch.float16))
        )

    @cached_property
    def mismatch(self) -> float:
        """Share of points at which the gradient of the margin loss is not that of the network's
        computation, traced anew: their cosine is below `PARALLEL`, or one is twice as long. The
        largest of that at the clean points, at random ones around them, and at the last two of a
        climb from some, near the boundary. 0 where no trace was made."""
        if self.traced is None:
            return 0.0
        around = self.threat.start(self.x, self.domain, self.index, self.seed)
        return max(map(self._mismatch_at, (self.x, around, *self._near_boundary())))

    def _near_boundary(self) -> tuple[Tensor, Tensor]:
        """Where the last two of `STEPS` steps of eps/4 up the margin loss lead from the first
        points, (m, …)."""
        x, rows = self.x[:_LED], torch.arange(min(_LED, len(self.x)), device=self.x.device)
        last = x
        for _ in range(STEPS):
            gradient = self._gradient(x, margin, rows).gradient
            last, x = x, self._step(x, gradient, self.x[rows], self.threat)
        return last, x

    def _mismatch_at(self, x: Tensor) -> float:
        rows = torch.arange(len(x), device=x.device)
        own = (self.uphill if x is self.x else self._gradient(x, margin, rows)).gradient.flatten(1)
        true = self._gradient(x, margin, rows, self.traced).gradient.flatten(1)
        cosine = nn.functional.cosine_similarity(own.double(), true.double(), dim=1, eps=1e-30)
        ratio = own.norm(dim=1) / true.norm(dim=1)
        wrong = (cosine < PARALLEL) | (ratio < 0.5) | (ratio > 2.0)
        return _share(wrong & ((own != 0) | (true != 0)).any(1))

    @cached_property
    def misled(self) -> float:
        """Of the first points, what is robust to a climb of the margin and not to one of the margin
        over the spread of the logits, of what the others have among themselves, or of the margin of
        inner scores that decide alike; 0 where that is no more than one point, or, of a network
        that draws, than chance: two deviations of the points that one climb fooled and the other
        did not. Of two classes the margin is the spread."""
        many = len(self.x) and self._logits(self.x[:1]).shape[1] > 2
        ways = [OverSpread, OverOthers] if many else []
        others = [*(way(self._cheap) for way in ways), self.inner]
        others = [on for on in others if on is not None]
        if not others:
            return 0.0
        own, *theirs = (self._standing(self.threat, margin, on, _LED) for on in (None, *others))
        least = min(theirs, key=lambda standing: int(standing.sum()))
        lead, differ = int(own.sum() - least.sum()), int((own ^ least).sum())
        chance = 2 * math.sqrt(differ) if self._draws else 1
        return lead / len(own) if lead > chance else 0.0

    @cached_property
    def probes(self) -> tuple[Tensor, Tensor]:
        """What random sign directions u say at some of the points, (`DIRECTIONS`, m): the change of
        the margin loss between x − `share` · eps · u and x + `share` · eps · u, and what the
        gradient foretells of it."""
        m = min(len(self.x), _PROBED)
        gradient, length = self._uphill_of(m).flatten(1), self.share * self.threat.eps
        found, foretold, aim = [], [], Aim(self.y[:m])
        for k in range(DIRECTIONS):
            drawn = normal(self.domain.shape, self.index[:m], self.seed, _PROBES + k).to(self.x)
            u = self.threat.along(drawn.sign()) * length
            up, down = (self.domain.clamp(self.x[:m] + s * u) for s in (1, -1))
            change = margin(self._logits(up), aim) - margin(self._logits(down), aim)
            found.append(change)
            foretold.append((gradient * (up - down).flatten(1)).sum(1))
        return torch.stack(found), torch.stack(foretold)

    def _uphill_of(self, m: int) -> Tensor:
        """The gradient of the margin loss at the first points; in a batch of their own where the
        network draws, which draws for a batch."""
        if not self._draws:
            return self.uphill.gradient[:m]
        return self._gradient(self.x[:m], margin, torch.arange(m, device=self.x.device)).gradient

    @cached_property
    def infidelity(self) -> float:
        """1 less the correlation of what random directions do with what the gradient foretells, the
        median over the points; 1 where a gradient foretells nothing."""
        found, foretold = (t.double() - t.double().mean(0) for t in self.probes)
        spread = found.norm(dim=0) * foretold.norm(dim=0)
        fidelity = torch.where(
            spread > 0, (found * foretold).sum(0) / spread.clamp_min(1e-300), 0.0
        )
        return float(1 - fidelity.median()) if len(fidelity) else 0.0

    @cached_property
    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """What single entries do at a few points around the clean ones, where attacks walk,
        (`_TRIED`, `_ENTRIES`): their places, the change of the margin loss over `share` · eps to
        either side, and what the gradient foretells of it; 0 at the edge of the box."""
        m, width = min(len(self.x), _TRIED), self.domain.entries
        k, length = min(_ENTRIES, width), self.share * self.threat.eps
        x = self._start_inside(m)
        at = uniform((width,), self.index[:m], self.seed, _PROBES - 2).argsort(1)[:, :k]
        step = length * nn.functional.one_hot(at, width).to(x)
        points = [x.flatten(1)[:, None] + sign * step for sign in (1, -1)]
        up, down = (self.domain.clamp(p.view(-1, *self.domain.shape)) for p in points)
        aim = Aim(self.y[:m].repeat_interleave(k))
        change = margin(self._logits(up), aim) - margin(self._logits(down), aim)
        whole = (up - down).flatten(1).sum(1) > 1.9 * length
        foretold = self._gradient_of_entries(x, at) * 2 * length
        return at, change.where(whole, 0.0).view(m, k), foretold

    def _gradient_of_entries(self, x: Tensor, at: Tensor) -> Tensor:
        """The gradient of the margin loss at the first points `x` (m, …) for their entries `at`
        (m, k); in a batch as large as that of entries moved alone where the network draws."""
        (m, k), rows = at.shape, torch.arange(len(at), device=x.device)
        if not self._draws:
            return self._gradient(x, margin, rows).gradient.flatten(1).gather(1, at)
        each = self._gradient(x.repeat_interleave(k, 0), margin, rows.repeat_interleave(k))
        return each.gradient.flatten(1).gather(1, at.reshape(-1, 1)).view(m, k)

    @property
    def _moving(self) -> tuple[Tensor, Tensor]:
        """The places of the entries that move the margin, and whose gradient is missing."""
        at, found, foretold = self.entries
        moves = found.abs() > _MOVES * found.square().mean(1, keepdim=True).sqrt()
        return at[moves], (foretold.abs() < _MISSING * found.abs())[moves]

    @cached_property
    def missing(self) -> float:
        """Share of the entries that move the margin whose gradient is missing."""
        return _share(self._moving[1])

    @property
    def _where(self) -> Entries | None:
        """Where the gradient is missing, if it is at a tenth of the entries."""
        at, missing = self._moving
        if self.missing < SPARSE:
            return None
        places = (tuple(at[which].unique().tolist()) for which in (~missing, missing))
        return Entries(self.domain.shape, *places)

    def _start_inside(self, m: int) -> Tensor:
        """The first points, moved by half of eps, inwards where the box ends."""
        drawn = uniform(self.domain.shape, self.index[:m], self.seed, _PROBES - 3).to(self.x)
        d = self.threat.along(2 * drawn - 1) * (self.threat.eps / 2)
        moved = self.x[:m] + d
        inside = moved == self.domain.clamp(moved)
        return self.domain.clamp(torch.where(inside, moved, self.x[:m] - d))

    @cached_property
    def unmoved(self) -> float:
        """Share of logits that a random step of `share` · eps / 4 leaves exactly as they were."""
        m = min(len(self.x), _PROBED)
        drawn = normal(self.domain.shape, self.index[:m], self.seed, _PROBES - 1).to(self.x)
        step = self.threat.along(drawn.sign()) * (self.share * self.threat.eps / 4)
        near = self.domain.clamp(self.x[:m] + step)
        return _share(self._logits(near) == self._logits(self.x[:m]))

    def curves(self) -> Curves:
        """What a page draws: the mean loss along PGD, sorted prediction ratios, the median margin,
        and where a gradient is missing."""
        losses, _ = self.climb
        errors = self.prediction_errors
        return Curves(
            loss=tuple(float(v) for v in losses.mean(1)),
            fidelity=tuple(float(v) for v in errors[~errors.isnan()].sort().values),
            margin=float(self.margins.median()),
            entries=self._where,
        )

    def _nonfinite_in(self, dtype: torch.dtype) -> float:
        if not isinstance(self.network, nn.Module) or is_quantised(self.network):
            return 0.0
        try:
            rounded = copy.deepcopy(self.network).to(dtype)
            with torch.no_grad(), evaluating(rounded):
                logits = torch.cat([in_float(rounded, part) for part in self.x.split(_CHUNK)])
        except Exception:
            # no copies, no such kernels on this device, or a stranger's check of types: nothing is
            # seen
            return 0.0
        return _share(~logits.isfinite().all(1))

    def _logits(self, x: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(self._cheap), same_draws():
            return torch.cat([in_float(self._cheap, part) for part in x.split(_CHUNK)])

    def _gradient(
        self,
        x: Tensor,
        loss: LossFunction,
        rows: Tensor | None = None,
        on: Network | None = None,
    ) -> _Pass:
        """A pass at the images `x`, which belong to the points `rows` (None: all), of the network
        `on` (None: this one). Where it has no gradient, that is zero."""
        self.gradients += 1
        parts, labels = [], self.y if rows is None else self.y[rows]
        network = self._cheap if on is None else on
        with evaluating(network), same_draws():
            for part, y in zip(x.split(_CHUNK), labels.split(_CHUNK), strict=True):
                aim, oracle = Aim(y), Oracle(network, len(y), device=x.device)
                logits, gradient = _look(oracle, part, partial(loss, aim=aim))
                parts.append(
                    (
                        loss(logits, aim),
                        gradient,
                        aim.reached(logits),
                        oracle.nonfinite,
                    )
                )
        return _Pass(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _step(self, x: Tensor, gradient: Tensor, centre: Tensor, threat: ThreatModel) -> Tensor:
        return threat.step(x, gradient, threat.eps / 4, centre, self.domain)

    def _robust(self, threat: ThreatModel, loss: LossFunction) -> float:
        """Share that `STEPS` steps of eps/4 up the loss do not fool."""
        return _share(self._standing(threat, loss))

    def _standing(
        self,
        threat: ThreatModel,
        loss: LossFunction,
        guide: Network | None = None,
        m: int | None = None,
    ) -> Tensor:
        """Which of the first `m` points (None: of all) `STEPS` steps of eps/4 up the loss, that of
        the network `guide` (None: this one), do not fool, (m,); those that are fooled are left out
        at once."""
        standing = torch.zeros_like(self.y[:m], dtype=torch.bool)
        if not len(standing):
            return standing
        x, rows = (
            threat.start(self.x[:m], self.domain, self.index[:m], self.seed),
            torch.arange(len(standing), device=self.x.device),
        )
        for step in range(STEPS):
            seen = self._gradient(x, loss, rows, guide)
            fooled = seen.fooled if guide is None else Aim(self.y[rows]).reached(self._logits(x))
            left = ~fooled if step else torch.ones_like(fooled)
            x, gradient, rows = x[left], seen.gradient[left], rows[left]
            if not len(rows):
                return standing
            x = self._step(x, gradient, self.x[rows], threat)
        standing[rows] = ~Aim(self.y[rows]).reached(self._logits(x))
        return standing


def _look(oracle: Oracle, x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(x), device=x.device)
    try:
        return oracle.gradient(x, rows, loss)
    except AccessError:
        return oracle.logits(x, rows), torch.zeros_like(x)


class _Pass(NamedTuple):
    """A forward and a backward pass at m images: the loss (m,), its gradient (m, …), which of
    them fool, and at which a logit or the gradient is NaN or infinite (of which the gradient is
    rid)."""

    loss: Tensor
    gradient: Tensor
    fooled: Tensor
    nonfinite: Tensor


@dataclass(frozen=True)
class Indicator:
    """A question to two first looks: `function(after, before)` gives the value of each."""

    function: Callable[[FirstLook, FirstLook], tuple[float, float]]
    title: str
    mechanism: Mechanism
    threshold: float
    source: str
    ratio: bool = False
    absolute: bool = False

    def __call__(self, after: FirstLook, before: FirstLook) -> Reading:
        """What the indicator shows on this pair."""
        value, reference = self.function(after, before)
        fired, before_fired = self._passes(value, reference), self._passes(reference, value)
        about = inspect.getdoc(self.function) or ""
        beside = (self.threshold, fired, about, self.source, self.ratio)
        alone = (self.absolute, self.absolute and before_fired)
        return Reading(self.title, self.mechanism, value, reference, *beside, *alone)

    def fires_on(self, look: FirstLook, before: float) -> bool:
        """Whether it fires on one look, beside the value `before` of another."""
        return self._passes(self.function(look, look)[0], before)

    def _passes(self, value: float, reference: float) -> bool:
        if self.absolute:
            return value > self.threshold
        if self.ratio:
            return value > self.threshold * reference
        return value - reference > self.threshold


def indicator(
    title: str,
    mechanism: Mechanism,
    threshold: float,
    source: str,
    *,
    ratio: bool = False,
    absolute: bool = False,
) -> Callable[[Callable[[FirstLook, FirstLook], tuple[float, float]]], Indicator]:
    """Marks a function of two first looks as an indicator; it fires `threshold` above before (or
    times it), or above `threshold` itself, on either network (`absolute`)."""
    how = (ratio, absolute)
    return lambda function: Indicator(function, title, mechanism, threshold, source, *how)


def indicators() -> list[Indicator]:
    """All indicators, in the order of this file."""
    return [value for value in globals().values() if isinstance(value, Indicator)]


# ------------------------------------------------------------------------------------ saturation


@indicator(
    "zero gradient",
    "saturation",
    0.01,
    "Croce & Hein 2020; Carlini & Wagner 2016, arXiv:1607.04311",
)
def zero_gradient(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of points whose cross-entropy has a gradient of exactly zero."""
    shares = (_share((g.cross_entropy.gradient == 0).flatten(1).all(1)) for g in (after, before))
    return tuple(shares)  # type: ignore[return-value]


@indicator("zero loss", "saturation", 0.20, "Pintor et al. 2022, arXiv:2106.09947")
def zero_loss(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of points whose cross-entropy is exactly zero: softmax has reached 1."""
    return _share(after.cross_entropy.loss == 0), _share(before.cross_entropy.loss == 0)


@indicator("logit scale", "saturation", 3.0, "Carlini & Wagner 2016, arXiv:1607.04311", ratio=True)
def logit_scale(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """The median margin, against three times that before the change."""
    return float(after.margins.median()), float(before.margins.median())


@indicator(
    "rescaled logits", "saturation", 0.05, "Croce & Hein 2020, arXiv:2003.01690, section 4.1"
)
def rescaled_logits(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Accuracy that cross-entropy PGD takes only when the logits are divided by their median
    margin, or 0."""
    # 0 where rescaling weakens the attack: where it does so before, nothing is suspect after
    lost = (max(0.0, _share(~g.climb[1]) - g.robust_rescaled) for g in (after, before))
    return tuple(lost)  # type: ignore[return-value]


@indicator("unbounded", "saturation", 0.05, "Athalye et al. 2018, arXiv:1802.00420, section 3.1")
def unbounded(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """What is robust without a bound to the cross-entropy and not to the margin loss."""
    (ce, margin_loss), (ce_before, margin_before) = after.robust_far, before.robust_far
    return ce - margin_loss, ce_before - margin_before


@indicator("flat loss", "saturation", 0.35, "Pintor et al. 2022, arXiv:2106.09947")
def flat_loss(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of never-fooled points whose cross-entropy does not move at all along PGD."""
    return _flat(*after.climb), _flat(*before.climb)


@indicator("non-finite", "saturation", 0.0, "Carlini et al. 2019, arXiv:1902.06705")
def non_finite(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of points with a NaN or infinite logit or gradient, in float32, bfloat16 or float16."""
    return after.nonfinite, before.nonfinite


# ------------------------------------------------------------------------------------------ jump


@indicator(
    "gradient fidelity",
    "jump",
    0.03,
    "Athalye et al. 2018, arXiv:1802.00420 (shattered gradients)",
    absolute=True,
)
def gradient_fidelity(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of points where a step of eps/30 changes the margin by less than half or more than
    twice of what its gradient predicts."""
    return _wrong(after.prediction_errors), _wrong(before.prediction_errors)


@indicator("falling loss", "jump", 0.05, "Pintor et al. 2022, arXiv:2106.09947")
def falling_loss(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of PGD steps on never-fooled points after which the loss has fallen."""
    return _falling(*after.climb), _falling(*before.climb)


# --------------------------------------------------------------------------- a network by itself


@indicator(
    "no gradient",
    "wrong gradient",
    0.02,
    "Carlini et al. 2019, arXiv:1902.06705",
    absolute=True,
)
def no_gradient(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of points at which the margin loss, which nothing saturates, has a gradient of exactly
    zero, one with entries that are no numbers, or none at all."""
    return after.lost, before.lost


@indicator(
    "gradient mismatch",
    "wrong gradient",
    0.02,
    "Athalye et al. 2018, arXiv:1802.00420, section 4",
    absolute=True,
)
def gradient_mismatch(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of points at which the backward pass is not the derivative of the computation, traced
    anew below autograd: parts are detached, or the backward pass was written by hand."""
    return after.mismatch, before.mismatch


@indicator(
    "random directions",
    "jump",
    0.08,
    "Zimmermann et al. 2022, arXiv:2206.13991; Athalye et al. 2018, arXiv:1802.00420",
    absolute=True,
)
def random_directions(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """1 less the correlation of what 16 random steps of eps/30 do to the margin with what its
    gradient foretells, the median over points."""
    return after.infidelity, before.infidelity


@indicator(
    "single entries",
    "wrong gradient",
    SPARSE,
    "Athalye et al. 2018, arXiv:1802.00420; Zimmermann et al. 2022, arXiv:2206.13991",
    absolute=True,
)
def single_entries(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of single pixels (entries) that move the margin although its gradient there is zero, or
    less than a thousandth of what they do."""
    return after.missing, before.missing


@indicator(
    "misled margin",
    "wrong gradient",
    0.05,
    "Croce & Hein 2020, arXiv:2003.01690, section 4.1; Carlini & Wagner 2016, arXiv:1607.04311",
    absolute=True,
)
def misled_margin(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """What is robust to a climb of the margin and not to one that the size of the logits cannot
    mislead: of the margin over their spread, of what the others have among themselves, or of the
    margin of inner scores that decide alike."""
    return after.misled, before.misled


@indicator("equal logits", "steps", 0.05, "Guo et al. 2018, arXiv:1711.00117", absolute=True)
def equal_logits(after: FirstLook, before: FirstLook) -> tuple[float, float]:
    """Share of logits that a random step of eps/120 leaves exactly as they were: something between
    image and logits is rounded."""
    return after.unmoved, before.unmoved


# ----------------------------------------------------------------------------------------- shares


def _share(hit: Tensor) -> float:
    return float(hit.float().mean()) if hit.numel() else 0.0


def _flat(losses: Tensor, fooled: Tensor) -> float:
    robust = losses[:, ~fooled]
    return _share((robust == robust[:1]).all(0))


def _falling(losses: Tensor, fooled: Tensor) -> float:
    robust = losses[:, ~fooled]
    return _share(robust[1:] < robust[:-1] - 1e-6 * robust[:-1].abs())


def _wrong(ratio: Tensor) -> float:
    known = ratio[~ratio.isnan()]
    return _share((known < 0.5) | (known > 2.0))
