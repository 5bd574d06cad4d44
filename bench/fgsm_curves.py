"""The top row of the Sloped ReLU paper's Figure 2 at full size, timed: FGSM, three networks, six
slopes, 10,000 images.

    python bench/fgsm_curves.py --workers 2 --store curves.sqlite

One gradient per image serves every radius. Prints a line per curve and the wall clock; what the
store has is not made again, so time it on a fresh one.
"""

from __future__ import annotations

import argparse
import time

import retroact as ra
from retroact.executors import Processes
from retroact.experiments.store import Store
from retroact.studies.desk import Desk
from retroact.studies.srelu.figure_2 import fgsm_curves
from retroact.studies.srelu.networks import NETS, SLOPES, label


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--store", required=True)
    args = parser.parse_args()
    began = time.monotonic()
    with Store(args.store) as store:
        asked = {(net, label(s)): ra.SReLU(s) for net in NETS for s in SLOPES}
        made = fgsm_curves(Desk(store, executor=Processes(args.workers)), asked, args.n)
    spent = time.monotonic() - began
    for (net, slope), curve in made.items():
        accuracies = ", ".join(f"{a:.2f}" for a in curve.y)
        print(f"{net.title}, slope {slope}: {accuracies} % at eps {', '.join(map(label, net.eps))}")
    print(f"{len(made)} curves, n = {args.n}, {args.workers} workers: {spent:.1f} s of wall clock")


if __name__ == "__main__":
    main()
