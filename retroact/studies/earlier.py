"""What a page's numbers were measured with, where that is no longer what stands here.

A key names the versions of all that a result depends on, so a changed battery or attack gives a new
key, and nothing old passes for it. The measurements that stand behind a study's page would then be
made anew, for hours. The rule instead: a study asks its store for today's key; where the store
lacks it, for the key under which the page's own measurement is filed, and the item's footnote says
which version that was; what neither names is measured now, and counts from then on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retroact.crafting.attack import Attack
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell
from retroact.experiments.facts import Measured, locked_key
from retroact.experiments.store import Store
from retroact.spec import key, show


@dataclass(frozen=True)
class Earlier:
    """The versions that a page's measurements and attacks had, where they have others today.

    `measurements`: the version then, by class. `attacks`: how the attack was written then, and its
    version, by the attack that is asked for today; other defaults gave it another print.
    """

    measurements: Mapping[type, int] = field(default_factory=dict)
    attacks: Mapping[Attack, tuple[Attack, int]] = field(default_factory=dict)

    def facts(self, what: Any, store: Store) -> Measured | None:
        """The page's own measurement; None where the store has today's, or not that one either."""
        then = self.key(what)
        if then is None or store.read_facts(locked_key(what)) is not None:
            return None
        stored = store.read_facts(then, show(self._as_it_was(what)))
        return None if stored is None else Measured(*stored, stored=True)

    def record(self, cell: Cell, store: Store, *, keep: int = 0) -> Record | None:
        """The page's own record with `keep` of its images; None as in `facts`."""
        then = self.cell_key(cell)
        if then is None or store.has(key(cell.locked()), keep=keep):
            return None
        return store.read(then, images=keep > 0) if store.has(then, keep=keep) else None

    def key(self, what: Any) -> str | None:
        """The key that a measurement had, or facts made of one cell (`what.cell`) or of groups of
        attacks (`what.groups`); None where it has the same today."""
        if type(what) in self.measurements:
            return locked_key(what, self.measurements)
        if isinstance(what, Cell):
            return self.cell_key(what)
        then = dict(self._then(what))
        return locked_key(self._as_it_was(what), then) if then else None

    def print(self, what: Any) -> tuple[str, str] | None:
        """That key, and the print that stands beside it."""
        name = self.key(what)
        return None if name is None else (name, show(self._as_it_was(what)))

    def _then(self, what: Any) -> Iterator[tuple[type, int]]:
        """The attacks of `what` that had another version, by class."""
        for attack in _attacks_of(what):
            if attack in self.attacks:
                then, version = self.attacks[attack]
                yield type(then), version

    def _as_it_was(self, what: Any) -> Any:
        """The same with its attacks as they were written then."""
        cell, groups = getattr(what, "cell", None), getattr(what, "groups", None)
        if isinstance(cell, Cell):
            return replace(what, cell=replace(cell, attack=self._was(cell.attack)))
        if groups is None:
            return what
        then = ((tuple(map(self._was, attacks)), threats) for attacks, threats in groups)
        return replace(what, groups=tuple(then))

    def _was(self, attack: Attack) -> Attack:
        return self.attacks[attack][0] if attack in self.attacks else attack

    def cell_key(self, cell: Cell) -> str | None:
        """The key that a cell had; None where it has the same today."""
        if cell.attack not in self.attacks:
            return None
        attack, version = self.attacks[cell.attack]
        return key(replace(cell, attack=attack).locked(), {type(attack): version})

    def describe(self, what: Any) -> Iterator[str]:
        """What a footnote says of a measurement that stands there as it was."""
        if type(what) in self.measurements:
            yield f"{type(what).__name__}, version {self.measurements[type(what)]}"
        for kind, version in self._then(what):
            yield f"{kind.__name__}, version {version}"


def _attacks_of(what: Any) -> tuple[Attack, ...]:
    """Those of a cell, or that facts are made of."""
    cell = what if isinstance(what, Cell) else getattr(what, "cell", None)
    if isinstance(cell, Cell):
        return (cell.attack,)
    return tuple(a for attacks, _ in getattr(what, "groups", ()) for a in attacks)
