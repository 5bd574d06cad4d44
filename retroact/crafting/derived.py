"""A network's computation, traced anew, with derivatives of our own.

    same = trace_forward(net, x)        # what it computes, whatever its backward pass says
    soft = soften(same, x, width=0.3)   # finite differences in the place of derivatives

Attacks climb the derivative that a network gives; nothing says that it is the derivative of what it
computes. A trace below autograd, of the forward pass alone, holds no backward pass of anybody's
own, no detached part, and no branch that is taken only while gradients are recorded. What is left
is flat or jumps (rounding, thresholds, staircases) in chains of elementwise calls: there the
derivative becomes the mean of (f(z + qs) − f(z − qs)) / 2qs over a few q, with s a share of the
spread of z, which sees what lies within reach of a step and not only at the point itself (Athalye
et al. 2018, arXiv:1802.00420, section 4.1; Tramèr et al. 2020, arXiv:2002.08347).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from operator import getitem
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import (
    get_proxy_mode,
    has_proxy_slot,
    make_fx,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from retroact.crafting.choices import find_choices, is_real, shape_of, soften_choice
from retroact.crafting.drawing import drawing
from retroact.crafting.oracle import Network, device_of, dtype_of, evaluating, modules_of
from retroact.doors import logits_in
from retroact.ground import one_trace

_AT = (0.25, 0.5, 1.0, 1.5)  # q: differences over several widths at once
_BATCH = 17  # images of a trace: no other size of a network is likely to be the same
_FIXED = 16  # images of a trace for one batch
_SIZES = (1, 2, 16)  # of other batches on which a trace must run
_ATEN = torch.ops.aten


class TraceError(ValueError):
    """A network whose computation cannot be traced."""


class _Origin:
    """Of what a trace was made, hidden from whoever looks for the modules behind a network."""

    __slots__ = ("network", "sample")

    def __init__(self, network: Network, sample: Tensor) -> None:
        self.network, self.sample = network, sample


class Traced(nn.Module):
    """A graph of torch's own operations, for any batch, or for batches of `batch` examples: others
    are filled up with the last one. To another process travels what it was made of."""

    def __init__(self, graph: fx.GraphModule, batch: int | None, origin: _Origin | None) -> None:
        super().__init__()
        self.graph, self.batch, self._origin = graph, batch, origin

    def __reduce__(self) -> tuple[Callable[..., Traced], tuple[Network, Tensor]]:
        if self._origin is None:
            raise TypeError("what was softened is made anew in another process: send the trace")
        return trace_forward, (self._origin.network, self._origin.sample)

    def forward(self, x: Tensor) -> Tensor:
        if self.batch is None:
            out: Tensor = self.graph(x)
            return out
        parts = (self.graph(self.fill(part))[: len(part)] for part in x.split(self.batch))
        return torch.cat(list(parts))

    def fill(self, x: Tensor) -> Tensor:
        """The first examples, as many as the graph takes."""
        if self.batch is None:
            return x
        return torch.cat([x, x[-1:].expand(self.batch, *x.shape[1:])])[: self.batch]


def trace_forward(network: Network, x: Tensor) -> Traced:
    """What `network` computes of images like `x` (n, …), as a graph of torch's own operations.

    Its logits are those of `in_float`; its derivative is that of these operations. Weights are
    shared, not copied. Raises TraceError where its code leaves torch, or depends on the values that
    it sees.
    """
    sample = x[torch.arange(_BATCH) % len(x)].to(device_of(network))
    with one_trace(), torch.no_grad(), evaluating(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _trace_any_batch(network, sample)
        except Exception:  # whatever a stranger's code raises on a tensor that has no values
            pass
        try:
            return _trace_one_batch(network, sample[:_FIXED])
        except Exception as e:
            reason = str(e).partition("\n")[0]
            raise TraceError(f"this network cannot be traced: {reason}") from e


def _trace_any_batch(network: Network, sample: Tensor) -> Traced:
    graph = _trace(network, sample, "symbolic")
    for size in _SIZES:  # what loops over its batch is traced for one batch only
        if isinstance(graph(sample[:size]), FakeTensor):
            raise TraceError("a number of its own was drawn while it was traced")
    return Traced(graph, None, _Origin(network, sample))


def _trace_one_batch(network: Network, sample: Tensor) -> Traced:
    """Also where the code loops over its batch, or draws from generators of its own."""
    graph = _trace(network, sample, "real")
    traced = Traced(graph, len(sample), _Origin(network, sample))
    moved = 0.9 * sample.flip(0)
    with drawing(0, sample.device, network):
        expected = _logits_of(network, moved)
    with drawing(0, sample.device):
        given = traced(moved)
    if not torch.allclose(given, expected, rtol=1e-3, atol=1e-4):
        raise TraceError("what it computes depends on the values that it sees")
    return traced


def _trace(network: Network, sample: Tensor, mode: Literal["symbolic", "real"]) -> fx.GraphModule:
    copied = copy_sharing(network)
    net = network if copied is None else copied
    make = partial(make_fx, tracing_mode=mode, _allow_non_fake_inputs=True)
    with _OwnDraws():
        first = make(partial(_read_logits_of, net))(sample)
    # twice where it must be: functorch refuses a backward pass of somebody's own, which the first
    # drops
    graph = first if _only_reads(first) else make(torch.func.functionalize(first))(sample)
    for node in graph.graph.nodes:
        if node.op == "call_function" and node.target in _PASSED_ON:
            node.target, node.args, node.kwargs = _ATEN.clone.default, node.args[:1], {}
        if node.target is getitem and node.args[1] == 0:
            _leave_mask_out(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assert isinstance(graph, fx.GraphModule)
    return graph


def _leave_mask_out(node: fx.Node) -> None:
    """What is first of two that a rounding gives comes of the same one that gives no other."""
    both = node.args[0]
    if not isinstance(both, fx.Node) or both.target not in _WITHOUT_MASKS:
        return
    alone = _WITHOUT_MASKS[both.target]
    node.target, takes = alone, len(alone._schema.arguments)
    # where it may be switched off, which is said before the range, it was not
    node.args = (*both.args[: takes - 2], *both.args[-2:])


def _only_reads(graph: fx.GraphModule) -> bool:
    """Whether every call is an operation of torch's, or a number's, that writes to none of its
    inputs."""
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    return all(
        not target._schema.is_mutable
        if isinstance(target, torch._ops.OpOverload)
        else getattr(target, "__module__", "") in ("_operator", "math")
        for target in targets
    )


def _logits_of(network: Network, images: Tensor) -> Tensor:
    dtype = dtype_of(network) or images.dtype
    logits = logits_in(network(images.to(dtype, copy=True)), len(images))
    return logits.float() if logits.dtype.itemsize < 4 else logits.clone()


def _read_logits_of(network: Network, images: Tensor) -> Tensor:
    with _OwnFlags():
        return _logits_of(network, images)


class _OwnFlags(TorchDispatchMode):
    """What a network asks of its own flags and counters, and whether a number of its own is larger
    than another, is a constant, so that its code may branch on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if given and _asks_flags(func, given) and not any(map(_is_traced, given)):
            with _disable_current_modes():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _asks_flags(func: Any, given: Sequence[Tensor]) -> bool:
    if func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags:
        return False
    return func in _COMPARING or not any(t.is_floating_point() for t in given)


