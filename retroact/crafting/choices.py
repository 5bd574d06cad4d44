"""Choices in a traced network, softened: what a sharp softmax or an argmax picks from a table.

Attention of a large scale, a memory, a codebook or the nearest of several answers with one entry,
and its derivative is zero or all but zero. Its values are kept, and its derivative becomes that of
the same choice at a higher temperature T, of scores s and rows v: Σ_k v_k ∂softmax(s/T)_k (hard
attention: Athalye et al. 2018, arXiv:1802.00420, section 4.1; Bengio et al. 2013, arXiv:1308.3432).
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

_ATEN = torch.ops.aten
_BEST: dict[Any, int] = {_ATEN.argmax.default: 1, _ATEN.argmin.default: -1}
_BEST_OF: dict[Any, int] = {_ATEN.max.dim: 1, _ATEN.min.dim: -1}
"""What says which entry is best, and whether that is the largest."""
_RIVALS, _SHARE = 9, 100
"""How many places behind the best is the score from which its lead is counted, and of which share
of the others these are at least, as entries may stand there several times: those in between are
what an attacker can hope to bring about."""
_PASSED = {_ATEN.clone.default, _ATEN._to_copy.default}


@dataclass(frozen=True)
class Choice:
    """A `node` that chooses along the last dimension of `scores` (of the largest, `sign` 1, or the
    least, −1): their softmax, or the rows of a `table` at their best `index`."""

    node: fx.Node
    scores: fx.Node
    sign: int = 1
    dim: int = -1
    table: fx.Node | None = None
    index: fx.Node | None = None

    def lead(self, scores: Tensor) -> Tensor:
        """By how much the best of these scores is ahead of the tenth best, or of a hundredth of the
        others where these are more, on average."""
        others = scores.shape[self.dim] - 1
        places = 1 + min(others, max(_RIVALS, others // _SHARE))
        best = (self.sign * scores).topk(places, self.dim).values
        return (best.narrow(self.dim, 0, 1) - best.narrow(self.dim, -1, 1)).mean()


def find_choices(graph: fx.Graph, moving: Container[fx.Node]) -> Iterator[Choice]:
    """Those whose scores depend on the input (`moving`) and whose table does not."""
    for node in graph.nodes:
        found = _read(node)
        if found is not None and found.scores in moving and found.table not in moving:
            yield found


def _read(node: fx.Node) -> Choice | None:
    if node.target == _ATEN._softmax.default and not node.args[2]:
        scores, dim = node.args[0], node.args[1]
        assert isinstance(scores, fx.Node) and isinstance(dim, int)
        return Choice(node, scores, dim=dim)
    looked_up = _read_table(node)
    if looked_up is None:
        return None
    table, index = looked_up
    best = _read_best(index)
    return None if best is None else Choice(node, *best, table=table, index=index)


def _read_table(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The table of which a node gives rows, and their index."""
    if node.target == _ATEN.index_select.default and node.args[1] == 0:
        table, index = node.args[0], node.args[2]
    elif node.target in (_ATEN.index.Tensor, _ATEN.embedding.default):
        table, index = node.args[0], node.args[1]
        if isinstance(index, Sequence) and len(index) == 1:
            (index,) = index
    else:
        return None
    both = isinstance(table, fx.Node) and isinstance(index, fx.Node)
    return (table, index) if both else None  # type: ignore[return-value]


def _read_best(index: fx.Node) -> tuple[fx.Node, int] | None:
    """The scores whose best along the last dimension an index is, and the sign of best."""
    while index.target in _PASSED:
        index = index.args[0]  # type: ignore[assignment]
    of, signs = index, _BEST
    if index.target is operator.getitem and index.args[1] == 1:
        of, signs = index.args[0], _BEST_OF  # type: ignore[assignment]
    if of.target not in signs or len(of.args) != 2:
        return None
    scores, dim = of.args
    value = scores.meta.get("val") if isinstance(scores, fx.Node) else None
    if not isinstance(value, Tensor) or dim not in (-1, value.dim() - 1):
        return None
    return scores, signs[of.target]  # type: ignore[return-value]


def soften_choice(graph: fx.GraphModule, choice: Choice, temperature: float, name: str) -> None:
    """Its node becomes a call with the same values and the derivative at this temperature."""
    graph.add_module(name, _Softly(choice.dim, choice.sign, temperature))
    given = [n for n in (choice.scores, choice.table, choice.index) if n is not None]
    with graph.graph.inserting_after(choice.node):
        call = graph.graph.call_module(name, tuple(given))
    call.meta = dict(choice.node.meta)
    choice.node.replace_all_uses_with(call)


class _Softly(nn.Module):
    def __init__(self, dim: int, sign: int, temperature: float) -> None:
        super().__init__()
        self.dim, self.sign, self.temperature = dim, sign, temperature

    def forward(self, scores: Tensor, *rows: Tensor) -> Tensor:
        out: Tensor = _Soft.apply(scores, self, *rows)
        return out


class _Soft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, how: _Softly, *rows: Tensor) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(scores, *rows[:1])
        if not rows:
            return torch.softmax(scores, how.dim)
        table, index = rows
        return table[index]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (scores, *tables), how, (gradient,) = ctx.saved_tensors, ctx.how, gradients
        scale = how.sign / how.temperature
        p = torch.softmax(scores * scale, how.dim)
        for table in tables:  # of each row, how much more of it would do
            lead = scores.dim() - 1
            rows = table.reshape(len(table), -1)
            gradient = gradient.reshape(*gradient.shape[:lead], -1) @ rows.T
        pulled = p * (gradient - (p * gradient).sum(how.dim, keepdim=True)) * scale
        return pulled, None, *(None for _ in tables), *(None for _ in tables)
