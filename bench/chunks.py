"""CPU seconds of an attack by how many examples the network is asked about at once.

    python bench/chunks.py --net lenet-mnist --eps 0.1 --n 512
    python bench/chunks.py --net resnet20-cifar10 --eps 1/255 --n 256 --attack "PGD(steps=10)"

In one process on one thread, on the form of the network that is proved, each size once in each
round, the least of the rounds, as shares of that of 64. `own` is what runs without `chunk=`:
batches of `chunk_for`, in which examples of `stream_for` run together.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch

import retroact as ra
from retroact.crafting.driver import craft
from retroact.crafting.sizing import chunk_for, stream_for
from retroact.evaluation.proof import prove_for

SIZES = (16, 32, 64, 128, 256, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--net", required=True)
    parser.add_argument("--eps", type=lambda text: ra.parse(f"Linf({text})").eps, required=True)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--attack", type=ra.parse, default=ra.PGD(steps=40))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = next(name for name in ("mnist", "cifar10", "digits") if name in args.net)
    net, data, threat = ra.load(args.net), ra.data(f"{name}[:{args.n}]"), ra.Linf(args.eps)
    form = prove_for(args.attack, net, data.images, data.index, [threat]).lean
    run = (args.attack, form, data.images, data.labels, data.index, threat)
    spent: dict[int | None, list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for size in (*(s for s in SIZES if s <= args.n), None):
            began = time.process_time()
            craft(*run, chunk=size)
            spent[size].append(time.process_time() - began)
    batch = chunk_for(form, data.images, args.attack.chunk)
    together = stream_for(form, data.images, batch) if args.attack.streams else batch
    shares = {size: min(times) / min(spent[64]) for size, times in spent.items()}
    own = shares.pop(None)
    columns = " | ".join(f"{shares[s]:.2f}" if s in shares else "–" for s in SIZES)
    print(f"| {args.net}, {args.attack} | {columns} | {own:.2f} ({batch} of {together}) |")


if __name__ == "__main__":
    main()
