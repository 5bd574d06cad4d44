"""The audit's own test: fakes and controls with known answers, run on a network that is given.

Fakes must come out with their mechanism and with no gain; a network against itself must show
nothing; an adversarially trained one must be GENUINE. An audit that damns everything, or nothing,
or cannot see a jump, fails. Then the mechanisms that it was told nothing of, judged by rule beside
their truth: nothing that gained nothing may be GENUINE, and no claim HONEST that is not.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.auditing.audit import Audit, audit
from retroact.auditing.battery import Battery
from retroact.auditing.mechanisms.collection import mechanisms
from retroact.auditing.mechanisms.judging import Said, Stands, find_faults, gains
from retroact.auditing.mechanisms.mechanism import Given, Made, Mechanism
from retroact.auditing.mechanisms.truth import truth
from retroact.auditing.subjects import KERNELS, Schedule
from retroact.auditing.verdict import Mechanism as Mask
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import Examples
from retroact.executors import SERIAL, Executor, in_order
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.retrofitting.folding import fold
from retroact.retrofitting.surgery import retrofit

NEAR = 0.02
"""How far from 0 the verified gain of a fake may lie."""
OVER = 0.03
"""How far a jump's verified accuracy may lie above that of the network without it."""


FEW = 24
"""On how many examples mechanisms are tried: what gains nothing must not be GENUINE on any."""

_STEPS = 10  # of the attack that knows a mechanism


@dataclass(frozen=True, eq=False)
class Check:
    """One case of the self-test: what was expected of the audit, what it said (or the error that it
    raised, in one line), and whether that passes."""

    title: str
    expected: str
    audit: Audit | str
    passed: bool

    def __str__(self) -> str:
        return (
            f"{'passed' if self.passed else 'FAILED'}: {self.title}: expected {self.expected};"
            f" {self.audit}"
        )


class Louder(nn.Module):
    """The net with its logits times `factor`, a power of two: decides exactly as the net does."""

    def __init__(self, net: nn.Module, factor: float = 2.0**14) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x) * self.factor
        return out


def selftest(
    net: nn.Module,
    data: Examples,
    threat: ThreatModel,
    *,
    robust: nn.Module | None = None,
    kappa: float = 1.0,
    battery: Battery | None = None,
    kernels: Sequence[Schedule] = KERNELS,
    seed: int = 0,
    fakes: Sequence[Given] = (),
    executor: Executor = SERIAL,
    progress: Callable[[int, int], None] | None = None,
) -> list[Check]:
    """Audits of fakes of `net` and of controls; `robust` is the same network trained adversarially,
    if there is one.

    `kappa` is the size of the jump that must not pass, one that the network can bear. `kernels`
    empty switches the kernel attacks off, as a test that the self-test can fail. `fakes` says
    around which networks the fast half of the mechanisms is put, on the first `FEW` of the `data`
    and by a battery of half the steps.
    The `executor` runs the audits, with the same outcome.
    """
    cases = range(len(list(_cases(net, robust, kappa))))
    strange = [_Fake(i, g) for g in range(len(fakes)) for i in range(len(mechanisms(fast=True)))]
    told, count = progress or (lambda done, of: None), len(cases) + len(strange)
    how: dict[str, Any] = {"data": data, "threat": threat, "battery": battery, "seed": seed}
    told_cases = _Told(net, robust, kappa, kernels=tuple(kernels), **how)
    if not strange:
        return in_order(executor, told_cases, cases, lambda done: told(done, count))
    assert isinstance(data, Images), "mechanisms are tried on retroact's own Images"
    how |= {"data": data[:FEW], "battery": _halve(battery or Battery())}
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(net, baseline=Path(folder) / "before.json", fakes=tuple(fakes), **how)
        first = trial(strange[0])  # it stores the baseline that the others read
        rest: list[int | _Fake] = [*cases, *strange[1:]]
        both = _Both(told_cases, trial)
        checks: list[Check] = in_order(executor, both, rest, lambda more: told(1 + more, count))
    return [*checks[: len(cases)], first, *checks[len(cases) :]]


