"""ResNet-18 with pre-activation (He et al. 2016, "Identity Mappings in Deep Residual Networks") for
CIFAR-10.

Nothing but additions lies on the way from the first conv to the last norm, except where the maps
change. By default it has half of the usual maps, which is what adversarial training at 8/255 takes
minutes for and not hours.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn

from retroact.spec import Count, spec


@spec
class PreActResNet18:
    """conv 3→width, four stages of two blocks with 1, 2, 4, 8 times `width` maps, BN | A | mean
    over the map | fc 10.

    Width 32: 2,796,714 parameters, 17 sites; (n, 3, 32, 32) to (n, 10); the usual net has width 64.
    Where the maps change, the stride is 2 and the shortcut a 1x1 conv of the activated input. Convs
    start from N(0, 2 / (k k out)).
    """

    width: Count = 32

    def __call__(self) -> nn.Sequential:
        maps = [self.width, 2 * self.width, 4 * self.width, 8 * self.width]
        net = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, maps[0], 3, padding=1, bias=False),
                stage1=_stage(maps[0], maps[0], stride=1),
                stage2=_stage(maps[0], maps[1], stride=2),
                stage3=_stage(maps[1], maps[2], stride=2),
                stage4=_stage(maps[2], maps[3], stride=2),
                bn=nn.BatchNorm2d(maps[3]),
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(maps[3], 10),
            )
        )
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        return net


def _stage(before: int, maps: int, stride: int) -> nn.Sequential:
    blocks = (_PreActBlock(before, maps, stride), _PreActBlock(maps, maps, 1))
    return nn.Sequential(OrderedDict((f"block{i + 1}", block) for i, block in enumerate(blocks)))


class _PreActBlock(nn.Module):
    """conv(A(BN(conv(a)))) + x with a = A(BN(x)); a 1x1 conv of a stands for x where the maps
    change."""

    def __init__(self, before: int, maps: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, maps, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(maps, maps, 3, padding=1, bias=False)
        changes = stride != 1 or before != maps
        self.shortcut = nn.Conv2d(before, maps, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        a = self.relu1(self.bn1(x))
        out: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(a))))
        return out + (x if self.shortcut is None else self.shortcut(a))
