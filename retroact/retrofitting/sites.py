"""Sites: every call of an activation function that a forward pass makes, counted while it runs.

Counting `nn.ReLU` modules is not enough: one module may be called many times, and most calls are
functions. So a copy of the net runs on an example, and a dispatch mode sees every tensor operation:

    recognise   one operation and its arguments -> is this a ReLU (with a cap), or another activation?
    Whereabouts which module is running, so that a call gets a name such as "layer1.0.relu"
    survey      runs the copy and lists what it saw; `sites` is the list of what can be replaced

An operation that is not known by name is compared by value: where its output is exactly the ReLU of
an input, it is one (`torch.where(z > 0, z, 0)`, `z * (z > 0)`), and nothing passes unseen.
Fused fast paths are off meanwhile: an eval `nn.TransformerEncoderLayer` hides its ReLU in one kernel.
The net itself never runs: its mode, hooks, buffers and gradients stay as they are.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pickle import PickleError
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from retroact.ground import neutral
from retroact.retrofitting.activations import Activation, ReLU
from retroact.retrofitting.installed import installed

Example = Tensor | tuple[Any, ...]

OTHERS = {
    "celu": "celu",
    "elu": "elu",
    "gelu": "gelu",
    "glu": "glu",
    "hardshrink": "hardshrink",
    "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish",
    "leaky_relu": "leaky_relu",
    "log_sigmoid": "logsigmoid",
    "log_sigmoid_forward": "logsigmoid",
    "mish": "mish",
    "prelu": "prelu",
    "prelu_kernel": "prelu",
    "rrelu": "rrelu",
    "rrelu_with_noise": "rrelu",
    "selu": "elu",  # arrives as elu with its two constants
    "sigmoid": "sigmoid",
    "silu": "silu",
    "softplus": "softplus",
    "softshrink": "softshrink",
    "tanh": "tanh",
}
"""Activations that are no ReLU, under the names that functions and operations have for them."""


class NoSitesError(ValueError):
    """The net calls no activation that could be replaced."""


@dataclass(frozen=True)
class Site:
    """One call of an activation: where it is, what it is, and what goes in.

    `order` counts the calls of one forward pass from 0. `own` is the net's own activation there, or
    None for a kind that is no ReLU. `kind` is "relu", "gelu", …, or the operation that was recognised by
    its values. `module` is the path of the activation module that is called, "" for a function.
    `shape` is that of the input without its batch. `inplace`: the call overwrites its input.
    """

    name: str
    order: int = 0
    own: Activation | None = field(default_factory=ReLU)
    kind: str = "relu"
    module: str = ""
    shape: tuple[int, ...] = ()
    inplace: bool = False


@dataclass(frozen=True)
class Call:
    """One activation call as `recognise` reads it: its kind, its input, the net's own activation."""

    kind: str
    z: Tensor
    own: Activation | None
    inplace: bool = False


@dataclass(frozen=True)
class Survey:
    """What one forward pass called: `sites` can be replaced, `left_alone` are no ReLU and stay.

    `installed` names the calls of activations that a retrofit has already put in. `depth` is the number
    of wrappers with one `.module` (a classifier, DataParallel) around all of it; names start inside.
    """

    sites: tuple[Site, ...]
    left_alone: tuple[Site, ...]
    installed: tuple[str, ...]
    depth: int


def sites(net: nn.Module, example: Example | None = None, *, also: tuple[str, ...] = ()) -> tuple[Site, ...]:
    """Every activation call of one eval forward pass that a retrofit can replace, in order.

    `example` is an input, or a tuple of inputs; by default seeded uniform noise of shape (2, *net.shape).
    `also` names kinds beyond ReLU to be counted: "gelu", "silu", … Raises ValueError where the net says
    no shape and no example is given, and where the net is TorchScript or compiled.
    """
    return survey(net, example, also=also).sites


