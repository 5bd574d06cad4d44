"""Adversarial sets by the paper's protocol: crafted once on a source network, then shown to every
target.

Our driver asks the judged network in a transfer attack, and stops at the first step that fools it.
The paper froze an image at the first step that fooled the *source*, whatever the target thought of
it; so here the source is attacked as in a white box, and the targets only see the result. `Crafted`
gives Table 1 and Table 2 from one run, the noise in the space that the paper measured it in, and
what becomes of dead images.
"""

from __future__ import annotations

import time
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from retroact.attacks.erichson import ErichsonDeepFool
from retroact.crafting.driver import Outcome
from retroact.crafting.goals import Aim
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import decide
from retroact.evaluation.proof import craft
from retroact.experiments.cell import Model
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images, data
from retroact.spec import spec
from retroact.studies.jumprelu.networks import Net

SCALES = (1.0, 1.1, 1.25)
"""Perturbations are shown to the targets as they are, and a little longer."""
FIRST = 60
FIRST_DEEPFOOL = {False: 12, True: 5}  # with a jump it ends, or dies, within very few steps
CHUNK = {1: 256}  # images of one channel are small: 1.2 to 1.4 times faster than by 64


@spec
class Crafted:
    """Examples made on `source` by `attack`, and what `source` and `targets` decide on them.

    Numbers: `clean` and, for each of `SCALES`, `accuracy` of source and targets (shares of all n);
    `noise`, the mean over all n of ‖x_adv − x‖_p / ‖x‖_p in normalised space (p of `threat`), with
    its standard error; `noise_pixels`, the same in pixels, and `largest`, the mean L∞ in pixels of
    the images that were moved; `standing`, how many the source still decides rightly, `dead` among
    them those whose gradient died; `white`, accuracy and noise where dead images are painted white;
    `seconds` of CPU.

    `frozen` False takes all steps on every image that is right clean (PGD only).
    """

    source: Model
    targets: tuple[Model, ...]
    data: str
    attack: Any
    threat: Any
    frozen: bool = True

    def __call__(self) -> dict[str, Any]:
        began = time.process_time()
        nets, images = [_net(m) for m in (self.source, *self.targets)], data(self.data)
        outcome = self._craft(nets[0], images)
        adversarial = outcome.x_adv
        accuracies = [
            _accuracies(nets, _lengthen(adversarial, images.images, s), images.labels)
            for s in SCALES
        ]
        robust = decide(nets[0], adversarial) == images.labels
        dead = robust & (outcome.zero_gradients > 0)
        moved = (adversarial - images.images).flatten(1).abs().amax(1)
        return {
            "n": len(images),
            "clean": _accuracies(nets, images.images, images.labels),
            "accuracy": accuracies,
            **_noise(nets[0], adversarial, images.images, self.threat),
            "largest": float(moved[moved > 0].mean()) if moved.any() else 0.0,
            "standing": int(robust.sum()),
            "dead": int(dead.sum()),
            "white": self._white(nets[0], images, adversarial, dead),
            "seconds": time.process_time() - began,
        }

    def _craft(self, source: Classifier, images: Images) -> Outcome:
        """In two goes, since a dead image would take all of the steps and never move again."""
        deepfool, jump = (
            isinstance(self.attack, ErichsonDeepFool),
            self.source.activation is not None,
        )
        first = replace(
            self.attack, steps=min(self.attack.steps, FIRST_DEEPFOOL[jump] if deepfool else FIRST)
        )
        outcome = self._run(first, source, images)
        if first == self.attack:
            return outcome
        right = decide(source, outcome.x_adv) == images.labels
        todo = (right & (outcome.zero_gradients == 0)).nonzero()[:, 0]
        if not len(todo):
            return outcome
        return _merge(outcome, self._run(self.attack, source, images.select(todo)), todo)

    def _run(self, attack: Any, source: Classifier, images: Images) -> Outcome:
        scene = (images.images, images.labels, images.index)
        chunk = CHUNK.get(images.images.shape[1])
        if self.frozen:
            return craft(attack, source, *scene, self.threat, chunk=chunk)
        outcome = craft(attack, source, *scene, self.threat, _restless, chunk=chunk)
        right = decide(source, images.images) == images.labels
        return replace(outcome, x_adv=outcome.x_adv.where(right.view(-1, 1, 1, 1), images.images))

    def _white(
        self, source: Classifier, images: Images, adversarial: Tensor, dead: Tensor
    ) -> dict[str, float]:
        if isinstance(self.attack, ErichsonDeepFool) and dead.any():
            rows = dead.nonzero()[:, 0]
            painted = torch.ones_like(adversarial[rows])
            if _alive(source, painted[:1]):  # then the attack goes on from there
                painted = self._run(
                    replace(self.attack, dead="white"), source, images.select(rows)
                ).x_adv
            adversarial = adversarial.index_copy(0, rows, painted)
        (accuracy,) = _accuracies([source], adversarial, images.labels)
        return {
            "accuracy": accuracy,
            **_noise(source, adversarial, images.images, self.threat),
        }


