"""A network as a straight line of layers: plain numbers and tensors, for who runs it without torch.

Batch norms move into the layers before them where they can; what stands at a site is said by its
ramp, z ↦ min(α z 1[z > κ], cap), and a shift for each channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import ChannelShift
from retroact.activations.surrogate import Surrogate
from retroact.ground import neutral
from retroact.retrofitting.installed import Installed, installed
from retroact.retrofitting.lean import Form, folds_of
from retroact.retrofitting.surgery import retrofit
from retroact.retrofitting.tracing import trace
from retroact.spec import shorten


class NotALineError(ValueError):
    """The network has a layer that a page does not know, or is no straight line of layers."""


@dataclass(frozen=True)
class Layer:
    """One step: what it is called, the shapes that go in and come out (without the batch), its
    settings and its tensors."""

    op: str
    into: tuple[int, ...]
    out: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


Made = tuple[str, dict[str, Any], dict[str, Tensor]]
"""What a step is: its op, its settings, its tensors."""


@neutral()
def layers_of(net: nn.Module, example: Tensor) -> list[Layer]:
    """The layers of `net` in their order, normalisation first; `example` is a batch of inputs.

    A network without a retrofit is read with a ReLU at each of its sites, which is what it
    computes. Raises NotALineError for a layer of another kind and for a network that branches, and
    `NoSitesError` where there is no activation.
    """
    ready = net if installed(net) else retrofit(net, "ReLU()", example=example)
    lean = Form(folds_of(ready, example) or ())(ready)
    graph = trace(lean)
    if graph is None:
        raise NotALineError(
            f"{type(net).__name__} cannot be read as layers: its forward pass branches, draws at"
            " random, or has hooks; write it as a straight line, such as an nn.Sequential"
        )
    reader = _Reader(graph)
    with torch.no_grad():
        reader.run(example.clone())
    if reader.unsupported:
        raise NotALineError(
            f"a page knows convolutions, linear layers, pooling, batch norm and piecewise"
            f" activations in a straight line; this network also has"
            f" {shorten(', '.join(dict.fromkeys(reader.unsupported)))}"
        )
    return reader.layers


class _Reader(fx.Interpreter):
    """Runs a graph on an example and notes each step that changes the tensor."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.layers: list[Layer] = []
        self.unsupported: list[str] = []
        self.at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "placeholder":
            self.at = n
        elif isinstance(out, Tensor) and n.op in ("call_module", "call_function", "call_method"):
            self._note(n, out)
            self.at = n
        return out

    def _note(self, node: fx.Node, out: Tensor) -> None:
        module = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        name = type(module).__name__ if module is not None else _name_of(node)
        read = (
            node.args[:1] if name in _DOORS else node.all_input_nodes
        )  # they ask shapes of others
        moving = [n for n in read if isinstance(n, fx.Node) and self._moves(n)]
        if moving != [self.at]:
            return self.unsupported.append(f"a branch at {node.name}")
        x = self.env[moving[0]]
        made = self._make(node, name, module, x, out)
        if isinstance(made, str):
            return self.unsupported.append(made)
        for op, settings, tensors in made:
            shapes = tuple(x.shape[1:]), tuple(out.shape[1:])
            self.layers.append(Layer(op, *shapes, settings, tensors))

    def _moves(self, node: fx.Node) -> bool:
        return node.op != "get_attr" and isinstance(self.env[node], Tensor)

    def _make(
        self, node: fx.Node, name: str, module: Any, x: Tensor, out: Tensor
    ) -> list[Made] | str:
        """The steps that a node is; a text where it is none that is known."""
        if module is None and name in _AS_MODULES:
            args, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), self.env.__getitem__)
            module = _AS_MODULES[name](*args, **kwargs)
        if module is not None:
            make = _MODULES.get(type(module))
            return f"{name} ({node.target})" if make is None else make(module, x)
        if name in ("flatten", "view", "reshape") and out.shape == (len(x), x[0].numel()):
            return []
        if name in (*_DOORS, "contiguous") and out.shape == x.shape:
            return []
        if name in ("sub", "add", "mul", "truediv") and node.args[0] is self.at:
            number = fx.node.map_arg(node.args[1], self.env.__getitem__)
            return _affine(name, torch.as_tensor(number).double().flatten(), x)
        return name


def _name_of(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).removesuffix("_")


# --------------------------------------------------------------------------------- kinds of layer


def _convolution(m: nn.Conv2d, x: Tensor) -> list[Made] | str:
    if m.padding_mode != "zeros" or isinstance(m.padding, str):
        return f"Conv2d with padding {m.padding!r}, {m.padding_mode}"
    settings = {n: list(getattr(m, n)) for n in ("stride", "padding", "dilation")}
    return [("conv", settings | {"groups": m.groups}, _weights(m))]