def _halve(spent: Battery) -> Battery:
    """Half the steps, which suffices for few examples of small networks."""
    names = "steps", "targeted_steps", "finish", "alarmed_finish"
    return replace(spent, **{name: (getattr(spent, name) + 1) // 2 for name in names})


class _Fake(NamedTuple):
    """Which of the fast mechanisms, and around which of the networks given: numbers, as a
    mechanism is no thing that travels to another process."""

    mechanism: int
    given: int


@dataclass(frozen=True, eq=False)
class _Trial:
    """The audit against mechanisms around networks of the kind of `net`, the one before; that is
    attacked once, for the `baseline`."""

    net: nn.Module
    data: Images
    threat: ThreatModel
    battery: Battery
    seed: int
    baseline: Path
    fakes: tuple[Given, ...]

    def __call__(self, fake: _Fake) -> Check:
        """What the audit says of the mechanism around the given network, and whether it may."""
        mechanism, given = mechanisms(fast=True)[fake.mechanism], self.fakes[fake.given]
        before, after = self._make(mechanism, given)
        known = self._known(before), self._known(after, mechanism.draws)
        outcome = self._audit(before.net, after.net, mechanism)
        said = Said.instead(outcome) if isinstance(outcome, Exception) else Said.by(outcome)
        stands = _least(known, said, mechanism)
        faults = find_faults(said, stands, refusable=mechanism.refusable)
        title = f"{mechanism}, {'the same' if given.net is self.net else 'another'} seed"
        got = said.error if isinstance(outcome, Exception) else outcome
        return Check(title, _expect(stands, mechanism), got, not faults)

    def _make(self, mechanism: Mechanism, given: Given) -> tuple[Made, Made]:
        if mechanism.before is None:
            return Made(self.net, (self.net,)), mechanism.build(given)
        assert isinstance(self.net, Classifier), "mechanisms are put around a Classifier"
        return mechanism.before(replace(given, net=self.net)), mechanism.build(given)

    @cached_property
    def _plain(self) -> NDArray[np.bool_]:
        return self._find(Made(self.net, (self.net,)))

    def _known(self, made: Made, draws: int = 0) -> NDArray[np.bool_]:
        return self._plain if made.net is self.net else self._find(made, draws)

    def _find(self, made: Made, draws: int = 0) -> NDArray[np.bool_]:
        along = (self.net,)
        return truth(made, self.data, self.threat, draws=draws, transfer=along, steps=_STEPS)

    def _audit(
        self, before: nn.Module, after: nn.Module, mechanism: Mechanism
    ) -> Audit | Exception:
        # copies, as a network that remembers must not have been asked before
        pair = copy.deepcopy(before), copy.deepcopy(after)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return audit(
                    *pair,
                    self.data,
                    self.threat,
                    battery=self.battery,
                    draws=mechanism.draws,
                    seed=self.seed,
                    baseline=self.baseline if mechanism.before is None else None,
                )
        except Exception as error:  # whatever it raises is its answer
            return error


def _least(known: Stands, said: Said, mechanism: Mechanism) -> Stands:
    """What stands under the audit's attacks too; where answers depend on what was asked before,
    what fooled the network there may not fool another."""
    if said.verified is None:
        return known
    before, after = said.verified
    return known[0] & before, known[1] if mechanism.refusable else known[1] & after


def _expect(stands: Stands, mechanism: Mechanism) -> str:
    word = "GENUINE or no verdict" if gains(stands) else "not GENUINE"
    most = f"no more than {100 * float(stands[1].mean()) + 5:.0f} % after it without a doubt"
    refused = "refused, or " if mechanism.refusable else ""
    return f"{refused}{word}, {most}, no claim HONEST that is not"


_Case = tuple[str, str, nn.Module, nn.Module, Callable[[Audit], bool]]


@dataclass(frozen=True, eq=False)
class _Told:
    """The audits of what is known beforehand, each by its number."""

    net: nn.Module
    robust: nn.Module | None
    kappa: float
    data: Examples
    threat: ThreatModel
    battery: Battery | None
    kernels: tuple[Schedule, ...]
    seed: int

    def __call__(self, case: int) -> Check:
        title, expected, before, after, holds = self._every[case]
        how: dict[str, Any] = {"battery": self.battery, "kernels": self.kernels, "seed": self.seed}
        outcome = audit(before, after, self.data, self.threat, **how)
        return Check(title, expected, outcome, holds(outcome))

    @cached_property
    def _every(self) -> list[_Case]:
        return list(_cases(self.net, self.robust, self.kappa))


@dataclass(frozen=True, eq=False)
class _Both:
    """Cases and fakes as tasks of one kind, so that workers are started once for both."""

    told: _Told
    trial: _Trial

    def __call__(self, task: int | _Fake) -> Check:
        return self.trial(task) if isinstance(task, _Fake) else self.told(task)


NO_GAIN = "masked by saturation, no gain"
A_JUMP = "a jump alarm, at most 3 points above the network without it"


def _cases(net: nn.Module, robust: nn.Module | None, kappa: float) -> Iterator[_Case]:
    yield "itself", "NO EFFECT, not masked", net, net, _shows_nothing
    yield "logits times 2^14", NO_GAIN, net, Louder(net), _is_fake_by("saturation")
    sloped = retrofit(net, SReLU(10.0))
    plain: nn.Module = fold(sloped, scaled=False)
    yield "SReLU(10) beside its folded net", NO_GAIN, plain, sloped, _is_fake_by("saturation")
    yield "a jump of 0.001", "no gain", net, retrofit(net, JumpReLU(1e-3)), _gains_nothing
    jump, title = retrofit(net, JumpReLU(kappa)), f"JumpReLU({kappa:g})"
    yield title, A_JUMP, net, jump, _sees_the_jump
    if robust is not None:
        yield "adversarial training", "GENUINE", net, robust, _is_genuine
        jump = retrofit(robust, JumpReLU(kappa))
        yield f"{title}, adversarially trained", A_JUMP, robust, jump, _sees_the_jump


def _is_genuine(outcome: Audit) -> bool:
    return outcome.verdict.effect == "GENUINE"


def _gains_nothing(outcome: Audit) -> bool:
    return abs(outcome.verdict.counts.verified_gain) <= NEAR


def _shows_nothing(outcome: Audit) -> bool:
    return outcome.verdict.effect == "NO EFFECT" and not outcome.verdict.masked


def _is_fake_by(mask: Mask) -> Callable[[Audit], bool]:
    def holds(outcome: Audit) -> bool:
        verdict = outcome.verdict
        masked = verdict.masked and mask in verdict.mechanisms
        return masked and _gains_nothing(outcome) and verdict.effect != "GENUINE"

    return holds


def _sees_the_jump(outcome: Audit) -> bool:
    """Never GENUINE, and the verified accuracy is not above what it was before the jump."""
    fired, verdict = "jump" in {r.mechanism for r in outcome.alarms}, outcome.verdict
    return fired and verdict.effect != "GENUINE" and verdict.counts.verified_gain <= OVER
