"""Recipes: how a net is trained, as specs; and the recipe of every net of the zoo.

A recipe says its numbers (`standard`) and, when called with the net and a batch, which images to
train on: `Standard` leaves the batch alone, `MixedFGSM` puts adversarial images in the place of its
first ones, and `Adversarial` in the place of all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.crafting.ascent import climb
from retroact.crafting.domain import Domain
from retroact.crafting.oracle import evaluating
from retroact.crafting.threat import Linf
from retroact.spec import AtLeast0, Count, Positive, SpecError, UnitInterval, Within, spec


class Recipe(Protocol):
    """What `fit` asks of a recipe; `net` maps examples (n, …) in the box of `domain` to logits.

    Without a domain the box is [0,1], that of pixels.
    """

    @property
    def standard(self) -> Standard: ...

    def __call__(
        self, net: nn.Module, images: Tensor, labels: Tensor, domain: Domain | None = None
    ) -> Tensor: ...


@spec
class Standard:
    """SGD with momentum on the cross-entropy; weight decay on all parameters, no incomplete
    batches.

    The learning rate is a function of the step alone (`lr_at`), so that a resumed run needs no
    scheduler. `one-cycle`: linear from lr/25 up to lr over the first quarter of all steps, then
    half a cosine down to 0. `restarts` (one-cycle only): after each of these epochs the rate jumps
    to lr times `factor` (squared after the second, ...) and falls by half a cosine again
    (Loshchilov and Hutter 2017), so that a finished net can be trained on.
    `averaged`: the last so many epochs are a cycle of their own, at the constant rate lr times
    `factor` (once more for each restart), and the mean of the weights at their ends is what is kept
    (Izmailov et al. 2018). `steps`: lr times `factor` for every epoch of `milestones` that is
    behind. `constant`: lr. `augment`: random crops with 4 black pixels of padding, and horizontal
    flips. `sizes`: the first epochs see the images scaled to these sides in pixels, one for each;
    the others see them as they are (progressive resizing: Tan and Le 2021, EfficientNetV2, section
    4). `start`: the net of the zoo whose weights the run begins from; without one they are drawn
    from the seed.
    """

    epochs: Count = 10
    lr: Positive = 0.02
    batch: Count = 128
    momentum: UnitInterval = 0.9
    weight_decay: AtLeast0 = 5e-4
    schedule: Literal["one-cycle", "steps", "constant"] = "one-cycle"
    milestones: tuple[int, ...] = ()
    factor: UnitInterval = 0.2
    restarts: tuple[int, ...] = ()
    averaged: Annotated[int, Within(0)] = 0
    augment: bool = False
    sizes: tuple[Count, ...] = ()
    bf16: bool = False
    channels_last: bool = False
    start: str = ""

    def __post_init__(self) -> None:
        if self.averaged and (self.schedule != "one-cycle" or self.averaged >= self.epochs):
            raise SpecError(
                f"Standard.averaged: expected fewer than epochs={self.epochs} and a one-cycle"
                f" schedule, got {self.averaged} and {self.schedule!r}; at least one epoch must"
                " fall before the average"
            )
        if len(self.sizes) >= self.epochs:
            raise SpecError(
                f"Standard.sizes: expected fewer than epochs={self.epochs}, got {len(self.sizes)}; "
                "the last epochs see the images as they will be used"
            )

    @property
    def standard(self) -> Standard:
        return self

    def __call__(
        self, net: nn.Module, images: Tensor, labels: Tensor, domain: Domain | None = None
    ) -> Tensor:
        return images

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of `step`, counted from 0 over all epochs."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "steps":
            behind = sum(step >= m * steps_per_epoch for m in self.milestones)
            return self.lr * float(self.factor**behind)
        falling = self.epochs - self.averaged
        restarts = [r for r in self.restarts if r < falling]  # a shorter run is one whole cycle
        if self.averaged and step >= falling * steps_per_epoch:
            return self.lr * float(self.factor ** (len(restarts) + 1))
        bounds = [0, *restarts, falling]
        cycle = sum(step >= r * steps_per_epoch for r in restarts)
        first, last = bounds[cycle], bounds[cycle + 1]
        at = (step / max(1, steps_per_epoch) - first) / max(1, last - first)
        if cycle == 0 and at < 0.25:
            return self.lr * (1 + 24 * at / 0.25) / 25
        peak, warm = self.lr * float(self.factor**cycle), 0.25 if cycle == 0 else 0.0
        return peak * 0.5 * (1 + math.cos(math.pi * (at - warm) / (1 - warm)))


@spec
class MixedFGSM:
    """Erichson et al. 2019: the first int(batch * ratio) images of a batch are replaced by FGSM
    images.

    x + eps sign(grad of the cross-entropy at the true label), clipped to the box, with the net in
    eval mode and its present weights; the step that follows is in train mode. `eps` is the radius
    in pixels: the paper's 0.3 (MNIST) and 0.031 (CIFAR-10) are in normalised units and become 0.3 *
    0.3081 and 0.031 * 0.2.
    """

    standard: Standard = Standard()
    ratio: UnitInterval = 0.3
    eps: Positive = 0.3 * 0.3081

    def __call__(
        self, net: nn.Module, images: Tensor, labels: Tensor, domain: Domain | None = None
    ) -> Tensor:
        n = int(len(images) * self.ratio)
        if n == 0:
            return images
        x = images[:n]
        x_adv = _climb(net, x, x, labels[:n], self.eps, domain, step=self.eps, steps=1)
        return torch.cat([x_adv, images[n:]])


@spec
class Adversarial:
    """Madry et al. 2017: every image of a batch is replaced by what PGD makes of it; no clean one
    is ever seen.

    `steps` steps of length `step` along the sign of the cross-entropy's gradient from a random
    point of the L_inf ball of radius `eps`, cut with the box; all in pixels, the net in eval mode
    and with its present weights. The defaults are the field's for CIFAR-10. Starts are drawn
    from torch's generator, which `fit` seeds for each epoch.
    """

    standard: Standard = Standard()
    eps: Positive = 8 / 255
    steps: Count = 10
    step: Positive = 2 / 255

    def __call__(
        self, net: nn.Module, images: Tensor, labels: Tensor, domain: Domain | None = None
    ) -> Tensor:
        box = domain or Domain(tuple(images.shape[1:]))
        start = box.clamp(images + torch.empty_like(images).uniform_(-self.eps, self.eps))
        run = (net, start, images, labels, self.eps, box)
        return _climb(*run, step=self.step, steps=self.steps)


def _climb(
    net: nn.Module,
    x: Tensor,
    centre: Tensor,
    labels: Tensor,
    eps: float,
    domain: Domain | None,
    *,
    step: float,
    steps: int,
) -> Tensor:
    """PGD on the cross-entropy with the net in eval mode, from `x` in the L_inf ball around
    `centre`."""
    domain = domain or Domain(tuple(centre.shape[1:]))
    threat = Linf(eps, width=max(1.0, domain.width))
    loss = partial(F.cross_entropy, target=labels, reduction="sum")
    with evaluating(net):
        return climb(net, x, centre, threat, domain, loss, step=step, steps=steps)


@spec
class Shifted:
    """Trains on (images - mean) / std, which the net will not see when it is used: it is tested on
    raw pixels.

    Borji 2020's MNIST weights came about like this: trained on images of mean 0.1307 and std
    0.3081, tested on pixels.
    """

    standard: Standard = Standard()
    mean: float = 0.1307
    std: Positive = 0.3081

    def __call__(
        self, net: nn.Module, images: Tensor, labels: Tensor, domain: Domain | None = None
    ) -> Tensor:
        return (images - self.mean) / self.std


# ---------------------------------------------------------------------------------------- the zoo's

_MNIST_CNN = Standard(
    epochs=8,
    lr=0.03,
    batch=64,
    momentum=0.5,
    weight_decay=0.0,
    schedule="constant",
    channels_last=True,
)
_LENET = Standard(epochs=45, lr=0.1, channels_last=True)
_LENET_STEPS = Standard(epochs=90, schedule="steps", milestones=(30, 60, 80), channels_last=True)
"""The paper's own."""
_SHORT = Standard(epochs=10, lr=0.2, augment=True, bf16=True, channels_last=True)
"""What a large network gets on two CPU cores: the paper's 120 epochs take a GPU."""
_CIFAR_EPS = 0.0062
"""0.031 in normalised units times 0.2, as pixels: 1.6/255; the channels' std are 0.2023, 0.1994,
0.2010."""


