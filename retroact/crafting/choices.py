"""Choices in a traced network, softened: what a sharp softmax or an argmax picks from a table.

Attention of a large scale, a memory, a codebook or the nearest of several answers with one entry or
a few, and its derivative is zero or all but zero. Its values are kept, and its derivative becomes
that of the same choice at a higher temperature T, of scores s and rows v: Σ_k v_k ∂softmax(s/T)_k
where one is taken, Σ_k v_k ∂σ((s_k − t)/T) where several are, with t between the last that is taken
and the first that is not (hard attention: Athalye et al. 2018, arXiv:1802.00420, section 4.1;
Bengio et al. 2013, arXiv:1308.3432; nearest neighbours: Sitawarin and Wagner 2019,
arXiv:1903.08333).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

_ATEN = torch.ops.aten
_FIRST: dict[Any, int] = {
    _ATEN.argmax.default: 1,
    _ATEN.argmin.default: -1,
    _ATEN.max.dim: 1,
    _ATEN.min.dim: -1,
    _ATEN.topk.default: 1,
    _ATEN.sort.default: -1,
    _ATEN.sort.stable: -1,
}
"""What says which entries are the largest (1) or the least (-1), unless it is asked otherwise."""
_OTHERWISE = {"largest": False, "descending": True}
_RIVALS, _SHARE = 9, 100
"""How many places behind what is taken is the score from which the lead of the best is counted, and
of which share of the others these are at least, as entries may stand there several times: those in
between are what an attacker can hope to bring about."""
_LARGEST = 1 << 26
"""Of how many entries a table is at most that is written out anew in each pass."""
_COPIED = {_ATEN.clone.default, _ATEN._to_copy.default}
_BLANK = {_ATEN.zeros_like.default, _ATEN.zeros.default, _ATEN.new_zeros.default}
_COMPARED = {
    getattr(getattr(_ATEN, name), kind)
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for kind in ("Tensor", "Scalar")
}


@dataclass(frozen=True)
class Choice:
    """A `node` that chooses along the dimension `dim` of `scores` (of the largest, `sign` 1, or the
    least, −1): their softmax, what the calls `read` make of the `index` of the `taken` best, or the
    number `height` there and zero elsewhere. What is read may be `counted`: summed over this
    dimension of the index."""

    node: fx.Node
    scores: fx.Node
    dim: int = -1
    sign: int = 1
    taken: int = 1
    index: fx.Node | None = None
    read: tuple[fx.Node, ...] = ()
    height: float = 1.0
    counted: int | None = None

    @property
    def entries(self) -> int:
        """How many numbers would be read at all places together."""
        assert self.index is not None
        row = _lengths(self.read[-1])[len(_lengths(self.index)) :]
        return math.prod((_lengths(self.scores)[-1], *row))

    def lead(self, scores: Tensor) -> Tensor:
        """By how much the best of these scores is ahead of the ninth behind those that are taken,
        or of a hundredth of the others where these are more, on average."""
        others = scores.shape[self.dim] - self.taken
        places = self.taken + min(others, max(_RIVALS, others // _SHARE))
        best = (self.sign * scores).topk(places, self.dim).values
        return (best.narrow(self.dim, 0, 1) - best.narrow(self.dim, -1, 1)).mean()


def find_choices(graph: fx.Graph, moving: Container[fx.Node]) -> Iterator[Choice]:
    """Those whose scores depend on the input (`moving`), and what is read there does not."""
    for node in graph.nodes:
        if node not in moving:
            continue
        if node.target == _ATEN._softmax.default and not node.args[2]:
            scores, dim, _ = node.args
            yield Choice(node, scores, dim)
        best = _read_best(node)
        if best is not None:
            for index in _forms(node):
                for end, read, counted in _read_off(index, moving):
                    how = best.scores, -1, best.sign, best.taken, index, read
                    found = Choice(end, *how, counted=counted)
                    if found.entries <= _LARGEST:
                        yield found
            for mask in node.users:
                height = _height_of(mask, node, best)
                if height is not None:
                    yield Choice(mask, best.scores, -1, best.sign, best.taken, node, height=height)


@dataclass(frozen=True)
class _Best:
    scores: fx.Node
    sign: int
    taken: int


def _read_best(index: fx.Node) -> _Best | None:
    """The scores of which a node says where the best along their last dimension are, the sign of
    best, and how many it takes; None where it says no such thing."""
    node, sign = index, 1
    while node.target in (_ATEN.slice.Tensor, _ATEN.select.int):
        sign *= _end_of(node)
        node = _arguments(node)["self"]
    if node.target == operator.getitem and node.args[1] == 1:
        (node,) = node.all_input_nodes
    if node.target not in _FIRST or not sign:
        return None
    given = _arguments(node)
    scores, dim = given["self"], given["dim"]
    along = _lengths(scores)
    taken = _lengths(index)[-1] if len(_lengths(index)) == len(along) else 1
    if dim not in (-1, len(along) - 1) or not is_real(scores):
        return None
    if not (isinstance(taken, int) and isinstance(along[-1], int) and taken < along[-1]):
        return None  # all are taken, or how many there are depends on the batch
    turned = any(given.get(name) is value for name, value in _OTHERWISE.items())
    return _Best(scores, sign * _FIRST[node.target] * (-1 if turned else 1), taken)


def _end_of(cut: fx.Node) -> int:
    """Whether a cut takes the first places (1), the last (-1), or neither (0)."""
    given = _arguments(cut)
    shape = _lengths(given["self"])
    if given["dim"] not in (-1, len(shape) - 1):
        return 0 if cut.target == _ATEN.select.int else 1
    if cut.target == _ATEN.select.int:
        return {0: 1, -1: -1}.get(given["index"], 0)
    if given["start"] in (0, None):
        return 1
    to = given["end"]
    return -1 if to is None or (isinstance(to, int) and to >= shape[-1]) else 0


def _forms(index: fx.Node) -> Iterator[fx.Node]:
    """An index, and what it is reshaped to."""
    yield index
    yield from (user for user in index.users if user.target == _ATEN.view.default)


def _read_off(
    index: fx.Node, moving: Container[fx.Node]
) -> Iterator[tuple[fx.Node, tuple[fx.Node, ...], int | None]]:
    """Each number that is read at an index, by which calls, and the dimension over which it is
    counted, if it is."""
    for read in _follow(index, moving):
        if is_real(read[-1]):
            yield read[-1], read, None
        else:
            yield from ((end, read, dim) for end, dim in _count(index, read[-1]))


def _count(index: fx.Node, found: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """Where whole numbers found at an index become real after a sum over one of its dimensions, and
    over which."""
    for total in found.users:
        if total.target != _ATEN.sum.dim_IntList:
            continue
        given = _arguments(total)
        dims = [dim % len(_lengths(found)) for dim in given["dim"] or ()]
        if len(dims) == 1 and dims[0] < len(_lengths(index)) and not given["keepdim"]:
            yield from ((u, dims[0]) for u in total.users if u.target in _COPIED and is_real(u))


def _follow(
    index: fx.Node, moving: Container[fx.Node], before: tuple[fx.Node, ...] = ()
) -> Iterator[tuple[fx.Node, ...]]:
    """The calls that lead from an index to numbers, or to whole ones that are summed, each entry by
    itself and by nothing else that moves: rows of a table, classes, and what is compared with
    them."""
    at = before[-1] if before else index
    for user in at.users:
        beside = [n for n in user.all_input_nodes if n is not at]
        if any(n in moving for n in beside) or not _is_by_entry(user, at, index):
            continue
        read = (*before, user)
        if is_real(user) or any(n.target == _ATEN.sum.dim_IntList for n in user.users):
            yield read
        if not is_real(user):
            yield from _follow(index, moving, read)


def _height_of(mask: fx.Node, index: fx.Node, best: _Best) -> float | None:
    """The number that a call writes at the best of its scores, and zero elsewhere; None where it
    does something else."""
    if mask.target != _ATEN.scatter.value:
        return None
    blank, dim, at, value = mask.args
    if at is not index or dim not in (-1, len(_lengths(mask)) - 1) or isinstance(value, fx.Node):
        return None
    empty = isinstance(blank, fx.Node) and blank.target in _BLANK
    return float(value) if empty and _lengths(mask) == _lengths(best.scores) else None  # type: ignore[arg-type]


def _is_by_entry(call: fx.Node, of: fx.Node, index: fx.Node) -> bool:
    """Whether a call gives a row for each entry of an index, of what was made `of` it so far."""
    if call.target in _COPIED:
        return True
    if call.target in (_ATEN.index.Tensor, _ATEN.embedding.default):
        return call.args[1] in (of, [of])
    if call.target == _ATEN.index_select.default:
        return bool(call.args[1] == 0) and call.args[2] is of
    if call.target == _ATEN.unsqueeze.default:
        return call.args[1] in (-1, len(_lengths(of)))
    # what is compared with stands behind the entry
    within = len(_lengths(call)) - len(_lengths(index))
    beside = [n for n in call.all_input_nodes if n is not of]
    return call.target in _COMPARED and all(len(_lengths(n)) <= within for n in beside)


def _arguments(call: fx.Node) -> dict[str, Any]:
    """What a call was given or does without, by name."""
    expected = call.target._schema.arguments  # type: ignore[union-attr]
    given = {a.name: a.default_value for a in expected if a.has_default_value()}
    return given | dict(zip((a.name for a in expected), call.args, strict=False)) | call.kwargs


def shape_of(node: fx.Node) -> tuple[Any, ...] | None:
    """The shape of what a node of a trace gives; None where that is no tensor."""
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


def is_real(node: fx.Node) -> bool:
    """Whether a node of a trace gives a tensor of floating dtype."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype.is_floating_point


