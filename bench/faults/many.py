"""A store of 100,000 cells: what it takes to list, check and ask for one of them.

    python bench/faults/many.py --cells 100000

Each command runs in a process of its own; seconds are wall clock and CPU, with the start of Python,
and megabytes its largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from retroact.evaluation.record import Record, to_bytes
from retroact.experiments.fields import CellFields
from retroact.experiments.sealed import Packed, insert_cell, pack
from retroact.experiments.store import Store

ONE = "0000000000000007"
COMMANDS = (
    ["list", "store", "--store"],
    ["list", "store", "--json", "--store"],
    ["report", "--cells", ONE, "--store"],
    ["store", "check"],
)


def main() -> None:
    """Prints a line for each command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--n", type=int, default=50, help="examples of each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "many.sqlite")
        make(path, args.cells, args.n)
        print(f"{args.cells:,} cells of {args.n} examples, {path.stat().st_size / 1e6:.0f} MB")
        for words in COMMANDS:
            wall, cpu, size, lines = run([*words, str(path)])
            told = f"{wall:.1f} s, {cpu:.1f} CPU s, {size:.0f} MB, {lines:,} lines"
            print(f"retroact {' '.join(words)}: {told}")


def make(path: Path, cells: int, n: int) -> None:
    """A store of so many cells, written in one transaction; they have the same record."""
    record = pack(to_bytes(fact(n)))
    with Store(path) as store, store.file.writing() as db:
        for i in range(cells):
            net, eps = f"net{i % 50}", (i % 20) / 100
            fields = CellFields(
                net=net,
                activation=f"JumpReLU(kappa={i % 37 / 10})",
                attack="PGD(steps=40, restarts=1, loss='cross_entropy', relative_step=0.1)",
                threat=f"Linf(eps={eps})",
                norm="linf",
                eps=eps,
                goal="Untargeted()",
                data="mnist[:50]",
                seed=i,
                dtype="own",
                weights="0" * 16,
                pixels="1" * 16,
            )
            cell = (
                f"Cell(model=Model(net={net!r}, activation={fields.activation}), data='mnist[:50]',"
                f" attack={fields.attack}, threat={fields.threat}, seed={i})"
            )
            when = f"2026-01-01T00:{i // 60 % 60:02}:{i % 60:02}+00:00"
            said = (f"{i:016x}", cell, json.dumps(fields.to_json()), n, when, 0)
            insert_cell(db, Packed.of(said, record, None))


def fact(n: int) -> Record:
    """A record of n examples."""
    zeros, some = np.zeros(n, np.int64), np.arange(n) % 10
    floats = np.full((n, 4), 0.1, np.float32)
    facts = (np.arange(n), some, zeros - 1, some, (some + 1) % 10, floats, floats, zeros, zeros)
    return Record(*facts, zeros, np.zeros(n, np.bool_), pedigree={"seconds": 0.5})


def run(words: list[str]) -> tuple[float, float, float, int]:
    """Seconds, CPU seconds, megabytes and lines of output of a command."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen([sys.executable, "-m", "retroact.cli", *words], stdout=out)
        _, status, used = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        lines = sum(1 for _ in out)
    if child.returncode:
        print(f"exit code {child.returncode}")
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, lines


if __name__ == "__main__":
    main()
