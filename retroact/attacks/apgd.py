"""APGD, projected gradient descent that sets its own step size.

z = Π(x_k + η s(∇L(x_k))), x_{k+1} = Π(x_k + 0.75 (z − x_k) + 0.25 (x_k − x_{k−1})), η = 2 eps at
first (Croce & Hein 2020, algorithm 1). At checkpoints, ever closer to each other, η is halved and
the climb goes back to its best point, where too few of the last steps went up or where neither η
nor the best has moved.

Progress is judged on the network under attack, wherever the gradients come from. Examples whose
goal is reached leave the climb at once; those robust to the end return their best point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, ClassVar

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each, put
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of, margin
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.pacing import Climb, outset
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.spec import Count, Within, spec


@spec
class APGD(Attack):
    """`steps` gradients, `restarts` times from random points of the ball (L_inf and L2).

    `targets=k` climbs towards each of the k classes that the clean logits rank next after the true
    one, one run each, for an untargeted goal (APGD-T: loss="dlr", targets=9); 0 climbs away from
    the true class.
    """

    steps: Count = 50
    restarts: Count = 1
    loss: Loss = "cross_entropy"
    targets: Annotated[int, Within(0)] = 0
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    streams: ClassVar[bool] = True
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Croce & Hein 2020, arXiv:2003.01690"

    @property
    def passes(self) -> int:
        return self.steps * self.restarts * max(1, self.targets)

    def __call__(self, scene: Scene) -> Tensor:
        unbroken, best = Unbroken(scene), scene.x.clone()
        record = best.new_full((len(scene),), -math.inf)
        for run, towards in enumerate(choose(scene, self.targets, self.restarts)):
            rows = unbroken.rows
            if not len(rows):
                break
            end = self._climb(scene, unbroken, scene.start(rows, stream=run), towards)
            rows = unbroken.rows
            better = end.margin > record[rows]
            put(best, rows, end.best, better)
            put(record, rows, end.margin, better)
        return unbroken.finish(best[unbroken.rows])

    def _climb(self, scene: Scene, unbroken: Unbroken, start: Tensor, aim: Aim) -> Climb:
        """`steps` steps for the unbroken examples; where the rest of them is at the end."""
        loss, pace, centre = loss_of(self.loss), scene.threat.pace, scene.x[unbroken.rows]
        first, checkpoints = pace.first * scene.threat.eps, pace.checkpoints(self.steps)
        check, width = next(checkpoints)
        at = outset(start, centre, first, pace.share)
        for k in range(self.steps):
            climbed = partial(loss, aim=aim[unbroken.rows])
            logits, gradient = scene.oracle.gradient(at.x, unbroken.rows, climbed)
            at, logits, gradient = _drop(unbroken, at, logits, gradient)
            if not len(unbroken):
                return at
            at = _judge(
                at, loss(logits, aim[unbroken.rows]), margin(logits, unbroken.aim), gradient
            )
            if k == check:
                at, gradient = pace.check(at, gradient, width, first)
                check, width = next(checkpoints)
            d = scene.push(at.x, gradient, at.step, at.centre, at.entries)
            at = pace.move(at, d, k, partial(scene.project, centre=at.centre))
        logits = scene.oracle.logits(at.x, unbroken.rows)
        at, logits, _ = _drop(unbroken, at, logits, at.x)
        return _judge(at, loss(logits, aim[unbroken.rows]), margin(logits, unbroken.aim), at.uphill)


def choose(scene: Scene, targets: int, restarts: int) -> Iterator[Aim]:
    """What each run climbs towards, for the whole chunk: as the scene's aim says, or each of the
    `targets` classes that the clean logits rank next after the true one.

    Raises ValueError for a goal that has targets of its own, and for more targets than there are
    wrong classes.
    """
    aim = scene.aim
    if not targets:
        yield from [aim] * restarts
        return
    if aim.targets is not None:
        raise ValueError(
            f"targets={targets} chooses targets itself, so it serves Untargeted() only; set"
            " targets=0"
        )
    ranked = scene.wrong_classes(scene.x, scene.rows)
    if targets > ranked.shape[1]:
        raise ValueError(
            f"targets: expected at most {ranked.shape[1]} wrong classes, got {targets}"
        )
    for _ in range(restarts):
        yield from (Aim(aim.labels, towards) for towards in ranked[:, :targets].T)


def _drop(
    unbroken: Unbroken, at: Climb, logits: Tensor, gradient: Tensor
) -> tuple[Climb, Tensor, Tensor]:
    x, *rest, logits, gradient = unbroken.drop(at.x, logits, *at[1:], logits, gradient)
    return Climb(x, *rest), logits, gradient


def _judge(at: Climb, loss: Tensor, margins: Tensor, gradient: Tensor) -> Climb:
    """Notes whether the last step went up, and keeps the point where it is the best so far."""
    better = loss > at.score  # false for a NaN, so a broken point is never kept
    wide = each(better, at.x)
    return at._replace(
        best=at.x.where(wide, at.best),
        uphill=gradient.where(wide, at.uphill),
        score=loss.where(better, at.score),
        margin=margins.where(better, at.margin),
        last=loss,
        rises=at.rises + (loss > at.last),
    )
