"""The desk of a study: where its items get their numbers, from the store or made now, and what they
used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from retroact.evaluation.record import Record
from retroact.executors import SERIAL, Executor
from retroact.experiments.cell import Cell, all_locked
from retroact.experiments.facts import Measured, Measurement, locked_key, measured, measured_all
from retroact.experiments.store import Store
from retroact.experiments.sweep import fill
from retroact.spec import key, shorten, show
from retroact.studies.earlier import Earlier

T = TypeVar("T")
S = TypeVar("S")
Facts = dict[str, Any]
"""Plain numbers of a measurement, by name, as a store has them."""


class NotMeasuredError(LookupError):
    """A desk that measures nothing was asked for what its store lacks (`lacks`)."""

    def __init__(self, text: str, lacks: Sequence[Any] = ()) -> None:
        super().__init__(text)
        self.lacks = tuple(lacks)


class Derived(Protocol):
    """A spec that makes plain numbers of what a desk has, such as the few that a page reads of a
    record. They are filed for themselves, so that a page finds them without what they are made
    of."""

    derived: ClassVar[bool]

    def __call__(self, desk: Desk) -> Facts: ...


class Desk:
    """Gives items their numbers; `quick` asks for a few hundred images instead of thousands.

    `large` says whether networks are measured that take minutes for each cell; a quick desk leaves
    them out. What the store has by today's key, or by the one that the page's own measurement had
    (`earlier`), is not made again; but with a set `anew` all that is not in it is, once, and put
    into it. A `stored` desk makes nothing: it raises NotMeasuredError instead, and its items take
    the largest of their sizes that the store has (`largest`). A desk that `plans` makes and files
    nothing at all, and takes the sizes that are asked for. `used`, `keys` and `seconds` grow with
    what an item asks for, whether it was stored or made now, and each thing counts once: they are
    its footnote, and what is carried with its page.
    """

    def __init__(
        self,
        store: Store,
        *,
        quick: bool = False,
        large: bool | None = None,
        stored: bool = False,
        plans: bool = False,
        executor: Executor = SERIAL,
        chunk: int | None = None,
        earlier: Earlier = Earlier(),  # noqa: B008  # frozen
        anew: set[Any] | None = None,
        progress: Callable[[float], None] = lambda part: None,
    ) -> None:
        self.store, self.quick, self.stored, self._earlier = store, quick, stored, earlier
        self._executor, self._chunk, self._progress = executor, chunk, progress
        self._plans = plans
        self.large, self._anew = stored or not quick if large is None else large, anew
        self.used: dict[str, None] = {}
        self.keys: dict[str, None] = {}
        self._took: dict[Any, float] = {}

    @property
    def seconds(self) -> float:
        """How long all that was asked for took to make."""
        return sum(self._took.values())

    def pick(self, quick: T, full: T) -> T:
        """`quick` or `full`, as the study was asked for."""
        return quick if self.quick else full

    def largest(self, sizes: Sequence[T], asked: Callable[[T], Iterable[Any]]) -> T:
        """The size that an item takes of `sizes`, the largest one first: the last for a quick desk,
        the first for another; a `stored` desk takes the first at which the store has all that is
        asked (cells, measurements, derived facts), else the first."""
        if not self.stored:
            return sizes[-1] if self.quick else sizes[0]
        return next((size for size in sizes if not self.lacks(asked(size))), sizes[0])

    def lacks(self, asked: Iterable[Any]) -> bool:
        """Whether this desk makes nothing, and its store lacks some of what is asked."""
        return self.stored and any(self._find(what) is None for what in asked)

    def records(self, cells: Iterable[Cell], *, keep: int = 0) -> list[Record]:
        """The record of each cell, in order: missing ones are run where the executor runs them.

        A `stored` desk runs those alone of which images are kept, for pictures are not carried.
        """
        asked = list(cells)
        by_cell = self._run(asked, keep=keep)
        todo = [cell for cell, record in by_cell.items() if record is None]
        now = (self.store.read(key(cell), images=keep > 0) for cell in all_locked(todo))
        records = {c: r for c, r in by_cell.items() if r is not None}
        records |= zip(todo, now, strict=True)
        for cell in by_cell:
            self._note(cell.data, cell.seed, () if cell in todo else self._earlier.describe(cell))
            then = None if cell in todo else self._earlier.cell_key(cell)
            self.keys[then or key(cell.locked())] = None
        # what pictures take that a stored desk makes would differ from one machine to another
        counted = {} if self.stored and keep else records
        self._took |= {cell: float(r.pedigree.get("seconds", 0.0)) for cell, r in counted.items()}
        return [records[cell] for cell in asked]

    def facts(self, what: Measurement) -> Facts:
        """Plain numbers of any other measurement."""
        return self.all_facts([what])[0]

    def all_facts(self, asked: Sequence[Measurement]) -> list[Facts]:
        """`facts` of several measurements, made where the executor runs them."""
        how: dict[str, Any] = {"executor": self._executor, "progress": self._tell}
        if anew := self._pick_anew(asked):
            measured_all(anew, self.store, **how, fresh=True)
        by_what = {what: self._earlier.facts(what, self.store) for what in asked}
        todo = [what for what, then in by_what.items() if then is None]
        self._refuse(todo)
        new = measured_all(todo, self.store, **how)
        results = {what: then for what, then in by_what.items() if then is not None}
        results |= zip(todo, new, strict=True)
        for what in by_what:
            self._file(what, results[what].seconds, then=what not in todo)
        return [results[what].facts for what in asked]

    def derive(self, asked: Sequence[Derived]) -> list[Facts]:
        """The facts of each, in order: from the store, or made now of what this desk has or makes,
        whose seconds they take over."""
        for what in self._pick_anew(asked):
            self._make(what)
        return [self._derive(what) for what in asked]

    def run_before(self, made_of: Mapping[Any, Sequence[Cell]]) -> None:
        """Runs together the cells that derived facts are made of, of those facts that are not in
        the store; their records are read one after the other, as they are asked for."""
        anew = self._anew is not None
        missing = [w for w in made_of if anew or self._find(w) is None]
        cells = dict.fromkeys(cell for what in missing for cell in made_of[what])
        if cells:
            self._run(list(cells))

    def again(self, what: Measurement) -> Facts:
        """Facts that another item counts already, so that the footnote does not count their minutes
        twice."""
        found = self._earlier.facts(what, self.store)
        if found is None:
            self._refuse([what])
        self.keys[locked_key(what) if found is None else self._earlier.key(what) or ""] = None
        return (found or measured(what, self.store)).facts

    def _run(self, asked: Sequence[Cell], *, keep: int = 0) -> dict[Cell, Record | None]:
        """Runs what the store lacks; gives the earlier records, None for what the store has as it
        is run today."""
        how: dict[str, Any] = {"executor": self._executor, "keep": keep, "chunk": self._chunk}
        how |= {"progress": self._tell}
        if anew := self._pick_anew(asked):
            fill(anew, self.store, **how, fresh=True)
        by_cell = {cell: self._earlier.record(cell, self.store, keep=keep) for cell in asked}
        todo = [cell for cell, record in by_cell.items() if record is None]
        self._refuse([] if keep and not self._plans else todo, keep=keep)
        fill(todo, self.store, **how)
        return by_cell

    def _derive(self, what: Derived) -> Facts:
        found = self._find(what)
        if found is None and self._plans:
            return what(self._inner())
        if found is None:
            self._make(what)
            found = self._look_up(what)
        assert isinstance(found, Measured)
        today = self.store.read_facts(locked_key(what)) is not None
        self._file(what, found.seconds, then=not today)
        return found.facts

    def _make(self, what: Derived) -> None:
        """Makes derived facts and files them; under the earlier key where what they are made of
        stands there."""
        inner = self._inner()
        facts = what(inner)
        then = self._earlier.print(what)
        earlier = then is not None and any(" version " in said for said in inner.used)
        name, said = then if then is not None and earlier else (locked_key(what), show(what))
        self.store.put_facts(name, said, facts, inner.seconds)

    def _inner(self) -> Desk:
        """A desk of the same store, for what derived facts are made of."""
        return Desk(
            self.store,
            quick=self.quick,
            large=self.large,
            stored=self.stored,
            plans=self._plans,
            executor=self._executor,
            chunk=self._chunk,
            earlier=self._earlier,
            anew=self._anew,
            progress=self._progress,
        )

    def _find(self, what: Any, *, keep: int = 0) -> Record | Measured | None:
        """What the store has of a cell (with `keep` of its images), a measurement or derived facts;
        None where it lacks it."""
        if isinstance(what, Cell):
            name = key(what.locked())
            then = self._earlier.record(what, self.store, keep=keep)
            here = self.store.has(name, keep=keep)
            return then or (self.store.read(name) if here else None)
        found = self._look_up(what)
        if found is None and self.stored and getattr(what, "derived", False):
            try:  # of what is stored
                self._make(what)
            except NotMeasuredError:
                return None
            found = self._look_up(what)
        return found

    def _look_up(self, what: Any) -> Measured | None:
        """What the store has of a measurement, or of derived facts."""
        found = self._earlier.facts(what, self.store)
        now = None if found is not None else self.store.read_facts(locked_key(what), show(what))
        return found if now is None else Measured(*now, stored=True)

    def _refuse(self, todo: Sequence[Any], *, keep: int = 0) -> None:
        """Raises NotMeasuredError where this desk makes nothing and the store lacks some of it."""
        if not (self.stored or self._plans):
            return
        missing = [w for w in todo if self._find(w, keep=keep) is None]
        if missing:
            said = shorten(show(missing[0]))
            raise NotMeasuredError(f"{self.store.path} lacks {said}", missing)

    def _file(self, what: Any, seconds: float, *, then: bool) -> None:
        """Notes what was asked for: its slice, its key, its seconds."""
        self._took[what] = seconds
        earlier = self._earlier.key(what) if then else None
        self.keys[earlier or locked_key(what)] = None
        said = self._earlier.describe(what) if then else ()
        self._note(getattr(what, "data", ""), getattr(what, "seed", 0), said)

    def _tell(self, done: float, total: int) -> None:
        self._progress(done / max(1, total))

    def _pick_anew(self, asked: Sequence[S]) -> list[S]:
        """What is to be made although the store may have it, and has not been made yet."""
        if self._anew is None:
            return []
        fresh = [what for what in dict.fromkeys(asked) if what not in self._anew]
        self._anew.update(fresh)
        return fresh

    def _note(self, data: str, seed: int, then: Iterable[str] = ()) -> None:
        self.used |= dict.fromkeys([part for part in (data, f"seed {seed}", *then) if part])
