"""StepLL: steps towards the class that the clean image looks least like.

x ← Π(x − step · sign(∇_x CE(f(x), y_LL))), y_LL = argmin of the clean logits (Kurakin et al. 2016,
section 2.3; one step: Kurakin, Goodfellow & Bengio 2016, "step l.l."). It is scored as any attack
with its goal: for an untargeted one it has won when the decision is any wrong class.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.goals import Aim, LeastLikely
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.spec import Count, Positive, spec


@spec
class StepLL(Attack):
    """`steps` steps of `relative_step` · eps each (None: eps/steps, and so one step of eps by
    default).

    A targeted goal keeps its own target; with `LeastLikely()` that is the same class.
    """

    steps: Count = 1
    relative_step: Positive | None = None
    loss: Loss = "cross_entropy"
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Kurakin et al. 2016, arXiv:1611.01236"

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(self, scene: Scene) -> Tensor:
        loss, unbroken, x, centre = loss_of(self.loss), Unbroken(scene), scene.x, scene.x
        towards = self._choose(scene)
        step = scene.threat.eps * (self.relative_step or 1 / self.steps)
        for _ in range(self.steps):
            climbed = partial(loss, aim=towards[unbroken.rows])
            logits, gradient = scene.oracle.gradient(x, unbroken.rows, climbed)
            x, centre, gradient = unbroken.drop(x, logits, centre, gradient)
            if not len(unbroken):
                break
            x = scene.project(x + scene.push(x, gradient, step, centre), centre)
        return unbroken.finish(x)

    def _choose(self, scene: Scene) -> Aim:
        if scene.aim.targets is not None:
            return scene.aim
        logits = scene.oracle.logits(scene.x, scene.rows)
        return LeastLikely()(scene.aim.labels, logits, scene.index)
