"""What timm imports of torchvision, as names alone: enough to build its networks, and no more.

timm needs torchvision for its data pipelines and for one norm layer, `FrozenBatchNorm2d`, which a
few of its detectors use. Here the names are there while timm is imported, and gone afterwards, so
that nobody else takes the stub for the library.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from torch import nn

DATASETS = ("CIFAR100", "CIFAR10", "MNIST", "KMNIST", "FashionMNIST", "ImageFolder")


class InterpolationMode(enum.Enum):
    """Named by timm's transforms, which no network uses."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class ToTensor:
    """A base class of one of timm's transforms."""


class FrozenBatchNorm2d(nn.Module):
    """Named by timm's norm layers, built by none of the networks here."""


@contextmanager
def torchvision_stub() -> Iterator[None]:
    """Lets `import timm` find its names; raises RuntimeError where the library itself is there."""
    if any(name.split(".")[0] == "torchvision" for name in sys.modules):
        raise RuntimeError(
            "expected no torchvision in this process, but it is imported: drop the stub"
        )
    made = _modules()
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name)


def _modules() -> dict[str, ModuleType]:
    names = ("", ".datasets", ".transforms", ".transforms.functional", ".ops", ".ops.misc")
    made = {f"torchvision{name}": ModuleType(f"torchvision{name}") for name in names}
    for name, module in made.items():
        module.__path__ = []
        if "." in name:
            parent, _, last = name.rpartition(".")
            setattr(made[parent], last, module)
    for name in DATASETS:
        setattr(made["torchvision.datasets"], name, None)
    made["torchvision.transforms"].ToTensor = ToTensor
    made["torchvision.transforms.functional"].InterpolationMode = InterpolationMode
    made["torchvision.ops.misc"].FrozenBatchNorm2d = FrozenBatchNorm2d
    return made
