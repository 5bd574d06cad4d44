"""What crafting leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Outcome:
    """What crafting left behind, per example: the images and the oracle's counters. All on the CPU.

    `last` is where the attack ended: `x_adv`, but for a minimum-norm attack what it found beyond
    eps, too.
    """

    x_adv: Tensor
    last: Tensor
    targets: Tensor  # −1 where the goal has none
    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    nonfinite: Tensor


def join(parts: Sequence[Outcome]) -> Outcome:
    """The outcome of several parts, one after the other."""
    columns = {
        f.name: torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(Outcome)
        if f.name != "last"
    }
    one = all(p.last is p.x_adv for p in parts)
    return Outcome(**columns, last=columns["x_adv"] if one else torch.cat([p.last for p in parts]))
