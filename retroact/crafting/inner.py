"""The logits inside: what is climbed where the size of the logits leads attacks astray.

A network that multiplies its logits by a positive number that depends on the image, or that makes
them smaller the surer they are, decides as it did before. The margin of the logits that it gives
changes with that number as much as with what decides, so whoever climbs it climbs the number. Two
ways around it: the margin over the spread of the logits, which no positive factor changes, and the
logits of the last layer with weights, in the network's traced computation, without what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, fx, nn

from retroact.crafting.derived import AFFINE, Traced, copy_graph, moving_nodes, shape_of
from retroact.crafting.geometry import nonzero
from retroact.crafting.losses import spread
from retroact.crafting.oracle import Network, in_float

_ATEN = torch.ops.aten
_WEIGHTS = {_ATEN.mm.default: 1, _ATEN.addmm.default: 2}
"""Linear layers, and which argument holds the weights."""
_VIEWS = {_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.squeeze.dim, _ATEN.clone.default}


class OverSpread(nn.Module):
    """The logits of `network` over their spread: the same decisions, whatever their size."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = in_float(self.network, x)
        return logits / nonzero(spread(logits))[:, None]


def end_in_last_layer(traced: Traced) -> Traced | None:
    """The computation up to the last linear layer that gives a number for each class; None where
    nothing but affine calls follows, or where no such layer sees all the others of its kind, as in
    a mean of several networks."""
    graph = fx.GraphModule(traced.graph, copy_graph(traced.graph.graph))
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    logits, moving = output.args[0], moving_nodes(graph.graph)
    if not isinstance(logits, fx.Node):
        return None
    layers = {node for node in _behind(logits) if _is_layer(node, moving, shape_of(logits))}
    last = next((node for node in layers if layers <= _behind(node)), None)
    if last is None or _only_scales(last, logits, moving):
        return None
    output.args = (last,)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Traced(graph, traced.batch, None)


def _behind(node: fx.Node) -> set[fx.Node]:
    """The node, and all that it is computed of."""
    return _walk(node, lambda one: one.all_input_nodes)


def _walk(node: fx.Node, on: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found, waiting = {node}, [node]
    while waiting:
        for one in on(waiting.pop()):
            if one not in found:
                found.add(one)
                waiting.append(one)
    return found


def _is_layer(node: fx.Node, moving: set[fx.Node], shape: tuple[object, ...] | None) -> bool:
    at = _WEIGHTS.get(node.target)  # type: ignore[call-overload]
    if at is None or node not in moving or shape is None or len(shape) != 2:
        return False
    known = shape_of(node)
    return known is not None and known[1:] == shape[1:] and node.args[at] not in moving


def _only_scales(layer: fx.Node, logits: fx.Node, moving: set[fx.Node]) -> bool:
    """Whether the logits are the layer's, but for views and calls that are affine in it alone."""
    between = _behind(logits) & _walk(layer, lambda node: node.users) - {layer}
    return all(
        node.target in AFFINE | _VIEWS and len(set(node.all_input_nodes) & moving) == 1
        for node in between
    )
