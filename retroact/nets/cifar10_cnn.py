"""The CIFAR-10 CNN of Borji 2020 (SReLU), Fig. 10: the net of PyTorch's "Training a classifier"
tutorial.

The paper's CNN2 is no net of its own: it is CNN1 with CNN1's weights, whose two conv activations
stay ReLU. Retrofit CNN1 on the sites `fc1_relu` and `fc2_relu` alone to have it.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from retroact.spec import spec


@spec
class Cifar10CNN1:
    """conv 3→6 5x5 | A | pool 2 | conv 6→16 5x5 | A | pool 2 | fc 400→120 | A | fc 84 | A | fc 10.

    62,006 parameters, 4 sites; (n, 3, 32, 32) to (n, 10). Borji feeds it raw pixels in [0,1].
    """

    def __call__(self) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 6, 5),
                conv1_relu=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 5),
                conv2_relu=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(400, 120),
                fc1_relu=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                fc2_relu=nn.ReLU(),
                fc3=nn.Linear(84, 10),
            )
        )
