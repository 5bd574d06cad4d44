"""The verdict: what four accuracies, counted example by example, allow to say. No torch here.

C0, C1 are the claimed accuracies before the change and after it, V0, V1 the verified ones. Two
answers, independent of each other: the *effect* is about V1 − V0, the *claim* about what the
claimed attack missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from retroact.shown import as_html, percent

if TYPE_CHECKING:
    from pandas import DataFrame

Effect = Literal[
    "GENUINE", "HARMFUL", "NO EFFECT", "INCONCLUSIVE", "ABSTAINED", "TOO STRONG A THREAT"
]
Claim = Literal["MASKED", "MASKED, WEAK PROTOCOL", "WEAK PROTOCOL", "HONEST", "NOT SETTLED"]
Word = Literal["MASKED", "WEAK PROTOCOL", "HONEST", "NOT SETTLED"]
Mechanism = Literal["saturation", "jump", "wrong gradient", "steps"]
Moved = tuple[float | None, float | None]
Comparison = Literal["NOT WEAKER", "WEAKER", "NOT SETTLED"]

WORDS: dict[Claim, tuple[Word, ...]] = {
    "MASKED": ("MASKED",),
    "MASKED, WEAK PROTOCOL": ("MASKED", "WEAK PROTOCOL"),
    "WEAK PROTOCOL": ("WEAK PROTOCOL",),
    "HONEST": ("HONEST",),
    "NOT SETTLED": ("NOT SETTLED",),
}
"""What each claim says, word by word."""

SETTLED: frozenset[str] = frozenset({"GENUINE", "HARMFUL", "NO EFFECT"})
"""The effects that say which network is the stronger, or that neither is."""

MARGIN = 0.05
"""Differences of accuracy smaller than this do not matter, unless the user says otherwise."""

SHARES = ("clean %", "claimed %", "verified %")
"""What heads the columns of `Counts.rows`."""

_DRAWS = 10_000
_NONE = 3  # of any n: the rule of three
_RARE, _RARER = 0.05, 0.01  # of a gain that is settled, and of one at a first look
_WORTH_A_WORD = 1.0  # points of clean accuracy
_Z = 1.959964


@dataclass(frozen=True)
class Counts:
    """How n examples fare, right under the claimed attack and under all attacks: the facts of a
    verdict.

    Pairs are (before the change, after it); `gained` are robust after it alone, `lost` before it
    alone, both as verified; accuracies in [0, 1].
    """

    n: int
    clean: tuple[float, float]
    claimed: tuple[float, float]
    verified: tuple[float, float]
    gained: int
    lost: int

    @property
    def claimed_gain(self) -> float:
        """C1 − C0."""
        return self.claimed[1] - self.claimed[0]

    @property
    def verified_gain(self) -> float:
        """V1 − V0."""
        return (self.gained - self.lost) / self.n

    @property
    def mirage(self) -> float:
        """What the claim promises beyond the truth: (C1 − C0) − (V1 − V0)."""
        return self.claimed_gain - self.verified_gain

    @property
    def overestimate(self) -> float:
        """What the claimed attack misses on the network before the change: C0 − V0."""
        return self.claimed[0] - self.verified[0]

    @property
    def at_floor(self) -> bool:
        """Whether so few are robust, on both networks, that it may as well be none: 3 of n, the
        upper end of the 95 % interval of 0."""
        return max(self.verified) * self.n <= _NONE

    @property
    def p(self) -> float:
        """McNemar's exact two-sided p."""
        return mcnemar(self.gained, self.lost)

    @property
    def interval(self) -> tuple[float, float]:
        """The bootstrap's 95 % interval of V1 − V0."""
        return bootstrap(self.gained, self.lost, self.n)

    def rows(self, names: tuple[str, str]) -> list[tuple[str, ...]]:
        """A row for each network: its name, clean, claimed and verified accuracy in per cent."""
        shares = zip(self.clean, self.claimed, self.verified, strict=True)
        return [(name, *map(percent, side)) for name, side in zip(names, shares, strict=True)]

    def not_weaker(self, margin: float = MARGIN) -> bool:
        """Non-inferiority: whether the lower end of the interval of V1 − V0 lies above −`margin`.

        Raises ValueError for a margin outside (0, 1).
        """
        return self.interval[0] > -check_margin(margin)


