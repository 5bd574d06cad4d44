"""The digits CNN: a small net of our own for scikit-learn's 8x8 digits, so that a demo needs no
download."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from retroact.spec import spec


@spec
class DigitsCNN:
    """conv 1→16 3x3 | A | conv 16→32 3x3 | A | pool 2 | fc 512→64 | A | fc 10; 38,282 parameters, 3
    sites."""

    def __call__(self) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 16, 3, padding=1),
                conv1_relu=nn.ReLU(),
                conv2=nn.Conv2d(16, 32, 3, padding=1),
                conv2_relu=nn.ReLU(),
                pool=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(32 * 4 * 4, 64),
                fc1_relu=nn.ReLU(),
                fc2=nn.Linear(64, 10),
            )
        )
