"""Sites: every call of an activation function that a forward pass makes, counted while it runs.

Counting `nn.ReLU` modules is not enough: one module may be called many times, and most calls are
functions. So a copy of the net runs on an example, and a dispatch mode sees every tensor operation:

    Whereabouts which module is running, so that a call gets a name such as "layer1.0.relu"
    survey      runs the copy and lists what it saw; `sites` is the list of what can be replaced

`recognition` says of one operation what it is: by name, or, where it is written by hand, by its
values. A clamp of the pixels before any layer ran (`clamp(0, 1)`, before or after normalising) is
no activation. Fused fast paths are off meanwhile: an eval `nn.TransformerEncoderLayer` hides its
ReLU in one kernel. The net itself never runs: its mode, hooks, buffers and gradients stay as they
are.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from retroact.doors import named, noting_failure
from retroact.ground import Held, neutral
from retroact.retrofitting.activations import Activation, ReLU
from retroact.retrofitting.copying import copied
from retroact.retrofitting.installed import installed
from retroact.retrofitting.recognition import COMPOSED, KINDS, Call, Reader, recognise

Example = Tensor | tuple[Any, ...]


class NoSitesError(ValueError):
    """The net calls no activation that could be replaced."""


@dataclass(frozen=True)
class Site:
    """One call of an activation: where it is, what it is, and what goes in.

    `order` counts the calls of one forward pass from 0. `own` is the net's own activation there, or
    None for a kind that is neither ReLU nor JumpReLU. `kind` is "relu", "gelu", …, or the operation
    that was recognised by its values, "composed" where it takes several. `module` is the path of
    the activation module that is called, "" for a function. `shape` is that of the input without
    its batch. `inplace`: the call overwrites its input. `argument`: which argument of its function
    the input is, for a call that was recognised by its values; its name counts every call of that
    function in its module.
    """

    name: str
    order: int = 0
    own: Activation | None = field(default_factory=ReLU)
    kind: str = "relu"
    module: str = ""
    shape: tuple[int, ...] = ()
    inplace: bool = False
    argument: int | None = None


@dataclass(frozen=True)
class Survey:
    """What one forward pass called: `sites` can be replaced, `left_alone` are no ReLU and stay.

    `installed` names the calls of activations that a retrofit has already put in. `depth` is the
    number of wrappers with one `.module` (a classifier, DataParallel) around all of it; names start
    inside. `on_pixels` are clamps of the image before any layer ran, which are no activations.
    """

    sites: tuple[Site, ...]
    left_alone: tuple[Site, ...]
    installed: tuple[str, ...]
    depth: int
    on_pixels: tuple[Site, ...] = ()


def sites(
    net: str | PathLike[str] | nn.Module,
    example: Example | None = None,
    *,
    also: tuple[str, ...] = (),
) -> tuple[Site, ...]:
    """Every activation call of one eval forward pass that a retrofit can replace, in order.

    `example` is an input, or a tuple of inputs; by default seeded uniform noise of shape (2,
    *net.shape). `also` names kinds beyond ReLU to be counted: "gelu", "silu", …, and "jumprelu" for
    jumps of the net's own. Raises ValueError where the net says no shape and no example is given,
    and where the net is sealed (TorchScript, quantised, exported); TypeError for what is no module.
    """
    return survey(named(net), example, also=also).sites


def left_alone(net: nn.Module, example: Example | None = None) -> dict[str, int]:
    """How often one forward pass calls each kind of activation that a retrofit leaves: {"gelu":
    17}.

    Of a retrofitted net that is what its retrofit left, kinds and sites that were not chosen, as
    its `.left_alone` says; of any other net what `retrofit` would leave by default. Kinds are
    counted wherever they are called, so the sigmoid of a gate counts too. Raises as `sites` does.
    """
    said = [m for m in _unwrapped(net) if isinstance(getattr(m, "left_alone", None), dict)]
    return dict(said[0].left_alone) if said else counted(survey(net, example).left_alone)  # type: ignore[arg-type]


def counted(calls: tuple[Site, ...]) -> dict[str, int]:
    """How many calls there are of each kind, the most frequent first."""
    return dict(Counter(site.kind for site in calls).most_common())


@neutral()
def survey(net: nn.Module, example: Example | None = None, *, also: tuple[str, ...] = ()) -> Survey:
    """Runs a copy of the net on the example and lists the activation calls it makes."""
    refuse_what_cannot_be_read(net, also)
    work = copied(net).eval()
    inputs = example_for(net, example)
    with noting_failure(inputs[0] if inputs else None):
        seen, on_pixels, put_in = _probe(work, inputs)
    if not seen and not put_in:  # a net of nothing but a ReLU on its input
        seen = [s for s in on_pixels if s.own == ReLU()]
    depth = _wrappers(work, [s.name for s in seen])
    prefix = len("module.") * depth
    inner = [replace(s, name=s.name[prefix:], module=s.module[prefix:]) for s in seen]
    chosen = [s for s in inner if s.kind in also or (s.own is not None and s.kind != "jumprelu")]
    return Survey(
        sites=tuple(replace(s, order=i) for i, s in enumerate(chosen)),
        left_alone=tuple(s for s in inner if s not in chosen),
        installed=tuple(put_in),
        depth=depth,
        on_pixels=tuple(replace(s, name=s.name.removeprefix("module." * depth)) for s in on_pixels),
    )


# ------------------------------------------------------------------------------------ what goes in


def example_for(net: nn.Module, example: Example | None) -> tuple[Any, ...]:
    """The inputs of a trial run: the example, or noise of the net's shape, device and dtype."""
    if example is not None:
        return example if isinstance(example, tuple) else (example,)
    said: Any = (getattr(module, "shape", None) for module in _unwrapped(net))
    shape = next((s for s in said if s is not None), None)
    if shape is None:
        raise ValueError(
            f"{type(net).__name__} does not say the shape of its input; say it, Classifier(net,"
            " shape=(c, h, w)), or pass example=, a batch of two of its inputs, such as"
            " example=torch.rand(2, 3, 32, 32)"
        )
    return noise_for(net, shape)


