"""torchattacks 1.3 as the Sloped ReLU paper ran it (arXiv:2004.13013, Figs. 2 and 3), in pixels.

It is here so that tables can be reproduced, and for nothing else: judge a network with the attacks
that have no such quirk. What they share:

* They leave the ball, or know none, so they are filed as minimum-norm attacks: what lies outside
  the threat's radius does not count. Give `Linf(1.0)`, or an `L2` as large, to reproduce a
  paper's number.
* Untargeted only. Examples that are misclassified clean are never touched.
* A gradient that is zero or not finite never puts a NaN into an image.

Nothing freezes: all steps are taken and the last image is judged. `sloped_relu_accuracy` is that
paper's score.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.boundaries import all_slopes, as_index, move, nearest, pick
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each
from retroact.crafting.goals import Aim, check_untargeted
from retroact.crafting.losses import cross_entropy
from retroact.crafting.noise import normal
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Access
from retroact.spec import AtLeast0, Count, Positive, spec

SLOPED_RELU = "Borji 2020, arXiv:2004.13013, with torchattacks 1.3"


@spec
class Torchattacks13BIM(Attack):
    """torchattacks 1.3's BIM, whose box of half width eps moves along with the image.

    x ← min(1, clip(x + alpha · sign(∇CE), max(0, x − eps), x + eps)) around the *current* x, so the
    box binds only where eps < alpha; int(min(255 eps + 4, 1.25 · 255 eps)) steps, which reach
    further than eps as a rule (0.3137 for 0.3) and are none at all below eps = 0.0032.
    """

    eps: AtLeast0 = 0.3
    alpha: Positive = 1 / 255
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return _iterations(self.eps)

    def __call__(self, scene: Scene) -> Tensor:
        check_untargeted(self, scene.aim)
        return _move_box(scene, scene.aim, self.eps, self.alpha)


@spec
class Torchattacks13StepLL(Attack):
    """torchattacks 1.3's StepLL: the moving box and the steps of `Torchattacks13BIM`, down the
    cross-entropy of the class that the clean logits rank last."""

    eps: AtLeast0 = 0.3
    alpha: Positive = 1 / 255
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return _iterations(self.eps)

    def __call__(self, scene: Scene) -> Tensor:
        check_untargeted(self, scene.aim)
        logits = scene.oracle.logits(scene.x, scene.rows)
        least = Aim(scene.aim.labels, logits.argmin(1))
        return _move_box(scene, least, self.eps, self.alpha)


@spec
class Torchattacks13RFGSM(Attack):
    """torchattacks 1.3's R+FGSM: x + alpha · sign(N(0, 1)), not clipped, then `steps` times
    x ← clip(x + (eps − alpha) · sign(∇CE)).

    No projection: it may move by alpha + steps · (eps − alpha), 1.37 at eps = 0.3. Below eps =
    alpha = 8/255 the step is negative and helps the classifier: four of the Sloped ReLU paper's six
    points on CIFAR-10.
    """

    eps: AtLeast0 = 0.3
    alpha: AtLeast0 = 8 / 255
    steps: Count = 5
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(self, scene: Scene) -> Tensor:
        check_untargeted(self, scene.aim)
        noise = normal(scene.domain.shape, scene.index, scene.seed).sign()
        x, climbed = scene.x + self.alpha * noise, partial(cross_entropy, aim=scene.aim)
        for _ in range(self.steps):
            _, gradient = scene.oracle.gradient(x, scene.rows, climbed)
            x = scene.clamp(x + (self.eps - self.alpha) * gradient.sign())
        return x


@spec
class Torchattacks13DeepFool(Attack):
    """torchattacks 1.3's DeepFool: the true class keeps the logit and the gradient of the clean
    image in all `steps`.

    x ← clip(x + |f_i − f_y⁰|/‖w‖² · w), w = ∇f_i − ∇f_y⁰, for the class i with the smallest |f_i −
    f_y⁰|/‖w‖₂, until the decision changes; no overshoot. One step only just arrives: 97 % survive
    it on MNIST. The Sloped ReLU paper draws steps = 1, 2, … over its eps axis.
    """

    steps: Count = 3
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return 10 * self.steps  # one for each of ten classes

    def __call__(self, scene: Scene) -> Tensor:
        check_untargeted(self, scene.aim)
        x, aim, unbroken, stale = scene.x, scene.aim, Unbroken(scene), None
        for _ in range(self.steps):
            logits, slopes = all_slopes(scene.oracle, x, unbroken.rows)
            value, slope = stale or (pick(logits, aim.labels), pick(slopes, aim.labels))
            x, logits, slopes, value, slope = unbroken.drop(x, logits, logits, slopes, value, slope)
            if not len(unbroken):
                break
            stale = value, slope
            labels = unbroken.aim.labels
            # In the place of the true class stand the stale numbers that all others are compared
            # with.
            logits = logits.scatter(1, labels[:, None], value[:, None])
            slopes = slopes.scatter(1, as_index(labels, slopes), slope[:, None])
            distance, w = nearest(logits, slopes, labels, L2)
            x = move(scene, x, each(distance / L2.dual_norm(w), x) * w)
        return unbroken.finish(x)


def sloped_relu_accuracy(labels: Tensor, clean: Tensor, adversarial: Tensor) -> float:
    """The Sloped ReLU paper's score: the share of *all* images whose decision is right clean and
    attacked.

    Only images that are right clean are attacked, and the others stay in the denominator, so a
    curve never starts above the clean accuracy. `labels`, `clean` and `adversarial` decisions are
    (n,). It is `robust_accuracy` of a record of an untargeted attack. Raises ValueError where there
    is no image.
    """
    if not len(labels):
        raise ValueError(
            "expected at least one image, got none; give the decisions of the whole slice"
        )
    return float(((clean == labels) & (adversarial == labels)).double().mean())


def _iterations(eps: float) -> int:
    return int(min(255 * eps + 4, 1.25 * 255 * eps))


def _move_box(scene: Scene, aim: Aim, eps: float, alpha: float) -> Tensor:
    x, (low, high) = scene.x, (scene.domain.low, scene.domain.high)
    for _ in range(_iterations(eps)):
        _, gradient = scene.oracle.gradient(x, scene.rows, partial(cross_entropy, aim=aim))
        moved = x + alpha * gradient.sign()
        x = torch.clamp(moved, (x - eps).clamp_min(low), x + eps).clamp_max(high)
    return x