@dataclass(frozen=True)
class Verdict:
    """The two answers, and the sentence that says them."""

    effect: Effect
    claim: Claim
    mechanisms: tuple[Mechanism, ...]  # of a mask; empty where nothing is masked
    counts: Counts
    doubts: tuple[str, ...] = ()
    needs: int = 0  # examples that would settle an INCONCLUSIVE; 0 elsewhere
    tells: str = ""  # a threat at which half of the examples would be robust; only at the floor
    first_look: bool = False  # by the quick battery
    planted: str = ""  # what attacks found of planted examples, where these were asked
    reach: str = ""  # what stands in all that a front end can give, where that was asked
    moved: Moved = (
        None,
        None,
    )  # accuracy that twice the steps took, before and after; None: not asked

    def _repr_html_(self) -> str:
        head = (f"n = {self.counts.n}", *SHARES)
        return as_html(str(self), head, self.counts.rows(("before", "after")), self.doubts)

    def frame(self) -> DataFrame:
        """A row for the network before and one for the network after, as a pandas DataFrame: `n`,
        `clean`, `claimed` and `verified` accuracy, and the `effect` and `claim` of the change."""
        from pandas import DataFrame  # which `datasets` brings

        c = self.counts
        shares = {"n": c.n, "clean": c.clean, "claimed": c.claimed, "verified": c.verified}
        said = {"effect": self.effect, "claim": self.claim}
        return DataFrame({"network": ("before", "after")} | shares | said)

    @property
    def mechanism(self) -> str:
        """ "saturation", "jump", "saturation and jump", or "" where nothing is masked."""
        return " and ".join(self.mechanisms)

    @property
    def words(self) -> tuple[Word, ...]:
        """The claim in single words."""
        return WORDS[self.claim]

    @property
    def masked(self) -> bool:
        """Whether the claimed attack was blinded."""
        return "MASKED" in self.words

    def doubt(self, reason: str) -> Verdict:
        """The verdict with one more reason to abstain."""
        claim: Claim = "NOT SETTLED" if self.claim == "HONEST" else self.claim
        doubts = (*self.doubts, reason)
        return replace(self, effect="ABSTAINED", claim=claim, doubts=doubts, needs=0)

    def compare(self, margin: float = MARGIN) -> Comparison:
        """Whether the change costs less than `margin` of verified accuracy; what is not shown does
        not pass.

        NOT WEAKER: the counts say so (`Counts.not_weaker`), the effect is one of `SETTLED`, and
        there is no doubt. WEAKER: else, where the effect is HARMFUL. NOT SETTLED: all others.
        """
        if self.counts.not_weaker(margin) and self.effect in SETTLED and not self.doubts:
            return "NOT WEAKER"
        return "WEAKER" if self.effect == "HARMFUL" else "NOT SETTLED"

    def explain_comparison(self, margin: float = MARGIN) -> str:
        """What `compare` says, with the number that it rests on."""
        low = 100 * self.counts.interval[0]
        return (
            f"{self.compare(margin)}: the lower end of the verified difference's interval is"
            f" {low:+.1f} points, required: above {-100 * margin:.1f}, settled and without a doubt"
        )

    def __str__(self) -> str:
        c = self.counts
        by = f" by {self.mechanism}" if self.mechanism else ""
        claim = {
            "MASKED": f"its claim is MASKED{by}",
            "MASKED, WEAK PROTOCOL": (
                f"its claim is MASKED{by}, and the claimed attack is weak before the change too"
            ),
            "WEAK PROTOCOL": "the claimed attack is too weak to tell (WEAK PROTOCOL)",
            "HONEST": "its claim is HONEST",
            "NOT SETTLED": "its claim is NOT SETTLED",
        }[self.claim]
        low, high = (100 * v for v in c.interval)
        said = (
            f"{self.effect}; {claim}: claimed {100 * c.claimed_gain:+.1f}, verified"
            f" {100 * c.verified_gain:+.1f} points [{low:+.1f}, {high:+.1f}] (p = {c.p:.2g}, n ="
            f" {c.n})"
        )
        said += self._say_clean()
        if self.needs:
            said += f"; about n = {self.needs} would settle it"
        if self.tells:
            said += f"; {self.tells} would tell"
        if self.first_look:
            said += "; a first look, by the quick battery"
        said += self._say_moved()
        if not self.doubts:
            said += "".join(f"; {answer}" for answer in (self.planted, self.reach) if answer)
        return said + "".join(f"; {doubt}" for doubt in self.doubts)

    def _say_moved(self) -> str:
        """How far each side still moves."""
        told = zip(("before", "after"), self.moved, strict=True)
        moves = [f"{word} by {100 * by:.1f}" for word, by in told if by is not None]
        return f"; twice the steps move {' and '.join(moves)} points" if moves else ""

    def _say_clean(self) -> str:
        """What the change costs, or gives, where nobody attacks."""
        before, after = (100 * v for v in self.counts.clean)
        if abs(after - before) < _WORTH_A_WORD:
            return ""
        return f"; clean {before:.1f} -> {after:.1f} %"

    def plainly(self, word: str = "image") -> str:
        """The verdict for somebody who is no expert; `word` is what an example is called."""
        c = self.counts
        v0, v1 = (f"{100 * v:.1f} %" for v in c.verified)
        c0, c1 = (f"{100 * v:.1f} %" for v in c.claimed)
        withstand = f"{v1} of the {word}s withstand every attack, {v0} before."
        effect = {
            "GENUINE": f"The change makes this network harder to fool: {withstand}",
            "HARMFUL": f"The change makes this network easier to fool: {withstand}",
            "NO EFFECT": f"The change does not make this network harder to fool: {withstand}",
            "INCONCLUSIVE": (
                f"{c.n} {word}s are too few to tell whether the change does anything "
                f"(about {self.needs} would): {withstand}"
            ),
            "TOO STRONG A THREAT": (
                f"Nearly every {word} falls on both networks, so this threat cannot tell them apart"
                f"{f'; {self.tells} would' if self.tells else ''}: {withstand}"
            ),
            "ABSTAINED": (
                f"No verdict, for the attacks at hand may have missed something: {withstand}"
            ),
        }[self.effect]
        if self.masked and c.claimed_gain > 0:
            return (
                f"{effect} The usual attack suggests otherwise ({c1} against {c0}) because the"
                " change blinds it, not because the network became safer."
            )
        if self.masked:
            return (
                f"{effect} The usual attack shows less of it ({c1} against {c0}) because the change"
                " blinds it."
            )
        if self.claim == "WEAK PROTOCOL":
            return (
                f"{effect} The usual attack ({c1} against {c0}) is too weak on both networks to be"
                " a measure."
            )
        said = f"{effect} The usual attack says much the same ({c1} against {c0})"
        return (
            f"{said}, and may have missed as much." if self.claim == "NOT SETTLED" else f"{said}."
        )


