"""The LeNet-like net of Erichson et al. 2019 (JumpReLU) for MNIST."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from retroact.spec import UnitInterval, spec


@spec
class LeNetLike:
    """conv 1→10 5x5 | pool 2 | A | conv 10→20 5x5 | pool 2 | A | dropout | fc 120 | A | fc 90 | A |
    fc 10.

    55,600 parameters, 4 sites; (n, 1, 28, 28) to (n, 10). Pooling before A equals pooling after it
    for every monotone A, JumpReLU among them.
    """

    dropout: UnitInterval = 0.5

    def __call__(self) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 10, 5),
                pool1=nn.MaxPool2d(2),
                conv1_relu=nn.ReLU(),
                conv2=nn.Conv2d(10, 20, 5),
                pool2=nn.MaxPool2d(2),
                conv2_relu=nn.ReLU(),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(self.dropout),
                fc1=nn.Linear(320, 120),
                fc1_relu=nn.ReLU(),
                fc2=nn.Linear(120, 90),
                fc2_relu=nn.ReLU(),
                fc3=nn.Linear(90, 10),
            )
        )
