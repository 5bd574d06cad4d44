"""The two papers' attacks as they were run, each with the quirk that its numbers depend on.

They are here so that tables can be reproduced, and for nothing else: judge a network with the
attacks that have no such quirk. What they share:

* They leave the ball, or know none, so they are filed as minimum-norm attacks: what lies outside
  the threat's radius does not count. Give `Linf(1.0)`, or an `L2` as large, to reproduce a
  paper's number.
* Untargeted only. Examples that are misclassified clean are never touched.
* A gradient that is zero or not finite never puts a NaN into an image.

`Erichson…`: the JumpReLU paper (arXiv:1904.03750) and its authors' code. Steps and radii are
lengths in normalised space, pixels over `std` (one number, or one per channel), and an image
freezes for good as soon as it is fooled. Their clip to the smallest and largest entry of the batch
is here the box [0, 1] of each channel, which is the same for MNIST and differs by up to 0.05 in R
and G for CIFAR-10.

`Torchattacks13…`: torchattacks 1.3 as the Sloped ReLU paper (arXiv:2004.13013, Figs. 2 and 3) ran
it, in pixels. Nothing freezes: all steps are taken and the last image is judged.
`sloped_relu_accuracy` is that paper's score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from retroact.crafting.driver import Standing
from retroact.crafting.geometry import dual_norm, each, steepest
from retroact.crafting.goals import Aim
from retroact.crafting.losses import cross_entropy
from retroact.crafting.noise import normal
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import AtLeast0, Count, Positive, spec

MNIST_STD = (0.3081,)
NUDGE, OVERSHOOT, GUARD = 1e-4, 1.02, 1e-6  # the constants of the JumpReLU authors' steps

JUMPRELU = "Erichson, Yao & Mahoney 2019, arXiv:1904.03750"
SLOPED_RELU = "Borji 2020, arXiv:2004.13013, with torchattacks 1.3"


@spec
class ErichsonPGD:
    """The JumpReLU paper's PGD: FGSM steps of `step` each, up to `steps` of them, and no ball.

    x ← clip(x + step · std · sign(∇CE)). No random start and no projection: the paper's "eps =
    0.01" is the step, so 40 of them move a pixel by up to 0.4 normalised, 0.123 in pixels on MNIST
    (Tables 1 and 2).
    """

    step: Positive = 0.01
    steps: Count = 40
    std: tuple[float, ...] = MNIST_STD
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = JUMPRELU

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        _untargeted(self, aim)
        standing, stride = Standing(x, aim), self.step * _channels(self.std, x)
        for _ in range(self.steps):
            logits, gradient = oracle.gradient(
                x, standing.rows, partial(cross_entropy, aim=standing.aim)
            )
            x, gradient = standing.drop(x, logits, gradient)
            if not len(standing):
                break
            x = (x + stride * gradient.sign()).clamp(0.0, 1.0)
        return standing.finish(x)


@spec
class ErichsonDeepFool:
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
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = JUMPRELU

    @property
    def passes(self) -> int:
        return 10 * self.steps  # one for each of ten classes

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        _untargeted(self, aim)
        standing, std = Standing(x, aim), _channels(self.std, x)
        ruined = 1.0 if self.dead == "white" else None
        for _ in range(self.steps):
            logits, slopes = _all_slopes(oracle, x, standing.rows)
            x, logits, slopes = standing.drop(x, logits, logits, slopes)
            if not len(standing):
                break
            distance, w = _nearest(logits, slopes * std, standing.aim.labels, threat.norm)
            x = _moved(
                x, each((distance + NUDGE) * OVERSHOOT, x) * _unit(w, threat.norm) * std, ruined
            )
        return standing.finish(x)


@spec
class ErichsonTrustRegion:
    """The JumpReLU paper's first-order TR with a fixed `radius` (L2, normalised).

    The target is chosen once, on the clean image: the nearest linearised boundary. Then steps of
    (min(f_y − f_t over ‖g‖₂, radius) + 1e-4) · 1.02 along g = ∇(f_t − f_y), until any wrong class
    is reached. The code's own radius, 0.01, leaves 5 % of MNIST standing after 1000 steps; 0.5
    gives the paper's numbers.
    """

    radius: Positive = 0.5
    steps: Count = 1000
    std: tuple[float, ...] = MNIST_STD
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = JUMPRELU

    @property
    def passes(self) -> int:
        return self.steps + 10

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        _untargeted(self, aim)
        standing, std = Standing(x, aim), _channels(self.std, x)
        targets = self._targets(oracle, x, aim, std)
        for _ in range(self.steps):
            gap = partial(_gap, aim=Aim(standing.aim.labels, targets))
            logits, gradient = oracle.gradient(x, standing.rows, gap)
            x, logits, gradient, targets = standing.drop(x, logits, logits, gradient, targets)
            if not len(standing):
                break
            g = gradient * std
            lacking = -_gap(logits, Aim(standing.aim.labels, targets))
            step = (lacking / (dual_norm(g, "l2") + GUARD)).clamp_max(self.radius)
            x = _moved(x, each((step + NUDGE) * OVERSHOOT, x) * _unit(g, "l2") * std)
        return standing.finish(x)

    def _targets(self, oracle: Oracle, x: Tensor, aim: Aim, std: Tensor) -> Tensor:
        logits, slopes = _all_slopes(oracle, x, torch.arange(len(x), device=x.device))
        return _boundaries(logits, slopes * std, aim.labels, "l2")[0].argmin(1)


@spec
class Torchattacks13BIM:
    """torchattacks 1.3's BIM, whose box of half width eps moves along with the image.

    x ← min(1, clip(x + alpha · sign(∇CE), max(0, x − eps), x + eps)) around the *current* x, so the
    box binds only where eps < alpha; int(min(255 eps + 4, 1.25 · 255 eps)) steps, which reach
    further than eps as a rule (0.3137 for 0.3) and are none at all below eps = 0.0032.
    """

    eps: AtLeast0 = 0.3
    alpha: Positive = 1 / 255
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return _iterations(self.eps)

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        _untargeted(self, aim)
        return _moving_box(oracle, x, aim, self.eps, self.alpha)


@spec
class Torchattacks13StepLL:
    """torchattacks 1.3's StepLL: the moving box and the steps of `Torchattacks13BIM`, down the
    cross-entropy of the class that the clean logits rank last."""

    eps: AtLeast0 = 0.3
    alpha: Positive = 1 / 255
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return _iterations(self.eps)

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        _untargeted(self, aim)
        logits = oracle.logits(x, torch.arange(len(x), device=x.device))
        return _moving_box(oracle, x, Aim(aim.labels, logits.argmin(1)), self.eps, self.alpha)


@spec
class Torchattacks13RFGSM:
    """torchattacks 1.3's R+FGSM: x + alpha · sign(N(0, 1)), not clipped, then `steps` times
    x ← clip(x + (eps − alpha) · sign(∇CE)).

    No projection: it may move by alpha + steps · (eps − alpha), 1.37 at eps = 0.3. Below eps =
    alpha = 8/255 the step is negative and helps the classifier: four of the Sloped ReLU paper's six
    points on CIFAR-10.
    """

    eps: AtLeast0 = 0.3
    alpha: AtLeast0 = 8 / 255
    steps: Count = 5
    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        _untargeted(self, aim)
        rows = torch.arange(len(x), device=x.device)
        x = x + self.alpha * normal(tuple(x.shape[1:]), index, seed).sign()
        for _ in range(self.steps):
            _, gradient = oracle.gradient(x, rows, partial(cross_entropy, aim=aim))
            x = (x + (self.eps - self.alpha) * gradient.sign()).clamp(0.0, 1.0)
        return x


@spec
class Torchattacks13DeepFool:
    """torchattacks 1.3's DeepFool: the true class keeps the logit and the gradient of the clean
    image in all `steps`.

    x ← clip(x + |f_i − f_y⁰|/‖w‖² · w), w = ∇f_i − ∇f_y⁰, for the class i with the smallest |f_i −
    f_y⁰|/‖w‖₂, until the decision changes; no overshoot. One step only just arrives: 97 % survive
    it on MNIST. The Sloped ReLU paper draws steps = 1, 2, … over its eps axis.
    """

    steps: Count = 3
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = SLOPED_RELU

    @property
    def passes(self) -> int:
        return 10 * self.steps  # one for each of ten classes

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        _untargeted(self, aim)
        standing, stale = Standing(x, aim), None
        for _ in range(self.steps):
            logits, slopes = _all_slopes(oracle, x, standing.rows)
            value, slope = stale or (_of(logits, aim.labels), _of(slopes, aim.labels))
            x, logits, slopes, value, slope = standing.drop(x, logits, logits, slopes, value, slope)
            if not len(standing):
                break
            stale = value, slope
            labels = standing.aim.labels
            # In the place of the true class stand the stale numbers that all others are compared
            # with.
            logits = logits.scatter(1, labels[:, None], value[:, None])
            slopes = slopes.scatter(1, _as_index(labels, slopes), slope[:, None])
            distance, w = _nearest(logits, slopes, labels, "l2")
            x = _moved(x, each(distance / dual_norm(w, "l2"), x) * w)
        return standing.finish(x)


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


def _untargeted(attack: object, aim: Aim) -> None:
    if aim.targets is not None:
        raise ValueError(
            f"{attack} was published untargeted, expected Untargeted(), got a goal with targets"
        )


def _channels(values: tuple[float, ...], x: Tensor) -> Tensor:
    """One number per channel, as (1, c, 1, 1)."""
    if len(values) not in (1, x.shape[1]) or min(values) <= 0:
        raise ValueError(
            f"std: expected 1 or {x.shape[1]} numbers above 0, got {values}; they are the net's own"
        )
    return x.new_tensor(values).view(1, -1, 1, 1)


def _iterations(eps: float) -> int:
    return int(min(255 * eps + 4, 1.25 * 255 * eps))


def _moving_box(oracle: Oracle, x: Tensor, aim: Aim, eps: float, alpha: float) -> Tensor:
    rows = torch.arange(len(x), device=x.device)
    for _ in range(_iterations(eps)):
        _, gradient = oracle.gradient(x, rows, partial(cross_entropy, aim=aim))
        moved = x + alpha * gradient.sign()
        x = torch.clamp(moved, (x - eps).clamp_min(0.0), x + eps).clamp_max(1.0)
    return x


def _gap(logits: Tensor, aim: Aim) -> Tensor:
    """f_t − f_y, (n,)."""
    assert aim.targets is not None
    return _of(logits, aim.targets) - _of(logits, aim.labels)


def _all_slopes(oracle: Oracle, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (m, k) and the gradient of each of them (m, k, c, h, w): one forward pass, k
    backward."""
    graph = oracle.graph(x, rows)
    last = graph.logits.shape[1] - 1
    slopes = [graph.gradient(None, _column(k), last=k == last) for k in range(last + 1)]
    return graph.logits, torch.stack(slopes, dim=1)