def noise_for(net: nn.Module, shape: Sequence[int]) -> tuple[Any, ...]:
    """Two images of noise (2, c, h, w) for a trial run, of the net's device and dtype."""
    like = next((p for p in net.parameters() if p.is_floating_point()), None)
    cpu = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.rand((2, *shape), generator=cpu, dtype=torch.float32, device="cpu")
    return (noise if like is None else noise.to(device=like.device, dtype=like.dtype),)


def fresh(inputs: Any) -> Any:
    """Copies of the tensors in an example, for a trial run that may write to them."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), inputs)


def refuse_what_cannot_be_read(net: nn.Module, also: tuple[str, ...] = ()) -> None:
    """Raises ValueError or TypeError for nets whose calls are sealed, and for an unknown kind in
    `also`."""
    if type(net).__name__ == "ExportedProgram":
        raise TypeError(
            "the net is exported, its calls are sealed; retrofit the Python net it was made from"
        )
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(net).__name__}; wrap the function in a module whose"
            " forward calls it and whose attributes are the nets that it uses"
        )
    if any(isinstance(m, torch.jit.ScriptModule) for m in net.modules()):
        raise ValueError(
            "the net is TorchScript, whose calls are sealed; retrofit the Python net it was made"
            " from"
        )
    if any(_is_exported(m) for m in net.modules()):
        raise ValueError(
            "the net is exported, its calls are sealed; retrofit the Python net it was made from"
        )
    if any(_is_quantised(m) for m in net.modules()):
        raise ValueError(
            "the net is quantised, its ReLUs lie inside integer kernels; retrofit the float net"
            " first"
        )
    unknown = [kind for kind in also if kind not in KINDS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"also={also}: expected kinds of activations ({', '.join(sorted(KINDS))}), got"
            f" {unknown[0]!r}{hint}"
        )


# --------------------------------------------------------------------------------------- selection


def select(found: tuple[Site, ...], text: str) -> tuple[Site, ...]:
    """The sites that `text` names: names, globs ("layer1.*"), orders ("0", "-1"), slices ("0:2"),
    by comma.

    A site's own name comes before its order, as the modules of an nn.Sequential are called "0",
    "1", …. Raises ValueError for a part that selects nothing.
    """
    chosen: set[str] = set()
    for part in _parts(text):
        hits = {s.name for s in _hits(found, part)}
        if not hits:
            raise ValueError(
                f"sites={text!r}: {part!r} selects none of the {len(found)} sites; "
                f"there are {', '.join(s.name for s in found)}"
            )
        chosen |= hits
    return tuple(s for s in found if s.name in chosen)


def selects_by_name(text: str, name: str) -> bool:
    """Whether a call of this name, that no survey has seen, belongs to the selection; orders never
    do."""
    return any(fnmatch.fnmatchcase(name, part) for part in _parts(text))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _hits(found: tuple[Site, ...], part: str) -> list[Site]:
    named = [s for s in found if s.name == part or fnmatch.fnmatchcase(s.name, part)]
    if named or not _ORDER.fullmatch(part):
        return named
    if ":" not in part:
        return list(found[int(part) :][:1])
    start, stop = (int(end) if end else None for end in part.split(":"))
    return list(found[start:stop])


_ORDER = re.compile(r"-?\d+|(-?\d+)?:(-?\d+)?")


def _is_exported(m: nn.Module) -> bool:
    graph = getattr(m, "graph", None)
    return isinstance(graph, fx.Graph) and any(
        isinstance(n.target, torch._ops.OpOverload) for n in graph.nodes
    )


def _is_quantised(m: nn.Module) -> bool:
    """Whether activations are integers in there; dynamic quantisation leaves them floats but where
    it fuses."""
    home = type(m).__module__.split(".")
    of_weights = "dynamic" in home or "PackedParams" in type(m).__name__
    return "quantized" in home and ("intrinsic" in home or not of_weights)


# ------------------------------------------------------------------------------------- where it is


class Whereabouts:
    """Knows which module is running, and so names each activation call of a forward pass.

    A call inside an activation module is named by that module, "layer1.0.relu"; a function's by the
    module that calls it and its kind, "layer1.0.relu()". The n-th call of the same name gets "#n".
    """

    def __init__(self) -> None:
        self._threads: dict[int, tuple[list[str], Counter[str]]] = {}

    def attach(self, net: nn.Module) -> list[Any]:
        """Hooks that follow the forward pass through the net; returns their handles."""
        handles = []
        for path, module in net.named_modules():
            enter, leave = (
                functools.partial(self._enter, path),
                functools.partial(self._leave, path),
            )
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        return handles

    def _enter(self, path: str, *_: Any) -> None:
        if path == "":
            self._threads[threading.get_ident()] = ([], Counter())
        self._here[0].append(path)

    def _leave(self, path: str, *_: Any) -> None:
        stack, _counter = self._here
        # an exception inside may have left deeper modules on the stack
        while stack and stack.pop() != path:
            pass

    @property
    def _here(self) -> tuple[list[str], Counter[str]]:
        return self._threads.setdefault(threading.get_ident(), ([], Counter()))

    @property
    def path(self) -> str:
        """The path of the innermost module that is running."""
        stack, _ = self._here
        return stack[-1] if stack else ""

    def name(self, kind: str, module: str) -> str:
        """The name of the call that is happening; each asking counts as a call."""
        plain = module or ".".join(p for p in (self.path, f"{kind}()") if p)
        counter = self._here[1]
        counter[plain] += 1
        return plain if counter[plain] == 1 else f"{plain}#{counter[plain]}"

    def __getstate__(self) -> dict[str, Any]:
        return {"_threads": {}}  # a copy is not running


def activation_modules(net: nn.Module) -> set[str]:
    """The paths of modules that are nothing but one activation of torch's own."""
    return {
        path
        for path, module in net.named_modules()
        if type(module).__module__ == "torch.nn.modules.activation"
        and not any(True for _ in module.children())
        and not any(True for _ in module.parameters())
    }


