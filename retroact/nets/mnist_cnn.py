"""The MNIST CNN of Borji 2020 (SReLU), Fig. 10: the net of PyTorch's FGSM tutorial."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from retroact.spec import UnitInterval, spec


@spec
class MnistCNN:
    """conv 1→10 5x5 | pool 2 | A | conv 10→20 5x5 | dropout2d | pool 2 | A | fc 50 | A | dropout |
    fc 10.

    21,840 parameters, 3 sites; (n, 1, 28, 28) to (n, 10). Borji feeds it raw pixels in [0,1].
    """

    dropout: UnitInterval = 0.5

    def __call__(self) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 10, 5),
                pool1=nn.MaxPool2d(2),
                conv1_relu=nn.ReLU(),
                conv2=nn.Conv2d(10, 20, 5),
                conv2_dropout=nn.Dropout2d(self.dropout),
                pool2=nn.MaxPool2d(2),
                conv2_relu=nn.ReLU(),
                flatten=nn.Flatten(),
                fc1=nn.Linear(320, 50),
                fc1_relu=nn.ReLU(),
                fc1_dropout=nn.Dropout(self.dropout),
                fc2=nn.Linear(50, 10),
            )
        )
