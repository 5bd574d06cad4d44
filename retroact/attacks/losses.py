"""What an attack climbs: `loss(logits, aim) -> (n,)`, larger is nearer to the attacker's goal.

The sign lives in the aim: an untargeted loss raises the true class's error, a targeted one the
target's score. To add a loss, add a function here and its name to `Loss`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

from retroact.attacks.goals import Aim

Loss = Literal["cross_entropy", "log_odds", "margin", "dlr"]


class LossFunction(Protocol):
    """`loss(logits (n, k), aim) -> (n,)`."""

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor: ...


def loss_of(name: Loss) -> LossFunction:
    """The loss function of that name."""
    function: LossFunction = globals()[name]
    return function


def cross_entropy(logits: Tensor, aim: Aim) -> Tensor:
    """−log softmax(z)_y untargeted, +log softmax(z)_t targeted.

    Its gradient is exactly zero where float softmax reaches 1: see `margin` for networks with large logits.
    """
    if aim.targets is None:
        return F.cross_entropy(logits, aim.labels, reduction="none")
    return -F.cross_entropy(logits, aim.targets, reduction="none")


def log_odds(logits: Tensor, aim: Aim) -> Tensor:
    """−log(p_y / (1 − p_y)) untargeted, log(p_t / (1 − p_t)) targeted, p = softmax(z): log Σ_{j≠y} e^{z_j} − z_y.

    Its gradient is the cross-entropy's over 1 − p_y: the same direction, but it does not vanish as p_y reaches 1.
    """
    if aim.targets is None:
        return _all_others(logits, aim.labels) - _at(logits, aim.labels)
    return _at(logits, aim.targets) - _all_others(logits, aim.targets)


def margin(logits: Tensor, aim: Aim) -> Tensor:
    """max_{j≠y} z_j − z_y untargeted, z_t − max_{j≠t} z_j targeted; positive where the goal is reached.

    Carlini & Wagner 2017, f_6 without its floor. Its gradient does not vanish as logits grow.
    """
    if aim.targets is None:
        return _best_other(logits, aim.labels) - _at(logits, aim.labels)
    return _at(logits, aim.targets) - _best_other(logits, aim.targets)


def dlr(logits: Tensor, aim: Aim) -> Tensor:
    """Difference of logits ratio, which does not change when logits are scaled or shifted.

    Untargeted −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3); targeted −(z_y − z_t) / (z_π1 − (z_π3 + z_π4)/2),
    π the descending order of the logits (Croce & Hein 2020, eq. 6 and 7). Needs 3 classes, targeted 4.
    """
    needs = 3 if aim.targets is None else 4
    if logits.shape[1] < needs:
        raise ValueError(f'dlr needs at least {needs} classes, got {logits.shape[1]}; use loss="margin"')
    top = logits.topk(needs, dim=1).values
    if aim.targets is None:
        return margin(logits, aim) / (top[:, 0] - top[:, 2] + 1e-12)
    gap = _at(logits, aim.targets) - _at(logits, aim.labels)
    return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _best_other(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes[:, None], -float("inf")).amax(1)


def _all_others(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes[:, None], -float("inf")).logsumexp(1)
