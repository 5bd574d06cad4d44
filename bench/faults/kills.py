"""Sweeps killed at random moments: is anything lost, filed twice, or changed?

    python bench/faults/kills.py --kills 100 --seed 0                # serial
    python bench/faults/kills.py --kills 100 --seed 0 --workers 2    # processes

A sweep of 12 cells on digits-cnn is started again and again; each time it is killed at a moment
drawn at random, until so many kills are done. When a sweep has got through, its store is checked
and compared with that of a sweep that nobody disturbed, and a new one begins. With workers, every
other kill hits one of them, or the process that they are forked from, instead of the parent: then
the sweep must go on by itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from retroact.executors import Processes, Serial
from retroact.experiments.care import check
from retroact.experiments.cell import Cell, Model
from retroact.experiments.store import Store
from retroact.experiments.sweep import sweep

CELLS = [
    Cell(Model("digits-cnn", a), "digits[:30]", f"PGD(steps={steps})", "Linf(0.1)")
    for a in (None, "JumpReLU(0.5)", "SReLU(10)")
    for steps in (3, 6, 9, 12)
]


def main() -> None:
    """Prints what the kills did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--reach", type=float, default=1.0, help="kill within so many times a sweep's duration"
    )
    args = parser.parse_args()
    chance, counted = random.Random(args.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.sqlite")
        took = args.reach * run(whole, args.workers)
        while counted["kills"] < args.kills:
            path = Path(folder, f"{counted['sweeps']}.sqlite")
            fill(path, args.workers, took, chance, counted, args.kills)
            counted["sweeps"] += 1
            counted.update(judge(path, whole))
    print(f"seed {args.seed}, workers {args.workers}:", end=" ")
    print(", ".join(f"{name}: {n}" for name, n in counted.items()))


def run(path: Path, workers: int) -> float:
    """An undisturbed sweep, and the seconds that it takes once it runs."""
    began = time.monotonic()
    process = start(path, workers)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def start(path: Path, workers: int) -> multiprocessing.Process:
    """A sweep in a process of its own, forked, so that it need not import torch again."""
    process = multiprocessing.get_context("fork").Process(target=_sweep, args=(path, workers))
    process.start()
    return process


def _sweep(path: Path, workers: int) -> None:
    warnings.simplefilter("ignore")
    with Store(path) as store:
        sweep(CELLS, store, executor=Processes(workers) if workers > 1 else Serial())


def fill(
    path: Path, workers: int, took: float, chance: random.Random, counted: Counter[str], most: int
) -> None:
    """Sweeps until everything is there, with kills."""
    left_alone = False
    while True:
        process = start(path, workers)
        process.join(0.0 if left_alone else chance.uniform(0.0, took))
        if process.is_alive() and not left_alone and counted["kills"] < most:
            mine = children(process.pid) if workers > 1 and counted["kills"] % 2 else []
            os.kill(chance.choice(mine) if mine else process.pid, signal.SIGKILL)
            counted["kills"] += 1
            counted["kills of workers"] += bool(mine)
            left_alone = bool(mine)  # it has to go on by itself
        process.join()
        if process.exitcode == 0:
            return
        if left_alone:
            counted["ended by a worker's end"] += 1
        left_alone = False
        counted["sweeps that went on"] += 1


def children(pid: int) -> list[int]:
    """The worker processes of a process; on Linux these, and the one that they are forked from."""
    if not sys.platform.startswith("linux"):
        return _begun_by(pid, "spawn_main")
    servers = _begun_by(pid, "multiprocessing.forkserver")
    return [*servers, *(worker for server in servers for worker in _begun_by(server, ""))]


def _begun_by(pid: int, word: str) -> list[int]:
    words = ["pgrep", "-P", str(pid), "-f", word]
    return [int(p) for p in subprocess.run(words, capture_output=True, text=True).stdout.split()]


def judge(path: Path, whole: Path) -> Counter[str]:
    """What is lost, filed twice, changed or damaged in a store, beside that of a sweep that nobody
    disturbed."""
    found = Counter({"lost": 0, "filed twice": 0, "other bits": 0, "damaged": 0})
    with Store(path, create=False) as store, Store(whole, create=False) as other:
        for name, times in other.runs().items():
            found["lost"] += name not in store
            found["other bits"] += name in store and store.read(name) != other.read(name)
            found["filed twice"] += store.runs().get(name, times) != times
    found["damaged"] = len(check(path).damaged)
    found["left beside it"] = len(list(path.parent.glob(f"{path.name}.*")))
    return found


if __name__ == "__main__":
    sys.exit(main())
