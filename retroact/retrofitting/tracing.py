"""Tracing with torch.fx, where and only where the graph does what the net does.

A graph is a straight line, and tracing is easily fooled: it fixes `self.training`, draws a random
number once, takes one side of an `if`. So a net is said to trace only if, while it is traced,
no tensor operation runs, no random number is drawn and no attribute changes; if its graphs in train
and in eval mode are the same (functional dropout, whose flag differs, becomes a dropout module);
if it has no hooks; and if the graph keeps every name of the state_dict.

While torch.fx traces, every module call of the process goes through its tracer. Ours lets those of other
threads pass, and two of ours wait for each other.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retroact.retrofitting.installed import Installed
from retroact.retrofitting.sites import Call, Probe, Site, trial

DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


class WouldBakeError(RuntimeError):
    """Tracing met something that a graph would fix for ever."""


_TRACING = threading.RLock()  # of the process: a second tracer would undo the patches of the first


class Tracer(fx.Tracer):
    """torch.fx's tracer, with buffers as inputs of the graph and installed activations whole.

    Traces the calls of the thread that made it; what other threads run meanwhile is none of its business.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        super().__init__()

    @property
    def _autowrap_function_ids(self) -> set[int]:
        return self._wrapped if self._is_ours() else set()  # nor are another thread's globals ours to patch

    @_autowrap_function_ids.setter
    def _autowrap_function_ids(self, ids: set[int]) -> None:
        self._wrapped = ids

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Installed) or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of `root`; one trace at a time in the process."""
        # what torch.fx would look for at each call, before another thread's call could spoil it
        homes = {type(m).__module__ for m in root.modules()}
        self._autowrap_search.extend(sys.modules[home] for home in sorted(homes) if home in sys.modules)
        with _TRACING:
            return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Traces a call of this thread; another thread's module just runs."""
        return super().call_module(m, forward, args, kwargs) if self._is_ours() else forward(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy of a parameter or buffer in this thread, the tensor itself in another one."""
        return super().getattr(attr, attr_val, parameter_proxy_cache) if self._is_ours() else attr_val

    def _is_ours(self) -> bool:
        return threading.get_ident() == self._thread


class _NothingRuns(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `Probe`

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise WouldBakeError(f"{func} ran while tracing: its result would be fixed")


def traced(net: nn.Module) -> fx.GraphModule | None:
    """The net as a graph with the same modules and parameters, or None where no graph is faithful."""
    if any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()):
        return None
    try:
        graph, in_training = _graph(net, False), _graph(net, True)
    except Exception:  # a forward pass that meets a proxy may raise anything
        return None
    if not _made_equal(net, graph, in_training):
        return None
    made = fx.GraphModule(net, graph, type(net).__name__)
    if made.state_dict().keys() != net.state_dict().keys():
        return None
    keep_attributes(made, {k: v for k, v in vars(net).items() if _is_plain(k, v) and not hasattr(made, k)})
    return made


def keep_attributes(made: nn.Module, attributes: dict[str, Any]) -> None:
    """Sets attributes so that copies keep them; a GraphModule copies only those its meta names."""
    for name, value in attributes.items():
        setattr(made, name, value)
    if isinstance(made, fx.GraphModule):
        made.meta.setdefault("_user_preserved_attributes", {}).update(attributes)


def _is_plain(name: str, value: Any) -> bool:
    return not name.startswith("_") and not isinstance(value, Tensor | nn.Module) and name != "training"


def _graph(net: nn.Module, training: bool) -> fx.Graph:
    before = _state(net)
    with _in_mode(net, training), _NothingRuns():
        graph = Tracer().trace(net)
    if _state(net) != before:
        raise WouldBakeError("the forward pass changes attributes or draws random numbers")
    for node in graph.nodes:
        node.type = None  # annotations that are strings do not pickle
    return graph


def _state(net: nn.Module) -> tuple[Any, ...]:
    simple = int | float | str | bool | None
    kept = [{k: v for k, v in vars(m).items() if isinstance(v, simple)} for m in net.modules()]
    return kept, random.getstate()


@contextmanager
def _in_mode(net: nn.Module, training: bool) -> Iterator[None]:
    modes = [(m, m.training) for m in net.modules()]
    net.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _made_equal(net: nn.Module, graph: fx.Graph, in_training: fx.Graph) -> bool:
    """Whether both graphs are one, after functional dropout has become a module that knows its mode."""
    if len(graph.nodes) != len(in_training.nodes):
        return False
    pairs = zip(graph.nodes, in_training.nodes, strict=True)
    differing = [node for node, other in pairs if _reads(node) != _reads(other)]
    pairs = zip(graph.nodes, in_training.nodes, strict=True)
    if any(_reads(node, but="training") != _reads(other, but="training") for node, other in pairs):
        return False
    if any(node.target not in DROPOUTS for node in differing):
        return False
    for node in differing:
        _as_module(net, graph, node)
    return True


def _reads(node: fx.Node, but: str = "") -> tuple[str, ...]:
    kwargs = {k: v for k, v in node.kwargs.items() if k != but}
    return node.op, str(node.target), repr(node.args), repr(kwargs)


def _as_module(net: nn.Module, graph: fx.Graph, node: fx.Node) -> None:
    dropout = DROPOUTS[node.target](node.kwargs["p"], node.kwargs["inplace"])
    name = f"traced_{node.name}"
    net.add_module(name, dropout.train(net.training))
    with graph.inserting_before(node):
        called = graph.call_module(name, node.args[:1])
    node.replace_all_uses_with(called)
    graph.erase_node(node)


# ------------------------------------------------------------------------------- calls and their nodes


class _Watched(fx.Interpreter):
    """Runs a graph node by node and notes which node makes which activation call."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__(net)
        self.running: fx.Node | None = None
        self.calls: dict[fx.Node, list[tuple[Call, Tensor]]] = defaultdict(list)
        self.inputs: dict[fx.Node, fx.Node | None] = {}

    def note(self, call: Call, out: Tensor) -> None:
        node = self.running
        assert node is not None
        self.calls[node].append((call, out))
        self.inputs[node] = next((n for n in node.all_input_nodes if self.env[n] is call.z), None)

    def run_node(self, n: fx.Node) -> Any:
        self.running = n
        result = super().run_node(n)
        if n in self.calls and self.calls[n][-1][1] is not result:
            self.inputs[n] = None  # the node does more than this call
        return result


def rewritten(net: fx.GraphModule, put_in: dict[str, Installed], found: tuple[Site, ...], inputs: Any) -> bool:
    """Puts each installed activation in the place of its site's node; False where one has no node."""
    watched = _Watched(net)
    with _in_mode(net, False), trial(), Probe(watched.note):
        watched.run(*inputs)
    kinds = {site.kind for site in found}
    calls = [(node, call) for node, seen in watched.calls.items() for call, _ in seen if call.kind in kinds]
    if [(c.kind, c.own) for _, c in calls] != [(s.kind, s.own) for s in found]:
        return False
    for site, (node, _) in zip(found, calls, strict=True):
        z = watched.inputs[node]
        if site.name not in put_in:
            continue
        if z is None or len(watched.calls[node]) > 1:
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
    net.graph.erase_node(node)