def _is_traced(tensor: Tensor) -> bool:
    """Whether a tensor is the network's input, or comes of it."""
    mode = get_proxy_mode()
    return isinstance(tensor, FakeTensor) or mode is None or has_proxy_slot(tensor, mode.tracer)


class _OwnDraws(TorchFunctionMode):
    """What a network draws from a generator of its own, with a seed that it sets, is a constant;
    and one_hot, which looks at its values wherever it is not asked for their number, compares."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(kwargs.get("generator"), torch.Generator):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is nn.functional.one_hot:
            return _compare_classes(func, *args, **kwargs)
        return func(*args, **kwargs)


def _compare_classes(one_hot: Any, tensor: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes < 0:
        return one_hot(tensor)  # type: ignore[no-any-return]
    classes = torch.arange(num_classes, device=tensor.device)
    return (tensor.unsqueeze(-1) == classes).long()


def copy_sharing(network: Network) -> Network | None:
    """A copy with the same weights, so that what the network keeps of what it sees is its own; None
    where there is no copy."""
    tensors = (t for m in modules_of(network) for t in (*m.parameters(), *m.buffers()))
    try:
        return copy.deepcopy(network, {id(t): t for t in tensors})
    except Exception:  # whatever a stranger's network raises as a copy
        return None


_COMPARING = {
    getattr(getattr(_ATEN, name), of)
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
    for of in ("Tensor", "Scalar")
}
_PASSED_ON = {_ATEN.detach.default, _ATEN.alias.default, _ATEN.lift_fresh_copy.default}
"""What would cut the graph, or stands in its way, and changes no value."""


def soften(traced: Traced, x: Tensor, width: float) -> Traced:
    """What was traced, with the derivative of each chain of elementwise calls that is not affine
    taken as differences over `width` times the spread of what the chain begins with, on the images
    `x`, and that of each choice at a temperature of `width` times the lead of its best score.

    The values that it computes are the same. Chains end where a call mixes entries.
    """
    soft = fx.GraphModule(traced.graph, copy_graph(traced.graph.graph))
    known = _Chains.of(soft.graph)
    chains, choices = list(_find_chains(known)), list(find_choices(soft.graph, known.moving))
    bases = [base for chain in chains for base in chain.bases]
    asked: list[_Asked] = [(base, Tensor.std) for base in bases]
    asked += [(choice.scores, choice.lead) for choice in choices]
    found = _measure(soft, asked, traced.fill(x))
    spreads, leads = dict(zip(bases, found, strict=False)), found[len(bases) :]
    for number, chain in enumerate(chains):
        # beside one that moves, what stands still on these images may move on others
        widest = max(spreads[base] for base in chain.bases)
        if widest > 0:
            steps = [width * (spreads[base] or widest) for base in chain.bases]
            _replace(soft, chain, steps, f"chain_{number}")
    for number, (choice, lead) in enumerate(zip(choices, leads, strict=True)):
        # a softmax that is soft enough keeps its own derivative
        least = 1.0 if choice.index is None else 0.0
        temperature = max(least, width * lead)
        if temperature > least:
            soften_choice(soft, choice, temperature, f"choice_{number}")
    soft.graph.eliminate_dead_code()
    soft.graph.lint()
    soft.recompile()
    return Traced(soft, traced.batch, None)


def moving_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of a trace that depend on its input."""
    return _Chains.of(graph).moving


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """The calls of a trace in a graph of its own."""
    copy, at = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        at[node] = copy.node_copy(node, lambda n: at[n])
    return copy


