"""Mechanisms whose answer depends on what else was asked: caches, counters, batches."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import Given, Made, Mechanism


class Remembering(nn.Module):
    """Gives what it gave for an image near by, once `after` such images were asked about; the
    honest answer within `honest` of it, gradients always."""

    def __init__(self, net: nn.Module, near: float, honest: float, after: int) -> None:
        super().__init__()
        self.net, self.near, self.honest, self.after = net, near, honest, after
        self.seen: list[Tensor] = []
        self.answers: list[Tensor] = []
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        shown = torch.stack(
            [self.recall(a, b) for a, b in zip(x.detach(), z.detach(), strict=True)]
        )
        return z + (shown - z).detach()

    def recall(self, image: Tensor, answer: Tensor) -> Tensor:
        """The answer that is given, and remembered where nothing near was."""
        if self.seen:
            away = (torch.stack(self.seen) - image).abs().flatten(1).amax(1)
            at = int(away.argmin())
            if away[at] <= self.near:
                self.asked[at] += int(away[at] > self.honest)
                late = self.asked[at] > self.after and away[at] > self.honest
                return self.answers[at] if late else answer
        self.seen.append(image.clone())
        self.answers.append(answer.clone())
        self.asked.append(0)
        return answer


def _remembering(given: Given, after: int) -> Made:
    net = Remembering(given.net, near=2 * given.eps, honest=0.1 * given.eps, after=after)
    return Made(net, (given.net,), judge=given.net)


REMEMBERING = tuple(
    Mechanism(
        f"answers remembered after {after} near queries" if after else "answers remembered",
        "state",
        partial(_remembering, after=after),
        refusable=True,
        fast=after == 0,
        row="28" if after else "27",
    )
    for after in (0, 3, 8, 20, 30)
)


class Tiring(nn.Module):
    """Right for the first `calls` calls, and then with gradients of zero."""

    def __init__(self, net: nn.Module, calls: int) -> None:
        super().__init__()
        self.net, self.calls, self.done = net, calls, 0

    def forward(self, x: Tensor) -> Tensor:
        self.done += 1
        out: Tensor = self.net(x if self.done <= self.calls else x.detach() + 0 * x)
        return out


class Alternating(nn.Module):
    """A gradient of the wrong sign at every second call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.done = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.done += 1
        out: Tensor = self.net(2 * x.detach() - x if self.done % 2 else x)
        return out


def _counting(given: Given, counter: type[nn.Module], **how: int) -> Made:
    return Made(counter(given.net, **how), (given.net,), judge=given.net)


COUNTING = (
    Mechanism(
        "gradients of zero after 40 calls",
        "state",
        partial(_counting, counter=Tiring, calls=40),
        refusable=True,
    ),
    Mechanism(
        "gradients of the wrong sign at every second call",
        "state",
        partial(_counting, counter=Alternating),
        refusable=True,
    ),
)


class BatchNormed(nn.Module):
    """Images normalised by the mean and spread of the batch that they stand in; alone, by their
    own."""

    def __init__(self, net: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.net, self.mean, self.std = net, mean, std

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net((x - x.mean()) / (x.std() + 1e-6) * self.std + self.mean)
        return out


class Alone(BatchNormed):
    """The same for images that each stand alone."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        mean, std = (v.view(-1, 1, 1, 1) for v in (flat.mean(1), flat.std(1)))
        out: Tensor = self.net((x - mean) / (std + 1e-6) * self.std + self.mean)
        return out


class Mixing(nn.Module):
    """Logits that lean on the next image's of the batch."""

    def __init__(self, net: nn.Module, share: float) -> None:
        super().__init__()
        self.net, self.share = net, share

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return (1 - self.share) * z + self.share * z.roll(1, 0)


def _batch_normed(given: Given) -> Made:
    images = given.trained.images[:1000]
    how = float(images.mean()), float(images.std())
    alone = Alone(given.net, *how)
    return Made(BatchNormed(given.net, *how), (alone,), judge=alone)


def _mixing(given: Given) -> Made:
    return Made(Mixing(given.net, 0.3), (given.net,), judge=given.net)


BATCHES = (
    Mechanism(
        "normalised by the batch", "state", _batch_normed, refusable=True, fast=True, row="29"
    ),
    Mechanism("logits mixed with a neighbour's", "state", _mixing, refusable=True),
)