def judge(
    counts: Counts,
    alarms: Sequence[Mechanism],
    doubts: Sequence[str] = (),
    margin: float = MARGIN,
    *,
    doubts_before: Sequence[str] = (),
    tells: str = "",
    first_look: bool = False,
    planted: str = "",
    reach: str = "",
    moved: Moved = (None, None),
) -> Verdict:
    """The verdict from the counts, the mechanisms whose alarms fired, and the reasons to abstain.

    TOO STRONG A THREAT: hardly anything is robust on either network. GENUINE: the interval of
    V1 − V0 lies above 0, and McNemar's p is at most 0.05, or 0.01 at a `first_look`, which leaves
    some images that more attacks would take. HARMFUL: the interval lies below 0.
    NO EFFECT: within ± `margin`. INCONCLUSIVE: none of these. A doubt about the network after the
    change makes it ABSTAINED but for HARMFUL, as what attacks missed there could only add to the
    harm; one about the network before (`doubts_before`) but for GENUINE, as it could only add to
    the gain. MASKED: the mirage exceeds `margin` and an alarm fired. WEAK PROTOCOL: the claimed
    attack overestimates the network before the change by more than `margin`, or the one after it
    where no alarm says why. HONEST: neither; NOT SETTLED where there is a doubt about either
    network, as the claim is measured by what was verified. Raises ValueError for a margin outside
    (0, 1).
    """
    rare = _RARER if first_look else _RARE
    effect = _effect(counts.interval, counts.p, check_margin(margin), rare)
    heard = {"GENUINE": [*doubts], "HARMFUL": [*doubts_before]}
    reasons = heard.get(effect, [*doubts, *doubts_before])
    if counts.at_floor:
        effect = "TOO STRONG A THREAT"
    elif reasons:
        effect = "ABSTAINED"
    masked = counts.mirage > margin and bool(alarms)
    weak = counts.overestimate > margin or (counts.mirage > margin and not alarms)
    claim: Claim = "HONEST"
    if masked:
        claim = "MASKED, WEAK PROTOCOL" if weak else "MASKED"
    elif weak:
        claim = "WEAK PROTOCOL"
    elif (doubts or doubts_before) and not counts.at_floor:
        claim = "NOT SETTLED"
    mechanisms = tuple(dict.fromkeys(alarms)) if masked else ()
    needs = settling(counts, margin, rare) if effect == "INCONCLUSIVE" else 0
    said = tuple(reasons if effect == "ABSTAINED" else doubts)
    how = (needs, tells, first_look, planted, reach, moved)
    return Verdict(effect, claim, mechanisms, counts, said, *how)


def check_margin(margin: float) -> float:
    """The margin; ValueError where it is none."""
    if not 0 < margin < 1:
        raise ValueError(
            f"expected a margin in (0, 1), the accuracy difference that matters, got {margin}"
        )
    return margin


