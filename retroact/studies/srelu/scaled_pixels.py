"""FGSM on images that are scaled first, for Figure 7 and for the question what scaling is."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from retroact.crafting.driver import chunks
from retroact.crafting.goals import Aim
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.oracle import Network, Oracle, evaluating
from retroact.crafting.threat import Linf
from retroact.evaluation.proof import prove
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.spec import Positive, spec
from retroact.studies.desk import Facts
from retroact.studies.srelu import CHUNK

StepOn = Literal["scaled", "original"]


@spec
class ScaledPixels:
    """FGSM on images that are multiplied by `scale` first: which decisions are right before and
    after.

    The gradient is taken at scale · x, after a clamp to [0, 1] with `clipped`. The step of each
    `eps` is made there, or with `step_on` "original" on x itself; then all is clipped to [0, 1].
    `right` counts images decided rightly where the step starts (before that last clip), `left`
    those that are still right after it, `zero` the exactly zero gradients among the right ones.
    """

    model: Model
    data: str
    scale: Positive
    eps: tuple[float, ...]
    clipped: bool = False
    loss: Loss = "cross_entropy"
    step_on: StepOn = "scaled"

    def __call__(self) -> Facts:
        net, images = self.model(), data(self.data)
        with evaluating(net):
            on = prove(
                net, images.images, images.index, Linf(max(self.eps)), passes=1 + len(self.eps)
            )
            parts = [
                self.counts(on.lean, images.images[r], images.labels[r])
                for r in chunks(len(images), CHUNK)
            ]
        right, zero, *left = (sum(column) for column in zip(*parts, strict=True))
        return {"n": len(images), "right": right, "zero": zero, "left": left}

    def counts(self, net: Network, x: Tensor, labels: Tensor) -> list[int]:
        """Right ones, zero gradients among them, and those left at each eps."""
        scaled = self.scale * x
        scaled = scaled.clamp(0.0, 1.0) if self.clipped else scaled
        oracle, rows = Oracle(net, len(x)), torch.arange(len(x))
        logits, gradient = oracle.gradient(
            scaled, rows, partial(loss_of(self.loss), aim=Aim(labels))
        )
        start = scaled if self.step_on == "scaled" else x
        decided = logits.argmax(1) if start is scaled else oracle.decisions(x, rows)
        right = decided == labels
        ends = ((start + e * gradient.sign()).clamp(0.0, 1.0) for e in self.eps)
        left = [int((right & (oracle.decisions(end, rows) == labels)).sum()) for end in ends]
        return [int(right.sum()), int(oracle.zero_gradients[right].sum()), *left]
