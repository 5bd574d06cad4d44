"""ResNet-20 for CIFAR-10, as in the code and the checkpoints of Erichson et al. 2019 (JumpReLU)."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from retroact.spec import spec


@spec
class ResNet20:
    """conv 3→16 | BN | A, three stages of three blocks with 16, 32, 64 maps, mean over the map, fc
    10.

    272,474 parameters, 19 sites; (n, 3, 32, 32) to (n, 10). Where a stage begins, the stride is 2
    and the shortcut a 1x1 conv with BN. Convs start from N(0, 2 / (k k out)).
    """

    def __call__(self) -> nn.Sequential:
        net = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(16),
                conv1_relu=nn.ReLU(),
                stage1=_stage(16, 16, stride=1),
                stage2=_stage(16, 32, stride=2),
                stage3=_stage(32, 64, stride=2),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(64, 10),
            )
        )
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        return net


def _stage(before: int, maps: int, stride: int) -> nn.Sequential:
    blocks = (_Block(before if i == 0 else maps, maps, stride if i == 0 else 1) for i in range(3))
    return nn.Sequential(OrderedDict((f"block{i + 1}", block) for i, block in enumerate(blocks)))


class _Block(nn.Module):
    """A(BN(conv(A(BN(conv(x))))) + shortcut(x))."""

    def __init__(self, before: int, maps: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, maps, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.relu2 = nn.ReLU()
        self.shortcut = nn.Sequential()
        if stride != 1 or before != maps:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, maps, 1, stride, bias=False), nn.BatchNorm2d(maps)
            )

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(inside + self.shortcut(x))
        return out
