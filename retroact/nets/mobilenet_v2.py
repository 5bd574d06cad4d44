"""MobileNetV2 for CIFAR-10, as Erichson et al. 2019 (JumpReLU) use it: ReLU in the place of
ReLU6."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from retroact.spec import spec

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, maps, blocks, and stride of the first block, per stage; 32x32 pixels until the third
stage."""


@spec
class MobileNetV2:
    """conv 3→32 | BN | A, 17 inverted residual blocks, conv 320→1280 | BN | A | mean over the map |
    fc 10.

    2,296,922 parameters, 36 sites; (n, 3, 32, 32) to (n, 10). With stride 1 a block always has its
    shortcut: the identity, or a 1x1 conv with BN where the number of maps changes.
    """

    def __call__(self) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, 3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(32),
                conv1_relu=nn.ReLU(),
                blocks=_blocks(),
                conv2=nn.Conv2d(320, 1280, 1, bias=False),
                bn2=nn.BatchNorm2d(1280),
                conv2_relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(1280, 10),
            )
        )


def _blocks() -> nn.Sequential:
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    before = 32
    for expansion, maps, count, stride in STAGES:
        for i in range(count):
            blocks[f"block{len(blocks) + 1}"] = _InvertedResidual(
                before, maps, expansion, stride if i == 0 else 1
            )
            before = maps
    return nn.Sequential(blocks)


class _InvertedResidual(nn.Module):
    """1x1 conv up | BN | A | 3x3 depthwise conv | BN | A | 1x1 conv down | BN, plus the
    shortcut."""

    def __init__(self, before: int, maps: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = before * expansion
        self.conv1 = nn.Conv2d(before, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(wide, maps, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(maps)
        self.shortcut = _shortcut(before, maps) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        inside: Tensor = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        inside = self.bn3(self.conv3(inside))
        return inside if self.shortcut is None else inside + self.shortcut(x)


def _shortcut(before: int, maps: int) -> nn.Sequential:
    if before == maps:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(before, maps, 1, bias=False), nn.BatchNorm2d(maps))