def _lengths(node: fx.Node) -> tuple[Any, ...]:
    return shape_of(node) or ()


def soften_choice(graph: fx.GraphModule, choice: Choice, temperature: float, name: str) -> None:
    """Its node becomes a call with the same values and the derivative at this temperature."""
    graph.add_module(name, _Softly(choice, temperature))
    with graph.graph.inserting_after(choice.node):
        call = graph.graph.call_module(name)
    call.meta = dict(choice.node.meta)
    choice.node.replace_all_uses_with(call)
    with graph.graph.inserting_before(call):
        tables = [_write_table(graph.graph, choice)] if choice.read else []
    call.args = (choice.scores, choice.node, *tables)


def _write_table(graph: fx.Graph, choice: Choice) -> fx.Node:
    """What would be read at each place."""
    assert choice.index is not None
    (first, *further), length = choice.read, _lengths(choice.scores)[-1]
    tables = [n for n in first.all_input_nodes if n is not choice.index]
    if not further and tables and _lengths(tables[0])[:1] == (length,):
        return tables[0]  # the rows of a table as they stand
    device = choice.scores.meta["val"].device
    every = graph.call_function(torch.arange, (length,), {"device": device})
    copies = {choice.index: every}
    for call in choice.read:
        copies[call] = graph.node_copy(call, lambda n: copies.get(n, n))
    return copies[choice.read[-1]]


