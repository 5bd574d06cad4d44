"""Ways to run cells: here, or in processes beside one another. Same cells, same bits.

Every cell runs on one thread, so that its sums are added in one order however many workers there
are; more cores are used by more workers.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

import torch

from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell

Progress = Callable[[int, int], None]


def serial(
    cells: Sequence[Cell], *, keep: int = 0, chunk: int, device: str, progress: Progress | None = None
) -> Iterator[tuple[Cell, Record]]:
    """Runs the cells one after the other; `progress` is called within each with (done, all examples)."""
    for cell in cells:
        with one_thread():
            record = cell(keep=keep, chunk=chunk, device=device, progress=progress)
        yield cell, record


def processes(
    cells: Sequence[Cell], workers: int, *, keep: int = 0, chunk: int, device: str
) -> Iterator[tuple[Cell, Record]]:
    """Runs the cells in `workers` processes; yields each as it is done, in any order."""
    context = multiprocessing.get_context("spawn")  # fork and torch's threads do not go together
    pool = ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting = {pool.submit(_run, cell, keep, chunk, device): cell for cell in cells}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(cell: Cell, keep: int, chunk: int, device: str) -> Record:
    with one_thread():
        return cell(keep=keep, chunk=chunk, device=device)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's sums within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
