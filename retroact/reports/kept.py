"""The examples that records kept, as cards: what every attack of the page did to each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from retroact.evaluation.record import Record
from retroact.reports import plots
from retroact.reports.cards import BROKEN, Card, Fate, Fates, apart, compare, decision
from retroact.reports.tables import Line

MOST_SHOWN = 6  # examples of a cell
MOST_CELLS = 8  # a page that loads at once; the store has the rest
WRONG = "wrong without an attack"
BLIND = "withstood, but the attack was blind"


class Kept(NamedTuple):
    """A cell and cards of its examples, those that its attack broke first."""

    line: Line
    cards: list[Card]


def kept(lines: Sequence[Line]) -> list[Kept]:
    """The first cells whose records kept examples, with their cards."""
    found = [line for line in lines if line.record.examples is not None][:MOST_CELLS]
    shown = [(line, list(_show(line, lines))) for line in found]
    names = iter(apart(card for _, cards in shown for card in cards))
    return [Kept(line, [next(names) for _ in cards]) for line, cards in shown if cards]


def _show(line: Line, lines: Sequence[Line]) -> Iterator[Card]:
    record = line.record
    assert record.examples is not None and record.originals is not None
    same = [other for other in lines if other.group == line.group]
    for i in record.broken_first(MOST_SHOWN):
        index, original = int(record.index[i]), record.originals[i]
        title = f"{'image' if plots.is_image(original) else 'example'} {index}"
        yield Card(
            name=f"{title.replace(' ', '-')}{line.key and f'-{line.key}'}",
            title=title,
            label=decision(int(record.label[i])),
            before=decision(int(record.clean[i])),
            decided=decision(int(record.adversarial[i])),
            says="fooled" if (fate := _judge(line, i)) == BROKEN else fate,
            by=line.fields.how,
            change=compare(original, record.examples[i], record.box),
            networks=list(_tell(line, same, index)),
        )


def _tell(line: Line, same: Sequence[Line], index: int) -> Iterator[Fates]:
    """What each attack did to an example on the line's network, and in a line each what is left of
    it on the others."""
    for network in dict.fromkeys([line.network, *(one.network for one in same)]):
        of_it = [(one, i) for one in same if one.network == network for i in _find(one, index)]
        fates = [Fate(one.fields.how, _judge(one, i)) for one, i in of_it]
        yield Fates(f"on {network}", _sum(fates), fates if network == line.network else ())


def _sum(fates: Sequence[Fate]) -> str:
    results = [fate.result for fate in fates]
    if set(results) == {WRONG}:
        return WRONG
    said = f"broken by {results.count(BROKEN)} of {len(fates)} attacks"
    return said + (f", {blind} of them blind" if (blind := results.count(BLIND)) else "")


def _find(line: Line, index: int) -> list[int]:
    """Where the example stands in the line's record; nowhere where it was not attacked."""
    return [int(i) for i in np.flatnonzero(line.record.index == index)]


def _judge(line: Line, i: int) -> str:
    """What the line's attack did to the example at i of its record."""
    record: Record = line.record
    if not record.right[i]:
        return WRONG
    if not record.robust[i]:
        return BROKEN
    return "withstood" if not line.alarms() else BLIND
