"""Ways to run cells: here, or in processes beside one another. Same cells, same bits.

Every cell runs on one thread, so that its sums are added in one order however many workers there
are; more cores are used by more workers.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell, run_together
from retroact.nets.data import Images, embed, embedded

Progress = Callable[[int, int], None]
A = TypeVar("A")
B = TypeVar("B")


def serial(
    groups: Sequence[Sequence[Cell]],
    *,
    keep: int = 0,
    chunk: int | None,
    device: str,
    progress: Progress | None = None,
) -> Iterator[list[tuple[Cell, Record]]]:
    """Runs groups of alike cells one after the other; `progress` is called within each (done, all
    examples)."""
    for group in groups:
        with one_thread():
            records = run_together(group, keep=keep, chunk=chunk, device=device, progress=progress)
        yield list(zip(group, records, strict=True))


def processes(
    groups: Sequence[Sequence[Cell]], workers: int, *, keep: int = 0, chunk: int | None, device: str
) -> Iterator[list[tuple[Cell, Record]]]:
    """Runs groups of alike cells in `workers` processes; yields each group as it is done, in any
    order."""
    for group, records in side_by_side(
        partial(_run, keep=keep, chunk=chunk, device=device), groups, workers
    ):
        yield list(zip(group, records, strict=True))


def side_by_side(run: Callable[[A], B], asked: Iterable[A], workers: int) -> Iterator[tuple[A, B]]:
    """`run` of each in `workers` processes: what was asked and what it gave, as each is done, in
    any order."""
    context = multiprocessing.get_context("spawn")  # fork and torch's threads do not go together
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_know, initargs=(embedded(),)
    )
    try:
        waiting = {pool.submit(run, what): what for what in asked}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _know(images: Sequence[Images]) -> None:
    for own in images:
        embed(own)


def _run(group: Sequence[Cell], *, keep: int, chunk: int | None, device: str) -> list[Record]:
    with one_thread():
        return run_together(group, keep=keep, chunk=chunk, device=device)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's sums within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