def _effect(interval: tuple[float, float], p: float, margin: float, rare: float) -> Effect:
    low, high = interval
    if low > 0 and p <= rare:
        return "GENUINE"
    if high < 0:
        return "HARMFUL"
    return "NO EFFECT" if -margin <= low and high <= margin else "INCONCLUSIVE"


def settling(counts: Counts, margin: float = MARGIN, rare: float = _RARE) -> int:
    """About the n at which an interval of this spread would exclude 0, with a p of at most `rare`
    for a gain, or lie within ± `margin`, whichever is sooner.

    Found by growing n until the interval of as many gained and lost in proportion is conclusive;
    rounded up to two digits, as more of them would promise too much.
    """
    gained, lost = counts.gained / counts.n, counts.lost / counts.n
    gain, variance = gained - lost, gained + lost - (gained - lost) ** 2
    n = max(counts.n + 1, math.ceil(_Z**2 * variance / max(abs(gain), margin - abs(gain)) ** 2))
    while _effect(*_expect(gained, lost, n), margin, rare) == "INCONCLUSIVE":
        n = math.ceil(1.05 * n)
    unit = int(10 ** max(0, math.floor(math.log10(n)) - 1))
    return unit * math.ceil(n / unit)


def fewest(margin: float = MARGIN) -> int:
    """The least n that could tell anything: two networks that fare alike on so many examples are
    within ± `margin` of one another. About 3/`margin`, as the rule of three has it."""
    n = math.ceil(1 / check_margin(margin))
    while bootstrap(0, 0, n)[0] <= -margin:
        n += 1 + n // 100
    return n


def _expect(gained: float, lost: float, n: int) -> tuple[tuple[float, float], float]:
    """The interval and the p of n examples, of which such shares are gained and lost; a p is that
    of whole examples, so the larger one."""
    whole = mcnemar(math.floor(gained * n), math.ceil(lost * n))
    return bootstrap(gained * n, lost * n, n), whole


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: min(1, 2 P[Binomial(b + c, 1/2) ≤ min(b, c)]) (McNemar
    1947)."""
    n, least = int(gained + lost), int(min(gained, lost))  # 2**n overflows in numpy's integers
    if least < 0:
        raise ValueError(f"expected counts of at least 0, got {gained} and {lost}")
    tail = sum(math.comb(n, i) for i in range(least + 1))
    return float(min(1.0, 2 * tail / 2**n))


def holm(ps: Sequence[float]) -> list[float]:
    """The p values of questions that are asked together, each as large as it must be said
    (Holm 1979, Scand. J. Statist. 6): the k-th smallest of m times m − k + 1, never below a
    smaller one's, at most 1."""
    order, m, largest = sorted(range(len(ps)), key=lambda i: ps[i]), len(ps), 0.0
    corrected = [0.0] * m
    for k, i in enumerate(order):
        largest = max(largest, min(1.0, (m - k) * ps[i]))
        corrected[i] = largest
    return corrected


def bootstrap(gained: float, lost: float, n: int, draws: int = _DRAWS) -> tuple[float, float]:
    """The 95 % interval of V1 − V0 when n examples are drawn anew, with a fixed seed: two
    quantiles.

    One example is added to the gained and one to the lost before drawing (Bonett & Price 2012, J.
    Educ. Behav. Stat. 37(4), who do so for a normal interval), as plain draws never show what no
    example of n has shown.
    """
    if n < 1 or gained < 0 or lost < 0 or gained + lost > n * (1 + 1e-12):
        raise ValueError(f"expected gained + lost ≤ n with n > 0, got {gained}, {lost}, n = {n}")
    whole, rest = n + 2, max(0.0, n - gained - lost)
    shares = [(gained + 1) / whole, (lost + 1) / whole, rest / whole]
    drawn = np.random.default_rng(0).multinomial(whole, shares, size=draws)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / whole, [0.025, 0.975])
    return float(low), float(high)


def count(
    clean: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    claimed: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    verified: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> Counts:
    """The counts of (before, after) pairs of bool (n,), the examples in the same order."""
    sizes = {len(side) for pair in (clean, claimed, verified) for side in pair}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"expected the same examples, at least one, on both networks, got {sorted(sizes)} of"
            " them"
        )
    v0, v1 = verified

    def shares(pair: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> tuple[float, float]:
        return float(np.mean(pair[0])), float(np.mean(pair[1]))

    lost, gained = int(np.sum(v0 & ~v1)), int(np.sum(v1 & ~v0))
    return Counts(sizes.pop(), shares(clean), shares(claimed), shares(verified), gained, lost)
