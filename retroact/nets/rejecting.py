"""Networks that may reject an example instead of deciding its class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from retroact.nets.classifier import Classifier

_BEYOND = 1.0  # of the largest logit, or of the smallest: any number will do


class FlaggedRejection(nn.Module):
    """A network that gives logits (n, k) and a flag "rejected" (n,), bool, as one of k + 1 classes,
    the last of which is decided where the flag is set.

    The flag has no gradient: where it is set, the logits of the k classes alone say where to go.
    """

    def __init__(self, net: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return join_flags(self.net(x))


def with_flags(net: Callable[[Tensor], Tensor]) -> nn.Module:
    """`FlaggedRejection`; of a classifier one that shares all with it and looks at the flag, too,
    where it was not told where its logits are. It fails where no flag is given."""
    if not isinstance(net, Classifier) or net.output is not None:
        return FlaggedRejection(net)
    copied = copy.copy(net)
    copied.output = join_flags
    return copied


class NeverRejecting(nn.Module):
    """A network of k classes beside one of k + 1, whose last is "rejected": this one decides it
    never."""

    def __init__(self, net: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return _widen(logits, torch.zeros(len(x), dtype=torch.bool, device=logits.device))


def _widen(logits: Tensor, rejected: Tensor) -> Tensor:
    """The logits with one more, above all of them where `rejected`, else below."""
    still = logits.detach()
    last = torch.where(rejected, still.amax(1) + _BEYOND, still.amin(1) - _BEYOND)
    return torch.cat([logits, last[:, None]], 1)


def join_flags(answer: object) -> Tensor:
    """Logits (n, k) and flags (n,), a pair or a mapping of two, as logits (n, k + 1); ValueError
    for another answer."""
    parts = list(answer.values()) if isinstance(answer, Mapping) else answer
    tensors = [t for t in parts if isinstance(t, Tensor)] if isinstance(parts, Sequence) else []
    if isinstance(parts, Sequence) and len(parts) == len(tensors) == 2:
        logits, flags = sorted(tensors, key=lambda t: t.dtype == torch.bool)
        n, scores = len(logits), logits.is_floating_point() and logits.dim() == 2
        if scores and flags.dtype == torch.bool and tuple(flags.shape) in ((n,), (n, 1)):
            return _widen(logits, flags.flatten())
    raise ValueError('expected logits (n, k) and a flag "rejected" of bool (n,), got neither')
