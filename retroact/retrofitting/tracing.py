"""Tracing with torch.fx, where and only where the graph does what the net does.

A graph is a straight line, and tracing is easily fooled: it fixes `self.training`, draws a random
number once, takes one side of an `if`, forgets `torch.no_grad()` and the backward of an
autograd.Function, takes `mask=None` for a mask, and what forward notes (a counter, a feature map)
becomes part of the trace. So a net is said to trace only if, while it is traced, no tensor
operation runs, no random number is drawn and nothing is noted anywhere; if its graphs in train and
in eval mode, with and without gradients, are the same (functional dropout, whose flag differs,
becomes a dropout module), and the one without optional arguments is too; if it has no hooks; and if
the graph keeps every name of the state_dict. A copy is traced, so the net itself never sees a
proxy.

While torch.fx traces, every module call of the process goes through its tracer. Ours lets those of
other threads pass, and two of ours wait for each other.
"""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retroact.activations.site import Site
from retroact.ground import one_trace
from retroact.retrofitting.copying import shadow
from retroact.retrofitting.examples import Inputs, fresh
from retroact.retrofitting.installed import Installed
from retroact.retrofitting.notes import Notes
from retroact.retrofitting.recognition import Call
from retroact.retrofitting.watching import Probe, trial

DROPOUTS: dict[object, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


class WouldBakeError(RuntimeError):
    """Tracing met something that a graph would fix for ever, or forget."""


class Tracer(fx.Tracer):
    """torch.fx's tracer, with buffers as inputs of the graph and installed activations whole.

    Traces the calls of the thread that made it; what other threads run meanwhile is none of its
    business.
    """

    proxy_buffer_attributes = True

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone  # optional arguments at their defaults
        self._thread, self._world = threading.get_ident(), _world()
        self._proxies: list[weakref.ref[fx.Proxy]] = []
        super().__init__()

    @property
    def _autowrap_function_ids(self) -> set[int]:
        # nor are another thread's globals ours to patch
        return self._wrapped if self._is_ours() else set()

    @_autowrap_function_ids.setter
    def _autowrap_function_ids(self, ids: set[int]) -> None:
        self._wrapped = ids

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Installed) or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: Any, concrete_args: dict[str, object] | None = None) -> fx.Graph:
        """The graph of `root`; one trace at a time in the process."""
        # what torch.fx would look for at each call, before another thread's call could spoil it
        homes = {type(m).__module__ for m in root.modules()}
        self._autowrap_search.extend(
            sys.modules[home] for home in sorted(homes) if home in sys.modules
        )
        with one_trace():
            return super().trace(root, concrete_args)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[object, list[object]]:
        """The arguments of `forward`: a proxy for each, or for those with a default, `alone`, their
        defaults."""
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        defaults = _defaults(root_fn) if self._alone else {}
        return fn, [defaults.get(i, arg) for i, arg in enumerate(args)]

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> Any:
        """Traces a call of this thread; another thread's module just runs."""
        return (
            super().call_module(m, forward, args, kwargs)
            if self._is_ours()
            else forward(*args, **kwargs)
        )

    def getattr(
        self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]
    ) -> object:
        """A proxy of a parameter or buffer in this thread, the tensor itself in another one."""
        return (
            super().getattr(attr, attr_val, parameter_proxy_cache) if self._is_ours() else attr_val
        )

    def _is_ours(self) -> bool:
        return threading.get_ident() == self._thread

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # no_grad, autocast, or an autograd.Function, whose forward runs without grad
        if _world() != self._world:
            raise WouldBakeError(
                "the forward pass changes the grad mode or autocast, which a graph forgets"
            )
        return super().create_node(*args, **kwargs)

    def create_proxy(self, kind: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        proxy = super().create_proxy(kind, *args, **kwargs)
        if kind != "get_attr":  # torch.fx keeps those itself
            self._proxies.append(weakref.ref(proxy))
        return proxy

    def is_kept(self) -> bool:
        """Whether anything still holds a proxy, though the trace is over."""
        for generation in range(3):  # a look at all that a large process holds takes long
            if all(proxy() is None for proxy in self._proxies):
                break
            gc.collect(generation)
        return any(proxy() is not None for proxy in self._proxies)


def _defaults(function: Callable[..., object]) -> dict[int, object]:
    """The defaults of a function by the places of their parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {i: p.default for i, p in enumerate(parameters) if p.default is not p.empty}


def _world() -> tuple[object, ...]:
    """The grad mode and autocast, which a graph knows nothing of."""
    devices = ("cpu", "cuda")
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast


class _NothingRuns(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `Probe`

    def __torch_dispatch__(
        self, func: object, types: object, args: object = (), kwargs: object = None
    ) -> NoReturn:
        raise WouldBakeError(f"{func} ran while tracing: its result would be fixed")


def trace(net: nn.Module) -> fx.GraphModule | None:
    """The net as a graph with the same parameters and buffers, or None where no graph is faithful.

    The net stays as it is, and so do the caller's grad mode and `nn.Module`, after an exception
    too.
    """
    # torch.fx reads that of the class
    if any(_has_hooks(m) for m in net.modules()) or "forward" in vars(net):
        return None
    try:
        read = shadow(net)
        graph = _trace_once(read)
        in_training, without_grad = (
            _trace_once(shadow(net), training=True),
            _trace_once(shadow(net), grad=False),
        )
        has_defaults = bool(_defaults(type(net).forward))
        alone = _trace_once(shadow(net), alone=True) if has_defaults else graph
    except Exception:  # a forward pass that meets a proxy may raise anything
        return None
    if any(_compare(graph, other) != [] for other in (without_grad, alone)):
        return None
    if _compare(graph, in_training) is None:
        return None
    return _as_module(net, read, graph, in_training)


def _has_hooks(m: nn.Module) -> bool:
    backward = m._backward_hooks or m._backward_pre_hooks
    return bool(m._forward_hooks or m._forward_pre_hooks or backward)


def _as_module(
    net: nn.Module, read: nn.Module, graph: fx.Graph, in_training: fx.Graph
) -> fx.GraphModule | None:
    module = fx.GraphModule(read, graph, type(net).__name__)
    module.train(net.training)
    for node in _compare(module.graph, in_training) or []:
        if node.target not in DROPOUTS:
            return None
        _make_dropout(module, node)
    module.recompile()
    _keep_unused(module, read)
    if module.state_dict().keys() != net.state_dict().keys():
        return None
    modes = {name: m.training for name, m in net.named_modules()}
    for name, inner in module.named_modules():
        inner.training = modes.get(name, net.training)
    plain = {k: v for k, v in vars(read).items() if _is_plain(k, v) and not hasattr(module, k)}
    keep_attributes(module, plain)
    return module


def _keep_unused(module: fx.GraphModule, read: nn.Module) -> None:
    """Parameters and buffers that no call reads, such as those of a head for training, stay under
    their names."""
    there = module.state_dict().keys()
    for key in [k for k in read.state_dict() if k not in there]:
        path, _, name = key.rpartition(".")
        owner = read.get_submodule(path) if _has(read, path) else None
        if owner is not None and not _has(module, path):
            module.add_submodule(path, owner)
        elif owner is not None and name in owner._parameters:
            module.get_submodule(path).register_parameter(name, owner._parameters[name])
        elif owner is not None and owner._buffers.get(name) is not None:
            module.get_submodule(path).register_buffer(name, owner._buffers[name])


def _has(net: nn.Module, path: str) -> bool:
    try:
        net.get_submodule(path)
    except AttributeError:
        return False
    return True


def keep_attributes(net: nn.Module, attributes: Mapping[str, object]) -> None:
    """Sets attributes so that copies keep them; a GraphModule copies only those its meta names."""
    for name, value in attributes.items():
        setattr(net, name, value)
    if isinstance(net, fx.GraphModule):
        net.meta.setdefault("_user_preserved_attributes", {}).update(attributes)


def _is_plain(name: str, value: object) -> bool:
    return not name.startswith("_") and not isinstance(value, nn.Module) and name != "training"


def _trace_once(
    net: nn.Module, *, training: bool = False, grad: bool = True, alone: bool = False
) -> fx.Graph:
    """The graph in one mode; WouldBakeError where it would not be what the net does."""
    net.train(training)
    notes = Notes(net)
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(grad), _NothingRuns():
            tracer = Tracer(alone=alone)
            graph = tracer.trace(net)
        if notes.changed() or tracer.is_kept():
            raise WouldBakeError("the forward pass notes something or draws random numbers")
    finally:
        notes.restore()
    for node in graph.nodes:
        node.type = None  # annotations that are strings do not pickle
    return graph


def _compare(graph: fx.Graph, other: fx.Graph) -> list[fx.Node] | None:
    """The nodes that differ from the other graph's in their `training` flag; None if more
    differs."""
    if len(graph.nodes) != len(other.nodes):
        return None
    pairs = list(zip(graph.nodes, other.nodes, strict=True))
    if any(_content(n, but="training") != _content(o, but="training") for n, o in pairs):
        return None
    return [n for n, o in pairs if _content(n) != _content(o)]


def _content(node: fx.Node, but: str = "") -> tuple[str, ...]:
    kwargs = {k: v for k, v in node.kwargs.items() if k != but}
    return node.op, str(node.target), repr(node.args), repr(kwargs)


def _make_dropout(net: fx.GraphModule, node: fx.Node) -> None:
    """Puts a dropout module, which follows the mode, in the place of a functional dropout."""
    dropout = DROPOUTS[node.target](node.kwargs["p"], node.kwargs["inplace"])
    name = f"traced_{node.name}"
    net.add_submodule(name, dropout)
    with net.graph.inserting_before(node):
        called = net.graph.call_module(name, node.args[:1])
    node.replace_all_uses_with(called)
    net.graph.erase_node(node)


# ---------------------------------------------------------------------------- calls and their nodes


class _Watch(fx.Interpreter):
    """Runs a graph node by node and notes which node makes which activation call."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net, garbage_collect_values=False)
        self.running: fx.Node | None = None
        self.calls: dict[fx.Node, list[tuple[Call, Tensor]]] = defaultdict(list)
        self.inputs: dict[fx.Node, fx.Node | None] = {}

    def note(self, call: Call, out: Tensor, on_pixels: bool) -> None:
        if on_pixels:
            return
        node = self.running
        assert node is not None
        self.calls[node].append((call, out))
        self.inputs[node] = next((n for n, value in self.env.items() if value is call.z), None)

    def run_node(self, n: fx.Node) -> Any:
        self.running = n
        result = super().run_node(n)
        if n in self.calls and self.calls[n][-1][1] is not result:
            self.inputs[n] = None  # the node does more than this call
        return result


@contextmanager
def _in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    modes = [(m, m.training) for m in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def rewrite(
    net: fx.GraphModule, put_in: dict[str, Installed], sites: tuple[Site, ...], inputs: Inputs
) -> bool:
    """Puts each installed activation in the place of its site's node; False where one has no
    node."""
    watch = _Watch(net)
    with _in_mode(net, False), trial():
        given = fresh(inputs)
        with Probe(watch.note, given):
            watch.run(*given)
    kinds = {site.kind for site in sites}
    calls = [
        (node, call) for node, seen in watch.calls.items() for call, _ in seen if call.kind in kinds
    ]
    if [(c.kind, c.own) for _, c in calls] != [(s.kind, s.own) for s in sites]:
        return False
    for site, (node, _) in zip(sites, calls, strict=True):
        z = watch.inputs[node]
        if site.name not in put_in:
            continue
        if z is None or len(watch.calls[node]) > 1:
            return False
        _replace(net, node, z, put_in[site.name])
    net.recompile()
    return True


def _replace(net: fx.GraphModule, node: fx.Node, z: fx.Node, module: Installed) -> None:
    name = f"retrofit_{module.site.order}"
    net.add_submodule(name, module)
    with net.graph.inserting_before(node):
        called = net.graph.call_module(name, (z,))
    node.replace_all_uses_with(called)
    read = node.all_input_nodes
    net.graph.erase_node(node)
    for unused in read:
        _erase_unused(net.graph, unused)


_WRITING = {"iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "setitem"}


def _erase_unused(graph: fx.Graph, node: fx.Node) -> None:
    """What only the replaced call read, such as the mask of `z * (z > 0)`; folding would stumble
    over it."""
    name = str(getattr(node.target, "__name__", node.target))
    writes = (
        name.endswith("_") or name in _WRITING or node.kwargs.get("inplace") or "out" in node.kwargs
    )
    if node.users or node.op not in ("call_function", "call_method") or writes:
        return
    read = node.all_input_nodes
    graph.erase_node(node)
    for unused in read:
        _erase_unused(graph, unused)
