"""The desk of a study: where its items get their numbers, from the store or made now, and what they
used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from retroact.evaluation.record import Record
from retroact.executors import SERIAL, Executor
from retroact.experiments.cell import Cell
from retroact.experiments.facts import Measurement, measured_all
from retroact.experiments.store import Store
from retroact.experiments.sweep import sweep

T = TypeVar("T")


class Desk:
    """Gives items their numbers; `quick` asks for a few hundred images instead of thousands.

    `large` says whether networks are measured that take minutes for each cell; a quick desk leaves
    them out. `used` and `seconds` grow with what an item asks for, whether it was stored or made
    now, and each thing counts once: they are its footnote.
    """

    def __init__(
        self,
        store: Store,
        *,
        quick: bool = False,
        large: bool | None = None,
        executor: Executor = SERIAL,
        chunk: int | None = None,
        progress: Callable[[float], None] = lambda part: None,
    ) -> None:
        self.store, self.quick, self._executor, self._chunk, self._progress = (
            store,
            quick,
            executor,
            chunk,
            progress,
        )
        self.large = not quick if large is None else large
        self.used: dict[str, None] = {}
        self._took: dict[Any, float] = {}

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
        found = sweep(
            asked,
            self.store,
            executor=self._executor,
            keep=keep,
            chunk=self._chunk,
            progress=lambda done, total: self._progress(done / max(1, total)),
        )
        by_cell = dict(zip(dict.fromkeys(asked), found, strict=True))
        for cell in by_cell:
            self._note(cell.data, cell.seed)
        self._took |= {cell: float(r.pedigree.get("seconds", 0.0)) for cell, r in by_cell.items()}
        return [by_cell[cell] for cell in asked]

    def facts(self, what: Measurement) -> dict[str, Any]:
        """Plain numbers of any other measurement."""
        return self.all_facts([what])[0]

    def all_facts(self, asked: Sequence[Measurement]) -> list[dict[str, Any]]:
        """`facts` of several measurements, made where the executor runs them."""
        found = measured_all(
            asked,
            self.store,
            executor=self._executor,
            progress=lambda done, total: self._progress(done / max(1, total)),
        )
        for what, made in zip(asked, found, strict=True):
            self._took[what] = made.seconds
            self._note(getattr(what, "data", ""), getattr(what, "seed", 0))
        return [made.facts for made in found]

    def _note(self, data: str, seed: int) -> None:
        self.used |= dict.fromkeys([part for part in (data, f"seed {seed}") if part])