def left_alone(net: nn.Module, example: Example | None = None) -> dict[str, int]:
    """How many calls of each kind beyond ReLU a forward pass makes that stay as they are, the commonest kind first."""
    return dict(Counter(site.kind for site in survey(net, example).left_alone).most_common())


@neutral()
def survey(net: nn.Module, example: Example | None = None, *, also: tuple[str, ...] = ()) -> Survey:
    """Runs a copy of the net on the example and lists the activation calls it makes."""
    refuse_what_cannot_be_read(net, also)
    seen, put_in = _probe(copied(net).eval(), example_for(net, example))
    depth = _wrappers(net, [s.name for s in seen])
    prefix = len("module.") * depth
    inner = [replace(s, name=s.name[prefix:], module=s.module[prefix:]) for s in seen]
    chosen = [s for s in inner if s.own is not None or s.kind in also]
    return Survey(
        sites=tuple(replace(s, order=i) for i, s in enumerate(chosen)),
        left_alone=tuple(s for s in inner if s.own is None and s.kind not in also),
        installed=tuple(put_in),
        depth=depth,
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
            f"{type(net).__name__} does not say the shape of its input; pass example=, "
            "a batch of two of its inputs, such as example=torch.rand(2, 3, 32, 32)"
        )
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    noise = torch.rand((2, *shape), generator=torch.Generator().manual_seed(0))
    return (noise.to(device=like.device, dtype=like.dtype),)


def refuse_what_cannot_be_read(net: nn.Module, also: tuple[str, ...] = ()) -> None:
    """Raises ValueError or TypeError for nets whose calls are sealed, and for an unknown kind in `also`."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(net).__name__}; wrap the function in a module")
    if any(isinstance(m, torch.jit.ScriptModule) for m in net.modules()):
        raise ValueError("the net is TorchScript, whose calls are sealed; retrofit the Python net it was made from")
    if any(hasattr(m, "_orig_mod") for m in net.modules()):
        raise ValueError("the net is compiled; retrofit it first and compile the result")
    unknown = [kind for kind in also if kind not in OTHERS.values() and kind != "hardtanh"]
    if unknown:
        known = ", ".join(sorted({*OTHERS.values(), "hardtanh"}))
        raise ValueError(f"also={also}: expected kinds of activations ({known}), got {unknown[0]!r}")


def copied(net: nn.Module) -> nn.Module:
    """A deep copy; ValueError where the net holds tensors that cannot be copied."""
    try:
        return copy.deepcopy(net)
    except (RuntimeError, TypeError, PickleError) as e:
        raise ValueError(f"{type(net).__name__} cannot be copied: {e}; load its weights into a fresh net") from e


# ------------------------------------------------------------------------------------- recognition


def recognise(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Reads one call, of a torch function or of an operation, as an activation; None where it is none."""
    if "out" in kwargs or not (args or "input" in kwargs):
        return None
    inplace = bool(kwargs.get("inplace")) or name.endswith("_")
    z, *rest = args or (kwargs["input"],)
    said = {word: value for word, value in kwargs.items() if word not in ("inplace", "input")}
    name = name.strip("_")
    if name in ("maximum", "max", "fmax"):
        z, rest, said = _beside_zero(z, *rest, **said), [], {}
    if not isinstance(z, Tensor) or not z.is_floating_point():  # clamp(min=0) of an index is none
        return None
    if name in OTHERS:
        return Call(OTHERS[name], z, None, inplace)
    reader = _READERS.get(name)
    return None if reader is None else reader(z, inplace, *rest, **said)


def _relu(z: Tensor, inplace: bool, *_: Any, **__: Any) -> Call:
    return Call("relu", z, ReLU(), inplace)


def _relu6(z: Tensor, inplace: bool, *_: Any, **__: Any) -> Call:
    return Call("relu", z, ReLU(6.0), inplace)


def _hardtanh(z: Tensor, inplace: bool, min_val: Any = -1.0, max_val: Any = 1.0, *_: Any, **__: Any) -> Call:
    own = ReLU(float(max_val)) if min_val == 0 and max_val > 0 else None
    return Call("relu" if own else "hardtanh", z, own, inplace)


