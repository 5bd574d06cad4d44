"""The AlexNet-like net of Erichson et al. 2019 (JumpReLU) for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from retroact.spec import UnitInterval, spec


@spec
class AlexLike:
    """Four 3x3 convs of 64, 64, 128, 128 maps, pooled after the second and the fourth, then fc 256,
    256, 10.

    1,147,978 parameters, 6 sites; (n, 3, 32, 32) to (n, 10). No padding, no batch norm, and here
    the activation comes before the pool.
    """

    dropout: UnitInterval = 0.5

    def __call__(self) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 64, 3),
                conv1_relu=nn.ReLU(),
                conv2=nn.Conv2d(64, 64, 3),
                conv2_relu=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(64, 128, 3),
                conv3_relu=nn.ReLU(),
                conv4=nn.Conv2d(128, 128, 3),
                conv4_relu=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(self.dropout),
                fc1=nn.Linear(3200, 256),
                fc1_relu=nn.ReLU(),
                fc2=nn.Linear(256, 256),
                fc2_relu=nn.ReLU(),
                fc3=nn.Linear(256, 10),
            )
        )
