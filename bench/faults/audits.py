"""An audit killed at random moments, and run again until it is done: same verdict, same bits?

    python bench/faults/audits.py --kills 30 --seed 0

Each time an audit begins with an empty store, is killed (SIGKILL) at a random moment, and is run
again from its store by another process; it must end as the one that nobody killed, bit for bit.
"again" counts the attacks that were begun twice: the one that ran when the kill came, at most.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import retroact as ra
from retroact.auditing.attack_run import AttackRun, Attempt
from retroact.auditing.audit import Audit

AUDIT = ("digits-cnn", "JumpReLU(1.0)")


def main() -> None:
    """Prints a line for each kill, and the sum."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--n", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    # all is loaded from here on, in every process that parts from this one
    ra.audit(*AUDIT, f"digits[:{args.n}]", "Linf(0.1)", battery="quick")
    chance, twice, same = random.Random(args.seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        whole = run(Path(folder, "whole"), args.n)
        assert whole is not None
        print(f"{whole['verdict']}\n{len(whole['begun'])} attacks, {whole['seconds']:.1f} s")
        kills = 0
        while kills < args.kills:
            place = Path(folder, str(time.monotonic_ns()))
            first = run(place, args.n, chance.uniform(0, whole["seconds"]))
            if first is not None:
                continue  # it was done before
            kills += 1
            then = run(place, args.n)
            assert then is not None
            again = begun_twice(place)
            same += then["bits"] == whole["bits"]
            twice.append(sum(again.values()) / sum(times(Path(folder, "whole")).values()))
            print(f"{kills}: same bits: {then['bits'] == whole['bits']}; again: {list(again)}")
    most, mean = 100 * max(twice), 100 * sum(twice) / kills
    print(f"{kills} kills: {same} times the same verdict and bits")
    print(f"computed twice, of the attacks' time: at most {most:.1f} %, on average {mean:.1f} %")


def run(place: Path, n: int, seconds: float | None = None) -> dict[str, Any] | None:
    """What an audit in another process came to; None where it was killed after so many seconds."""
    place.mkdir(exist_ok=True)
    began, child = time.monotonic(), os.fork()
    if child == 0:
        work(place, n)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if seconds is not None and time.monotonic() - began > seconds:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)
    found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return found | {"begun": begun(place), "seconds": time.monotonic() - began}


def work(place: Path, n: int) -> None:
    """The audit, with a line for each attack that begins and one for each that ends."""
    make = AttackRun._make
    log = open(place / "attacks.txt", "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def noted(self: AttackRun, result: Any, *how: Any) -> Attempt:
        data = self._under.data
        side = self._under.filed.about[:4]
        name = f"{result.title}, {result.asked} of {len(data.labels)}, {self._under.threat}, {side}"
        log.write(f"begun\t{name}\n")
        attempt = make(self, result, *how)
        log.write(f"ended\t{name}\t{attempt.result.seconds}\n")
        return attempt

    AttackRun._make = noted  # type: ignore[method-assign]
    with ra.Store(place / "audit.sqlite") as store:
        made = ra.audit(*AUDIT, f"digits[:{n}]", "Linf(0.1)", battery="quick", store=store)
    found = {"verdict": str(made), "bits": bits_of(made)}
    (place / "found.json").write_text(json.dumps(found), encoding="utf-8")


def bits_of(made: Audit) -> str:
    """A hash of the verdict, the readings and all that each attack did."""
    told = hashlib.sha256(repr((made.verdict, made.readings, made.curves)).encode())
    for side in made.sides:
        for part in (side.clean, side.claimed, side.verified, side.broken_by):
            told.update(part.tobytes())
        for example in side.examples:
            told.update(repr((example.row, example.decided, example.by)).encode())
            told.update(example.x_adv.tobytes())
        for attack in side.attacks:
            said = {k: v for k, v in attack.to_json().items() if k != "seconds"}
            told.update(json.dumps(said).encode())
    return told.hexdigest()


def begun(place: Path) -> list[str]:
    """The attacks in the order in which they began."""
    path = place / "attacks.txt"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [line.split("\t")[1] for line in lines if line.startswith("begun\t")]


def times(place: Path) -> dict[str, float]:
    """How long each attack took."""
    lines = (place / "attacks.txt").read_text("utf-8").splitlines()
    ended = (line.split("\t") for line in lines if line.startswith("ended\t"))
    return {name: float(seconds) for _, name, seconds in ended}


def begun_twice(place: Path) -> dict[str, float]:
    """The attacks that were begun twice, and how long they took."""
    names, took = begun(place), times(place)
    return {name: took[name] for name in names if names.count(name) > 1}


if __name__ == "__main__":
    main()
