"""The shapes of the norms: distances, projections, steepest steps, random points in a ball.

Everything is per example: tensors are (n, c, h, w) or (n, …), and a distance is (n,).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retroact.crafting.noise import normal, uniform
from retroact.crafting.threat import Norm, ThreatModel

TINY = 1e-12


def norm(d: Tensor, p: Norm) -> Tensor:
    """‖d‖_p of each example, (n,)."""
    flat = d.flatten(1)
    return flat.abs().amax(1) if p == "linf" else flat.norm(dim=1)


def dual_norm(g: Tensor, p: Norm) -> Tensor:
    """‖g‖_q of each example, (n,), with 1/p + 1/q = 1: how much a step of unit length in norm p can
    gain.

    ‖g‖₁ for L_inf, ‖g‖₂ for L2: so a linear f reaches zero |f| / ‖∇f‖_q away. Added up in float64,
    since squares of gradients beyond 1e19 or below 1e-19 leave float32; `norm` is for distances in
    the box, which do not.
    """
    flat = g.flatten(1)
    wide: Tensor = (
        flat.abs().sum(1, dtype=torch.float64)
        if p == "linf"
        else flat.norm(dim=1, dtype=torch.float64)
    )
    return wide.to(g.dtype)


def inward(g: Tensor, x: Tensor) -> Tensor:
    """`g` without the entries that push a pixel of `x` out of the box [0, 1] it is at the edge
    of."""
    return g.masked_fill(((x <= 0) & (g < 0)) | ((x >= 1) & (g > 0)), 0.0)


def project(x: Tensor, centre: Tensor, threat: ThreatModel) -> Tensor:
    """The point of the ball around `centre`, cut with the box [0, 1], that `x` is pulled back to.

    Exact for L_inf. For L2 first the ball, then the box: since `centre` lies in the box, cutting
    only shortens the perturbation.
    """
    if threat.norm == "linf":
        return torch.clamp(
            x, (centre - threat.eps).clamp_(min=0.0), (centre + threat.eps).clamp_(max=1.0)
        )
    d = x - centre
    shrink = (threat.eps / norm(d, "l2").clamp_min(TINY)).clamp_max(1.0)
    return (centre + d * each(shrink, d)).clamp(0.0, 1.0)


def steepest(gradient: Tensor, p: Norm) -> Tensor:
    """The step of unit length in norm p that climbs the linearised loss most; zero where the
    gradient is.

    sign(g) for L_inf, g/‖g‖₂ for L2.
    """
    if p == "linf":
        return gradient.sign()
    # Scaled by the largest entry first: squares of gradients below 1e-19 underflow in float32.
    scaled = gradient / each(nonzero(gradient.flatten(1).abs().amax(1)), gradient)
    return scaled / each(nonzero(norm(scaled, "l2")), scaled)


def random_start(
    x: Tensor, threat: ThreatModel, index: Tensor, seed: int, stream: int = 0
) -> Tensor:
    """A point drawn evenly from the ball around `x`, cut with the box; an example's own in any
    batch."""
    shape = tuple(x.shape[1:])
    if threat.norm == "linf":
        d = (uniform(shape, index, seed, stream) * 2 - 1) * threat.eps
    else:
        direction = steepest(normal(shape, index, seed, stream), "l2")
        radius = uniform((1,), index, seed, stream + 500_000_009)[:, 0] ** (1 / math.prod(shape))
        d = direction * each(radius * threat.eps, direction)
    return project(x + d, x, threat)


def nonzero(values: Tensor) -> Tensor:
    """`values` to divide by: 1 where one is zero, so that zero over zero is zero, whatever the
    scale of the others."""
    return values.where(values > 0, torch.ones_like(values))


def each(values: Tensor, like: Tensor) -> Tensor:
    """`values` (n,) shaped to multiply `like` (n, …) example by example."""
    return values.view(-1, *[1] * (like.dim() - 1))
