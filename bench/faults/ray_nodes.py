"""Nodes and drivers of a Ray cluster killed in the middle of a sweep; and what the cluster costs.

    python bench/faults/ray_nodes.py --kills 20 --drivers 3 --pairs 5 --seed 0

The cluster is Ray's own local one: a head without a cpu for the driver, and two nodes of one cpu.
In each sweep one of the two is killed (SIGKILL) at a random moment, and another takes its place for
the next. A lost driver is a process killed while it sweeps; the next one goes on with the store and
with what the tasks have left in the folder `results`. "as serial" compares all facts of all cells,
bit by bit; "filed twice" counts cells that the store has written more than once.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# else 15: on a busy machine the rest goes first
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import ray
from ray.cluster_utils import Cluster

from retroact.clusters import Ray
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell
from retroact.experiments.store import Store
from retroact.experiments.sweep import grid, sweep

SMALL = 200 * 2**20  # bytes of each node's object store


def main() -> None:
    """Prints a line for each kind of fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--drivers", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=3, metavar=("ADDRESS", "STORE", "RESULTS"))
    args = parser.parse_args()
    if args.drive:
        return drive(*args.drive)
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        nodes = Nodes()
        try:
            bench = Bench(Path(folder), nodes, chance)
            print(f"{len(cells())} cells of 60 examples, load {os.getloadavg()[0]:.1f}", flush=True)
            bench.kill_nodes(args.kills)
            bench.kill_drivers(args.drivers)
            bench.compare_speed(args.pairs)
        finally:
            nodes.close()


def cells() -> list[Cell]:
    """Sixteen cells of a fraction of a second each."""
    return grid(
        ["digits-cnn"],
        [None, "JumpReLU(0.5)"],
        ["PGD(steps=20)", "PGD(steps=20, loss='margin')"],
        ["Linf(0.05)", "L2(0.5)"],
        "digits[:60]",
        seeds=(0, 1),
    )


def drive(address: str, store: str, results: str) -> None:
    """A driver that is slow to file: what it is to be killed in."""
    with Store(store) as opened:
        how = Ray(address, results=results)
        sweep(cells(), opened, executor=how, progress=lambda *at: time.sleep(1))


class Nodes:
    """The cluster, whose nodes may be killed."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "object_store_memory": SMALL, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self.cluster.address)
        self.alive = [self._add(), self._add()]

    def kill(self, place: int) -> None:
        """Kills a node at once."""
        self.cluster.remove_node(self.alive.pop(place), allow_graceful=False)

    def fill(self) -> None:
        """Two nodes again."""
        while len(self.alive) < 2:
            self.alive.append(self._add())

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=SMALL)


class Bench:
    """What is measured, beside the same sweep done in this process."""

    def __init__(self, folder: Path, nodes: Nodes, chance: random.Random) -> None:
        self.folder, self.nodes, self.chance = folder, nodes, chance
        self.count = 0
        self.executor = Ray(nodes.address)
        self.serial = self.run()[0]
        self.run(executor=self.executor)  # the first starts the processes, too
        self.usual = self.run(executor=self.executor)[1]

    def run(self, **how: Any) -> tuple[list[Record], float, list[int]]:
        """The records of a sweep into a new store, its seconds, how often each cell was filed."""
        self.count += 1
        began = time.perf_counter()
        with Store(self.folder / f"{self.count}.sqlite") as store:
            found = sweep(cells(), store, **how)
            return found, time.perf_counter() - began, list(store.runs().values())

    def compare_speed(self, pairs: int) -> None:
        """Seconds and CPU seconds of pairs of sweeps, here and there in turn."""
        walls, costs = [], []
        self.nodes.fill()
        self.run(executor=self.executor)
        for _ in range(pairs):
            here, there = timed(self.run), timed(lambda: self.run(executor=self.executor))
            self.usual = there[0]
            walls.append(here[0] / there[0])
            costs.append(there[1] / here[1])
        told = ", ".join(f"{wall:.2f}" for wall in walls)
        print(
            f"two nodes beside serial, {pairs} pairs: {statistics.median(walls):.2f} times as fast"
            f" ({told}); CPU seconds x {statistics.median(costs):.2f};"
            f" {self.usual:.1f} s, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )

    def kill_nodes(self, kills: int) -> None:
        """A node killed in each of so many sweeps."""
        lost = twice = same = 0
        when: list[int] = []
        for _ in range(kills):
            self.nodes.fill()
            killer = Killer(self.nodes, self.chance, self.usual / len(cells()))
            found, _, runs = self.run(executor=self.executor, progress=killer)
            when.append(killer.wait())
            lost += len(cells()) - len(runs)
            twice += sum(n > 1 for n in runs)
            same += found == self.serial
            print(f"killed after {when[-1]} cells", file=sys.stderr, flush=True)
        print(
            f"nodes killed: {kills}, after {sorted(when)} of {len(cells())} cells;"
            f" cells lost: {lost}, filed twice: {twice}, sweeps as serial: {same}",
            flush=True,
        )

    def kill_drivers(self, drivers: int) -> None:
        """So many drivers killed one after the other in one sweep; a last one ends it."""
        self.nodes.fill()
        store, results = self.folder / "driven.sqlite", self.folder / "results"
        words = [sys.executable, __file__, "--drive", self.nodes.address, str(store), str(results)]
        filed, left = [], []
        for _ in range(drivers):
            child = subprocess.Popen(words)
            before = count(store)
            while count(store) < min(before + 2, len(cells())) and child.poll() is None:
                time.sleep(0.05)
            time.sleep(self.chance.random())
            child.send_signal(signal.SIGKILL)
            child.wait()
            filed.append(count(store))
            left.append(len(list(results.glob("*.result"))))
        subprocess.run(words, check=True)
        with Store(store) as opened:
            found, runs = sweep(cells(), opened), list(opened.runs().values())
        print(
            f"drivers killed: {drivers}, with {filed} cells filed and {left} results found;"
            f" cells lost: {len(cells()) - len(runs)}, filed twice: {sum(n > 1 for n in runs)},"
            f" as serial: {found == self.serial}, results left: {len(list(results.iterdir()))}"
        )


class Killer:
    """Kills a node at a random moment before the last cell: hears of the cells that are done."""

    def __init__(self, nodes: Nodes, chance: random.Random, seconds: float) -> None:
        self._nodes, self._place, self._done = nodes, chance.randrange(2), 0
        self._after = chance.randrange(len(cells()) - 1)
        self._timer = threading.Timer(chance.uniform(0, seconds), self._kill)
        self._started, self.when = False, -1
        self(0.0, len(cells()))

    def __call__(self, at: float, total: int) -> None:
        self._done = int(at)
        if self._done >= self._after and not self._started:
            self._started = True
            self._timer.start()

    def wait(self) -> int:
        """After how many cells it was."""
        self._timer.join()
        return self.when

    def _kill(self) -> None:
        self.when = self._done
        self._nodes.kill(self._place)


def count(path: Path) -> int:
    """The cells of a store that another process writes."""
    if not path.exists():
        return 0
    with Store(path, readonly=True) as store:
        return len(store.runs())


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process and all that descend from it."""
    began, used = time.perf_counter(), cpu_seconds()
    run()
    return time.perf_counter() - began, cpu_seconds() - used


def cpu_seconds() -> float:
    """CPU seconds of this process and of those that descend from it, as /proc has them."""
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                said = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)], used[int(entry.name)] = (
                int(said[1]),
                int(said[11]) + int(said[12]),
            )
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(used.get(pid, 0) for pid in mine) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
