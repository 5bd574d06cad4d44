"""The JumpReLU paper's attacks as they were run, each with the quirk that its numbers depend on.

It is here so that tables can be reproduced, and for nothing else: judge a network with the attacks
that have no such quirk. What they share:

* They leave the ball, or know none, so they are filed as minimum-norm attacks: what lies outside
  the threat's radius does not count. Give `Linf(1.0)`, or an `L2` as large, to reproduce a
  paper's number.
* Untargeted only. Examples that are misclassified clean are never touched.
* A gradient that is zero or not finite never puts a NaN into an image.

The JumpReLU paper is arXiv:1904.03750; facts beyond it are from its authors' code. Steps and radii
are lengths in normalised space, pixels over `std` (one number, or one per channel), and an image
freezes for good as soon as it is fooled. Their clip to the smallest and largest entry of the batch
is here the box [0, 1] of each channel, which is the same for MNIST and differs by up to 0.05 in R
and G for CIFAR-10.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.boundaries import all_slopes, boundaries, move, nearest, pick
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each
from retroact.crafting.goals import Aim, check_untargeted
from retroact.crafting.losses import cross_entropy
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Access
from retroact.spec import Count, Positive, spec

MNIST_STD = (0.3081,)
NUDGE, OVERSHOOT, GUARD = 1e-4, 1.02, 1e-6  # the constants of the authors' steps

JUMPRELU = "Erichson, Yao & Mahoney 2019, arXiv:1904.03750"


@spec
class ErichsonPGD(Attack):
    """The JumpReLU paper's PGD: FGSM steps of `step` each, up to `steps` of them, and no ball.

    x ← clip(x + step · std · sign(∇CE)). No random start and no projection: the paper's "eps =
    0.01" is the step, so 40 of them move a pixel by up to 0.4 normalised, 0.123 in pixels on MNIST
    (Tables 1 and 2).
    """

    step: Positive = 0.01
    steps: Count = 40
    std: tuple[float, ...] = MNIST_STD
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = JUMPRELU

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(self, scene: Scene) -> Tensor:
        check_untargeted(self, scene.aim)
        x, unbroken = scene.x, Unbroken(scene)
        stride = self.step * _channels(self.std, x)
        for _ in range(self.steps):
            climbed = partial(cross_entropy, aim=unbroken.aim)
            logits, gradient = scene.oracle.gradient(x, unbroken.rows, climbed)
            x, gradient = unbroken.drop(x, logits, gradient)
            if not len(unbroken):
                break
            x = scene.clamp(x + stride * gradient.sign())
        return unbroken.finish(x)


@spec
class ErichsonDeepFool(Attack):
    """The JumpReLU paper's DeepFool, DF_2 under L2 and DF_inf under L_inf.

    To the nearest of the linearised boundaries, (|f_y − f_i|/‖∇f_i − ∇f_y‖_q + 1e-4) · 1.02 far: 2
    % too far in each step and on the image itself, where Moosavi-Dezfooli et al. stretch the whole
    perturbation once, at the end.

    `dead` says what becomes of an image whose gradient has died (a step of infinite length in no
    direction): "leave" lets it be, "white" paints it white, as the NaN of the authors' code did on
    the GPUs of 2019. The noise that Table 2 prints contains those white images (MNIST, kappa 1:
    34.1 and 44.9; left alone 32.1 and 39.7).
    """

    steps: Count = 40
    dead: Literal["leave", "white"] = "leave"
    std: tuple[float, ...] = MNIST_STD
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = JUMPRELU

    @property
    def passes(self) -> int:
        return 10 * self.steps  # one for each of ten classes

    def __call__(self, scene: Scene) -> Tensor:
        check_untargeted(self, scene.aim)
        x, unbroken = scene.x, Unbroken(scene)
        std = _channels(self.std, x)
        ruined = scene.domain.high if self.dead == "white" else None
        for _ in range(self.steps):
            logits, slopes = all_slopes(scene.oracle, x, unbroken.rows)
            x, logits, slopes = unbroken.drop(x, logits, logits, slopes)
            if not len(unbroken):
                break
            labels = unbroken.aim.labels
            distance, w = nearest(logits, slopes * std, labels, scene.threat)
            # sign(w), or w/(‖w‖₂ + 1e-6), which is zero for a dead gradient
            way = scene.threat.along(w, GUARD)
            x = move(scene, x, each((distance + NUDGE) * OVERSHOOT, x) * way * std, ruined)
        return unbroken.finish(x)


@spec
class ErichsonTrustRegion(Attack):
    """The JumpReLU paper's first-order TR with a fixed `radius` (L2, normalised).

    The target is chosen once, on the clean image: the nearest linearised boundary. Then steps of
    (min(f_y − f_t over ‖g‖₂, radius) + 1e-4) · 1.02 along g = ∇(f_t − f_y), until any wrong class
    is reached. The code's own radius, 0.01, leaves 5 % of MNIST unbroken after 1000 steps; 0.5
    gives the paper's numbers.
    """

    radius: Positive = 0.5
    steps: Count = 1000
    std: tuple[float, ...] = MNIST_STD
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = JUMPRELU

    @property
    def passes(self) -> int:
        return self.steps + 10

    def __call__(self, scene: Scene) -> Tensor:
        check_untargeted(self, scene.aim)
        x, unbroken = scene.x, Unbroken(scene)
        std = _channels(self.std, x)
        targets = self._choose(scene, std)
        for _ in range(self.steps):
            gap = partial(_gap, aim=Aim(unbroken.aim.labels, targets))
            logits, gradient = scene.oracle.gradient(x, unbroken.rows, gap)
            x, logits, gradient, targets = unbroken.drop(x, logits, logits, gradient, targets)
            if not len(unbroken):
                break
            g = gradient * std
            lacking = -_gap(logits, Aim(unbroken.aim.labels, targets))
            step = (lacking / (L2.dual_norm(g) + GUARD)).clamp_max(self.radius)
            way = scene.threat.along(g, GUARD)
            x = move(scene, x, each((step + NUDGE) * OVERSHOOT, x) * way * std)
        return unbroken.finish(x)

    def _choose(self, scene: Scene, std: Tensor) -> Tensor:
        logits, slopes = all_slopes(scene.oracle, scene.x, scene.rows)
        return boundaries(logits, slopes * std, scene.aim.labels, scene.threat)[0].argmin(1)


def _gap(logits: Tensor, aim: Aim) -> Tensor:
    """f_t − f_y, (n,)."""
    assert aim.targets is not None
    return pick(logits, aim.targets) - pick(logits, aim.labels)


def _channels(values: tuple[float, ...], x: Tensor) -> Tensor:
    """One number per channel, shaped to images (n, c, …)."""
    if len(values) not in (1, x.shape[1]) or min(values) <= 0:
        raise ValueError(
            f"std: expected 1 or {x.shape[1]} numbers above 0, got {values}; they are the net's own"
        )
    return x.new_tensor(values).view(1, -1, *[1] * (x.dim() - 2))
