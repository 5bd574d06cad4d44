"""Pruned: the smallest weights of a network are zero."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from retroact.changing.change import Change
from retroact.nets.data import Images
from retroact.spec import Within, spec

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@spec
class Pruned(Change):
    """w · 1[|w| > t]: of the weights of all convolutions and linear layers the `share` that is
    smallest in size becomes 0 (magnitude pruning; Han et al. 2015, arXiv:1506.02626), without
    training afterwards.

    t is one threshold for the whole network, or with `across="layer"` one for each layer. Biases
    and norms stay.
    """

    share: Annotated[float, Within(0.0, 1.0)] = 0.5
    across: Literal["network", "layer"] = "network"

    def change(self, net: nn.Module, train: Images | None) -> nn.Module:
        every = (m.weight for m in net.modules() if type(m) in LAYERS)
        weights = list({id(w): w for w in every if isinstance(w, Tensor)}.values())
        if not weights:
            raise ValueError(
                f"{type(net).__name__} has no convolution and no linear layer to prune"
            )
        groups = [weights] if self.across == "network" else [[w] for w in weights]
        for group in groups:
            prune(group, self.share)
        return net


def prune(weights: list[Tensor], share: float) -> None:
    """Sets the `share` of all entries together that is smallest in size to 0, in place; of equal
    ones the first."""
    sizes = torch.cat([w.detach().abs().flatten().float() for w in weights])
    smallest = sizes.argsort(stable=True)[: round(share * len(sizes))]
    dropped = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
    dropped[smallest] = True
    for w, part in zip(weights, dropped.split([w.numel() for w in weights]), strict=True):
        w.data.masked_fill_(part.view_as(w), 0.0)
