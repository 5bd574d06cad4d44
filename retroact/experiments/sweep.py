"""sweep: run every cell that the store does not have yet. It resumes by being run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from retroact.doors import check_device, checked
from retroact.evaluation.record import Record
from retroact.executors import Executor, Here, LostTaskError, one_for_each_card, own_card
from retroact.experiments import travelling
from retroact.experiments.cell import (
    Brought,
    Cell,
    Model,
    alike,
    all_locked,
    pixels_of,
    run_together,
)
from retroact.experiments.part_files import PartFiles
from retroact.experiments.store import Store
from retroact.ground import one_thread
from retroact.nets.data import Images
from retroact.parts import NOWHERE, Parts, name_part
from retroact.reading import Data, Said
from retroact.spec import SpecError, key, parse, show, take
from retroact.stopping import uninterrupted


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep by key, and those among them that are still to run."""

    cells: dict[str, Cell]
    todo: tuple[str, ...]

    def again(self, store: Store, keep: int) -> Plan:
        """The same by what the store has now."""
        return replace(self, todo=_missing(self.cells, store, keep))


def plan(
    cells: Iterable[Cell | str],
    store: Store,
    *,
    keep: int = 0,
    look: Callable[[str], str] = pixels_of,
) -> Plan:
    """Locks the cells, drops doubles, and looks up which the store has (with `keep` images); `look`
    gives the hash of the pixels behind a notation."""
    locked = {key(cell): cell for cell in all_locked((_read(cell) for cell in cells), look)}
    return Plan(locked, _missing(locked, store, keep))


def _missing(cells: Mapping[str, Cell], store: Store, keep: int) -> tuple[str, ...]:
    return tuple(k for k, c in cells.items() if not store.has(k, keep=keep, cell=show(c)))


def _read(said: Cell | str) -> Cell:
    cell = parse(said) if isinstance(said, str) else said
    if not isinstance(cell, Cell):
        raise SpecError(
            'expected cells such as Cell("lenet-mnist", "mnist[:100]", "PGD", "Linf(0.1)"), got'
            f" {cell!r}"
        )
    return cell


def sweep(
    cells: Iterable[Cell | str],
    store: Store,
    *,
    executor: Said[Executor] | None = None,
    keep: int = 0,
    chunk: int | None = None,
    device: str = "cpu",
    fresh: bool = False,
    progress: Callable[[float, int], None] | None = None,
) -> list[Record]:
    """Runs what is missing, writes each cell as it is done, and returns all records in the order
    given.

    `executor` says where cells run, such as Processes(4); their records are the same anywhere.
    Without one they run here, but for `device` "cuda" where several cards are visible: then each
    card has a process of its own. Of Processes on "cuda" each has one card, by turns.
    `progress` is called with (cells done, a fraction for those that run here, and cells in all).
    Any stop, a kill among them, loses at most the chunks that were running, or some seconds of
    shorter ones: of cells that are not finished they lie in files beside the store. `fresh` runs
    all cells anew.
    While another process fills the store, this raises StoreInUseError, or waits
    (Store(…, wait=True)). A cell that ends each process that runs it is named by a RuntimeError
    once all others are done.
    """
    how: dict[str, Any] = {"executor": executor, "keep": keep, "chunk": chunk, "device": device}
    planned = fill(cells, store, **how, fresh=fresh, progress=progress)
    return [store.read(k, images=keep > 0) for k in planned.cells]


def fill(
    cells: Iterable[Cell | str],
    store: Store,
    *,
    executor: Said[Executor] | None = None,
    keep: int = 0,
    chunk: int | None = None,
    device: str = "cpu",
    fresh: bool = False,
    progress: Callable[[float, int], None] | None = None,
) -> Plan:
    """`sweep` for whoever reads from the store what is wanted of it: no records are held."""
    _, chunk, keep = checked(0, chunk, keep)
    check_device(device)
    executor = one_for_each_card(device) if executor is None else take(executor, Executor)
    planned = plan(cells, store, keep=keep)
    planned = replace(planned, todo=tuple(planned.cells)) if fresh else planned
    run = _Run(keep, chunk, device, _Unfinished.of(store))
    if planned.todo:
        with store.claimed():
            if not fresh:  # again, as another process may have filled it meanwhile
                planned = planned.again(store, keep)
            _run_missing(planned, store, executor, run, progress, fresh)
    run.unfinished.tidy(planned.cells.values())
    return planned


def _run_missing(
    planned: Plan,
    store: Store,
    executor: Executor,
    run: _Run,
    progress: Callable[[float, int], None] | None,
    fresh: bool,
) -> None:
    """Runs what the plan has to do, and files it; a stop says how far it came."""
    groups = alike(planned.cells[k] for k in planned.todo)
    for group in groups if fresh else []:
        run.unfinished.drop(group)
    watch = _Watch(progress, len(planned.cells) - len(planned.todo), len(planned.cells))
    run = replace(run, look=Here(watch.look))
    try:
        for group, records in executor(run, groups):
            with uninterrupted():
                for cell, record in zip(group, records, strict=True):
                    store.put(key(cell), show(cell), cell.fields(), record)
                run.unfinished.drop(group)
                watch.add(group)
    except LostTaskError as e:
        raise RuntimeError(_name_lost(e, store)) from None
    except KeyboardInterrupt as stop:
        stop.add_note(
            f"{watch.done} of {len(planned.cells)} cells are in {store.path}; the same command goes"
            " on with the rest"
        )
        raise