# ------------------------------------------------------------------------------------ the trial run


class Probe(TorchDispatchMode):
    """Sees every operation and keeps the activation calls; torch's modes are entered by inheritance
    only.

    `note(call, out, on_pixels)` is told of each; `inputs` are what the net is about to be given.
    """

    def __init__(self, note: Any, inputs: Any) -> None:
        super().__init__()
        self.note = note
        self.reader = Reader(inputs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled in here, and torch would import its compiler to say so: a second and a
        # half
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, read = kwargs or {}, self.reader
        name = func.overloadpacket.__name__
        call, before = recognise(name, args, kwargs, values=True), _before(func, args)
        if call is not None and read.looks_past(call, args):
            call = None
        out = func(*args, **kwargs)
        name = name.strip("_") if name[-1] == "_" else name
        call = call or read.read(name, args, before, out, func._schema.is_mutable)
        if call is not None:
            z = next((b for a, b in zip(args, before, strict=True) if a is call.z), call.z)
            self.note(call, out, read.is_on_pixels(call, z, out))
        read.follow(name, args, before, out)
        if call is not None:
            read.found(call, out)
        return out


def _before(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not func._schema.is_mutable:
        return args
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


class _Functions(TorchFunctionMode):
    """Knows which torch function is running, as rerouting will see it, and which call of it that
    is."""

    def __init__(self, where: Whereabouts) -> None:
        super().__init__()
        self.where = where
        self.running: list[tuple[str, tuple[Any, ...]]] = [("", ())]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function_name(func)
        known = recognise(name, args, kwargs or {}) is not None or name.strip("_") in KINDS
        self.running.append(("" if known else self.where.name(name.strip("_"), ""), args))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.running.pop()


def function_name(func: Any) -> str:
    """What a torch function is called: "relu", also for a method and for an operation in one
    overload."""
    return str(getattr(func, "__name__", "")).split(".")[0]


def _probe(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Site], list[Site], list[str]]:
    """The activation calls of a net that may be hooked at will, those on pixels, those of a
    retrofit by name."""
    seen: list[Site] = []
    on_pixels: list[Site] = []
    with trial():
        where, modules, (put_in, inside) = Whereabouts(), activation_modules(net), _watched(net)
        where.attach(net)
        functions = _Functions(where)

        def note(call: Call, _: Any, pixels: bool) -> None:
            if inside:
                return
            module = where.path if where.path in modules else ""
            within, args = functions.running[-1] if call.by_value and not module else ("", ())
            argument = next(
                (i for i, a in enumerate(args) if a is call.z and call.kind != COMPOSED), None
            )
            name = within or where.name(call.kind, module)
            shape, calls = tuple(call.z.shape[1:]), on_pixels if pixels else seen
            calls.append(
                Site(name, len(seen), call.own, call.kind, module, shape, call.inplace, argument)
            )

        given = fresh(inputs)
        with functions, Probe(note, given):
            net(*given)
    return seen, on_pixels, put_in


def _watched(net: nn.Module) -> tuple[list[str], list[Any]]:
    """Two lists that fill while the net runs: the installed activations called, and those running
    now."""
    called: list[str] = []
    running: list[Any] = []

    def enter(module: Any, _: Any) -> None:
        called.append(module.site.name)
        running.append(module)

    def leave(*_: Any) -> None:
        running.pop()

    for module in installed(net).values():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)
    return called, running


@contextmanager
def trial() -> Iterator[None]:
    """A forward pass in which nothing is hidden or kept, on neutral ground and without gradients.

    Random numbers are those of seed 0 in every trial, so that two of them can be compared.
    """
    with _NO_FAST_PATH.held(), neutral(), torch.no_grad(), _seeded(), _eager():
        yield


def _fast_path_off() -> Callable[[], object]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    return lambda: torch.backends.mha.set_fastpath_enabled(before)


_NO_FAST_PATH = Held(_fast_path_off)


@contextmanager
def _seeded() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


@contextmanager
def _eager() -> Iterator[None]:
    """Functions that a net has compiled run as they are written, where their calls can be seen."""
    # then nothing is compiled, and importing it takes seconds
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _unwrapped(net: nn.Module) -> Iterator[nn.Module]:
    yield net
    while isinstance(inner := net._modules.get("module", net._modules.get("_orig_mod")), nn.Module):
        net = inner
        yield net


def _wrappers(net: nn.Module, names: list[str]) -> int:
    """How many times all the calls lie inside one `.module`."""
    depth = 0
    for _ in list(_unwrapped(net))[1:]:
        if not all(name.startswith("module." * (depth + 1)) for name in names):
            break
        depth += 1
    return depth