def _threshold(z: Tensor, inplace: bool, threshold: Any, value: Any, *_: Any, **__: Any) -> Call | None:
    return Call("relu", z, ReLU(), inplace) if threshold == 0 and value == 0 else None


def _clamp(z: Tensor, inplace: bool, min: Any = None, max: Any = None, **_: Any) -> Call | None:
    low, high = _number(min), math.inf if max is None else _number(max)
    if low != 0 or high is None or high <= 0:
        return None
    return Call("relu", z, ReLU(float(high)), inplace)


_READERS: dict[str, Any] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "maximum": _relu,
    "max": _relu,
    "fmax": _relu,
}


def _beside_zero(one: Any, other: Any = None, *_: Any, **__: Any) -> Tensor | None:
    """The z of maximum(z, 0) and of maximum(0, z)."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
        return None
    if _number(other) == 0:
        return one
    return other if _number(one) == 0 else None


def _number(value: Any) -> float | None:
    """The number that a bound is, also where it is given as a tensor of equal numbers."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, int | float) else None
    if value.numel() == 0 or bool((value != value.flatten()[0]).any()):
        return None
    return float(value.flatten()[0])


def _by_value(name: str, args: tuple[Any, ...], out: Any) -> Call | None:
    """A ReLU in another spelling: the output is exactly max(0, z) for an input z of both signs."""
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return None
    for z in args:
        if not isinstance(z, Tensor) or z.shape != out.shape or z.dtype != out.dtype:
            continue
        if bool((z < 0).sum() >= 4) and bool((z > 0).sum() >= 4) and torch.equal(out, z.clamp(min=0)):
            return Call(name, z, ReLU())
    return None


# --------------------------------------------------------------------------------------- selection


def select(found: tuple[Site, ...], text: str) -> tuple[Site, ...]:
    """The sites that `text` names: names, globs ("layer1.*"), orders ("0", "-1"), slices ("0:2"), by comma.

    A site's own name comes before its order, as the modules of an nn.Sequential are called "0", "1", ….
    Raises ValueError for a part that selects nothing.
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
    """Whether a call of this name, that no survey has seen, belongs to the selection; orders never do."""
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
            enter, leave = functools.partial(self._enter, path), functools.partial(self._leave, path)
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


# ------------------------------------------------------------------------------------- the trial run


class Probe(TorchDispatchMode):
    """Sees every operation and keeps the activation calls; torch's modes are entered by inheritance only."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and torch would import its compiler to say so: a second and a half

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        call, before = recognise(name, args, kwargs), _before(func, args)
        out = func(*args, **kwargs)
        if call is None:
            call = _by_value(name.strip("_"), before, out)
        if call is not None:
            self.note(call, out)
        return out


def _before(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not func._schema.is_mutable:
        return args
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def _probe(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[list[Site], list[str]]:
    """The activation calls of a net that may be hooked at will, and those of a retrofit by name."""
    seen: list[Site] = []
    where, modules, (put_in, inside) = Whereabouts(), activation_modules(net), _watched(net)
    where.attach(net)

    def note(call: Call, _: Any) -> None:
        if inside:
            return
        module = where.path if where.path in modules else ""
        name, shape = where.name(call.kind, module), tuple(call.z.shape[1:])
        seen.append(Site(name, len(seen), call.own, call.kind, module, shape, call.inplace))

    with trial(), Probe(note):
        net(*inputs)
    return seen, put_in


def _watched(net: nn.Module) -> tuple[list[str], list[Any]]:
    """Two lists that fill while the net runs: the installed activations called, and those running now."""
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
    """A forward pass in which nothing is hidden, kept or drawn from the caller's random numbers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _unwrapped(net: nn.Module) -> Iterator[nn.Module]:
    yield net
    while isinstance(inner := net._modules.get("module"), nn.Module):
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
