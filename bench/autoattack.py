"""The audit of one network beside AutoAttack's standard version: robust accuracy and CPU seconds.

    python bench/autoattack.py --net lenet-mnist --eps 0.1 --n 100

Both attack the same images of a network with nothing to hide, in one process on one thread.
AutoAttack (Croce & Hein 2020: APGD-CE, APGD-T, FAB-T, Square, each on what stands) is that of
pyautoattack; the audit is `check`, with the whole battery and with the quick one.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

import retroact as ra


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--net", required=True)
    parser.add_argument("--eps", type=lambda text: ra.parse(f"Linf({text})").eps, required=True)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    name = "mnist" if "mnist" in args.net else "cifar10"
    net, data, threat = ra.load(args.net), ra.data(f"{name}[:{args.n}]"), ra.Linf(args.eps)
    print("| network | eps | n | attack | robust % | CPU s | times AutoAttack's |")
    print("|---|---|---|---|---|---|---|")
    standard = ra.AutoAttack(version="standard")
    began = time.process_time()
    record = ra.evaluate(net, data, standard, threat, seed=args.seed)
    spent = time.process_time() - began
    where = f"| {args.net} | {args.eps:.4g} | {args.n} |"
    print(f"{where} AutoAttack | {100 * ra.robust_accuracy(record):.1f} | {spent:.1f} | 1 |")
    for battery in (None, "quick"):
        began = time.process_time()
        found = ra.check(net, data, threat, battery=battery, seed=args.seed)
        own = time.process_time() - began
        words = f"check{'' if battery is None else ', quick'}"
        shares = f"{100 * found.verified:.1f} | {own:.1f} | {spent / own:.1f} times cheaper"
        print(f"{where} {words} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
