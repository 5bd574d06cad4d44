"""Folding: the same function with the slopes moved into the biases, exactly.

A ReLU net is positively homogeneous: relu(s z) = s relu(z) for s > 0. So where a net carries s
times the tensor of its folded copy, every layer says what becomes of s:
    conv, linear   W(s x) + b = s (W x + b/s)                    the bias is divided
    batch norm     the same with its running mean and its bias
    α max(0, ·)    α max(0, s z) = (α s) max(0, z)               ReLU, and s grows by α
    jump at κ      J_κ(s z) = s J_{κ/s}(z)                       the jump stays, its κ is divided
    min(·, cap)    min(s z, cap) = s min(z, cap/s)               so is a cap
    pooling, dropout, flatten, sums of equal s                   nothing
After L slopes the biases of layer l are b_l/α^(l-1), and the logits are those of the copy times
α^L. The copy is what an attack needs (nothing saturates), and it costs what a ReLU net costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import ChannelShift
from retroact.activations.per_site import PerSite
from retroact.doors import named
from retroact.ground import neutral
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.installed import Installed, installed
from retroact.retrofitting.rerouting import reroutings
from retroact.retrofitting.tracing import keep_attributes, trace
from retroact.spec import is_spec

_LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLS = tuple(
    getattr(nn, f"{kind}{d}d")
    for kind in ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
    for d in (1, 2, 3)
)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SHAPES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.ZeroPad2d, nn.PixelShuffle)
_PASSING = (*_POOLS, *_DROPOUTS, *_SHAPES, nn.ReLU, nn.LeakyReLU)
"""Modules with f(s x) = s f(x)."""

_PASSING_CALLS = {
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"),
    *("flatten", "unflatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze"),
    *("contiguous", "clone", "mean", "sum", "amax", "amin", "relu", "getitem", "chunk"),
    *("add", "iadd", "sub", "isub", "cat", "concat", "stack", "maximum", "minimum"),
}
"""Functions and methods with f(s x, s y) = s f(x, y)."""

_FACTORS = {"mul", "imul", "truediv", "itruediv", "div"}
_READS_A_SHAPE = {"size", "dim", "getattr", "numel"}


class FoldError(ValueError):
    """The net does not fold: a slope meets an operation that it cannot be moved through."""


@neutral()
def fold(net: str | PathLike[str] | nn.Module, *, scaled: bool = True) -> nn.Module:
    """A copy of a retrofitted net without slopes that computes the same function in eval mode.

    SReLU becomes ReLU; a jump and a cap stay, rescaled; the shifts of ShiftedReLU move into the
    bias of the layer before, if only pooling lies between, and stay rescaled elsewhere. With
    `scaled=False` the logits stay divided by the product of the slopes, as attacks want them; the
    product is the copy's `logit_scale` either way. Wrappers with one `.module` are kept.

    Raises FoldError where slopes other than 1 meet a skip connection, an operation that is not
    homogeneous, or a layer called twice under different slopes, and where the net does not trace.
    """
    net = cast(nn.Module, named(net))
    copy = deep_copy(net)
    inner = _innermost(copy)
    graph = None if reroutings(net) else trace(deep_copy(inner))
    if graph is None:
        raise FoldError(
            f"{type(inner).__name__} does not trace (it branches, has hooks or state), so it cannot"
            " be folded; attack it with a scale-free loss, such as the margin, instead"
        )
    folding, nodes = _Folding(inner, graph), list(graph.graph.nodes)
    for node in nodes:
        folding.visit(node)
    if scaled:
        folding.scale_logits(nodes[-1])
    keep_attributes(copy, {"logit_scale": folding.scales[nodes[-1]], **_retrofit_of(copy, net)})
    return copy


def _innermost(net: nn.Module) -> nn.Module:
    """The net inside its wrappers: all that is installed lies in there."""
    while isinstance(inner := net._modules.get("module"), nn.Module) and installed(
        inner
    ) == installed(net):
        net = inner
    return net


def _retrofit_of(copy: nn.Module, net: nn.Module) -> dict[str, object]:
    """The copy's `retrofit`; None where shifts stay behind, which no spec names."""
    before = getattr(net, "retrofit", None)
    if before is None:
        return {}
    each = tuple(module.activation for module in installed(copy).values())
    specs = tuple(a for a in each if isinstance(a, Activation) and is_spec(a))
    if len(specs) < len(each):
        return {"retrofit": None}
    activation = specs[0] if len(set(specs)) == 1 else PerSite(specs)
    return {"retrofit": replace(before, activation=activation)}


