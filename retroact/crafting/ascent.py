"""A run of PGD on a network that nobody counts on: gradient ascent within a ball, for training.

x ← Π(x + step · s(∇_x L(f(x)))), s the steepest direction of the threat's norm and Π the projection
onto its ball, cut with the box (Madry et al. 2017, arXiv:1706.06083).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retroact.crafting.domain import Domain
from retroact.crafting.oracle import Network, with_graph
from retroact.crafting.threat import ThreatModel


def climb(
    network: Network,
    x: Tensor,
    centre: Tensor,
    threat: ThreatModel,
    domain: Domain,
    objective: Callable[[Tensor], Tensor],
    *,
    step: float,
    steps: int,
) -> Tensor:
    """`steps` steps of length `step` up `objective`, of logits (n, k), from `x` (n, …) within the
    ball around `centre`.

    No oracle counts, since each count would wait for the device, and no example drops out, since
    training wants the worst point and not the first. The network must be in eval mode. Raises
    AccessError where it gives no gradient.
    """
    for _ in range(steps):
        leaf, logits = with_graph(network, x)
        (gradient,) = torch.autograd.grad(objective(logits).sum(), leaf)
        x = threat.step(leaf.detach(), gradient, step, centre, domain)
    return x
