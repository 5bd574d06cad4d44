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
        """The key that a measurement had, or one of a cell (`what.cell`); None where it has the
        same today."""
        if type(what) in self.measurements:
            return locked_key(what, self.measurements)
        cell = getattr(what, "cell", None)
        if not isinstance(cell, Cell) or cell.attack not in self.attacks:
            return None
        attack, version = self.attacks[cell.attack]
        return locked_key(self._as_it_was(what), {type(attack): version})

    def print(self, what: Any) -> tuple[str, str] | None:
        """That key, and the print that stands beside it."""
        name = self.key(what)
        return None if name is None else (name, show(self._as_it_was(what)))

    def _as_it_was(self, what: Any) -> Any:
        """The measurement with the attack of its cell as that was written then."""
        cell = getattr(what, "cell", None)
        if not isinstance(cell, Cell) or cell.attack not in self.attacks:
            return what
        then = replace(cell, attack=self.attacks[cell.attack][0])
        return replace(what, cell=then)

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
        cell = what if isinstance(what, Cell) else getattr(what, "cell", None)
        if isinstance(cell, Cell) and cell.attack in self.attacks:
            attack, version = self.attacks[cell.attack]
            yield f"{type(attack).__name__}, version {version}"