# ----------------------------------------------------------------------------------------- the walk


@dataclass
class _Folding:
    """Follows the factor s of every node through the graph and changes the modules of `net` to
    match."""

    net: nn.Module
    graph: fx.GraphModule
    scales: dict[fx.Node, float] = field(default_factory=dict)
    layers: dict[str, float] = field(default_factory=dict)

    def visit(self, node: fx.Node) -> None:
        """Settles the factor of the node's output."""
        self.scales[node] = self._factor_after(node)

    def _factor_after(self, node: fx.Node) -> float:
        if node.op in ("placeholder", "get_attr"):
            return 1.0
        name = str(getattr(node.target, "__name__", node.target)).strip("_")
        if node.op != "call_module" and name in _READS_A_SHAPE:
            return 1.0
        s = self._common_factor(node)
        if node.op == "output":
            return s
        if node.op == "call_module":
            return self._pass_module(node, self._module_at(node), s)
        passes = name in _PASSING_CALLS and not (s != 1.0 and _adds_a_number(node, name))
        scaled_by_number = name in _FACTORS and len(node.all_input_nodes) == 1
        return s if passes or scaled_by_number or _is_dropout(name) else self._refuse(node, s)

    def _module_at(self, node: fx.Node) -> nn.Module:
        try:
            return self.net.get_submodule(str(node.target))
        except AttributeError:  # functional dropout is a module in the graph only
            return self.graph.get_submodule(str(node.target))

    def _common_factor(self, node: fx.Node) -> float:
        """The one factor of all inputs."""
        inputs = [n for n in node.all_input_nodes if not _reads_a_shape(n)]
        factors = {self.scales[n] for n in inputs} or {1.0}
        if len(factors) > 1:
            raise FoldError(
                f"at {node.name!r} tensors with {len(factors)} different slopes behind them meet (a"
                f" skip connection): {', '.join(f'{n.name} {self.scales[n]:g}' for n in inputs)}; a"
                " net folds where all slopes on its skips are 1, otherwise attack it with a"
                " scale-free loss"
            )
        return factors.pop()

    def _pass_module(self, node: fx.Node, module: nn.Module, s: float) -> float:
        path = str(node.target)
        if isinstance(module, Installed):
            return self._pass_activation(node, module, s)
        if type(module) in _PASSING:
            return s
        if self.layers.setdefault(path, s) != s:
            raise FoldError(
                f"layer {path!r} is called under different slopes; give each call its own layer"
            )
        if type(module) in _LAYERS:
            _divide(module, "bias", s)
        elif type(module) in _NORMS and module.running_mean is not None:
            _divide(module, "running_mean", s)
            _divide(module, "bias", s)
        else:
            return self._refuse(node, s)
        return s

    def _pass_activation(self, node: fx.Node, module: Installed, s: float) -> float:
        if self.layers.setdefault(str(node.target), s) != s:
            raise FoldError(f"site {module.site.name!r} is called under different slopes")
        folded = module.folded(s)
        if folded is None:
            return self._refuse(node, s)
        activation, factor, shift = folded
        if shift is not None and not self._move_into_bias(node, shift):
            activation = ChannelShift(shift.to(next(self.net.parameters(), shift)), activation)
        module.become(activation)
        return factor

    def _move_into_bias(self, node: fx.Node, shift: Tensor) -> bool:
        """Adds the shift at `node` to the bias before it; False where no bias can take it."""
        layer = self._layer_before(node)
        if layer is None or not _takes(layer, shift):
            return False
        _add_to_bias(layer, shift)
        return True

    def _layer_before(self, node: fx.Node) -> nn.Module | None:
        """The layer whose bias a shift at `node` can join: only what commutes with a shift lies
        between."""
        before = node.all_input_nodes[0]
        while len(before.users) == 1 and before.op == "call_module":
            module = self._module_at(before)
            if type(module) in (*_LAYERS, *_NORMS):
                calls = [
                    n
                    for n in node.graph.nodes
                    if n.op == "call_module" and n.target == before.target
                ]
                return module if len(calls) == 1 else None
            if type(module) not in _POOLS or _averages_padding(module):
                return None
            before = before.all_input_nodes[0]
        return None

    def scale_logits(self, output: fx.Node) -> None:
        """Gives the last layer the factor that its logits lack."""
        s = self.scales[output]
        if s == 1.0:
            return
        last = output.all_input_nodes[0]
        module = self._module_at(last) if last.op == "call_module" else None
        if len(output.all_input_nodes) != 1 or len(last.users) != 1 or type(module) not in _LAYERS:
            raise FoldError(
                f"the net ends in {last.name!r}, which cannot take the factor {s:g} of its logits; "
                "fold(net, scaled=False) leaves it out, and `logit_scale` says it"
            )
        assert module is not None
        _divide(module, "weight", 1.0 / s)
        _divide(module, "bias", 1.0 / s)

    def _refuse(self, node: fx.Node, s: float) -> float:
        if s != 1.0:
            raise FoldError(
                f"at {node.name!r} ({node.target}) a factor {s:g} cannot be moved through; a net"
                " folds if it is made of layers, batch norm, pooling, dropout and piecewise"
                " activations"
            )
        return 1.0


