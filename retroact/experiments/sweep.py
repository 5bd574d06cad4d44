"""sweep: run every cell that the store does not have yet. It resumes by being run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from retroact.doors import check_device, checked
from retroact.evaluation.record import Record
from retroact.executors import SERIAL, Executor, Here, one_thread
from retroact.experiments.cell import Cell, Model, alike, all_locked, run_together
from retroact.experiments.store import Store
from retroact.reading import Data, Said
from retroact.spec import SpecError, key, parse, show, take


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep by key, and those among them that are still to run."""

    cells: dict[str, Cell]
    todo: tuple[str, ...]


def plan(cells: Iterable[Cell | str], store: Store, *, keep: int = 0) -> Plan:
    """Locks the cells, drops doubles, and looks up which the store has (with `keep` images)."""
    locked = {key(cell): cell for cell in all_locked(_read(cell) for cell in cells)}
    missing = (k for k, cell in locked.items() if not store.has(k, keep=keep, cell=show(cell)))
    return Plan(locked, tuple(missing))


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
    executor: Said[Executor] = SERIAL,
    keep: int = 0,
    chunk: int | None = None,
    device: str = "cpu",
    progress: Callable[[float, int], None] | None = None,
) -> list[Record]:
    """Runs what is missing, writes each cell as it is done, and returns all records in the order
    given.

    `executor` says where cells run, such as Processes(4); their records are the same anywhere.
    `progress` is called with (cells done, a fraction for those that run here, and cells in all).
    Any stop, a kill among them, loses at most the cells that were running.
    """
    (_, chunk, keep), executor = checked(0, chunk, keep), take(executor, Executor)
    check_device(device)
    planned = plan(cells, store, keep=keep)
    if planned.todo:
        store.check_writable()
    watch = _Watch(progress, len(planned.cells) - len(planned.todo), len(planned.cells))
    run = _Run(keep, chunk, device, Here(watch.look))
    for group, records in executor(run, alike(planned.cells[k] for k in planned.todo)):
        for cell, record in zip(group, records, strict=True):
            store.put(key(cell), show(cell), cell.fields(), record)
        watch.add(group)
    return [store.read(k, images=keep > 0) for k in planned.cells]


@dataclass(frozen=True)
class _Run:
    """Runs cells that differ in their threat alone, on one thread: same cells, same bits."""

    keep: int
    chunk: int | None
    device: str
    look: Callable[..., None]

    def __call__(self, group: Sequence[Cell]) -> list[Record]:
        how: dict[str, Any] = {"keep": self.keep, "chunk": self.chunk, "device": self.device}
        with one_thread():
            return run_together(group, **how, progress=lambda *at: self.look(group, *at))


class _Watch:
    """Counts the cells that are done, and the parts of those that run, for whoever watches."""

    def __init__(
        self, progress: Callable[[float, int], None] | None, done: int, total: int
    ) -> None:
        self._progress, self._done, self._total = progress, done, total
        self._parts: dict[Cell, float] = {}

    def look(self, group: Sequence[Cell], examples: int, of: int) -> None:
        """So many examples of a running group are done."""
        self._parts[group[0]] = len(group) * examples / of
        self._tell()

    def add(self, group: Sequence[Cell]) -> None:
        """A group is done."""
        self._parts.pop(group[0], None)
        self._done += len(group)
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._done + sum(self._parts.values()), self._total)


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
