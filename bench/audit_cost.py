"""What the full audit costs beside an older version of the package, in CPU seconds of one thread.

    for i in 1 2 3; do
        PYTHONPATH=OLD python bench/audit_cost.py old.jsonl
        PYTHONPATH=NEW python bench/audit_cost.py new.jsonl
    done
    python bench/audit_cost.py --compare old.jsonl new.jsonl

One line of JSON per audit; runs of both versions alternate, so that what else the machine does
meets both. The ratio is that of the medians over the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

AUDITS = (
    ("lenet-mnist", "JumpReLU(1.0)", 0.1),
    ("lenet-mnist-robust", "JumpReLU(1.0)", 0.2),
    ("lenet-mnist", "SReLU(10.0)", 0.1),
    ("lenet-mnist-robust", "", 0.2),
)
"""A network, an activation (none: against itself, loaded twice), eps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--compare", action="store_true", help="print the ratio of two files")
    args = parser.parse_args()
    if args.compare:
        compare(*map(read, args.files))
        return
    with args.files[0].open("a", encoding="utf-8") as file:
        for network, activation, eps in AUDITS:
            file.write(json.dumps(run(network, activation, eps, args.n)) + "\n")
            file.flush()


def run(network: str, activation: str, eps: float, n: int) -> dict[str, Any]:
    import torch

    import retroact as ra

    torch.set_num_threads(1)
    net, began = ra.load(network), time.process_time()
    made = ra.audit(net, activation or ra.load(network), f"mnist[:{n}]", ra.Linf(eps))
    seconds, verified = time.process_time() - began, made.verdict.counts.verified
    named = {"network": network, "activation": activation, "eps": eps, "n": n}
    return named | {"seconds": round(seconds, 2), "verified": verified}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def compare(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    print(
        "| network | change | verified, old | new | CPU s, old | new | ratio |\n" + "|---" * 7 + "|"
    )
    for network, activation, eps in AUDITS:
        asked = {"network": network, "activation": activation, "eps": eps}
        mine = [[r for r in runs if asked.items() <= r.items()] for runs in (old, new)]
        medians = [statistics.median(r["seconds"] for r in runs) for runs in mine]
        shares = [" / ".join(f"{100 * v:.1f}" for v in runs[0]["verified"]) for runs in mine]
        cells = [network, activation or "none", *shares, *(f"{s:.1f}" for s in medians)]
        print(f"| {' | '.join(cells)} | {medians[1] / medians[0]:.2f} |")


if __name__ == "__main__":
    main()