@spec
class Clean:
    """Clean accuracy of each of `models` on the images of `data`, from 0 to 1."""

    models: tuple[Model, ...]
    data: str

    def __call__(self) -> dict[str, Any]:
        images = data(self.data)
        return {
            "n": len(images),
            "clean": _accuracies([_net(m) for m in self.models], images.images, images.labels),
        }


class Restless(Aim):
    """An aim that is never reached, so that nothing freezes."""

    def __getitem__(self, rows: Tensor) -> Restless:
        return Restless(self.labels[rows])

    def reached(self, logits: Tensor) -> Tensor:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)


def _restless(labels: Tensor, logits: Tensor, index: Tensor) -> Aim:
    return Restless(labels)


def relative(
    net: Classifier,
    adversarial: Tensor,
    images: Tensor,
    threat: ThreatModel,
    *,
    pixels: bool = False,
) -> Tensor:
    """‖x_adv − x‖_p / ‖x‖_p of each image, (n,), in the space that the network normalises to (eq.
    12), or in pixels."""
    mean, std = net.mean.cpu(), net.std.cpu()
    size = images if pixels else (images - mean) / std
    moved = (adversarial - images) if pixels else (adversarial - images) / std
    over, under = (threat.size(v.double()) for v in (moved, size))
    ratio: Tensor = over / under.clamp_min(1e-12)
    return ratio


def crafted(
    net: Net, n: int, name: str, kappa: float = 0.0, *, gray: bool = False, **others: Any
) -> Crafted:
    """What the paper's attack `name` makes on `net` at `kappa`; that of kappa 0 is shown to the
    paper's kappa too."""
    targets = (net.model(net.kappa),) if kappa == 0 else ()
    attack, threat = net.attack(name, gray=gray)
    return Crafted(net.model(kappa), targets, net.slice(n), attack, threat, **others)


def _net(model: Model) -> Classifier:
    net = model()
    if not isinstance(net, Classifier):
        raise TypeError(
            f"{model}: expected a Classifier, whose mean and std say what normalised space is"
        )
    return net


def _alive(net: Classifier, image: Tensor) -> bool:
    """Whether any logit changes with the image."""
    with torch.enable_grad():
        leaf = image.clone().requires_grad_()
        weights = torch.arange(1.0, 1.0 + net(leaf).shape[1])
        (gradient,) = torch.autograd.grad((net(leaf) * weights).sum(), leaf)
    return bool((gradient != 0).any())


def _lengthen(adversarial: Tensor, images: Tensor, scale: float) -> Tensor:
    return (
        adversarial if scale == 1.0 else (images + scale * (adversarial - images)).clamp(0.0, 1.0)
    )


def _accuracies(nets: list[Classifier], images: Tensor, labels: Tensor) -> list[float]:
    return [float((decide(net, images) == labels).double().mean()) for net in nets]


def _noise(
    net: Classifier, adversarial: Tensor, images: Tensor, threat: ThreatModel
) -> dict[str, float]:
    each = relative(net, adversarial, images, threat)
    return {
        "noise": float(each.mean()),
        "noise_error": float(each.std() / len(each) ** 0.5) if len(each) > 1 else 0.0,
        "noise_pixels": float(relative(net, adversarial, images, threat, pixels=True).mean()),
    }


def _merge(outcome: Outcome, again: Outcome, rows: Tensor) -> Outcome:
    """`outcome` with the examples `rows` as the second go left them."""
    parts = {
        f.name: getattr(outcome, f.name).index_copy(0, rows, getattr(again, f.name))
        for f in fields(Outcome)
    }
    return Outcome(**parts)
