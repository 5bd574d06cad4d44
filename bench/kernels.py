"""Backward passes of an activation that jumps, side by side on validation images.

    python bench/kernels.py lenet-mnist "QuantizedReLU(3)" --eps 0.1
    python bench/kernels.py lenet-mnist-robust "MeanSparse(0.2)" --eps 0.2

Prints the accuracy that `Momentum(40)` leaves on the retrofit along its own gradients, along those
of the network before the change, and through each family of kernels that an audit tries, wide
first; a rectangle of beta = 1 alone is the straight-through estimate of a QuantizedReLU. What needs
numbers is calibrated on the first 5000 training images. Nothing here looks at test images.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import torch
from torch import nn

import retroact as ra
from retroact.activations.activation import Activation
from retroact.activations.measured import Measured
from retroact.auditing.subjects import KERNELS, Schedule
from retroact.crafting.annealed import Annealed
from retroact.nets.zoo import NETWORKS

ATTACK = ra.Momentum(40)
ALONE: tuple[Schedule, ...] = (
    ("sigmoid", (4.0,)),
    ("sigmoid", (12.0,)),
    ("rectangle", (1.0,)),
)
"""Kernels of one width, from the first step to the last."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("net")
    parser.add_argument("activation")
    parser.add_argument("--eps", type=float, required=True)
    parser.add_argument("--n", type=int, default=150)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    net, name = ra.load(args.net), NETWORKS[args.net].data
    activation = ra.parse(args.activation, Activation)
    if isinstance(activation, Measured):
        activation = ra.calibrate(net, activation, f"{name}/train[:5000]")
    held, threat = ra.data(f"{name}/validation[:{args.n}]"), ra.Linf(args.eps)
    hard = ra.retrofit(net, activation)
    before = ra.evaluate(net, held, ATTACK, threat)
    print(f"| {args.net}, {ra.show(ATTACK)} | accuracy left, % |\n|---|---|")
    print(f"| before the change, its own gradients | {100 * ra.robust_accuracy(before):.1f} |")
    for title, source in _sources(net, hard, activation):
        left = ra.robust_accuracy(ra.evaluate(hard, held, ATTACK, threat, source=source))
        print(f"| {title} | {100 * left:.1f} |", flush=True)


def _sources(
    net: nn.Module, hard: nn.Module, activation: Activation
) -> Iterator[tuple[str, nn.Module | None]]:
    """What the retrofit is climbed by, named."""
    yield f"{type(activation).__name__}, its own gradients", None
    yield "those of the network before", net
    for kernel, widths in (*KERNELS, *ALONE):
        forms = [ra.refit(hard, activation.smoothed(width, kernel)) for width in widths]
        yield f"{kernel}, beta = {', '.join(f'{w:g}' for w in widths)}", Annealed(forms)


if __name__ == "__main__":
    main()
