"""Programs with workers that end in every way: which processes outlive them, and how long Ctrl-C
takes.

    python bench/faults/orphans.py --times 3

`retroact sweep` with two workers, and `retroact audit` with two threads, are started and ended by a
signal, as soon as they work and at random moments; 2 seconds later no process of theirs may live.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

NET = ["--threat", "Linf(0.1)", "--data", "digits"]
MANY = [w for n in range(1, 40) for w in ("--attack", f"PGD(steps=40, restarts={n})")]
SWEEP = ["sweep", "--net", "digits-cnn", *NET, *MANY, "--workers"]
AUDIT = ["audit", "digits-cnn", "JumpReLU(0.5)", *NET, "--workers", "2"]
COMMANDS = {
    "sweep, serial": [*SWEEP, "1"],
    "sweep, 2 workers": [*SWEEP, "2"],
    "audit, 2 threads": AUDIT,
}


def interrupt_twice(group: int) -> None:
    """Two Ctrl-C, a tenth of a second apart, as a terminal sends them: to all."""
    os.killpg(group, signal.SIGINT)
    time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGINT)


WAYS: dict[str, Callable[[int], None]] = {
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),
    "SIGINT to the parent": lambda pid: os.kill(pid, signal.SIGINT),
    "Ctrl-C twice": interrupt_twice,
    "SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "SIGHUP": lambda pid: os.kill(pid, signal.SIGHUP),
    "SIGKILL": lambda pid: os.kill(pid, signal.SIGKILL),
}


def main() -> None:
    """Prints a line for each command and way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", default="", help="ways of ending whose name begins so")
    parser.add_argument("--only", default="", help="commands whose name begins so")
    args = parser.parse_args()
    chance = random.Random(args.seed)
    for name, words in COMMANDS.items():
        if name.startswith(args.only):
            for how, end in ((h, e) for h, e in WAYS.items() if h.startswith(args.ways)):
                found = [try_once(words, end, chance) for _ in range(args.times)]
                took = ", ".join(f"{seconds:.2f}" for seconds, _, _ in found)
                codes = sorted({code for _, code, _ in found})
                orphans = sum(n for _, _, n in found)
                print(f"{name}, {how}: {took} s, codes {codes}, orphans {orphans}", flush=True)


def try_once(
    words: list[str], end: Callable[[int], None], chance: random.Random
) -> tuple[float, int, int]:
    """Seconds until the program has ended, its exit code, and processes that live 2 s after the
    signal."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-m", "retroact.cli", *words],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not works(child.pid, Path(folder)):
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 2.0))
        began = time.monotonic()
        end(child.pid)
        code = child.wait()
        took = time.monotonic() - began
        time.sleep(max(0.0, 2.0 - took))
        return took, code, len(session(child.pid))


def works(pid: int, folder: Path) -> bool:
    """Whether it has used more CPU than starting takes, or filed something."""
    return sum(cpu_seconds(p) for p in session(pid)) > 6.0


def session(leader: int) -> list[int]:
    """The processes of a session that live."""
    found = subprocess.run(["ps", "-eo", "pid=,sess=,stat="], capture_output=True, text=True)
    rows = (line.split() for line in found.stdout.splitlines())
    return [int(pid) for pid, sess, stat in rows if int(sess) == leader and stat[0] not in "ZX"]


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
