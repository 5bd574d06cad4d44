"""Gradient ascent within a ball: the step of PGD, and a run of it on a network that nobody counts
on.

x ← Π(x + step · s(∇_x L(f(x)))), s the steepest direction of the threat's norm and Π the projection
onto its ball, cut with the box (Madry et al. 2017, arXiv:1706.06083).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retroact.crafting.geometry import project, steepest
from retroact.crafting.oracle import Network, with_graph
from retroact.crafting.threat import ThreatModel


def ascend(x: Tensor, gradient: Tensor, step: float, centre: Tensor, threat: ThreatModel) -> Tensor:
    """One step of length `step` from `x` up the `gradient`, pulled back into the ball around
    `centre`; all (n, …)."""
    return project(x + step * steepest(gradient, threat.norm), centre, threat)


def climb(
    network: Network,
    x: Tensor,
    centre: Tensor,
    threat: ThreatModel,
    objective: Callable[[Tensor], Tensor],
    *,
    step: float,
    steps: int,
) -> Tensor:
    """`steps` steps up `objective`, of logits (n, k), from `x`; no oracle counts, no example drops
    out.

    For training, which wants the worst image and not the first, and where each count would wait for
    the device. The network must be in eval mode. Raises AccessError where it gives no gradient.
    """
    for _ in range(steps):
        leaf, logits = with_graph(network, x)
        (gradient,) = torch.autograd.grad(objective(logits).sum(), leaf)
        x = ascend(leaf.detach(), gradient, step, centre, threat)
    return x