def _column(k: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[:, k]


def _boundaries(logits: Tensor, slopes: Tensor, labels: Tensor, p: Norm) -> tuple[Tensor, Tensor]:
    """How far the linearised boundary to each class is, (m, k), infinite to the true one, and ∇f_i
    − ∇f_y."""
    w = slopes - _of(slopes, labels)[:, None]
    gaps = (logits - _of(logits, labels)[:, None]).abs()
    far = gaps / dual_norm(w.flatten(0, 1), p).view_as(gaps)
    return (
        far.scatter(1, labels[:, None], float("inf")).nan_to_num(
            nan=float("inf"), posinf=float("inf")
        ),
        w,
    )


def _nearest(logits: Tensor, slopes: Tensor, labels: Tensor, p: Norm) -> tuple[Tensor, Tensor]:
    """The distance (m,) and the w (m, c, h, w) of the nearest class."""
    far, w = _boundaries(logits, slopes, labels, p)
    distance, nearest = far.min(1)
    return distance, _of(w, nearest)


def _unit(w: Tensor, p: Norm) -> Tensor:
    """The authors' directions: sign(w), or w/(‖w‖₂ + 1e-6), which is zero for a dead gradient."""
    return steepest(w, "linf") if p == "linf" else w / each(dual_norm(w, "l2") + GUARD, w)


def _moved(x: Tensor, d: Tensor, ruined: float | None = None) -> Tensor:
    """clip(x + d); a NaN in d leaves the pixel as it is, or makes it `ruined`."""
    moved = (x + d).clamp(0.0, 1.0)
    return torch.where(moved.isnan(), x if ruined is None else torch.full_like(x, ruined), moved)


def _of(values: Tensor, classes: Tensor) -> Tensor:
    """The entry of each example's class: (n, k, …) to (n, …)."""
    return values[torch.arange(len(values), device=values.device), classes]


def _as_index(classes: Tensor, slopes: Tensor) -> Tensor:
    return each(classes, slopes).expand(-1, 1, *slopes.shape[2:])
