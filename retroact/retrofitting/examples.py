"""Examples: what goes into a net in a trial run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Inputs = tuple[Any, ...]
"""What a net is called with: tensors as a rule."""

Example = Tensor | Inputs
"""One input, or all of them."""


def example_for(net: nn.Module, example: Example | None) -> Inputs:
    """The inputs of a trial run: the example, or noise of the net's shape, device and dtype."""
    if example is not None:
        return example if isinstance(example, tuple) else (example,)
    shapes = (getattr(module, "shape", None) for module in unwrapped(net))
    shape = next((s for s in shapes if s is not None), None)
    if shape is None:
        raise ValueError(
            f"{type(net).__name__} does not say the shape of its input; say it, Classifier(net,"
            " shape=(c, h, w)) (--shape C,H,W), or pass example=, a batch of two of its inputs,"
            " such as example=torch.rand(2, 3, 32, 32)"
        )
    return noise_for(net, shape)


def noise_for(net: nn.Module, shape: Sequence[int]) -> Inputs:
    """Two examples of noise (2, …) of a shape for a trial run, of the net's device and dtype."""
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    cpu = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.rand((2, *shape), generator=cpu, dtype=torch.float32, device="cpu")
    return (noise if like is None else noise.to(device=like.device, dtype=like.dtype),)


def fresh(inputs: Inputs) -> Inputs:
    """Copies of the tensors in an example, for a trial run that may write to them."""
    copies: Inputs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), inputs)
    return copies


def unwrapped(net: nn.Module) -> Iterator[nn.Module]:
    """The net, and what lies inside its wrappers with one `.module`, from outside in."""
    yield net
    while isinstance(inner := net._modules.get("module", net._modules.get("_orig_mod")), nn.Module):
        net = inner
        yield net
