"""The logits inside: what is climbed where the size of the logits leads attacks astray.

A network that multiplies its logits by a positive number that depends on the image, that makes them
smaller the surer they are, or that adds to the largest what it thinks of the image, decides as it
did before. The margin of the logits that it gives changes with that number as much as with what
decides, so whoever climbs it climbs the number. Three ways around it: the margin over the spread of
the logits, which no positive factor changes; how the others stand among themselves, which nothing
that is done to the largest changes; and, in the network's traced computation or as it runs, the
earliest scores of the classes that decide as the answers do, without what follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from retroact.crafting.derived import Traced, copy_graph, copy_sharing, moving_nodes
from retroact.crafting.drawing import drawing
from retroact.crafting.geometry import nonzero
from retroact.crafting.losses import spread
from retroact.crafting.oracle import Network, in_float

ALIKE = 0.98
"""Of the points: on how many inner scores must decide as the answers do."""

_NEAR = 1e-3  # of the way to another image: how far scores that are no steps move
_SCALED = 1e-3  # of the answers' norm: what is left of them where they are inner scores, scaled
_ATEN = torch.ops.aten


class OverSpread(nn.Module):
    """The logits of `network` over their spread: the same decisions, whatever their size."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = in_float(self.network, x)
        return logits / nonzero(spread(logits))[:, None]


