"""Lean forms: copies of a net that compute the same and cost less, what an attack calls ten
thousand times.

In eval mode a batch norm after a layer is a linear map of its outputs, γ (W x + b − μ) / √(σ² + ε)
+ β, so it moves into W and b; on a CPU, convolutions and pooling are faster on images whose
channels lie next to each other; and an attack asks for the gradient of the pixels only. A form
computes the same function but for the rounding of floats, so who needs the last bit asks the net
itself. Whether it does is not taken on trust: `evaluation.proof` compares it with the net, and the
form that comes first here is tried first there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from retroact.doors import logits_in
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.examples import example_for
from retroact.retrofitting.rerouting import reroutings
from retroact.retrofitting.tracing import trace

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_RANK: dict[type, int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
"""Of a layer's output, batch included, where axis 1 is the axis of its output channels."""


Folds = tuple[tuple[str, str], ...]
"""The pairs (layer, norm) of a net, by path, in which the norm may move into the layer."""


@dataclass(frozen=True)
class Form:
    """A way to make a net leaner; called on one, it gives a frozen copy in eval mode that should
    compute the same.

    `folds` are the pairs in which a norm moves into a layer; with `channels_last` weights of rank 4
    lie so.
    """

    folds: Folds = ()
    channels_last: bool = False

    def __call__(self, net: nn.Module) -> nn.Module:
        """The copy. Raises ValueError for a net that cannot be copied."""
        copy = _fold(_silence(deep_copy(net).eval().requires_grad_(False)), self.folds)
        return in_channels_last(copy) if self.channels_last else copy

    def __str__(self) -> str:
        return (
            ", ".join(["folded"] * bool(self.folds) + ["channels last"] * self.channels_last)
            or "frozen"
        )


def forms(net: nn.Module, example: Tensor) -> list[Form]:
    """The forms that `net` may have, the leanest first; none where it cannot be copied.

    `example` is a batch of inputs, on the net's device.
    """
    folds = folds_of(net, example)
    return [] if folds is None else forms_with(net, folds, example)


def forms_with(net: nn.Module, folds: Folds, example: Tensor) -> list[Form]:
    """`forms` of a net whose `folds` are known."""
    ways = [
        (f, last)
        for last in ([True, False] if _gains_by_channels_last(net, example) else [False])
        for f in (folds, ())
    ]
    return [Form(*way) for way in dict.fromkeys(ways)]


def lean(net: nn.Module, example: Tensor | None = None) -> nn.Module:
    """The leanest form of `net` that gives its outputs on `example` but for rounding; the net
    itself where none does.

    `example` is a batch of inputs, by default seeded noise of the net's `shape`. A look at one
    form: what attacks run on is proved on the images of a run.
    """
    (x,) = example_for(net, example)
    for form in forms(net, x):
        try:
            with torch.no_grad():
                leaner = form(net)
                outputs, expected = (
                    logits_in(n(x.clone()), len(x)) for n in (leaner, deep_copy(net).eval())
                )
        except Exception:  # as in the proof
            continue
        if torch.allclose(
            outputs, expected, rtol=1e-4, atol=1e-4 * float(expected.max() - expected.min())
        ):
            return leaner
    return net


def _silence(net: nn.Module) -> nn.Module:
    """The copy without torch.fx's habit of printing what goes wrong in a graph, beside raising it:
    a form may fail."""
    for module in net.modules():
        if isinstance(module, fx.GraphModule):  # each has a class of its own
            setattr(type(module), "__call__", nn.Module.__call__)  # noqa: B010
    return net


# ----------------------------------------------------------------------------------- channels last


def _gains_by_channels_last(net: nn.Module, example: Tensor) -> bool:
    """Whether the net has convolutions of images, on a CPU."""
    parameters = list(net.parameters())
    here = all(p.device.type == "cpu" for p in parameters)
    return here and example.dim() == 4 and any(p.dim() == 4 for p in parameters)


def in_channels_last(net: nn.Module) -> nn.Module:
    """The net itself, its weights of rank 4 in channels_last from now on."""
    # not net.to(memory_format=…), which also asks tensors of rank 5 and refuses
    for p in net.parameters():
        if p.dim() == 4:
            p.data = p.data.to(memory_format=torch.channels_last)
    return net


# ------------------------------------------------------------------------------------------ folding


def folds_of(net: nn.Module, example: Tensor) -> Folds | None:
    """Which norms may move into which layers, read off the net's trace; None where it cannot be
    copied."""
    try:
        return _folds(deep_copy(net).eval().requires_grad_(False), example)
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        # sealed: scripted, exported, compiled
        return None


