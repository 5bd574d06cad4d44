"""Two sweeps at once on one store: is a cell run twice?

    python bench/faults/two.py --times 5

Both run the same 12 cells; the second is started at a random moment of the first, with --wait and
without.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from kills import CELLS

from retroact.experiments.store import Store, StoreInUseError
from retroact.experiments.sweep import sweep


def main() -> None:
    """Prints what became of the second sweeps and of the cells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    for wait in (True, False):
        counted = Counter[str]()
        for _ in range(args.times):
            counted.update(try_once(wait, chance.uniform(0.0, 1.5)))
        print(f"wait={wait}:", ", ".join(f"{name}: {n}" for name, n in counted.items()))


def try_once(wait: bool, after: float) -> Counter[str]:
    """Two sweeps, the second begun so many seconds after the first."""
    context, found = multiprocessing.get_context("fork"), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path, ends = Path(folder, "s.sqlite"), context.SimpleQueue()
        both = [context.Process(target=_sweep, args=(path, wait, ends)) for _ in range(2)]
        both[0].start()
        time.sleep(after)
        both[1].start()
        for process in both:
            process.join()
            found[ends.get()] += 1
        with Store(path) as store:
            found["cells"] = len(store)
            found["cells run twice"] = sum(n > 1 for n in store.runs().values())
    return found


def _sweep(path: Path, wait: bool, ends: object) -> None:
    try:
        with Store(path, wait=wait, tell=lambda text: None) as store:
            sweep(CELLS, store)
            ends.put("sweeps done")  # type: ignore[attr-defined]
    except StoreInUseError:
        ends.put("sweeps refused")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
