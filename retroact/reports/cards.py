"""Cards of examples, on every page alike: what each was, what an attack made of it, what moved, and
what every attack did to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from retroact.reports import plots

BROKEN = "broke it"


class Fate(NamedTuple):
    """What an attack did to an example: "withstood", BROKEN, or why that is not known."""

    attack: str
    result: str


class Fates(NamedTuple):
    """All of one network (`where`: "after the change"), in the order in which they were run; `sums`
    says it in a line."""

    where: str
    sums: str
    fates: Sequence[Fate] = ()


class Change(NamedTuple):
    """What an attack changed. `image`, `x_adv` and `moved` are addresses of pictures, empty where
    the example is none; the lengths of the change, and the share of entries that it has moved."""

    image: str
    x_adv: str
    moved: str
    linf: float
    l2: float
    changed: float


class Card(NamedTuple):
    """An example as a page has it: the `name` that links say, its `title` ("image 5"), its class,
    the class decided `before` the attack and after it, and what the card `says` of that; `walks` is
    the figure of its margins, empty where none was measured."""

    name: str
    title: str
    label: str
    before: str
    decided: str
    says: str
    by: str
    change: Change
    networks: Sequence[Fates]
    walks: Markup = Markup("")

    @property
    def caption(self) -> str:
        """What became of it, in a sentence: the text for whoever sees no picture."""
        return (
            f"{self.title}, class {self.label}, decided as {self.decided} under {self.by}"
            f" ({self.says}), moved by at most {self.change.linf:.3f}"
        )


def decision(label: int) -> str:
    """A class as it is told; below 0 there was none."""
    return f"{label}" if label >= 0 else "no decision"


def compare(
    image: NDArray[np.float32], x_adv: NDArray[np.float32], box: tuple[float, float]
) -> Change:
    """An example (…) beside what an attack made of it, both in the box (low, high)."""
    change = (x_adv - image).astype(np.float64)
    drawn = plots.is_image(image)
    return Change(
        image=plots.image(image, *box) if drawn else "",
        x_adv=plots.image(x_adv, *box) if drawn else "",
        moved=plots.moved(image, x_adv) if drawn else "",
        linf=float(np.abs(change).max()),
        l2=float(np.sqrt((change**2).sum())),
        changed=float((change != 0).mean()),
    )


def apart(cards: Iterable[Card]) -> list[Card]:
    """The cards of a page, so that no two have the same name: the second of a name ends in -2."""
    seen: Counter[str] = Counter()
    named = []
    for card in cards:
        seen[card.name] += 1
        turn = seen[card.name]
        named.append(card if turn == 1 else card._replace(name=f"{card.name}-{turn}"))
    return named
