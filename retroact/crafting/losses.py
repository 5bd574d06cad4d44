"""What an attack climbs: `loss(logits, aim) -> (n,)`, larger is nearer to the attacker's goal.

The sign lives in the aim: an untargeted loss raises the true class's error, a targeted one the
target's score, the true class's error (`away_from_true`), or both (`towards_and_away`, `dlr`).
Whatever is climbed, a targeted attack has won only where the target is decided. To add a loss, add
a function here and its name to `Loss`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor

from retroact.crafting.geometry import nonzero
from retroact.crafting.goals import Aim

Loss = Literal[
    "cross_entropy",
    "away_from_true",
    "towards_and_away",
    "logit",
    "log_odds",
    "scaled_log_odds",
    "margin",
    "dlr",
]

_SPREAD = 8.0  # softer, and all classes pull alike; harder, and it is the margin


class LossFunction(Protocol):
    """`loss(logits (n, k), aim) -> (n,)`."""

    def __call__(self, logits: Tensor, aim: Aim) -> Tensor: ...


def loss_of(name: Loss) -> LossFunction:
    """The loss function of that name."""
    function: LossFunction = globals()[name]
    return function


def cross_entropy(logits: Tensor, aim: Aim) -> Tensor:
    """−log softmax(z)_y untargeted, +log softmax(z)_t targeted.

    Its gradient is exactly zero where float softmax reaches 1: see `margin` for networks with large
    logits.
    """
    if aim.targets is None:
        return F.cross_entropy(logits, aim.labels, reduction="none")
    return -F.cross_entropy(logits, aim.targets, reduction="none")


def away_from_true(logits: Tensor, aim: Aim) -> Tensor:
    """CE(z, y) = −log softmax(z)_y, targeted too; untargeted it is `cross_entropy`.

    A targeted attack that raises the true class's loss and leaves it to chance where that leads
    (Borji 2020, arXiv:2004.13013, section on targeted FGSM: the other of its two choices).
    """
    return F.cross_entropy(logits, aim.labels, reduction="none")


def towards_and_away(logits: Tensor, aim: Aim) -> Tensor:
    """CE(z, y) − CE(z, t) = z_t − z_y targeted, and so without a softmax to vanish in; untargeted
    `cross_entropy`.

    Lowers the target's loss and raises the true class's at once (Borji 2020, arXiv:2004.13013,
    section on targeted FGSM: "both"). Exactly zero, with a zero gradient, where the target is the
    true class.
    """
    if aim.targets is None:
        return cross_entropy(logits, aim)
    return _at(logits, aim.targets) - _at(logits, aim.labels)


def logit(logits: Tensor, aim: Aim) -> Tensor:
    """−z_y untargeted, z_t targeted: the score of one class alone, whatever the others do.

    What becomes of the cross-entropy where a negative log-likelihood is taken of raw logits,
    without the log-softmax: so the stored targeted results of Borji 2020 (arXiv:2004.13013, Figs. 5
    and 6) were made.
    """
    return -_at(logits, aim.labels) if aim.targets is None else _at(logits, aim.targets)


def log_odds(logits: Tensor, aim: Aim) -> Tensor:
    """−log(p_y / (1 − p_y)) untargeted, log(p_t / (1 − p_t)) targeted, p = softmax(z): log Σ_{j≠y}
    e^{z_j} − z_y.

    Its gradient is the cross-entropy's over 1 − p_y: the same direction, but it does not vanish as
    p_y reaches 1.
    """
    if aim.targets is None:
        return _all_others(logits, aim.labels) - _at(logits, aim.labels)
    return _at(logits, aim.targets) - _all_others(logits, aim.targets)


def scaled_log_odds(logits: Tensor, aim: Aim) -> Tensor:
    """`log_odds` of 8 z / (max z − min z), the divisor held constant: its gradient's direction does
    not change when logits are scaled or shifted, and the classes that are nearly as likely as the
    nearest pull as well.
    """
    unit = nonzero(spread(logits.detach())) / _SPREAD
    value = log_odds(logits / unit[:, None], aim)
    # of its slope only the direction counts: in the logits' own size, so that half floats carry it
    # on backwards
    return value.detach() + unit * (value - value.detach())


def margin(logits: Tensor, aim: Aim) -> Tensor:
    """max_{j≠y} z_j − z_y untargeted, z_t − max_{j≠t} z_j targeted; positive where the goal is
    reached.

    Carlini & Wagner 2017, f_6 without its floor. Its gradient does not vanish as logits grow.
    """
    if aim.targets is None:
        return _best_other(logits, aim.labels) - _at(logits, aim.labels)
    return _at(logits, aim.targets) - _best_other(logits, aim.targets)


def dlr(logits: Tensor, aim: Aim) -> Tensor:
    """Difference of logits ratio, which does not change when logits are scaled or shifted.

    Untargeted −(z_y − max_{j≠y} z_j) / (z_π1 − z_π3); targeted −(z_y − z_t) / (z_π1 − (z_π3 +
    z_π4)/2), π the descending order of the logits (Croce & Hein 2020, eq. 6 and 7). Needs 3
    classes, targeted 4.
    """
    needs = 3 if aim.targets is None else 4
    if logits.shape[1] < needs:
        raise ValueError(
            f'dlr needs at least {needs} classes, got {logits.shape[1]}; use loss="margin"'
        )
    top = logits.topk(needs, dim=1).values
    if aim.targets is None:
        return margin(logits, aim) / nonzero(top[:, 0] - top[:, 2])
    gap = _at(logits, aim.targets) - _at(logits, aim.labels)
    return gap / nonzero(top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def spread(logits: Tensor) -> Tensor:
    """The largest logit minus the smallest, (n,): how large logits are, whatever is added to them
    all."""
    return logits.amax(1) - logits.amin(1)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _best_other(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes[:, None], -float("inf")).amax(1)


def _all_others(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes[:, None], -float("inf")).logsumexp(1)
