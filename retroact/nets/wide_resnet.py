"""The wide residual net of Erichson et al. 2019 (JumpReLU) for CIFAR-10.

The paper calls it 30-4, after the 30 convs in its blocks; by the usual count (Zagoruyko & Komodakis
2016) it is WRN-34-4. Two habits differ from the usual net and are kept: every conv has a bias, and
the stride sits on the second conv of a block.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from torch import Tensor, nn

from retroact.spec import Count, SpecError, UnitInterval, Within, spec


@spec
class WideResNet:
    """conv 3→16, three groups of (depth - 4) / 6 blocks, BN | A | mean over the map | fc 10.

    The groups have 16, 32, 64 times `widen` maps. Depth 34, widen 4: 7,404,074 parameters, 31
    sites; (n, 3, 32, 32) to (n, 10). A depth that is not 6 N + 4 raises SpecError.
    """

    depth: Annotated[int, Within(10, 1000)] = 34
    widen: Count = 4
    dropout: UnitInterval = 0.0

    def __post_init__(self) -> None:
        if (self.depth - 4) % 6:
            raise SpecError(
                f"WideResNet.depth: expected 6 N + 4 (10, 16, 22, 28, 34, …), got {self.depth}"
            )

    def __call__(self) -> nn.Sequential:
        maps = [16 * self.widen, 32 * self.widen, 64 * self.widen]
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, 16, 3, padding=1),
                group1=self._group(16, maps[0], stride=1),
                group2=self._group(maps[0], maps[1], stride=2),
                group3=self._group(maps[1], maps[2], stride=2),
                bn=nn.BatchNorm2d(maps[2], momentum=0.9),
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(maps[2], 10),
            )
        )

    def _group(self, before: int, maps: int, stride: int) -> nn.Sequential:
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for i in range((self.depth - 4) // 6):
            first = i == 0
            blocks[f"block{i + 1}"] = _WideBlock(
                before if first else maps, maps, stride if first else 1, self.dropout
            )
        return nn.Sequential(blocks)


class _WideBlock(nn.Module):
    """conv(A(BN(dropout(conv(A(BN(x))))))) + shortcut(x), the stride on the second conv."""

    def __init__(self, before: int, maps: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(before, maps, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.bn2 = nn.BatchNorm2d(maps)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(maps, maps, 3, stride, padding=1)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != maps:
            self.shortcut = nn.Sequential(nn.Conv2d(before, maps, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.dropout(self.conv1(self.relu1(self.bn1(x))))
        out: Tensor = self.conv2(self.relu2(self.bn2(inside))) + self.shortcut(x)
        return out