# ------------------------------------------------------------------------------------------- chains


@dataclass(frozen=True)
class _Chain:
    """Elementwise calls that lead from `bases` to the node `end`."""

    end: fx.Node
    bases: tuple[fx.Node, ...]
    calls: tuple[fx.Node, ...]


@dataclass
class _Chains:
    """The bases of each node that is computed elementwise, and all that depends on the input."""

    bases: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    moving: set[fx.Node] = field(default_factory=set)

    @classmethod
    def of(cls, graph: fx.Graph) -> _Chains:
        """All nodes of a graph, taken in order."""
        known = cls()
        for node in graph.nodes:
            known.take(node)
        return known

    def take(self, node: fx.Node) -> None:
        if node.target in _OF_A_SHAPE:
            return  # the same for all values of what has the shape
        inputs = [n for n in node.all_input_nodes if n in self.moving]
        if node.op == "placeholder" or inputs:
            self.moving.add(node)
        if not inputs or not (_is_elementwise(node) or self._is_looked_up(node)):
            return
        merged = {base for n in inputs for base in self.bases.get(n, (n,))}
        several = len({self.bases.get(n, (n,)) for n in inputs if is_real(n)}) > 1
        # two that have a derivative each are added or multiplied as always; not so in a comparison,
        # nor with what was compared
        if several and is_real(node) and all(map(is_real, inputs)):
            return
        # what is broadcast beside it, such as a threshold for all entries, is held
        whole = {base for base in merged if shape_of(base) == shape_of(node)}
        if not whole and len(merged) == 1:  # each entry gives several, as in a thermometer
            whole = {base for base in merged if _has_grown(shape_of(base), shape_of(node))}
        if whole and all(map(is_real, merged)):
            self.bases[node] = tuple(sorted(whole, key=lambda n: n.name))

    def _is_looked_up(self, node: fx.Node) -> bool:
        """Whether each entry is looked up by itself in a table that does not move."""
        if node.target == _ATEN.unsqueeze.default:  # one_hot asks so for the column of a class
            of, dim = node.args
            return isinstance(of, fx.Node) and not is_real(of) and bool(dim == -1)
        if node.target not in _LOOKED_UP:
            return False
        table = node.args[_LOOKED_UP[node.target]]
        indices = node.args[1]
        one = not isinstance(indices, Sequence) or len(indices) == 1
        return one and isinstance(table, fx.Node) and table not in self.moving


