"""What is said of the lines of a look, all together: corrected p and interval, the verdict, what
became of the claim, and whether a second look is due. No torch here; the rules are the protocol's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from retroact.auditing.verdict import holm, mcnemar
from retroact.studies.ledger.power import interval, shares_of, visible_gain

Word = Literal["GENUINE", "NO EFFECT", "HARMFUL", "CANNOT BE TOLD"]
GENUINE: Word = "GENUINE"

RATE = 0.05
LOOKS = 2
"""How often at most is looked; each look has its share of RATE."""
SMALLEST = 0.02
"""The smallest difference of verified accuracy that matters."""
SMALL = 0.05
"""What a claim is taken for where it says no number, and within which a last look that contains 0
says NO EFFECT."""


@dataclass(frozen=True)
class Look:
    """What was counted on a line: of `n` images `gained` and `lost`; whether the audit `settled` it
    or was `doubted`; whether this is the `second` look; the gain that is `claimed` (None: no
    number), and whether the line is `outside` that claim; what AutoAttack gives (`auto`)."""

    n: int
    gained: int
    lost: int
    settled: bool = True
    doubted: bool = False
    second: bool = False
    claimed: float | None = None
    outside: bool = False
    auto: float | None = None

    @property
    def p(self) -> float:
        """McNemar's exact two-sided p."""
        return mcnemar(self.gained, self.lost)

    @property
    def gain(self) -> float:
        """The verified gain, in [−1, 1]."""
        return (self.gained - self.lost) / self.n


@dataclass(frozen=True)
class Judgement:
    """A line's verdict: its p by Holm and its interval, both of the whole look; the smallest gain
    that its n and the images that changed hands could have shown (`visible`, None: none at all);
    what became of the claim; whether a second look is due (`open`)."""

    p: float
    interval: tuple[float, float]
    visible: float | None
    verdict: Word
    became: str
    open: bool


def judge_all(looks: Sequence[Look | None], planned: int) -> list[Judgement | None]:
    """A judgement of each line; None stands for one that is not measured.

    Holm's correction counts all `planned` lines at either look, those that are not measured, or not
    looked at again, with p = 1: so the error rate holds whatever is measured first.
    """
    judged: list[Judgement | None] = [None] * len(looks)
    for second in (False, True):
        rows = [i for i, look in enumerate(looks) if look is not None and look.second == second]
        several = [look for i in rows if (look := looks[i]) is not None]
        ps = [look.p for look in several] + [1.0] * max(0, planned - len(several))
        corrected, rates = holm(ps), shares_of(RATE / LOOKS, ps)
        for i, look, p, rate in zip(rows, several, corrected, rates, strict=False):
            judged[i] = _judge(look, p, rate)
    return judged


def _judge(look: Look, p: float, rate: float) -> Judgement:
    ends = interval(look.gained, look.lost, look.n, rate)
    due = not look.second and look.settled and leaves_open(ends, look.claimed)
    moved = (look.gained + look.lost) / look.n
    return Judgement(
        p,
        ends,
        visible_gain(look.n, moved),
        _verdict(look, p, ends, due),
        what_became(look, ends),
        due,
    )


def leaves_open(ends: tuple[float, float], claimed: float | None) -> bool:
    """Whether an interval contains both 0 and the claimed gain; where there is none, 0 and a gain
    or a loss of SMALL."""
    wanted = (SMALL, -SMALL) if claimed is None else (claimed,)
    return _holds(ends, 0.0) and any(_holds(ends, gain) for gain in wanted)


def _holds(ends: tuple[float, float], value: float) -> bool:
    return ends[0] <= value <= ends[1]


def _lies_within(ends: tuple[float, float], margin: float) -> bool:
    return ends[0] >= -margin and ends[1] <= margin


def _verdict(look: Look, p: float, ends: tuple[float, float], due: bool) -> Word:
    if not look.settled:
        return "CANNOT BE TOLD"
    seen = p <= RATE / LOOKS
    if ends[0] > 0 and seen:
        contradicted = look.auto is not None and look.auto < 0
        return "CANNOT BE TOLD" if look.doubted or contradicted else GENUINE
    if ends[1] < 0 and seen:
        return "HARMFUL"
    if _lies_within(ends, SMALLEST):
        return "NO EFFECT"
    alike = _lies_within(ends, SMALL) and _holds(ends, 0.0) and not due
    return "NO EFFECT" if alike else "CANNOT BE TOLD"


def what_became(look: Look, ends: tuple[float, float]) -> str:
    """What became of the claimed gain, in words; "no number" where there is none."""
    if look.claimed is None:
        return "outside the claim" if look.outside else "no number is claimed"
    said = _compare(look.claimed, ends) if look.settled else "cannot be told"
    return f"outside the claim; here {said}" if look.outside else said


def _compare(claimed: float, ends: tuple[float, float]) -> str:
    if claimed > ends[1]:
        return f"too high by at least {100 * (claimed - ends[1]):.1f}"
    if claimed < ends[0]:
        return "stands, and more"
    return "cannot be told" if _holds(ends, 0.0) else "stands"
