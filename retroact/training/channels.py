"""On which axis of an activation's input its channels lie: axis 1 after a convolution, the last one
after a product with a matrix, as in a transformer, where axis 1 counts tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from retroact.crafting.oracle import in_float
from retroact.retrofitting.installed import installed

_PRODUCTS = ("linear", "bilinear", "matmul", "__matmul__", "mm", "bmm", "addmm", "einsum")


class _Watch(TorchFunctionMode):
    """Where the channels are of what the last layer gave."""

    axis = 1

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS:
            self.axis = -1
        elif name.startswith("conv"):
            self.axis = 1
        return func(*args, **(kwargs or {}))


def channels_of(net: nn.Module, example: Tensor) -> dict[str, tuple[int, int]]:
    """Of each installed activation that `net` calls on `example` (n, …), by site: the axis of the
    channels of its input, and how many there are."""
    found: dict[str, tuple[int, int]] = {}
    with _Watch() as watch, torch.no_grad():

        def look(site: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def see(module: nn.Module, args: tuple[Any, ...]) -> None:
                found[site] = watch.axis, args[0].shape[watch.axis]

            return see

        hooks = [m.register_forward_pre_hook(look(site)) for site, m in installed(net).items()]
        try:
            in_float(net, example)
        finally:
            for hook in hooks:
                hook.remove()
    return found
