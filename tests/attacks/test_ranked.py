"""Targets are the likeliest wrong classes; where the network that decides ranks them alike, the one
that gives gradients ranks them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.goals import Aim
from retroact.crafting.oracle import Oracle
from retroact.crafting.scene import Scene

X, Y = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)


def table(seed: int) -> Tensor:
    """Logits of four classes for each of the images."""
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


class Says(nn.Module):
    """Gives the logits that it was told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


def scene(judge: nn.Module, source: nn.Module, labels: Tensor) -> Scene:
    oracle = Oracle(judge, 6, source=source)
    threat, domain = ra.Linf(0.1), ra.Domain((1, 8, 8))
    return Scene(oracle, X, Aim(labels), threat, domain, torch.arange(6), 0)


def test_the_network_that_decides_ranks_the_classes():
    own, labels = table(1), table(1).argmax(1)
    ranked = scene(Says(own), Says(table(2)), labels).wrong_classes(X, torch.arange(6))
    expected = own.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]
    assert torch.equal(ranked, expected)


def test_where_it_gives_one_hot_answers_its_source_ranks_them():
    own, labels = table(1), table(1).argmax(1)
    hot = F.one_hot(labels, 4).float()
    ranked = scene(Says(hot), Says(own), labels).wrong_classes(X, torch.arange(6))
    expected = own.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]
    assert torch.equal(ranked, expected)


def test_every_wrong_class_comes_once():
    hot = F.one_hot(torch.tensor([0, 1, 2, 3, 0, 1]), 4).float()
    labels = torch.tensor([3, 1, 0, 0, 0, 2])  # not all decided rightly
    ranked = scene(Says(hot), Says(table(2)), labels).wrong_classes(X, torch.arange(6))
    every = torch.cat([labels[:, None], ranked], 1).sort(dim=1).values
    assert torch.equal(every, torch.arange(4).expand(6, 4))
