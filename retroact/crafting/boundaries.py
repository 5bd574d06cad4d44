"""Linearised boundaries: logits and the slopes of them all at a point, and where they meet."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from retroact.crafting.geometry import each
from retroact.crafting.oracle import Oracle
from retroact.crafting.scene import Scene
from retroact.crafting.threat import ThreatModel


def all_slopes(oracle: Oracle, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (m, k) and the gradient of each of them (m, k, …): one forward pass, k backward."""
    graph = oracle.graph(x, rows)
    last = graph.logits.shape[1] - 1
    slopes = [graph.gradient(None, _column(k), last=k == last) for k in range(last + 1)]
    return graph.logits, torch.stack(slopes, dim=1)


def boundaries(
    logits: Tensor, slopes: Tensor, labels: Tensor, threat: ThreatModel | type[ThreatModel]
) -> tuple[Tensor, Tensor]:
    """How far the linearised boundary to each class is, (m, k), infinite to the true one, and ∇f_i
    − ∇f_y, (m, k, …)."""
    w = slopes - pick(slopes, labels)[:, None]
    gaps = (logits - pick(logits, labels)[:, None]).abs()
    far = gaps / threat.dual_norm(w.flatten(0, 1)).view_as(gaps)
    far = far.scatter(1, labels[:, None], torch.inf)
    return far.nan_to_num(nan=torch.inf, posinf=torch.inf), w


def nearest(
    logits: Tensor, slopes: Tensor, labels: Tensor, threat: ThreatModel | type[ThreatModel]
) -> tuple[Tensor, Tensor]:
    """The distance (m,) and the w (m, …) of the nearest class."""
    far, w = boundaries(logits, slopes, labels, threat)
    distance, classes = far.min(1)
    return distance, pick(w, classes)


def move(scene: Scene, x: Tensor, d: Tensor, ruined: float | None = None) -> Tensor:
    """x + d in the box; a NaN in d leaves the entry as it is, or makes it `ruined`."""
    moved = scene.clamp(x + d)
    return torch.where(moved.isnan(), x if ruined is None else torch.full_like(x, ruined), moved)


def pick(values: Tensor, classes: Tensor) -> Tensor:
    """The entry of each example's class: (n, k, …) to (n, …)."""
    return values[torch.arange(len(values), device=values.device), classes]


def as_index(classes: Tensor, slopes: Tensor) -> Tensor:
    """`classes` (n,) shaped to scatter into `slopes` (n, k, …)."""
    return each(classes, slopes).expand(-1, 1, *slopes.shape[2:])


def _column(k: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[:, k]
