"""The examples on an audit's page: what every attack did to each, what moved, and its margin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from retroact.auditing.deciding import Judged
from retroact.auditing.numbers import AttackResult, Pair
from retroact.reports import plots

WHEN = Pair("before", "after")
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


class Fate(NamedTuple):
    """What an attack did to an example: "withstood", "broke it", or why that is not known."""

    attack: str
    result: str


class Fates(NamedTuple):
    """All of one network, in the order in which they were run; `sums` says it in a line."""

    network: str
    sums: str
    fates: list[Fate]


class Shown(NamedTuple):
    """An example as a page has it. `image`, `x_adv` and `moved` are addresses of pictures, empty
    where it is none; `walks` the figure of its margins, empty where none was measured."""

    name: str
    row: int
    label: int
    decided: int
    fell: str
    beside: str
    by: str
    image: str
    x_adv: str
    moved: str
    linf: float
    l2: float
    changed: float
    both: list[Fates]
    walks: Markup

    @property
    def caption(self) -> str:
        """What fooled the network, in a sentence: the text for whoever sees no picture."""
        return (
            f"{self.name} {self.row}, class {self.label}, taken for class {self.decided}"
            f" {self.fell} ({self.beside}), broken by {self.by}, moved by at most {self.linf:.3f}"
        )


def show(
    word: str,
    box: Boxed,
    sides: tuple[Attacked, Attacked],
    trails: Sequence[Trail],
    found: Broken,
    side: int,
) -> Shown:
    """What is known of an example that was broken on a side (0 before, 1 after)."""
    drawn = plots.is_image(found.image)
    change = (found.x_adv - found.image).astype(np.float64)
    robust, clean = sides[1 - side].verified[found.row], sides[1 - side].clean[found.row]
    other = WHEN[1 - side]
    beside = f"robust {other} it" if robust else f"not robust {other} it"
    return Shown(
        name=word,
        row=found.row,
        label=found.label,
        decided=found.decided,
        fell=f"{WHEN[side]} the change",
        beside=beside if clean else f"wrong {other} it without an attack",
        by="the claimed attack" if found.role == "claimed" else found.by,
        image=plots.image(found.image, box.low, box.high) if drawn else "",
        x_adv=plots.image(found.x_adv, box.low, box.high) if drawn else "",
        moved=plots.moved(found.image, found.x_adv) if drawn else "",
        linf=float(np.abs(change).max()),
        l2=float(np.sqrt((change**2).sum())),
        changed=float((change != 0).mean()),
        both=[_tell(sides[i], WHEN[i], found.row) for i in (0, 1)],
        walks=_draw_walks(trails, found.row),
    )


def _tell(side: Attacked, when: str, row: int) -> Fates:
    fates = list(_fates(side, row))
    withstood = sum(fate.result == "withstood" for fate in fates)
    turn = int(side.broken_by[row])
    if not side.clean[row]:
        sums = "wrong without an attack"
    elif turn < 0:
        sums = f"withstands all: {withstood} attacks were tried on it"
    else:
        sums = f"broken by attack {turn + 1} of {len(side.attacks)}"
    return Fates(when, sums, fates)


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
            result = "broke it"
        elif 0 <= broken < turn:
            result = "not asked: it was broken by then"
        elif partly:
            result = f"not known: it was tried on {attack.asked} examples alone"
        else:
            result = "withstood"
        yield Fate(attack.title, result)


def _draw_walks(trails: Sequence[Trail], row: int) -> Markup:
    trail = next((t for t in trails if t.row == row), None)
    if trail is None:
        return Markup("")
    lines = [
        plots.Walk(margins[i], after=bool(i), found=found)
        for i in (0, 1)
        for margins, found in ((trail.usual, False), (trail.found, True))
    ]
    ends = ", ".join(
        f"{WHEN[line.after]} the change on the way to what was found"
        if line.found
        else f"{WHEN[line.after]} the change along the usual attack"
        for line in lines
        if line.margins[-1] < 0
    )
    says = f"The margin ends below 0 {ends or 'nowhere'}."
    return Markup(plots.told(plots.walks(lines), says))