def _find_chains(known: _Chains) -> Iterator[_Chain]:
    for node, bases in known.bases.items():
        leaves = any(known.bases.get(user) != bases for user in node.users)
        if leaves and is_real(node):
            calls = tuple(_calls_between(node, known))
            if not all(call.target in AFFINE for call in calls):
                yield _Chain(node, bases, calls)


def _calls_between(end: fx.Node, known: _Chains) -> list[fx.Node]:
    """The calls from the bases to the end, and what they need that does not move, in order."""
    wanted, waiting, bases = {end}, [end], known.bases[end]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            within = node in known.bases or node not in known.moving
            if node not in wanted and node not in bases and within and node.op == "call_function":
                wanted.add(node)
                waiting.append(node)
    return [node for node in end.graph.nodes if node in wanted]


def _is_elementwise(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target in _MASKED:
        mask = node.args[1][0] if isinstance(node.args[1], Sequence) else node.args[1]
        return (
            isinstance(mask, fx.Node)
            and shape_of(mask) == shape_of(node)
            and _is_number(node.args[2])
        )
    return torch.Tag.pointwise in node.target.tags or node.target in _UNTAGGED


_OF_A_SHAPE = {
    *(_ATEN.sym_size.int, _ATEN.sym_numel.default),
    *(_ATEN.zeros_like.default, _ATEN.ones_like.default, _ATEN.full_like.default),
    *(_ATEN.new_zeros.default, _ATEN.new_ones.default, _ATEN.new_full.default),
}
"""What depends on the shape of its input alone."""
_MASKED = {_ATEN.index_put.default}
_LOOKED_UP: dict[Any, int] = {
    _ATEN.bucketize.Tensor: 1,
    _ATEN.searchsorted.Tensor: 0,
    _ATEN.index.Tensor: 0,
    _ATEN.embedding.default: 0,
    _ATEN.take.default: 0,
}
"""Which argument is the table."""
_KEPT = {_ATEN.clone.default, _ATEN._to_copy.default}
_WITHOUT_MASKS: dict[Any, Any] = {
    _ATEN.fake_quantize_per_tensor_affine_cachemask.default: (
        _ATEN.fake_quantize_per_tensor_affine.default
    ),
    _ATEN._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default: (
        _ATEN.fake_quantize_per_tensor_affine.tensor_qparams
    ),
    _ATEN.fake_quantize_per_channel_affine_cachemask.default: (
        _ATEN.fake_quantize_per_channel_affine.default
    ),
}
"""Roundings that give a mask for a backward pass as well, and the same without."""
_UNTAGGED = {
    *_KEPT,
    _ATEN.floor_divide.default,
    _ATEN.view.dtype,
    _ATEN._fake_quantize_learnable_per_tensor_affine.default,
    *_WITHOUT_MASKS.values(),
}
"""Elementwise calls that torch does not tag so."""
AFFINE = {
    *_KEPT,
    *(_ATEN.add.Tensor, _ATEN.add.Scalar, _ATEN.sub.Tensor, _ATEN.sub.Scalar, _ATEN.neg.default),
    *(_ATEN.mul.Tensor, _ATEN.mul.Scalar, _ATEN.div.Tensor, _ATEN.div.Scalar, _ATEN.rsub.Scalar),
}
"""Calls whose own derivative is right; a product or quotient of two that move is never in a chain
of one base alone but z · z, whose derivative is right too."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, fx.Node) and shape_of(value) == ())


def _has_grown(base: tuple[Any, ...] | None, shape: tuple[Any, ...] | None) -> bool:
    """Whether each entry of a tensor of shape `base` has become several: along dimensions of length
    1, or along new ones at the end."""
    if base is None or shape is None:
        return False
    if len(base) < len(shape):
        return shape[: len(base)] == base
    return len(base) == len(shape) and all(a in (1, b) for a, b in zip(base, shape, strict=True))


def _gather(entries: Tensor, shape: torch.Size) -> Tensor:
    """The sum of what each entry of a tensor of this `shape` has become."""
    if entries.dim() > len(shape):
        return entries.flatten(len(shape)).sum(-1)
    return entries.sum_to_size(shape)


_Asked = tuple[fx.Node, Callable[[Tensor], Tensor]]
"""A node, and what is to be known of its values."""


def _measure(graph: fx.GraphModule, asked: Sequence[_Asked], x: Tensor) -> list[float]:
    """What is asked of the nodes of a graph, for the images `x`; 0 where that is no number."""
    found = [0.0] * len(asked)

    class _Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            for at, (node, read) in enumerate(asked):
                if n is node:
                    found[at] = float(read(value.float()).nan_to_num(0.0, 0.0, 0.0))
            return value

    device = device_of(graph)
    with torch.no_grad(), drawing(0, device):  # a randomised network has its spreads, too
        _Watch(graph).run(x.to(device))
    return found


def _replace(graph: fx.GraphModule, chain: _Chain, steps: list[float], name: str) -> None:
    """The end of a chain becomes one call that computes it, with differences for its derivative."""
    inner, at = fx.Graph(), {}
    outside = [n for call in chain.calls for n in call.all_input_nodes if n not in chain.calls]
    held = [n for n in dict.fromkeys(outside) if n not in chain.bases]
    for node in (*chain.bases, *held):
        at[node] = inner.placeholder(node.name)
    for call in chain.calls:
        at[call] = inner.node_copy(call, lambda n: at[n])
    inner.output(at[chain.end])
    graph.add_module(name, _Differences(fx.GraphModule(nn.Module(), inner), tuple(steps)))
    with graph.graph.inserting_before(chain.end):
        call = graph.graph.call_module(name, (*chain.bases, *held))
    call.meta = dict(chain.end.meta)
    chain.end.replace_all_uses_with(call)


class _Differences(nn.Module):
    """A chain: its own values, and differences over `steps`, one for each base, as derivatives."""

    def __init__(self, chain: nn.Module, steps: tuple[float, ...]) -> None:
        super().__init__()
        self.chain, self.steps = chain, steps

    def forward(self, *inputs: Any) -> Tensor:
        bases, held = inputs[: len(self.steps)], inputs[len(self.steps) :]
        out: Tensor = _Difference.apply(self.chain, self.steps, held, *bases)
        return out


class _Difference(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        chain: Callable[..., Tensor],
        steps: tuple[float, ...],
        held: tuple[Any, ...],
        *bases: Tensor,
    ) -> Tensor:
        ctx.chain, ctx.steps, ctx.held = chain, steps, held
        ctx.save_for_backward(*bases)
        return chain(*bases, *held).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        bases = ctx.saved_tensors
        slopes = (_difference(ctx, bases, i) for i in range(len(bases)))
        pulled = (gradients[0] * slope for slope in slopes)
        return None, None, None, *(_gather(g, z.shape) for g, z in zip(pulled, bases, strict=True))


def _difference(ctx: Any, bases: Sequence[Tensor], i: int) -> Tensor:
    here = ctx.chain(*bases, *ctx.held)
    quotients = (_quotient(ctx, bases, i, q * ctx.steps[i], here) for q in _AT)
    return reduce(torch.add, quotients) / len(_AT)


def _quotient(ctx: Any, bases: Sequence[Tensor], i: int, step: float, here: Tensor) -> Tensor:
    """(f(z + s) − f(z − s)) / 2s; where one of them is no number, as beside the end of a root, the
    difference between the other and f(z), `here`, over s."""
    up, down = (
        ctx.chain(*bases[:i], bases[i] + sign * step, *bases[i + 1 :], *ctx.held)
        for sign in (1, -1)
    )
    above, below = up.isfinite(), down.isfinite()
    sides = (above.to(up.dtype) + below.to(up.dtype)).clamp_min(1)
    quotient: Tensor = (up.where(above, here) - down.where(below, here)) / (sides * step)
    return quotient
