"""The demo's networks, as lines and as a page: for each what it looks like under the usual attack,
and what it really is under all attacks of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from retroact.auditing.numbers import AttackResult, AuditNumbers, Pair
from retroact.evaluation.metrics import wilson
from retroact.reports.audited import WHY
from retroact.reports.cards import apart
from retroact.reports.fallen import Case, Examined, show
from retroact.reports.html import render

TERMS = (
    *("looks like", "really", "95 % interval", "threat model", "masked", "saturation", "jump"),
    *("weak protocol", "clean accuracy"),
)
"""Of the glossary, what the page uses."""


@dataclass(frozen=True, eq=False)
class Shown:
    """A network of the demo: its name, what was done to it, an audit beside the plain one and its
    `side` there (0: it is the plain one), an example of it that an attack broke, and ρ₂ under the
    usual attack, where it was measured."""

    name: str
    about: str
    numbers: AuditNumbers
    side: int
    case: Case | None = None
    rho: float | None = None

    @property
    def is_plain(self) -> bool:
        return self.side == 0

    @property
    def clean(self) -> int:
        """How many images it reads rightly without an attack."""
        return self._count(self.numbers.clean)

    @property
    def looks(self) -> int:
        """How many under the usual attack."""
        return self._count(self.numbers.claimed)

    @property
    def really(self) -> int:
        """How many under all attacks."""
        return self._count(self.numbers.verified)

    @property
    def n(self) -> int:
        return self.numbers.n

    @property
    def line(self) -> str:
        """What is found, as a line."""
        return f"{begin_line(self.name, self.looks)}, really {self.really}{self.beside}"

    @property
    def beside(self) -> str:
        """What the audit makes of it beside the plain network."""
        if self.is_plain:
            return ""
        said = f" (masked by {self.numbers.mechanism})" if self.numbers.mechanism else ""
        more = self.numbers.gained - self.numbers.lost
        return (
            said
            + {
                "GENUINE": f", {more} more than plain, and that holds",
                "HARMFUL": f", {-more} fewer than plain",
                "NO EFFECT": ", no more than plain",
                "INCONCLUSIVE": "" if said else ", too few images to tell from plain",
                "ABSTAINED": ", and that is in doubt",
                "TOO STRONG A THREAT": ", too strong an attack to tell",
            }[self.numbers.effect]
        )

    @property
    def why(self) -> str:
        """What blinded the usual attack."""
        if self.is_plain:
            return ""
        return " ".join(said for m, said in WHY.items() if m in self.numbers.mechanisms)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The 95 % intervals of what it looks like and really is, in [0, 1]."""
        counts = {"looks": self.looks, "really": self.really}
        return {name: wilson(count, self.n) for name, count in counts.items()}

    @property
    def attacks(self) -> tuple[AttackResult, ...]:
        """What was run on it."""
        return self.numbers.attacks[self.side] if self.numbers.attacks else ()

    @property
    def weights(self) -> str:
        """The fingerprint of its weights, empty where there is none."""
        prints = self.numbers.fingerprints
        return prints.weights[self.side] if prints else ""

    def row(self) -> dict[str, str]:
        """The numbers with their intervals, as the columns of a table."""
        looks, really = (
            f"{count} ({100 * low:.0f}-{100 * high:.0f})"
            for count, (low, high) in zip(
                (self.looks, self.really), self.bounds.values(), strict=True
            )
        )
        row = {"network": self.name, "clean": str(self.clean)}
        row |= {"looks like": looks, "really": really, "beside plain": self.gain}
        return row | ({} if self.rho is None else {"ρ₂ %": f"{100 * self.rho:.1f}"})

    @property
    def gain(self) -> str:
        """The points it really has more than the plain one, with their interval."""
        if self.is_plain:
            return ""
        low, high = (100 * v for v in self.numbers.interval)
        return f"{100 * self.numbers.gain:+.0f} ({low:+.0f} to {high:+.0f})"

    def _count(self, shares: Pair[float]) -> int:
        return round(shares[self.side] * self.numbers.n)


def begin_line(name: str, looks: int) -> str:
    """How the line of a network begins, as soon as it is known what it looks like."""
    return f"{name}: looks like {looks}"


def fooled(audit: Examined, side: int, names: Pair[str], taken: set[int]) -> Case | None:
    """The example of a side that the last of the attacks broke, as those before could not, of a row
    that is not `taken` yet, if possible one whose margins were followed; it is then taken. None
    where nothing was broken."""
    examples, followed = audit.sides[side].examples, {trail.row for trail in audit.trails}
    left = [e for e in examples if e.row not in taken] or list(examples)
    found = max(left, key=lambda e: (e.row in followed, e.turn, -e.row), default=None)
    if found is None:
        return None
    taken.add(found.row)
    return Case(audit, found, side, Pair(*(f"on {name}" for name in names)))


def legend(n: int) -> str:
    """What the two numbers of a line are, of n images."""
    return (
        f'Of {n} images, how many are still read rightly? "Looks like": under the usual attack,'
        ' PGD as papers run it. "Really": under every attack of an audit.'
    )


def verdict(networks: Sequence[Shown]) -> str:
    """All of it in a few sentences."""
    plain, *others = networks
    said = [
        f"Under every attack of the audit the plain network still reads {plain.really} of"
        f" {plain.n} images rightly."
    ]
    for one in others:
        if one.numbers.mechanism:
            said.append(f"{one.name} makes that look like {one.looks}; really it is {one.really}.")
        else:
            name = one.name[0].upper() + one.name[1:]
            said.append(f"{name}, it is {one.really}{one.beside}.")
    return " ".join(said)


def page(
    networks: Sequence[Shown],
    *,
    title: str,
    intro: str,
    whose: str = "",
    commands: Sequence[str] = (),
    figures: Sequence[tuple[str, str]] = (),
) -> str:
    """The page as a string: the networks, the plain one first, with further `figures` of `plots`
    and their captions, and `commands` to try. Raises ValueError where there is no network."""
    if not networks:
        raise ValueError("expected at least one network, got none")
    measured = networks[0].rho is not None
    return render(
        "walk.html",
        title=title,
        intro=intro,
        verdict=verdict(networks),
        networks=networks,
        examples=apart(show("image", one.case) for one in networks if one.case is not None),
        figures=[(caption, Markup(figure)) for caption, figure in figures],
        whose=whose,
        commands=commands,
        weak=any("WEAK PROTOCOL" in one.numbers.words for one in networks),
        measured=measured,
        terms=[*TERMS, "ρ₂"] if measured else TERMS,
        run=networks[0].numbers,
    )
