"""What a change of a whole network is: a spec that makes a changed copy of a trained net.

    small = ra.change("lenet-mnist", ra.Pruned(0.8))
    made = ra.audit("lenet-mnist", small, "mnist[:300]", ra.Linf(0.1))

Networks are made smaller and faster for reasons that have nothing to do with robustness, and the
question is what that costs. One of your own is one class in one file:

    @spec
    class Halved(Change):
        "Every weight divided by two."

        def change(self, module, train):
            for p in module.parameters():
                p.data /= 2
            return module
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from retroact.ground import neutral
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.retrofitting.copying import deep_copy
from retroact.spec import CallError, show


class Change(ABC):
    """A spec which, called on a net, gives a changed copy; the net stays as it is.

    A net that carries a retrofit is changed as it is, activations and all, but cannot be saved
    after. `learns` says that it needs training data: test data is refused.
    """

    learns: ClassVar[bool] = False

    @abstractmethod
    def change(self, net: nn.Module, train: Images | None) -> nn.Module:
        """The changed net, made of a copy in eval mode that is its own to write to."""

    def shell(self, module: nn.Module) -> nn.Module:
        """The module that a file's tensors are put into, made of one that its code has built: the
        form of a changed net, with any numbers."""
        return module

    @neutral()
    def __call__(self, net: nn.Module, train: Images | None = None) -> nn.Module:
        self._check(net, train)
        with torch.no_grad():
            made = self.change(deep_copy(net).eval(), train).eval()
        if isinstance(made, Classifier):
            made.change = show(self)
        return made

    def _check(self, net: nn.Module, train: Images | None) -> None:
        if self.learns and train is None:
            raise CallError(
                f"{show(self)} needs training data: ra.change(net, {show(self)}, train) (retroact"
                " change … --data)"
            )
        if train is not None and train.split == "test":
            raise CallError(
                f"{train.name} is test data, on which nothing is measured; use another split"
            )
        if said := change_of(net):
            raise ValueError(f"the net is changed already, by {said}; change the net before it")


def change_of(net: nn.Module) -> str:
    """The print of the change that a net has been through; "" where it has been through none."""
    return net.change if isinstance(net, Classifier) else ""


def inside(net: nn.Module) -> nn.Module:
    """The module of a classifier, which normalises; any other net as it is."""
    return net.module if isinstance(net, Classifier) else net