def _linear(m: nn.Linear, x: Tensor) -> list[Made] | str:
    return [("linear", {}, _weights(m))] if x.ndim == 2 else "Linear on more than features"


def _weights(m: Any) -> dict[str, Tensor]:
    tensors = {"weight": m.weight.detach()}
    return tensors if m.bias is None else tensors | {"bias": m.bias.detach()}


def _pool(m: Any, x: Tensor) -> list[Made] | str:
    """Pooling by windows; the largest or the mean of each."""
    largest = isinstance(m, nn.MaxPool2d)
    unusual = m.ceil_mode or (largest and _pair(m.dilation) != [1, 1])
    if unusual or getattr(m, "divisor_override", None):
        return f"{type(m).__name__} with ceil_mode, dilation or a divisor of its own"
    settings = {"size": _pair(m.kernel_size), "stride": _pair(m.stride)}
    settings |= {"padding": _pair(m.padding)}
    padded = {} if largest else {"padded": bool(m.count_include_pad)}
    return [("maxpool" if largest else "avgpool", settings | padded, {})]


def _pool_to(m: nn.AdaptiveAvgPool2d, x: Tensor) -> list[Made] | str:
    """Means of windows that tile the image."""
    sizes: Sequence[int | None] = (
        m.output_size
        if isinstance(m.output_size, tuple)
        else (
            m.output_size,
            m.output_size,
        )
    )
    out = [s if want is None else want for s, want in zip(x.shape[2:], sizes, strict=True)]
    if any(s % want for s, want in zip(x.shape[2:], out, strict=True)):
        return f"AdaptiveAvgPool2d from {tuple(x.shape[2:])} to {tuple(out)}"
    size = [s // want for s, want in zip(x.shape[2:], out, strict=True)]
    return [("avgpool", {"size": size, "stride": size, "padding": [0, 0], "padded": True}, {})]


def _norm(m: Any, x: Tensor) -> list[Made] | str:
    """A batch norm that no layer took in, as γ (x − μ) / √(σ² + ε) + β."""
    if m.running_mean is None:
        return "BatchNorm without running statistics"
    scale = (m.running_var.double() + m.eps).rsqrt()
    scale = scale if m.weight is None else scale * m.weight.detach().double()
    shift = -m.running_mean.double() * scale
    shift = shift if m.bias is None else shift + m.bias.detach().double()
    return [("affine", {"scale": scale.tolist(), "shift": shift.tolist()}, {})]


def _affine(name: str, number: Tensor, x: Tensor) -> list[Made] | str:
    """Normalisation: a number, or one for each channel."""
    if len(number) not in (1, x.shape[1]):
        return f"{name} with {len(number)} numbers"
    if name in ("sub", "add"):
        signed = -number if name == "sub" else number
        return [("affine", {"scale": [1.0], "shift": signed.tolist()}, {})]
    scale = 1.0 / number if name == "truediv" else number
    return [("affine", {"scale": scale.tolist(), "shift": [0.0]}, {})]


def _activation(m: Installed, x: Tensor) -> list[Made] | str:
    inner, shift = m.activation, None
    if isinstance(inner, ChannelShift):
        shift, inner = inner.shift, inner.activation
    if isinstance(inner, Surrogate):
        inner = inner.activation
    ramp = inner.ramp if isinstance(inner, Activation) else None
    if ramp is None or (shift is not None and len(shift) != x.shape[1]):
        return f"the activation {m.activation} ({m.site.name})"
    settings: dict[str, Any] = {"alpha": ramp.alpha, "kappa": ramp.kappa, "cap": _finite(ramp.cap)}
    settings |= {"site": m.site.name, "own_cap": _finite(m.site.cap)}
    return [("act", settings, {} if shift is None else {"shift": shift.detach()})]


def _nothing(m: nn.Module, x: Tensor) -> list[Made]:
    return []


def _flatten(m: nn.Flatten, x: Tensor) -> list[Made] | str:
    return [] if m.start_dim == 1 and m.end_dim in (-1, x.ndim - 1) else "Flatten of some axes"


def _finite(cap: float) -> float | None:
    """JSON knows no infinity."""
    return None if math.isinf(cap) else cap


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value, value]


_MODULES: dict[type, Callable[[Any, Tensor], list[Made] | str]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.AdaptiveAvgPool2d: _pool_to,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.Flatten: _flatten,
    Installed: _activation,
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), _nothing),
}
_DOORS = ("_batch_door", "_logits_door")
"""What a classifier asks of its images and its logits."""

_AS_MODULES: dict[str, Callable[..., nn.Module]] = {
    "max_pool2d": nn.MaxPool2d,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
}