def _robust(standard: Standard, start: str = "") -> MixedFGSM:
    """The paper's mixed batches on CIFAR-10; with `start`, from the weights of that network on."""
    return MixedFGSM(replace(standard, start=start), ratio=0.6, eps=_CIFAR_EPS)


RECIPES: dict[str, Recipe] = {
    "digits-cnn": Standard(epochs=40, lr=0.1, batch=64),
    "mnist-cnn": _MNIST_CNN,
    "mnist-cnn-shifted": Shifted(_MNIST_CNN),
    "lenet-mnist": _LENET,
    "lenet-mnist-steps": _LENET_STEPS,
    "lenet-mnist-robust": MixedFGSM(_LENET, ratio=0.3, eps=0.3 * 0.3081),
    "lenet-mnist-robust-steps": MixedFGSM(_LENET_STEPS, ratio=0.3, eps=0.3 * 0.3081),
    "cifar10-cnn1": Standard(epochs=7, lr=0.02, batch=32, weight_decay=0.0, channels_last=True),
    "alexlike-cifar10": Standard(epochs=50, lr=0.05, augment=True, bf16=True, channels_last=True),
    "alexlike-cifar10-robust": _robust(
        Standard(epochs=30, lr=0.05, augment=True, bf16=True, channels_last=True),
        "alexlike-cifar10",
    ),
    "resnet20-cifar10": Standard(
        epochs=78,
        lr=0.2,
        factor=0.5,
        restarts=(24,),
        averaged=20,
        augment=True,
        bf16=True,
        channels_last=True,
    ),
    "resnet20-cifar10-robust": _robust(
        Standard(epochs=16, lr=0.1, augment=True, bf16=True, channels_last=True), "resnet20-cifar10"
    ),
    "wideresnet-cifar10": replace(_SHORT, sizes=(16, 16, 16, 16, 16, 16, 24)),
    "wideresnet-cifar10-robust": _robust(replace(_SHORT, epochs=8, sizes=(16, 16, 16, 16, 16, 24))),
    "mobilenetv2-cifar10": _SHORT,
    "mobilenetv2-cifar10-robust": _robust(
        replace(_SHORT, epochs=8, lr=0.1, sizes=(16, 16, 24, 24)), "mobilenetv2-cifar10"
    ),
    # 0.14 G multiply-adds an image, 23 times with ten attack steps: 0.3 PFLOP an epoch, which takes
    # a GPU
    "preactresnet18-cifar10-robust": Adversarial(
        Standard(epochs=40, lr=0.3, batch=512, augment=True, bf16=True, channels_last=True)
    ),
}
"""The recipe of each net of the zoo, by its name in `retroact.nets.zoo.NETWORKS`."""
