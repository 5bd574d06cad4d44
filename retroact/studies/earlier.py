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

from retroact.crafting.attack import Attack
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell
from retroact.experiments.facts import Measured, Measurement, locked_key
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

    def facts(self, what: Measurement, store: Store) -> Measured | None:
        """The page's own measurement; None where the store has today's, or not that one either."""
        then = self.key(what)
        if then is None or store.read_facts(locked_key(what)) is not None:
            return None
        stored = store.read_facts(then, show(what))
        return None if stored is None else Measured(*stored, stored=True)

    def record(self, cell: Cell, store: Store, *, keep: int = 0) -> Record | None:
        """The page's own record with `keep` of its images; None as in `facts`."""
        then = self.cell_key(cell)
        if then is None or store.has(key(cell.locked()), keep=keep):
            return None
        return store.read(then, images=keep > 0) if store.has(then, keep=keep) else None

    def key(self, what: Measurement) -> str | None:
        """The key that a measurement had; None where it has the same today."""
        return locked_key(what, self.measurements) if type(what) in self.measurements else None

    def cell_key(self, cell: Cell) -> str | None:
        """The key that a cell had; None where it has the same today."""
        if cell.attack not in self.attacks:
            return None
        attack, version = self.attacks[cell.attack]
        return key(replace(cell, attack=attack).locked(), {type(attack): version})

    def describe(self, what: Measurement | Cell) -> Iterator[str]:
        """What a footnote says of a measurement that stands there as it was."""
        if type(what) in self.measurements:
            yield f"{type(what).__name__}, version {self.measurements[type(what)]}"
        if isinstance(what, Cell) and what.attack in self.attacks:
            attack, version = self.attacks[what.attack]
            yield f"{type(attack).__name__}, version {version}"
