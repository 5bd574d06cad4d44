"""Flipped bits and zeroed pages in a store: how many are noticed, and how many change a number.

    python bench/faults/bits.py --flips 400 --seed 0

A store of 40 cells, some with images, and 10 facts is made; each fault is put into a copy of it,
which is then read whole, cell by cell. "changed" must be 0: a fault is an error, or hits a place
that no number stands in (free pages, SQLite's own counters).
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from retroact.evaluation.record import Record
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store, StoreError

PAGE = 4096


def main() -> None:
    """Prints a line for each kind of fault."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "whole.sqlite")
        make(path)
        whole, told = path.read_bytes(), read(path)
        flips = [flip(whole, chance.randrange(8 * len(whole))) for _ in range(args.flips)]
        pages = [zero(whole, page) for page in range(len(whole) // PAGE)]
        print(f"{len(told)} answers, {len(whole):,} bytes, {len(pages)} pages, seed {args.seed}")
        for name, hurt in (("bits flipped", flips), ("pages zeroed", pages)):
            found = Counter(judge(path, damaged, told) for damaged in hurt)
            print(f"{name}: {len(hurt)};", ", ".join(f"{k}: {n}" for k, n in found.items()))


def make(path: Path, cells: int = 40) -> None:
    """A store with cells of several sizes, and facts."""
    with Store(path) as store:
        for i in range(cells):
            store.put(f"{i:016x}", f"Cell({i})", CellFields(net=f"net{i}"), record(3 + 7 * i, i))
        for i in range(cells // 4):
            store.put_facts(f"{i:016x}", f"Facts({i})", {"n": i, "x": [0.5] * i}, 1.0)


def record(n: int, seed: int, images: bool | None = None) -> Record:
    """Facts by chance; every third has images."""
    rng = np.random.default_rng(seed)
    several = {name: rng.integers(0, 10, n) for name in ("label", "clean", "adversarial")}
    counts = {name: rng.integers(0, 99, n) for name in ("queries", "gradients", "zero_gradients")}
    kept = rng.random((2, 1, 8, 8)).astype(np.float32) if seed % 3 == 0 else None
    return Record(
        index=np.arange(n),
        target=np.full(n, -1),
        distance=rng.random((n, 4)).astype(np.float32),
        size=rng.random((n, 4)).astype(np.float32),
        nonfinite=np.zeros(n, np.bool_),
        examples=kept,
        originals=kept,
        pedigree={"seconds": 0.5},
        **several,
        **counts,
    )


def flip(data: bytes, bit: int) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def zero(data: bytes, page: int) -> bytes:
    """The same bytes but for one page."""
    return data[: page * PAGE] + bytes(PAGE) + data[(page + 1) * PAGE :]


def read(path: Path) -> dict[str, object]:
    """Everything that a store answers: an object, or StoreError where it refuses."""
    answers: dict[str, object] = {}

    def ask(name: str, question: Callable[[], object]) -> None:
        try:
            answers[name] = question()
        except StoreError:
            answers[name] = StoreError
        except KeyError:
            answers[name] = KeyError  # "no such cell": as wrong as another number

    try:
        store = Store(path, readonly=True)
    except StoreError:
        return {"opened": StoreError}
    with store:
        ask("rows", store.rows)
        ask("facts", lambda: list(store.facts()))
        ask("runs", store.runs)
        for i in range(40):
            name = f"{i:016x}"
            ask(f"cell {name}", lambda name=name: _bits(store.read(name, images=True)))
            ask(f"has {name}", lambda name=name: store.has(name, keep=1))
            ask(f"facts {name}", lambda name=name: store.read_facts(name))
    return answers


def judge(path: Path, damaged: bytes, told: dict[str, object]) -> str:
    """What a fault did: "an error", "harmless" (all answers as before), or "changed"."""
    copy = path.with_name("hurt.sqlite")
    copy.write_bytes(damaged)
    found = read(copy)
    if any(answer not in (StoreError, told.get(name)) for name, answer in found.items()):
        return "changed"
    return "an error" if StoreError in found.values() else "harmless"


def _bits(record: Record) -> tuple[bytes, ...]:
    arrays = {**record.facts(), "examples": record.examples, "originals": record.originals}
    return tuple(b"" if a is None else a.tobytes() for a in arrays.values())


if __name__ == "__main__":
    main()
