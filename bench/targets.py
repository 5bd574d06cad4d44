"""In which order targets are best tried, and by which loss: the battery's targeted attack alone.

    python bench/targets.py

*likeliest*: the classes that the clean logits rank next. *MALT*: by (z_t − z_y) / ‖∇(z_t − z_y)‖₁
at the clean image (Melamed et al. 2024, arXiv:2407.02240), among all classes. Robust accuracy on
validation images under `Momentum` with the battery's 5 targets and with 2, and with cross-entropy
in the place of the margin. What MALT's order costs, a gradient for each class, is not counted
against it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

import retroact as ra
from retroact.attacks import momentum
from retroact.auditing.attack_run import AttackRun, Conditions
from retroact.auditing.battery import Battery
from retroact.auditing.subjects import prepare
from retroact.crafting.goals import Aim
from retroact.crafting.scene import Scene

CASES = (
    ("lenet-mnist", "", 0.1, 200),
    ("lenet-mnist-robust", "", 0.2, 200),
    ("lenet-mnist", "JumpReLU(1.0)", 0.1, 200),
    ("resnet20-cifar10-robust", "", 8 / 255, 60),
)


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| network | eps | n | targets | loss | likeliest | MALT |\n" + "|---" * 7 + "|")
    for name, activation, eps, n in CASES:
        net = ra.load(name)
        after = ra.retrofit(net, ra.parse(activation)) if activation else net
        data = ra.data(f"{'mnist' if 'mnist' in name else 'cifar10'}/validation[:{n}]")
        under = Conditions(data, ra.Linf(eps), 10)
        climb = prepare(net, after, data, under.threat).after.climbs[0]
        for targets, loss in ((5, "margin"), (2, "margin"), (5, "cross_entropy")):
            attack = replace(Battery(targets=targets).targeted(10), loss=loss)
            shares = []
            for order in (nullcontext(), patch.object(momentum, "choose", choose_by_slope)):
                run = AttackRun(after, under)
                with order:
                    run.attack("targeted", "white box", attack, climb)
                shares.append(f"{100 * run.robust.mean():.1f}")
            said = f"{name} {activation}".strip()
            print(
                f"| {said} | {eps:.3g} | {n} | {targets} | {loss} | {' | '.join(shares)} |",
                flush=True,
            )


def choose_by_slope(scene: Scene, targets: int, restarts: int) -> Iterator[Aim]:
    """The `targets` classes that are nearest if the network were as steep everywhere as here."""
    labels, k = scene.aim.labels, scene.oracle.logits(scene.x, scene.rows).shape[1]
    scores = torch.full((len(labels), k), -math.inf)
    for target in range(k):
        towards = torch.full_like(labels, target)

        def lead(logits: Any, towards: Any = towards) -> Any:
            rows = torch.arange(len(logits))
            return logits[rows, towards] - logits[rows, labels]

        logits, gradient = scene.oracle.gradient(scene.x, scene.rows, lead)
        steep = gradient.flatten(1).abs().sum(1).clamp_min(1e-30)
        scores[:, target] = (lead(logits) / steep).cpu()
    ranked = scores.scatter(1, labels.cpu()[:, None], -math.inf).topk(targets, dim=1).indices
    for _ in range(restarts):
        yield from (Aim(labels, towards.to(labels)) for towards in ranked.T)


if __name__ == "__main__":
    main()
