"""A sweep of eight cells one after the other, by two threads and by two processes.

    python bench/beside.py lenet-mnist --data "mnist[:1000]"
    python bench/beside.py digits-cnn --data "digits[:100]" --times 5 --only "Serial()"

Seconds of wall clock, and CPU seconds of the command and all that it started (Linux): medians of
so many times, by turns. Meant for an idle machine.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXECUTORS = ("Serial()", "Threads(2)", "Processes(2)")
ATTACKS = ("PGD(steps=40)", "APGD()", "FGSM()", "DeepFool()")
_SET_CHILD_SUBREAPER = 36  # prctl: what our processes leave behind is ours, and is counted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("net")
    parser.add_argument("--data", required=True)
    parser.add_argument("--threat", default="Linf(0.1)")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=EXECUTORS, metavar="EXECUTOR")
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)
    print("| network | data | executor | wall s | CPU s |\n|---|---|---|---|---|")
    took: dict[str, list[tuple[float, float]]] = {executor: [] for executor in args.only}
    for _ in range(args.times):
        for executor in args.only:
            with tempfile.TemporaryDirectory() as folder:
                said = _sweep(args, executor, Path(folder, "store.sqlite"))
                took[executor].append(time_command(said))
    for executor, each in took.items():
        wall, cpu = (statistics.median(seconds) for seconds in zip(*each, strict=True))
        print(f"| {args.net} | {args.data} | `{executor}` | {wall:.1f} | {cpu:.1f} |")


def _sweep(args: argparse.Namespace, executor: str, store: Path) -> list[str]:
    said = ["sweep", "--net", args.net, "--data", args.data, "--threat", args.threat]
    said += [word for attack in ATTACKS for word in ("--attack", attack)]
    said += ["--activation", "none", "--activation", "JumpReLU(0.5)"]
    return [*said, "--executor", executor, "--store", str(store)]


def time_command(said: list[str]) -> tuple[float, float]:
    """Seconds of wall clock, and CPU seconds of the command and of all that it started."""
    begun, before = time.perf_counter(), _used()
    subprocess.run(
        [sys.executable, "-m", "retroact.cli", *said], stdout=subprocess.DEVNULL, check=True
    )
    took = time.perf_counter() - begun
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return took, _used() - before


def _used() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
