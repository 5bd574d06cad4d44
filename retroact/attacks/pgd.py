"""PGD, projected gradient descent: many small steps, each pulled back into the ball.

x ← Π(x + step · s(∇_x L(f(x), y))), from a random point of the ball, with restarts (Madry et al.
2017). Examples whose goal is reached leave the loop at once: since they stay broken, this is never
weaker than the fixed budget, and it is where most of the time is saved.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.spec import Count, Positive, spec


@spec
class PGD(Attack):
    """`steps` steps of `relative_step` · eps each (None: 2.5/steps, Madry et al.'s rule),
    `restarts` times.

    The first start is random too unless `random_start` is False; further restarts always are.
    """

    steps: Count = 40
    relative_step: Positive | None = None
    restarts: Count = 1
    random_start: bool = True
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    streams: ClassVar[bool] = True
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Madry et al. 2017, arXiv:1706.06083"

    @property
    def passes(self) -> int:
        return self.steps * self.restarts

    def __call__(self, scene: Scene) -> Tensor:
        unbroken, last = Unbroken(scene), scene.x
        for restart in range(self.restarts):
            rows = unbroken.rows
            start = scene.x[rows]
            if self.random_start or restart:
                start = scene.start(rows, stream=restart)
            last = self._climb(scene, unbroken, start)
            if restart + 1 < self.restarts and len(unbroken):
                (last,) = unbroken.drop(last, scene.oracle.logits(last, unbroken.rows))
            if not len(unbroken):
                break
        return unbroken.finish(last)

    def _climb(self, scene: Scene, unbroken: Unbroken, x: Tensor) -> Tensor:
        loss, centre = loss_of(self.loss), scene.x[unbroken.rows]
        step = scene.threat.eps * (self.relative_step or scene.threat.travel / self.steps)
        for _ in range(self.steps):
            if not len(unbroken):
                break
            climbed = partial(loss, aim=unbroken.aim)
            logits, gradient = scene.oracle.gradient(x, unbroken.rows, climbed)
            x, centre, gradient = unbroken.drop(x, logits, centre, gradient)
            x = scene.step(x, gradient, step, centre)
        return x


CLAIMED = PGD(steps=40, relative_step=1 / 30)
"""The protocol that both papers share: cross-entropy, 40 steps of eps/30 from a random start."""
