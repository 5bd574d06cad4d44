"""LeNet-like's part of the JumpReLU paper's Tables 1 and 2 at full size, timed: 16 adversarial sets
of 10,000 images.

    python bench/tables.py --workers 2 --store tables.sqlite

Both networks, kappa 0 and 1, four attacks; the sets of kappa 0 serve both tables. Prints a line per
set, with what the study's tables take from it, and the wall clock; what the store has is not made
again, so time it on a fresh one. `--net lenet-mnist-robust-steps --data mnist/validation --n 1000`,
with RETROACT_ZOO set to a folder of networks from another seed, shows how much of it is one
training run.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from retroact.executors import Processes
from retroact.experiments.facts import measured_all
from retroact.experiments.store import Store
from retroact.studies.jumprelu.crafted import crafted
from retroact.studies.jumprelu.networks import ATTACKS, LENET, LENET_ROBUST, NETS

BY_NAME = {net.name: net for net in NETS if net.data == "mnist"}


def main() -> None:
    args = _arguments()
    began = time.monotonic()
    nets = [replace(BY_NAME[name], data=args.data) for name in args.net]
    asked = {
        (net.title, kappa, ATTACKS[name]): crafted(net, args.n, name, kappa, gray=not kappa)
        for jump in (True, False)
        for net in nets
        for kappa in (net.kappa * jump,)
        for name in reversed(ATTACKS)
    }
    with Store(args.store) as store:
        found = measured_all(list(asked.values()), store, executor=Processes(args.workers))
    print(
        "| network | kappa | attack | accuracy, % | of the retrofit, % | noise, % | CPU s |",
        "|" + "---|" * 7,
        sep="\n",
    )
    for (title, kappa, attack), made in zip(asked, found, strict=True):
        facts = made.facts
        source, *retrofit = (f"{100 * a:.1f}" for a in facts["accuracy"][0])
        cells = (
            title,
            f"{kappa:g}",
            attack,
            source,
            *(retrofit or ["–"]),
            f"{100 * facts['noise']:.1f}",
        )
        print("| " + " | ".join(cells) + f" | {facts['seconds']:.0f} |")
    print(f"\nn = {args.n}, {args.workers} workers, {time.monotonic() - began:.0f} s of wall clock")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument(
        "--net", nargs="+", choices=BY_NAME, default=[LENET_ROBUST.name, LENET.name]
    )
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
