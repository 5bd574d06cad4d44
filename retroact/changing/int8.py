"""Int8: a network as it runs in eight bits, with a gradient.

Runtimes for integers give no gradient, so what is quantised is computed in floats: every number is
one of the 256 that the runtime has (fake quantisation; Jacob et al. 2018, arXiv:1712.05877). As the
reference runtime for ONNX does by default, weights are symmetric with a scale for each output
channel, and what flows between layers has a zero point and one scale, by the least and the largest
value that calibration saw.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from retroact.activations.surrogate import through
from retroact.changing.change import Change, inside
from retroact.changing.pruned import LAYERS
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images
from retroact.spec import spec

_CHUNK = 256
_LEVELS = 255
_PRODUCTS = {"conv1d", "conv2d", "conv3d", "linear", "matmul", "bmm", "addmm", "einsum"}
_PRODUCTS |= {"scaled_dot_product_attention", "multi_head_attention_forward"}


@spec
class Int8(Change):
    """Q(w) * Q(x) + b in the place of w * x + b in every convolution and linear layer, Q(x) = s
    (clamp(round(x/s) + z, 0, 255) - z) with the range of training data, Q(w_c) = s_c round(w_c/s_c)
    with s_c = max|w_c|/127 for each output channel c; logits that are a tensor likewise.

    It needs some hundred training images. The backward pass is straight through: 1 where x lies in
    the range, else 0. Products that are no module (attention) stay in floats, and a note of the
    network says so.
    """

    learns = True

    def change(self, net: nn.Module, train: Images | None) -> nn.Module:
        assert train is not None
        layers = {m: _Range() for m in inside(net).modules() if type(m) in LAYERS}
        logits, calls, products = _Range(), Counter[nn.Module](), Counter[str]()
        hooks = [m.register_forward_pre_hook(_noting(seen, calls)) for m, seen in layers.items()]
        try:
            with _Counting(products):
                for part in train.images.split(_CHUNK):
                    logits.see(net(part.to(*_place_of(net), copy=True)))
        finally:
            for hook in hooks:
                hook.remove()
        if not calls:
            raise ValueError(f"{type(net).__name__} calls no convolution and no linear layer")
        _say_what_is_left(net, sum(products.values()) - sum(calls.values()), train)
        made = _put_in(inside(net), {m: seen for m, seen in layers.items() if calls[m]}, logits)
        if not isinstance(net, Classifier):
            return made
        net.module = made
        return net

    def shell(self, module: nn.Module) -> nn.Module:
        some = {m: _Range(0.0, 1.0) for m in module.modules() if type(m) in LAYERS}
        return _put_in(module, some, _Range(0.0, 1.0))


class Grid(nn.Module):
    """s (clamp(round(x/s) + z, 0, 255) - z), with the derivative 1 within its range and 0 beyond;
    `step` s and `zero` z are scalars."""

    step: Tensor
    zero: Tensor

    def __init__(self, least: float, most: float) -> None:
        super().__init__()
        least, most = min(least, 0.0), max(most, 0.0)  # 0 is one of the values: padding is exact
        step = max(most - least, 1e-12) / _LEVELS
        self.register_buffer("step", torch.tensor(step))
        self.register_buffer("zero", torch.tensor(float(round(-least / step))))

    def exact(self, x: Tensor) -> Tensor:
        """The nearest value on the grid."""
        levels = (torch.round(x / self.step) + self.zero).clamp(0.0, float(_LEVELS))
        return (levels - self.zero) * self.step

    def derivative(self, x: Tensor) -> Tensor:
        """Straight through."""
        levels = torch.round(x / self.step) + self.zero
        return ((levels >= 0.0) & (levels <= _LEVELS)).to(x)

    def forward(self, x: Tensor) -> Tensor:
        return through(self, x)


class Int8Layer(nn.Module):
    """A convolution or linear layer of eight bits: `layer`, whose weights lie on their grids, of
    what lies on `grid`."""

    def __init__(self, layer: nn.Module, seen: _Range) -> None:
        super().__init__()
        assert isinstance(layer.weight, Tensor)
        self.grid = Grid(seen.least, seen.most)
        self.layer = layer
        self.layer.weight = nn.Parameter(_on_grid(layer.weight.detach()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.grid(x))
        return out


class Int8Net(nn.Module):
    """A net whose logits lie on a grid."""

    def __init__(self, net: nn.Module, seen: _Range) -> None:
        super().__init__()
        self.net, self.grid = net, Grid(seen.least, seen.most)

    def forward(self, x: Tensor) -> Any:
        out = self.net(x)
        return self.grid(out) if isinstance(out, Tensor) else out


def _on_grid(w: Tensor) -> Tensor:
    """Every output channel (axis 0) of a weight as the nearest of 255 values around 0."""
    size = w.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, *[1] * (w.dim() - 1))
    step = size / 127.0
    return torch.round(w / step).clamp(-127.0, 127.0) * step


# ------------------------------------------------------------------------------------- calibration


@dataclass
class _Range:
    """The least and the largest number that was seen."""

    least: float = torch.inf
    most: float = -torch.inf

    def see(self, x: Tensor) -> None:
        self.least, self.most = min(self.least, float(x.min())), max(self.most, float(x.max()))


def _noting(seen: _Range, calls: Counter[nn.Module]) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.see(args[0])
        calls[module] += 1

    return hook


class _Counting(TorchFunctionMode):
    """Counts the products that are computed, by module or not."""

    def __init__(self, products: Counter[str]) -> None:
        super().__init__()
        self._products = products

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = (resolve_name(func) or getattr(func, "__name__", "")).split(".")[-1].strip("_")
        self._products[name] += name in _PRODUCTS
        return func(*args, **(kwargs or {}))


def _put_in(module: nn.Module, layers: dict[nn.Module, _Range], logits: _Range) -> nn.Module:
    """The module with layers of eight bits, each made once however often it is called."""
    made = {layer: Int8Layer(layer, seen) for layer, seen in layers.items()}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child in made:
                setattr(parent, name, made[child])
    return Int8Net(made.get(module, module), logits)


def _say_what_is_left(net: nn.Module, count: int, train: Images) -> None:
    chunks = -(-len(train.images) // _CHUNK)
    if count > 0 and isinstance(net, Classifier):
        net.notes += (f"{count // chunks} products of each pass are no module and stay in floats",)


def _place_of(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    p = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    return p.device, p.dtype
