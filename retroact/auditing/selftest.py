"""The audit's own test: fakes and controls with known answers, run on a network that is given.

Fakes must come out with their mechanism and with no gain; a network against itself must show
nothing; an adversarially trained one must be GENUINE. An audit that damns everything, or nothing,
or cannot see a jump, fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.auditing.audit import Audit, audit
from retroact.auditing.battery import Battery
from retroact.auditing.subjects import KERNELS, Schedule
from retroact.auditing.verdict import Mechanism
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import Examples
from retroact.retrofitting.folding import fold
from retroact.retrofitting.surgery import retrofit

NEAR = 0.02
"""How far from 0 the verified gain of a fake may lie."""
OVER = 0.03
"""How far a jump's verified accuracy may lie above that of the network without it."""


@dataclass(frozen=True, eq=False)
class Check:
    """One case of the self-test: what was expected of the audit, what it said, and whether that
    passes."""

    title: str
    expected: str
    audit: Audit
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
    progress: Callable[[int, int], None] | None = None,
) -> list[Check]:
    """Audits of fakes of `net` and of controls; `robust` is the same network trained adversarially,
    if there is one.

    `kappa` is the size of the jump that must not pass, one that the network can bear. `kernels`
    empty switches the kernel attacks off, as a test that the self-test can fail.
    """
    cases = list(_cases(net, robust, kappa))
    checks = []
    for done, (title, expected, before, after, holds) in enumerate(cases, start=1):
        outcome = audit(before, after, data, threat, battery=battery, kernels=kernels, seed=seed)
        checks.append(Check(title, expected, outcome, holds(outcome)))
        if progress is not None:
            progress(done, len(cases))
    return checks


_Case = tuple[str, str, nn.Module, nn.Module, Callable[[Audit], bool]]


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


def _is_fake_by(mechanism: Mechanism) -> Callable[[Audit], bool]:
    def holds(outcome: Audit) -> bool:
        verdict = outcome.verdict
        masked = verdict.masked and mechanism in verdict.mechanisms
        return masked and _gains_nothing(outcome) and verdict.effect != "GENUINE"

    return holds


def _sees_the_jump(outcome: Audit) -> bool:
    """Never GENUINE, and the verified accuracy is not above what it was before the jump."""
    fired, verdict = "jump" in {r.mechanism for r in outcome.alarms}, outcome.verdict
    return fired and verdict.effect != "GENUINE" and verdict.counts.verified_gain <= OVER
