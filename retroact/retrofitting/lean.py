"""Lean copies: what an attack calls ten thousand times, made cheap once.

In eval mode a batch norm after a layer is a linear map of its outputs, γ (W x + b − μ) / √(σ² + ε) + β, so it
moves into W and b; on a CPU, convolutions and pooling are faster on images whose channels lie next to each
other; and an attack asks for the gradient of the pixels only. The copy computes the same function but for
the rounding of floats, so who needs the last bit asks the net itself.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from retroact.retrofitting.rerouting import reroutings
from retroact.retrofitting.sites import copied
from retroact.retrofitting.tracing import traced

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def lean(net: nn.Module) -> nn.Module:
    """A frozen copy of `net` in eval mode, with batch norms folded and, on a CPU, weights in channels_last.

    Batch norms are folded where the net traces and a norm alone reads a layer's output. A net that
    cannot be copied is returned as it is.
    """
    try:
        made = copied(net).eval().requires_grad_(False)
    except ValueError:
        return net
    if any(isinstance(m, _NORMS) for m in made.modules()):
        _fold_norms(made)
    return made.to(memory_format=torch.channels_last) if _on_cpu(made) else made  # type: ignore[call-overload, no-any-return]


def _on_cpu(net: nn.Module) -> bool:
    return all(p.device.type == "cpu" for p in net.parameters())


def _fold_norms(net: nn.Module) -> None:
    graph = None if reroutings(net) else traced(net)
    if graph is None:
        return
    calls = Counter(n.target for n in graph.graph.nodes if n.op == "call_module")
    for node in graph.graph.nodes:
        layer = _layer_read_by(node, net)
        if layer is None or calls[node.target] > 1 or calls[layer.target] > 1:
            continue
        folded = _folded(net.get_submodule(str(layer.target)), net.get_submodule(str(node.target)))
        if folded is not None:
            net.set_submodule(str(layer.target), folded)
            net.set_submodule(str(node.target), nn.Identity())


def _layer_read_by(node: fx.Node, net: nn.Module) -> fx.Node | None:
    """The module call whose output this module alone reads, dropout aside; None where there is none."""
    if node.op != "call_module":
        return None
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        if node.op != "call_module" or len(node.users) > 1:
            return None
        if not isinstance(net.get_submodule(str(node.target)), _DROPOUTS):
            return node
    return None


def _folded(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    """The layer with the norm in it, or None where these two do not make one layer."""
    if type(norm) not in _NORMS or type(layer) not in (*_CONVS, nn.Linear):
        return None
    statistics, weight = norm.running_mean, layer.weight
    # Without statistics a norm asks the batch; and half floats, rounded again, would be another network.
    if statistics is None or statistics.dtype != weight.dtype or weight.dtype not in (torch.float32, torch.float64):
        return None
    if type(layer) is nn.Linear:
        return fuse_linear_bn_eval(layer, norm)  # type: ignore[arg-type]
    return fuse_conv_bn_eval(layer, norm)  # type: ignore[type-var, arg-type]
