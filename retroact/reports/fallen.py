"""The examples that an audit broke, as cards: what every attack did to each, and its margin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from retroact.auditing.deciding import Judged
from retroact.auditing.numbers import AttackResult, Pair
from retroact.reports import plots
from retroact.reports.cards import BROKEN, Card, Fate, Fates, compare, decision

WHERE = Pair("before the change", "after the change")
"""The networks of an audit, as its page calls them."""
Margins = tuple[float, ...]


class Broken(Protocol):
    """An example that an attack broke: what it was before and after (…), its label, what was
    decided, and the attack's title, role and turn in the battery."""

    @property
    def row(self) -> int: ...
    @property
    def label(self) -> int: ...
    @property
    def decided(self) -> int: ...
    @property
    def image(self) -> NDArray[np.float32]: ...
    @property
    def x_adv(self) -> NDArray[np.float32]: ...
    @property
    def by(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def turn(self) -> int: ...


class Attacked(Judged[Broken], Protocol):
    """One network of an audit, as far as a report shows it, all (n,): which examples are right
    without an attack, which are robust, and the turn that broke each (−1: none); the attacks, by
    turn."""

    @property
    def clean(self) -> NDArray[np.bool_]: ...
    @property
    def broken_by(self) -> NDArray[np.int64]: ...
    @property
    def attacks(self) -> Sequence[AttackResult]: ...


class Trail(Protocol):
    """The margins of an example on both networks: along the usual PGD, and on the straight way to
    what was found."""

    @property
    def row(self) -> int: ...
    @property
    def usual(self) -> Pair[Margins]: ...
    @property
    def found(self) -> Pair[Margins]: ...


class Boxed(Protocol):
    """The box that the entries of an example lie in."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Examined(Protocol):
    """An audit, as far as the cards of its examples show it."""

    @property
    def domain(self) -> Boxed: ...
    @property
    def sides(self) -> tuple[Attacked, Attacked]: ...
    @property
    def trails(self) -> Sequence[Trail]: ...


class Case(NamedTuple):
    """An example that an audit broke on a `side` (0 before, 1 after), and what its networks are
    called."""

    audit: Examined
    found: Broken
    side: int
    where: Pair[str] = WHERE


def show(word: str, case: Case) -> Card:
    """What is known of a case."""
    audit, found, side, where = case
    box = audit.domain.low, audit.domain.high
    return Card(
        name=f"{word}-{found.row}",
        title=f"{word} {found.row}",
        label=decision(found.label),
        before=decision(found.label),  # what is wrong clean is not attacked
        decided=decision(found.decided),
        says=f"{where[side]}, {_say_beside(case)}",
        by="the claimed attack" if found.role == "claimed" else found.by,
        change=compare(found.image, found.x_adv, box),
        networks=[_tell(audit.sides[i], where[i], found.row) for i in (0, 1)],
        walks=_draw_walks(audit.trails, found.row, where),
    )


def _say_beside(case: Case) -> str:
    """What the other network makes of the example."""
    other, row = case.audit.sides[1 - case.side], case.found.row
    where = case.where[1 - case.side]
    if not other.clean[row]:
        return f"wrong {where} without an attack"
    return f"robust {where}" if other.verified[row] else f"not robust {where}"


def _tell(side: Attacked, where: str, row: int) -> Fates:
    fates = list(_fates(side, row))
    withstood = sum(fate.result == "withstood" for fate in fates)
    turn = int(side.broken_by[row])
    if not side.clean[row]:
        sums = "wrong without an attack"
    elif turn < 0:
        sums = f"withstands all: {withstood} attacks were tried on it"
    else:
        sums = f"broken by attack {turn + 1} of {len(side.attacks)}"
    return Fates(where, sums, fates)


def _fates(side: Attacked, row: int) -> Iterator[Fate]:
    if not side.clean[row]:
        return
    broken, sampled = int(side.broken_by[row]), 0
    for turn, attack in enumerate(side.attacks):
        left = int((side.clean & ((side.broken_by < 0) | (side.broken_by >= turn))).sum())
        # several that were tried on one sample are told one after the other
        partly = attack.asked < left or attack.asked == sampled
        sampled = attack.asked if partly else 0
        if turn == broken:
            result = BROKEN
        elif 0 <= broken < turn:
            result = "not asked: it was broken by then"
        elif partly:
            result = f"not known: it was tried on {attack.asked} examples alone"
        else:
            result = "withstood"
        yield Fate(attack.title, result)


def _draw_walks(trails: Sequence[Trail], row: int, where: Pair[str]) -> Markup:
    trail = next((t for t in trails if t.row == row), None)
    if trail is None:
        return Markup("")
    lines = [
        plots.Walk(margins[i], after=bool(i), found=found)
        for i in (0, 1)
        for margins, found in ((trail.usual, False), (trail.found, True))
    ]
    ends = ", ".join(
        f"{where[line.after]} on the way to what was found"
        if line.found
        else f"{where[line.after]} along the usual attack"
        for line in lines
        if line.margins[-1] < 0
    )
    says = f"The margin ends below 0 {ends or 'nowhere'}."
    return Markup(plots.told(plots.walks(lines, where), says))
