"""Half: a network that computes in sixteen bits."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from retroact.changing.change import Change
from retroact.nets.data import Images
from retroact.spec import spec


@spec
class Half(Change):
    """Every weight and every number on the way in `dtype`, images and logits too."""

    dtype: Literal["float16", "bfloat16"] = "float16"

    def change(self, net: nn.Module, train: Images | None) -> nn.Module:
        return net.to(getattr(torch, self.dtype))

    def shell(self, module: nn.Module) -> nn.Module:
        return module.to(getattr(torch, self.dtype))
