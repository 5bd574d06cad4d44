"""Networks that answer with a class and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class HardLabels(nn.Module):
    """A network that gives the number of a class, (n,) or (n, 1) integers, as logits: 1 for that
    class, 0 for the other of so many `classes` (a number beyond them counts as the last)."""

    def __init__(self, net: Callable[[Tensor], Tensor], classes: int) -> None:
        super().__init__()
        self.net, self.classes = net, classes

    def forward(self, x: Tensor) -> Tensor:
        decided = self.net(x).flatten().long().clamp(0, self.classes - 1)
        return nn.functional.one_hot(decided, self.classes).float()


def gives_labels(answer: object, n: int) -> bool:
    """Whether what a network answered for `n` examples is a class for each."""
    if not isinstance(answer, Tensor) or answer.is_floating_point() or answer.is_complex():
        return False
    return answer.dtype != torch.bool and tuple(answer.shape) in ((n,), (n, 1))
