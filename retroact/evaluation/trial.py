"""What a gradient of a network takes, tried on drawn examples before what is dear begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retroact.crafting.attack import CHUNK
from retroact.crafting.oracle import device_of, in_float
from retroact.ground import neutral

_LONG = 0.3  # seconds: of a network that is slower fewer examples are tried


@dataclass(frozen=True)
class Trial:
    """What one gradient takes of each example: `seconds`, and `bytes` kept for the way back."""

    seconds: float
    bytes: float


@neutral()
def try_gradient(network: nn.Module, shape: Sequence[int], most: int = CHUNK) -> Trial:
    """Gradients of `network` at drawn examples of `shape`: one example first, twice where it is
    quick, as the first time pays for what is paid once; it says how many of `most` are quickly
    done. Then those, twice: what they keep, and what they take."""
    drawn, device = torch.Generator().manual_seed(0), device_of(network)
    images = torch.rand(most, *shape, generator=drawn).to(device)
    first = _time(lambda: _differentiate(network, images[:1]))
    if first < _LONG:
        first = min(first, _time(lambda: _differentiate(network, images[:1])))
    n = max(1, min(most, int(_LONG / first)))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    owned = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        seconds = _time(lambda: _differentiate(network, images[:n]))
    if seconds < _LONG:
        seconds = min(seconds, _time(lambda: _differentiate(network, images[:n])))
    held = sum(size for place, size in kept.items() if place not in owned)
    return Trial(seconds / n, held / n)


def _differentiate(network: nn.Module, images: Tensor) -> None:
    x = images.clone().requires_grad_()
    summed = in_float(network, x).sum()
    if summed.requires_grad:  # scores of a file have no slope
        torch.autograd.grad(summed, x)
    if x.is_cuda:
        torch.cuda.synchronize()


def _time(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
