"""sweep: run every cell that the store does not have yet. It resumes by being run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from retroact.doors import check_device, checked, whole
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell, Model, alike, all_locked
from retroact.experiments.executors import processes, serial
from retroact.experiments.store import Store
from retroact.reading import Data
from retroact.spec import SpecError, key, parse, show


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep by key, and those among them that are still to run."""

    cells: dict[str, Cell]
    todo: tuple[str, ...]


def plan(cells: Iterable[Cell | str], store: Store, *, keep: int = 0) -> Plan:
    """Locks the cells, drops doubles, and looks up which the store has (with `keep` images)."""
    locked = {key(cell): cell for cell in all_locked(_read(cell) for cell in cells)}
    return Plan(locked, tuple(k for k in locked if not store.has(k, keep=keep)))


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
    workers: int = 1,
    keep: int = 0,
    chunk: int | None = None,
    device: str = "cpu",
    progress: Callable[[float, int], None] | None = None,
) -> list[Record]:
    """Runs what is missing, writes each cell as it is done, and returns all records in the order
    given.

    `progress` is called with (cells done, a fraction for the running one, and cells in all). Any
    stop, a kill among them, loses at most the cells that were running.
    """
    (_, chunk, keep), workers = checked(0, chunk, keep), whole(workers, "workers", 1)
    check_device(device)
    planned = plan(cells, store, keep=keep)
    todo = alike(planned.cells[k] for k in planned.todo)
    done, total = len(planned.cells) - len(planned.todo), len(planned.cells)
    running = iter(todo)

    def within(examples: int, of: int) -> None:
        if progress is not None:
            progress(done + size * examples / of, total)

    if workers > 1 and len(todo) > 1:
        finished = processes(todo, workers, keep=keep, chunk=chunk, device=device)
    else:
        finished = serial(todo, keep=keep, chunk=chunk, device=device, progress=within)
    size = len(next(running, ()))
    for group in finished:
        for cell, record in group:
            store.put(key(cell), show(cell), cell.fields(), record)
        done, size = done + len(group), len(next(running, ()))
        if progress is not None:
            progress(float(done), total)
    return [store.read(k, images=keep > 0) for k in planned.cells]


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
