"""What a sweep would cost, before it runs: passes from the specs, seconds from a short trial of
each network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from retroact.crafting.attack import CHUNK
from retroact.evaluation.trial import try_gradient
from retroact.executors import SERIAL, Executor
from retroact.experiments.cell import Cell, Model, alike
from retroact.experiments.store import Store
from retroact.experiments.sweep import plan
from retroact.ground import one_thread
from retroact.nets.remembered import holding


def estimate(
    cells: Sequence[Cell],
    path: Path,
    *,
    executor: Executor = SERIAL,
    keep: int = 0,
    chunk: int | None,
    device: str = "cpu",
) -> dict[str, Any]:
    """How many cells are to run, how many gradients that takes at most, and about how many seconds.

    An upper bound: attacks drop examples as they fall. Opens the store, if there is one, and writes
    nothing there. What a slice holds is remembered from the last time, see `holding`, and the trial
    is made on drawn examples.
    """
    there = path.exists()
    with Store(path if there else ":memory:", readonly=there) as store:
        planned = plan(cells, store, keep=keep, look=lambda part: holding(part).pixels)
    todo = [planned.cells[k] for k in planned.todo]
    passes = passes_of(todo)
    seconds = seconds_of(passes, chunk=chunk, device=device)
    return {
        "cells": len(planned.cells),
        "already in the store": len(planned.cells) - len(todo),
        "to run": [f"{c.model.called} {c.attack} {c.threat}" for c in todo],
        "gradients at most": sum(passes.values()),
        "seconds at most, about": round(seconds / max(1, min(executor.workers, len(todo))), 1),
    }


def passes_of(cells: Sequence[Cell]) -> dict[Cell, int]:
    """How many gradients cells take at most, of each group that one run of its attack serves."""
    return {group[0]: group[0].attack.passes * holding(group[0].data).n for group in alike(cells)}


def seconds_of(passes: Mapping[Cell, int], *, chunk: int | None, device: str = "cpu") -> float:
    """About how many seconds the gradients of `passes` take, one after the other."""
    return sum(
        n * _seconds_per_gradient(cell.model, cell.data, chunk, device)
        for cell, n in passes.items()
    )


@lru_cache(maxsize=16)
def _seconds_per_gradient(model: Model, text: str, chunk: int | None, device: str) -> float:
    held = holding(text)
    net = copy.deepcopy(model(held.shape)).to(device)  # which other models share
    with one_thread():
        return try_gradient(net, held.shape, min(held.n, chunk or CHUNK)).seconds