class OverOthers(nn.Module):
    """The logits of `network` from the mean of all but the largest, over the spread of these, the
    largest 0: what another class has of its own, whatever is done to the one that is decided."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = in_float(self.network, x)
        largest = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).bool()
        others = logits[~largest].view(len(logits), -1)
        centred = (logits - others.mean(1, keepdim=True)).masked_fill(largest, 0.0)
        return centred / nonzero(spread(others))[:, None]


def end_inside(traced: Traced, x: Tensor) -> Traced | None:
    """The computation up to the earliest scores of the classes that decide as the answers do, on
    the images `x` (n, …) and on mixtures of two; None where the answers are those scores themselves
    but for a scale and a shift of each class. Scores that move in steps alone are none."""
    with drawing(0, x.device):
        nodes, scores, answers = _scores_of_trace(traced, _mix(x))
    at = _find_inner(scores, answers)
    if at is None:
        return None
    graph = fx.GraphModule(traced.graph, copy_graph(traced.graph.graph))
    output, (inner, turned) = _output_of(graph), [*nodes.items()][at]
    (end,) = (node for node in graph.graph.nodes if node.name == inner.name)
    with graph.graph.inserting_before(output):
        ends = (0, -2) if turned else (1, -1)
        flat = graph.graph.call_function(_ATEN.flatten.using_ints, (end, *ends))
        rows = graph.graph.call_function(_ATEN.t.default, (flat,)) if turned else flat
    output.args = (rows,)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return Traced(graph, traced.batch, None)


def watch_inside(network: Network, x: Tensor) -> InnerScores | None:
    """The same of a network that cannot be traced, as it runs: with all images at once, or, where
    its code takes them one by one, with each alone."""
    copied = copy_sharing(network)  # what a network keeps of what it sees is its own
    shown = network if copied is None else copied
    with torch.no_grad():
        classes = in_float(shown, x[:2]).shape[1]
    for alone in (False, True):
        parts = _mix(x).split(1 if alone else 3 * len(x))
        with drawing(0, x.device, shown):
            seen = [_watch(shown, part, classes) for part in parts]
        fewest = min(len(scores) for scores, _ in seen)
        scores = [torch.cat([scores[at] for scores, _ in seen]) for at in range(fewest)]
        at = _find_inner(scores, torch.cat([answers for _, answers in seen]))
        if at is not None:
            return InnerScores(network, at, classes, alone)
    return None


class InnerScores(nn.Module):
    """What the call `at` of those of a network gives that have one number for each class; its
    answers where it makes no such call."""

    def __init__(self, network: Network, at: int, classes: int, alone: bool) -> None:
        super().__init__()
        self.network, self.at, self.classes, self.alone = network, at, classes, alone

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._look(part) for part in x.split(1 if self.alone else len(x))])

    def _look(self, x: Tensor) -> Tensor:
        with _Calls(x, self.classes) as calls:
            answers = in_float(self.network, x)
        return calls.scores[self.at] if self.at < len(calls.scores) else answers


class _Calls(TorchFunctionMode):
    """Keeps what the calls of a network give that has one number for each of `classes` of the
    images `x`, on their device."""

    def __init__(self, x: Tensor, classes: int) -> None:
        super().__init__()
        self.n, self.classes, self.scores = len(x), classes, list[Tensor]()
        self.device = x.device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        here = isinstance(value, Tensor) and value.device == self.device
        if here and value.is_floating_point():
            turned = _is_turned(value.shape, self.n, self.classes)
            if turned is not None:  # a copy, as it may be written to
                self.scores.append(_rows_of(value, turned).float().clone())
        return value


def _is_turned(shape: Sequence[Any], n: Any, classes: Any) -> bool | None:
    """Whether the images of scores run along the last dimension, in the place of the first; None
    where these are not scores."""
    if len(shape) > 1 and shape[0] == n and math.prod(shape[1:]) == classes:
        return False
    return True if len(shape) > 1 and [math.prod(shape[:-1]), shape[-1]] == [classes, n] else None


def _rows_of(scores: Tensor, turned: bool) -> Tensor:
    return scores.flatten(0, -2).T if turned else scores.flatten(1)


@torch.no_grad()
def _watch(network: Network, x: Tensor, classes: int) -> tuple[list[Tensor], Tensor]:
    with _Calls(x, classes) as calls:
        answers = in_float(network, x)
    return calls.scores, answers


def _mix(x: Tensor) -> Tensor:
    """The images, mixtures of two, and the images moved by next to nothing."""
    others = x.roll(1, 0)
    return torch.cat([x, torch.lerp(x, others, 0.5), torch.lerp(x, others, _NEAR)])


def _scores_of_trace(traced: Traced, x: Tensor) -> tuple[dict[fx.Node, bool], list[Tensor], Tensor]:
    """The calls of a trace that give one number for each class, and whether turned, what they give,
    and the answers."""
    (answers,) = _output_of(traced.graph).all_input_nodes
    graph, moving = traced.graph.graph, moving_nodes(traced.graph.graph)
    inner = [node for node in graph.nodes if node in moving and node is not answers]
    turned = {node: _gives_turned(node, answers) for node in inner}
    nodes = {node: turn for node, turn in turned.items() if turn is not None}
    watch, seen = _Watch(traced.graph, nodes | {answers: False}), list[dict[fx.Node, Tensor]]()
    for part in x.split(traced.batch or len(x)):
        watch.run(traced.fill(part))
        seen.append({node: value[: len(part)] for node, value in watch.seen.items()})
    scores = [torch.cat([values[node] for values in seen]) for node in (*nodes, answers)]
    return nodes, scores[:-1], scores[-1]


def _output_of(graph: fx.GraphModule) -> fx.Node:
    output: fx.Node = next(node for node in graph.graph.nodes if node.op == "output")
    return output


def _gives_turned(node: fx.Node, answers: fx.Node) -> bool | None:
    value, said = node.meta.get("val"), answers.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor) or not isinstance(said, Tensor):
        return None
    scores = value.dtype.is_floating_point and value.device == said.device
    return _is_turned(value.shape, *said.shape) if scores else None


class _Watch(fx.Interpreter):
    """Runs a trace, and keeps what some of its calls give."""

    def __init__(self, graph: fx.GraphModule, nodes: dict[fx.Node, bool]) -> None:
        super().__init__(graph)
        self.nodes, self.seen = nodes, dict[fx.Node, Tensor]()

    @torch.no_grad()
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            self.seen[n] = _rows_of(value, self.nodes[n]).float()
        return value


# ------------------------------------------------------------------------------------- which decide


def _find_inner(scores: Sequence[Tensor], answers: Tensor) -> int | None:
    """Which scores are the first of those that decide most often as the answers do, of all that
    move; None where that is not often enough, or the answers are no more than they, scaled."""
    alike = [0.0 if _stands_still(each) else _share_alike(each, answers) for each in scores]
    most = max(alike, default=0.0)
    if most < ALIKE or _are_scaled(scores[alike.index(most)], answers):
        return None
    return alike.index(most)


def _stands_still(scores: Tensor) -> bool:
    """Whether most scores are the same where the images are moved by next to nothing, as those of
    a decision, of ranks or of votes are."""
    here, _, near = scores.chunk(3)
    return bool((here == near).all(1).float().mean() > 0.5)


def _share_alike(scores: Tensor, answers: Tensor) -> float:
    """Share of points at which no answer is above that of the class that the scores decide for."""
    chosen = answers.gather(1, scores.argmax(1, keepdim=True))
    return float((chosen == answers.amax(1, keepdim=True)).float().mean())


def _are_scaled(scores: Tensor, answers: Tensor) -> bool:
    """Whether the answers are the scores, scaled, and each class shifted by a number of its own."""
    scores, answers = (t.double() - t.double().mean(0) for t in (scores, answers))
    factor = (scores * answers).sum() / scores.square().sum().clamp_min(1e-300)
    rest = answers - factor * scores
    return bool(rest.norm() <= _SCALED * answers.norm())
