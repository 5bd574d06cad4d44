"""What every norm needs: numbers of examples shaped to their tensors, and divisions that hold."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12


def each(values: Tensor, like: Tensor) -> Tensor:
    """`values` (n,) shaped to multiply `like` (n, …) example by example."""
    return values.view(-1, *[1] * (like.dim() - 1))


def put(into: Tensor, rows: Tensor, values: Tensor, where: Tensor) -> None:
    """`into[rows] = values` (m, …) for those `where` (m,) holds, in place and without a wait for
    the device; no row stands twice."""
    there = into[rows]
    into.index_copy_(0, rows, values.to(into.dtype).where(each(where, there), there))


def nonzero(values: Tensor) -> Tensor:
    """`values` to divide by: 1 where one is zero, so that zero over zero is zero, whatever the
    scale of the others."""
    return values.where(values > 0, torch.ones_like(values))
