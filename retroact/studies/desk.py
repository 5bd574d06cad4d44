"""The desk of a study: where its items get their numbers, from the store or made now, and what they
used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from retroact.evaluation.record import Record
from retroact.executors import SERIAL, Executor
from retroact.experiments.cell import Cell
from retroact.experiments.facts import Measurement, measured, measured_all
from retroact.experiments.store import Store
from retroact.experiments.sweep import fill, sweep
from retroact.studies.earlier import Earlier

T = TypeVar("T")
S = TypeVar("S")
Facts = dict[str, Any]
"""Plain numbers of a measurement, by name, as a store has them."""


class Desk:
    """Gives items their numbers; `quick` asks for a few hundred images instead of thousands.

    `large` says whether networks are measured that take minutes for each cell; a quick desk leaves
    them out. What the store has by today's key, or by the one that the page's own measurement had
    (`earlier`), is not made again; but with a set `anew` all that is not in it is, once, and put
    into it. `used` and `seconds` grow with what an item asks for, whether it
    was stored or made now, and each thing counts once: they are its footnote.
    """

    def __init__(
        self,
        store: Store,
        *,
        quick: bool = False,
        large: bool | None = None,
        executor: Executor = SERIAL,
        chunk: int | None = None,
        earlier: Earlier = Earlier(),  # noqa: B008  # frozen
        anew: set[Cell | Measurement] | None = None,
        progress: Callable[[float], None] = lambda part: None,
    ) -> None:
        self.store, self.quick, self._earlier = store, quick, earlier
        self._executor, self._chunk, self._progress = executor, chunk, progress
        self.large, self._anew = not quick if large is None else large, anew
        self.used: dict[str, None] = {}
        self._took: dict[Cell | Measurement, float] = {}

    @property
    def seconds(self) -> float:
        """How long all that was asked for took to make."""
        return sum(self._took.values())

    def pick(self, quick: T, full: T) -> T:
        """`quick` or `full`, as the study was asked for."""
        return quick if self.quick else full

    def records(self, cells: Iterable[Cell], *, keep: int = 0) -> list[Record]:
        """The record of each cell, in order: missing ones are run where the executor
        runs them."""
        asked = list(cells)
        how: dict[str, Any] = {"executor": self._executor, "keep": keep, "chunk": self._chunk}
        how |= {"progress": lambda done, total: self._progress(done / max(1, total))}
        if anew := self._pick_anew(asked):
            fill(anew, self.store, **how, fresh=True)
        by_cell = {cell: self._earlier.record(cell, self.store, keep=keep) for cell in asked}
        todo = [cell for cell, record in by_cell.items() if record is None]
        swept = sweep(todo, self.store, **how)
        records = {c: r for c, r in by_cell.items() if r is not None}
        records |= zip(todo, swept, strict=True)
        for cell in by_cell:
            self._note(cell.data, cell.seed, () if cell in todo else self._earlier.describe(cell))
        self._took |= {cell: float(r.pedigree.get("seconds", 0.0)) for cell, r in records.items()}
        return [records[cell] for cell in asked]

    def facts(self, what: Measurement) -> Facts:
        """Plain numbers of any other measurement."""
        return self.all_facts([what])[0]

    def all_facts(self, asked: Sequence[Measurement]) -> list[Facts]:
        """`facts` of several measurements, made where the executor runs them."""
        how: dict[str, Any] = {"executor": self._executor}
        how |= {"progress": lambda done, total: self._progress(done / max(1, total))}
        if anew := self._pick_anew(asked):
            measured_all(anew, self.store, **how, fresh=True)
        by_what = {what: self._earlier.facts(what, self.store) for what in asked}
        todo = [what for what, then in by_what.items() if then is None]
        new = measured_all(todo, self.store, **how)
        results = {what: then for what, then in by_what.items() if then is not None}
        results |= zip(todo, new, strict=True)
        for what in by_what:
            self._took[what] = results[what].seconds
            then = () if what in todo else self._earlier.describe(what)
            self._note(getattr(what, "data", ""), getattr(what, "seed", 0), then)
        return [results[what].facts for what in asked]

    def again(self, what: Measurement) -> Facts:
        """Facts that another item counts already, so that the footnote does not count their minutes
        twice."""
        return (self._earlier.facts(what, self.store) or measured(what, self.store)).facts

    def _pick_anew(self, asked: Sequence[S]) -> list[S]:
        """What is to be made although the store may have it, and has not been made yet."""
        if self._anew is None:
            return []
        fresh = [what for what in dict.fromkeys(asked) if what not in self._anew]
        self._anew.update(fresh)  # type: ignore[arg-type]  # cells or measurements
        return fresh

    def _note(self, data: str, seed: int, then: Iterable[str] = ()) -> None:
        self.used |= dict.fromkeys([part for part in (data, f"seed {seed}", *then) if part])
