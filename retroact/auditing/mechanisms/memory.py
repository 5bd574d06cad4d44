"""Mechanisms that answer by what they have stored: memories of features, codebooks of patches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.auditing.mechanisms.mechanism import Front, Given, Made, Mechanism, straight
from retroact.nets.classifier import Classifier

_STORED, _WORDS, _NEAREST = 1000, 128, 5


class Memory(nn.Module):
    """A network whose last features are replaced by those of training images: by attention of
    sharpness `beta` over them, or by the nearest (None)."""

    def __init__(self, net: Classifier, stored: Tensor, beta: float | None) -> None:
        super().__init__()
        *body, self.head = net.module.children()
        self.net, self.body, self.beta = net, nn.Sequential(*body), beta
        with torch.no_grad():
            self.stored = self.look(stored)

    def look(self, x: Tensor) -> Tensor:
        out: Tensor = self.body((x - self.net.mean) / self.net.std)
        return out

    def forward(self, x: Tensor) -> Tensor:
        near = self.look(x) @ self.stored.T - self.stored.square().sum(1) / 2
        if self.beta is None:
            out: Tensor = self.head(self.stored[near.argmax(1)])
            return out
        mixed: Tensor = self.head(F.softmax(self.beta * near, 1) @ self.stored)
        return mixed


def _remembering(given: Given, beta: float | None) -> Made:
    stored = given.trained.images[:_STORED]
    softer = tuple(Memory(given.net, stored, b).eval() for b in (0.1, 0.02))
    return Made(Memory(given.net, stored, beta).eval(), (*softer, given.net))


MEMORIES = tuple(
    Mechanism(
        name, "activations", partial(_remembering, beta=beta), graph=beta is not None, fast=fast
    )
    for name, beta, fast in (
        ("features of the nearest training image", None, True),
        ("sharp attention over training images", 20.0, False),
        ("attention over training images", 3.0, False),
    )
)


class Neighbours(nn.Module):
    """A network that answers by the training images nearest to its last features: by the mean of
    their features, or by their votes; by all of them at a temperature, where one is given."""

    def __init__(
        self, memory: Memory, labels: Tensor, votes: bool, temperature: float | None
    ) -> None:
        super().__init__()
        self.memory, self.votes, self.temperature = memory, votes, temperature
        self.labels = labels

    def forward(self, x: Tensor) -> Tensor:
        memory, classes = self.memory, F.one_hot(self.labels, 10).float()
        near = -torch.cdist(memory.look(x), memory.stored).square() / 2
        if self.temperature is not None:
            share = (near / self.temperature).softmax(1)
            return share @ classes if self.votes else self._decide(share @ memory.stored)
        nearest = near.topk(_NEAREST, 1).indices
        if self.votes:
            return F.one_hot(self.labels[nearest], 10).float().mean(1)
        return self._decide(memory.stored[nearest].mean(1))

    def _decide(self, features: Tensor) -> Tensor:
        out: Tensor = self.memory.head(features)
        return out


def _by_neighbours(given: Given, votes: bool) -> Made:
    memory = Memory(given.net, given.trained.images[:_STORED], None)
    labels = torch.as_tensor(given.trained.labels[:_STORED])
    hard, *soft = (
        Neighbours(memory, labels, votes, t).eval() for t in (None, 30.0, 10.0, 3.0, 1.0, 0.3)
    )
    return Made(hard, (*soft, given.net))


NEIGHBOURS = tuple(
    Mechanism(name, "activations", partial(_by_neighbours, votes=votes), graph=False)
    for name, votes in (
        ("mean of the five nearest training images", False),
        ("votes of the five nearest training images", True),
    )
)


class Handed(nn.Module):
    """A network whose last features are handed to a classifier of scikit-learn's, which answers."""

    def __init__(self, memory: Memory, classifier: Any) -> None:
        super().__init__()
        self.memory, self.classifier = memory, classifier

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.memory.look(x).numpy()
        return torch.from_numpy(self.classifier.predict_proba(features)).float()


def _make_neighbours() -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(_NEAREST)


def _make_forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(60, random_state=0)


def _handed(given: Given, make: Callable[[], Any]) -> Made:
    """What climbs it: the decisions on training images, at some temperatures."""
    memory = Memory(given.net, given.trained.images[:_STORED], None)
    labels = given.trained.labels[:_STORED].numpy()
    classifier = make().fit(memory.stored.numpy(), labels)
    decided = torch.from_numpy(classifier.predict(memory.stored.numpy()))
    soft = (Neighbours(memory, decided, True, t).eval() for t in (30.0, 10.0, 3.0, 1.0))
    return Made(Handed(memory, classifier).eval(), (*soft, given.net))


HANDED = tuple(
    Mechanism(f"{word}, by scikit-learn", "activations", partial(_handed, make=make), graph=False)
    for word, make in (
        ("the five nearest features", _make_neighbours),
        ("a forest on its features", _make_forest),
    )
)


def _code(x: Tensor, words: Tensor, size: int) -> Tensor:
    """Each patch as the nearest of the words."""
    n, c, h, w = x.shape
    patches = x.unfold(2, size, size).unfold(3, size, size).reshape(n, -1, size * size)
    nearest = torch.cdist(patches.detach(), words.expand(n, -1, -1)).argmin(2)
    whole = words[nearest].view(n, h // size, w // size, size, size)
    return whole.permute(0, 1, 3, 2, 4).reshape(n, c, h, w)


def _coded(given: Given) -> Made:
    seen = given.trained.images[:_STORED]
    patches = seen.unfold(2, 2, 2).unfold(3, 2, 2).reshape(-1, 4)
    drawn = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:_WORDS]
    change = partial(_code, words=patches[drawn].contiguous(), size=2)
    net = Front(given.net, change)
    return Made(net, (Front(given.net, straight(change)), given.net))


CODED = Mechanism("patches from a codebook", "inputs", _coded, graph=False)