class _Softly(nn.Module):
    def __init__(self, choice: Choice, temperature: float) -> None:
        super().__init__()
        self.dim, self.taken, self.height = choice.dim, choice.taken, choice.height
        self.scale = choice.sign / temperature
        self.counted, places = choice.counted, _lengths(choice.index) if choice.index else ()
        self.voters = 1 if self.counted is None else places[self.counted]

    def forward(self, scores: Tensor, chosen: Tensor, *table: Tensor) -> Tensor:
        out: Tensor = _Soft.apply(scores, self, chosen.detach(), *table)
        return out

    def pull(self, scores: Tensor, gradient: Tensor) -> Tensor:
        """What it does to the scores that each place is wanted so much."""
        z = scores * self.scale
        if self.taken == 1:
            slope = share = torch.softmax(z, self.dim)
        else:  # of several each is in or out, at the edge between the last in and the first out
            edge = z.topk(self.taken + 1, self.dim).values[..., -2:].mean(-1, keepdim=True)
            slope = torch.sigmoid(z - edge) * torch.sigmoid(edge - z)
            least = torch.finfo(slope.dtype).tiny
            share = slope / slope.sum(self.dim, keepdim=True).clamp_min(least)
        aimed = self.height * slope * (gradient - (share * gradient).sum(self.dim, keepdim=True))
        return aimed * self.scale


class _Soft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, how: _Softly, chosen: Tensor, *table: Tensor) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(scores, *table)
        return chosen.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scores, *tables), how, (gradient,) = ctx.saved_tensors, ctx.how, gradients
        if how.counted is not None:
            gradient = gradient.unsqueeze(how.counted).repeat_interleave(how.voters, how.counted)
        for table in tables:  # how much more of each row is wanted, on average over those taken
            lead, rows = scores.shape[:-1], table.reshape(len(table), -1).to(gradient)
            gradient = gradient.reshape(*lead, how.taken, rows.shape[1]).mean(-2) @ rows.T
        return how.pull(scores, gradient), None, None, *(None for _ in tables)
