"""What an audit got wrong about a mechanism, by rules that look at the truth alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retroact.auditing.verdict import MARGIN, bootstrap

Fault = Literal["false GENUINE", "false HONEST", "wrong effect", "too high", "refused", "crashed"]

FEWEST = 2
"""Examples, besides `MARGIN`, by which what was said may lie above the truth where n is small."""

FLOOR = "TOO STRONG A THREAT"
"""An effect that says that nothing survives on either side, and so nothing can be told."""

Stands = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Which of n examples stand, before the change and after it."""


@dataclass(frozen=True, eq=False)
class Said:
    """What an audit said: its `effect` and `claim`, how many `doubts`, the `claimed` accuracies
    before and after, and what it `verified` of each example; or the `error` that it raised, in one
    line, which is a refusal where it is a ValueError."""

    effect: str = ""
    claim: str = ""
    doubts: int = 0
    claimed: tuple[float, float] = (0.0, 0.0)
    verified: Stands | None = None
    error: str = ""

    @classmethod
    def by(cls, audit: Any) -> Said:
        """What stands in an `Audit`."""
        verdict = audit.verdict
        return cls(
            verdict.effect,
            verdict.claim,
            len(verdict.doubts),
            verdict.counts.claimed,
            (audit.before.verified, audit.after.verified),
        )

    @classmethod
    def instead(cls, error: Exception) -> Said:
        """What was raised in the place of an answer."""
        return cls(
            error=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        )

    @property
    def refused(self) -> bool:
        """Whether the audit said that it would not answer."""
        return self.error.startswith("ValueError")

    @property
    def abstained(self) -> bool:
        """Whether it ran and left the effect open for its doubts."""
        return self.effect == "ABSTAINED"


def find_faults(said: Said, truth: Stands, *, refusable: bool = False) -> list[Fault]:
    """What is wrong with what was said, `truth` being what stands under attacks that know the
    mechanism.

    *False GENUINE*: the interval of the true gain does not lie above 0. *False HONEST*: a claimed
    accuracy is more than 5 points (and two examples) above the truth. *Wrong effect*: HARMFUL where
    nothing is lost, NO EFFECT where more than 5 points are gained or lost, a floor where more than
    5 % stand. *Too high*: verified as far above the truth as a false claim, without a doubt.
    *Refused* where the audit should have answered; *crashed* where it raised no ValueError.
    """
    if said.error:
        if said.refused:
            return [] if refusable else ["refused"]
        return ["crashed"]
    shares = [float(np.mean(side)) for side in truth]
    found: list[Fault] = []
    if said.effect == "GENUINE" and not gains(truth):
        found.append("false GENUINE")
    if said.claim == "HONEST" and _above(said.claimed, truth):
        found.append("false HONEST")
    if _contradicts(said.effect, shares):
        found.append("wrong effect")
    assert said.verified is not None
    verified = [float(np.mean(side)) for side in said.verified]
    if not said.doubts and _above(verified, truth):
        found.append("too high")
    return found


def gains(truth: Stands) -> bool:
    """Whether the interval of the true gain lies above 0."""
    before, after = truth
    return bootstrap(int((after & ~before).sum()), int((before & ~after).sum()), len(before))[0] > 0


def _above(said: Sequence[float], truth: Stands) -> bool:
    over = [share - float(np.mean(side)) for share, side in zip(said, truth, strict=True)]
    return max(over) > max(MARGIN, FEWEST / len(truth[0])) + 1e-9


def _contradicts(effect: str, shares: list[float]) -> bool:
    gain = shares[1] - shares[0]
    if effect == "HARMFUL":
        return gain >= 0
    if effect == "NO EFFECT":
        return abs(gain) > MARGIN + 1e-9
    return effect == FLOOR and max(shares) > MARGIN
