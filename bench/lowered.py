"""What crafting in bfloat16 costs in strength: the same attacks by gradients in float32 and under
autocast, every decision in float32.

    python bench/lowered.py --net resnet20-cifar10 --eps 2/255 --n 100

On validation images, which nothing was trained on. Robust accuracy in percent, or the mean norm of
what a minimum-norm attack finds, over the images that both runs fool; CPU seconds on one thread,
the better of two runs in alternation, after the network's forms were proved.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch

import retroact as ra

CRAFTING = "float32", "bfloat16"
BUDGET = (ra.PGD(steps=40), ra.APGD(), ra.Momentum())
ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--net", required=True)
    parser.add_argument("--eps", type=lambda text: ra.parse(f"Linf({text})"), required=True)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[""], help="attacks whose names begin so")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    name = "mnist" if "mnist" in args.net else "cifar10"
    net, data = ra.load(args.net), ra.data(f"{name}/validation[:{args.n}]")
    print("| network | attack | threat | float32 | bfloat16 | moved | CPU s |\n|" + "---|" * 7)
    every = (*BUDGET, ra.DeepFool())
    for attack in (a for a in every if str(a).startswith(tuple(args.only))):
        for threat in (ra.L2(50.0), ra.Linf(1.0)) if attack.kind == "minimum-norm" else (args.eps,):
            found, seconds = _both(net, data, attack, threat, args.seed)
            spent = " → ".join(f"{s:.2f}" for s in seconds)
            told = " | ".join(_told(attack, threat, found))
            under = threat if attack.kind == "budget" else threat.norm
            print(f"| {args.net} | {attack} | {under} | {told} | {spent} |", flush=True)


def _both(net: Any, data: Any, attack: Any, threat: Any, seed: int) -> tuple[Any, list[float]]:
    """A record by each crafting, and the CPU seconds that it took."""
    ra.evaluate(net, data, attack, threat, seed=seed)  # what is paid once
    found, best = [None, None], [float("inf")] * 2
    for _ in range(ROUNDS):
        for i, crafting in enumerate(CRAFTING):
            began = time.process_time()
            found[i] = ra.evaluate(net, data, attack, threat, seed=seed, crafting=crafting)
            best[i] = min(best[i], time.process_time() - began)
    return found, best


def _told(attack: Any, threat: Any, found: list[Any]) -> list[str]:
    """Strength by each, and on how many images they part, or by how much the norm is longer."""
    fooled = [record.adversarial != record.label for record in found]
    if attack.kind == "budget":
        moved = int((fooled[0] != fooled[1]).sum())
        return [
            *(f"{100 * ra.robust_accuracy(r):.0f}" for r in found),
            f"{moved} image{'' if moved == 1 else 's'}",
        ]
    column = 3 if threat.norm == "linf" else 2
    both = fooled[0] & fooled[1] & (found[0].clean == found[0].label)
    means = [float(record.distance[both, column].mean()) for record in found]
    return [*(f"{mean:.4f}" for mean in means), f"{100 * (means[1] / means[0] - 1):+.1f} %"]


if __name__ == "__main__":
    main()