# ---------------------------------------------------------------------------------------- one piece


def _divide(module: nn.Module, name: str, s: float) -> None:
    """Divides a parameter or buffer, in float64, which a quotient of 1e8 needs."""
    tensor = getattr(module, name, None)
    if tensor is None or s == 1.0:
        return
    _set(module, name, (tensor.detach().double() / s).to(tensor))


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(module, name, None)
    if name in module._buffers:
        module._buffers[name] = value
    else:  # a new parameter, as the old one may be tied to another layer
        setattr(module, name, nn.Parameter(value, requires_grad=old is None or old.requires_grad))


def _takes(layer: Any, shift: Tensor) -> bool:
    """Whether the bias of a layer or norm has one number for each of the shift."""
    sizes = (getattr(layer, word, None) for word in ("out_features", "out_channels"))
    size = next((s for s in sizes if s is not None), getattr(layer, "num_features", 0))
    return bool(size == len(shift)) and not (type(layer) in _NORMS and layer.bias is None)


def _add_to_bias(layer: Any, shift: Tensor) -> None:
    like = layer.weight
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach().double()
    _set(layer, "bias", (bias + shift.to(bias)).to(like))


def _averages_padding(pool: nn.Module) -> bool:
    padded = getattr(pool, "padding", 0) not in (0, (0,), (0, 0), (0, 0, 0))
    return type(pool) in _AVERAGES and padded


def _reads_a_shape(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and (
        str(getattr(node.target, "__name__", node.target)).strip("_") in _READS_A_SHAPE
    )


def _is_dropout(name: str) -> bool:
    return name.endswith("dropout") or name.startswith("dropout")


def _adds_a_number(node: fx.Node, name: str) -> bool:
    if name not in ("add", "iadd", "sub", "isub"):
        return False
    return any(isinstance(a, int | float) and a != 0 and not math.isnan(a) for a in node.args)