def _name_lost(error: LostTaskError, store: Store) -> str:
    """The cells that nobody could finish."""
    lost = [cell for group in error.tasks for cell in group]  # type: ignore[attr-defined]
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    return (
        f"{key(lost[0])} ({show(lost[0])[:200]}){more} ended each process that ran it"
        f" ({error.why}); all others are in {store.path}; give it more memory, fewer workers or a"
        " smaller chunk, and run the same command again"
    )


@dataclass(frozen=True)
class _Run:
    """Runs cells that differ in their threat alone, on one thread: same cells, same bits."""

    keep: int
    chunk: int | None
    device: str
    unfinished: _Unfinished
    look: Callable[..., None] = lambda *at: None

    def __call__(self, group: Sequence[Cell]) -> list[Record]:
        how: dict[str, Any] = {"keep": self.keep, "chunk": self.chunk}
        how |= {"device": own_card(self.device), "parts": self.unfinished.parts(group)}
        with one_thread():
            return run_together(group, **how, progress=lambda *at: self.look(group, *at))

    def name(self, group: Sequence[Cell]) -> str:
        """The name of the file in which the records wait; with the following, for other machines
        (`clusters`)."""
        return travelling.name_of(group, self.keep, self.chunk, self.device)

    def to_bytes(self, records: Sequence[Record]) -> bytes:
        return travelling.pack(records)

    def from_bytes(self, data: bytes) -> list[Record]:
        return travelling.unpack(data)

    def brings(self, group: Sequence[Cell]) -> Iterator[tuple[str, Callable[[], object]]]:
        return travelling.brought_for(group)

    def receive(self, thing: Images | Brought) -> None:
        travelling.receive(thing)


@dataclass(frozen=True)
class _Unfinished:
    """Where the chunks of cells lie until these are finished; nowhere for a store in memory."""

    folder: Path | None

    @classmethod
    def of(cls, store: Store) -> _Unfinished:
        if str(store.path) == ":memory:":
            return cls(None)
        return cls(store.path.absolute().with_name(f"{store.path.name}.parts"))

    def parts(self, group: Sequence[Cell]) -> Parts:
        """Those of cells that run together."""
        return NOWHERE if self.folder is None else PartFiles(self.folder / _name(group))

    def tidy(self, cells: Iterable[Cell]) -> None:
        """Removes what is left of finished cells by a stop between filing them and dropping
        these."""
        if self.folder is not None and self.folder.is_dir():
            for group in alike(cells):
                self.drop(group)

    def drop(self, group: Sequence[Cell]) -> None:
        """Removes those of cells that are finished, or begin anew."""
        if self.folder is not None:
            PartFiles(self.folder / _name(group)).drop()


def _name(group: Sequence[Cell]) -> str:
    return name_part([key(cell) for cell in group])


class _Watch:
    """Counts the cells that are done, and the parts of those that run, for whoever watches."""

    def __init__(
        self, progress: Callable[[float, int], None] | None, done: int, total: int
    ) -> None:
        self._progress, self.done, self._total = progress, done, total
        self._parts: dict[Cell, float] = {}

    def look(self, group: Sequence[Cell], examples: int, of: int) -> None:
        """So many examples of a running group are done."""
        self._parts[group[0]] = len(group) * examples / of
        self._tell()

    def add(self, group: Sequence[Cell]) -> None:
        """A group is done."""
        self._parts.pop(group[0], None)
        self.done += len(group)
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.done + sum(self._parts.values()), self._total)


def grid(
    nets: Iterable[str | Model],
    activations: Iterable[Any],
    attacks: Iterable[Any],
    threats: Iterable[Any],
    data: Data,
    *,
    sites: str = "*",
    also: Iterable[str] = (),
    sources: Iterable[Model | str | None] = (None,),
    seeds: Iterable[int] = (0,),
    **others: Any,
) -> list[Cell]:
    """Every combination, as cells; `others` are further fields of Cell, the same in all.

    A net is a name, or a Model that says its weights too.
    """
    given: tuple[Any, ...] = (nets, activations, sources, attacks, threats, seeds)
    axes = product(*(_several(axis) for axis in given))
    kinds = tuple(_several(also))
    return [
        Cell(
            _dressed(net, activation, sites, kinds),
            data,
            attack,
            threat,
            source=source,
            seed=seed,
            **others,
        )
        for net, activation, source, attack, threat, seed in axes
    ]


def _several(said: Any) -> Iterable[Any]:
    """One spec, text or number alone is a list of one."""
    return said if isinstance(said, Iterable) and not isinstance(said, str) else [said]


def _dressed(net: str | Model, activation: Any, sites: str, also: tuple[str, ...]) -> Model:
    model = Model(net) if isinstance(net, str) else net
    return replace(
        model, activation=activation, sites=sites, also=() if activation is None else also
    )