def same_layers(net: nn.Module, other: nn.Module) -> bool:
    """Whether both have the same layers and norms under the same names, as a net, its retrofit and
    its fold have, so that the folds of one are those of the other."""
    return not (reroutings(net) or reroutings(other)) and _layers(net) == _layers(other)


def _layers(net: nn.Module) -> dict[str, tuple[object, ...]]:
    """What decides of each layer and norm whether the two can become one, by path."""
    return {
        path: _traits(module)
        for path, module in net.named_modules()
        if type(module) in (*_RANK, *_NORMS)
    }


def _traits(module: Any) -> tuple[object, ...]:
    tensors = (module.weight, getattr(module, "running_mean", None))
    hooked = bool(module._backward_hooks or module._backward_pre_hooks)
    return type(module), hooked, *((t.shape, t.dtype) for t in tensors if t is not None)


def _folds(net: nn.Module, example: Tensor) -> Folds:
    if reroutings(net) or not any(type(m) in _NORMS for m in net.modules()):
        return ()
    graph = trace(deep_copy(net))
    if graph is None:
        return ()
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    read = {str(n.target).rpartition(".")[0] for n in graph.graph.nodes if n.op == "get_attr"}
    pairs = [
        (str(layer.target), str(node.target))
        for node in graph.graph.nodes
        if (layer := _layer_of(node, graph))
    ]
    alone = [pair for pair in pairs if all(calls[path] == 1 and path not in read for path in pair)]
    modules = dict(net.named_modules())
    fitting = [(layer, norm) for layer, norm in alone if _can_merge(modules[layer], modules[norm])]
    ranks = _ranks(net, {layer for layer, _ in fitting}, example)
    return tuple(
        (layer, norm) for layer, norm in fitting if ranks.get(layer) == _RANK[type(modules[layer])]
    )


def _layer_of(node: fx.Node, net: nn.Module) -> fx.Node | None:
    """The layer whose output the norm at `node` alone reads, dropout aside; None where there is
    none."""
    if node.op != "call_module" or type(net.get_submodule(str(node.target))) not in _NORMS:
        return None
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if node.op != "call_module" or len(node.users) > 1:
            return None
        if not isinstance(net.get_submodule(str(node.target)), _DROPOUTS):
            return node
    return None


def _can_merge(layer: Any, norm: Any) -> bool:
    """Whether the norm can move into the layer, if it norms the axis of the layer's channels."""
    if type(layer) not in _RANK or any(
        m._backward_hooks or m._backward_pre_hooks for m in (layer, norm)
    ):
        return False
    # Without statistics a norm asks the batch; and half floats, rounded again, would be another
    # network.
    statistics, weight = norm.running_mean, layer.weight
    exact = weight.dtype in (torch.float32, torch.float64)
    return (
        exact
        and statistics is not None
        and statistics.dtype == weight.dtype
        and len(weight) == len(statistics)
    )


def _ranks(net: nn.Module, paths: set[str], example: Tensor) -> dict[str, int]:
    """The rank of each layer's output on the example: a norm after a Linear may norm tokens, not
    features.

    Empty where there are no layers to ask for, or the net does not run on the example.
    """
    if not paths:
        return {}
    watched, ranks = _silence(deep_copy(net)), dict[str, int]()

    for path in paths:
        watched.get_submodule(path).register_forward_hook(
            lambda module, args, out, path=path: ranks.__setitem__(path, out.dim())
        )
    weight = next((p for p in net.parameters() if p.is_floating_point()), example)
    try:
        with torch.no_grad():
            watched(example.to(weight, copy=True))
    except Exception:  # whatever a stranger's net raises
        return {}
    return ranks


def _fold(net: nn.Module, folds: Folds) -> nn.Module:
    for path, norm in folds:
        layer = net.get_submodule(path)
        fuse: Any = fuse_linear_bn_eval if type(layer) is nn.Linear else fuse_conv_bn_eval
        net.set_submodule(path, fuse(layer, _make_affine(net.get_submodule(norm))))
        net.set_submodule(norm, nn.Identity())
    return net


def _make_affine(norm: Any) -> nn.Module:
    """The norm with a weight and a bias, which torch's folding into a linear layer asks for."""
    if norm.weight is None:
        norm.weight = nn.Parameter(torch.ones_like(norm.running_mean), requires_grad=False)
        norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean), requires_grad=False)
    return norm  # type: ignore[no-any-return]
