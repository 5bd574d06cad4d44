"""Watching: what a forward pass calls, seen while it runs, and the trial in which it runs.

    Whereabouts which module is running, so that a call gets a name such as "layer1.0.relu"
    Functions   which torch function is running, for calls that are recognised by their values
    Probe       every tensor operation, and which of them are activations

Fused fast paths are off in a `trial`: an eval `nn.TransformerEncoderLayer` hides its ReLU in one
kernel.
"""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from retroact.ground import neutral
from retroact.retrofitting.examples import Inputs
from retroact.retrofitting.recognition import KINDS, Args, Call, Function, Kwargs, recognise
from retroact.retrofitting.values import Reader


class Whereabouts:
    """Knows which module is running, and so names each activation call of a forward pass.

    A call inside an activation module is named by that module, "layer1.0.relu"; a function's by the
    module that calls it and its kind, "layer1.0.relu()". The n-th call of the same name gets "#n".
    """

    def __init__(self) -> None:
        self._threads: dict[int, tuple[list[str], Counter[str]]] = {}

    def attach(self, net: nn.Module) -> None:
        """Hooks that follow the forward pass through the net."""
        for path, module in net.named_modules():
            enter, leave = (functools.partial(hook, path) for hook in (self._enter, self._leave))
            module.register_forward_pre_hook(enter, prepend=True)
            module.register_forward_hook(leave, always_call=True)

    def _enter(self, path: str, *_: object) -> None:
        if path == "":
            self._threads[threading.get_ident()] = ([], Counter())
        self._here[0].append(path)

    def _leave(self, path: str, *_: object) -> None:
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

    def __getstate__(self) -> dict[str, object]:
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


class Probe(TorchDispatchMode):
    """Sees every operation and keeps the activation calls; torch's modes are entered by inheritance
    only.

    `note(call, out, on_pixels)` is told of each; `inputs` are what the net is about to be given.
    """

    def __init__(self, note: Callable[[Call, Tensor, bool], None], inputs: Inputs) -> None:
        super().__init__()
        self.note = note
        self.reader = Reader(inputs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # nothing is compiled in here, and torch would import its compiler to say so: a second and a
        # half
        return False

    def __torch_dispatch__(
        self, func: Any, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
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
            read.note(call, out)
        return out


def _before(func: Any, args: Args) -> Args:
    """The arguments as they are before an operation that may write to them."""
    if not func._schema.is_mutable:
        return args
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


class Functions(TorchFunctionMode):
    """Knows which torch function is running, as rerouting will see it, and which call of it that
    is."""

    def __init__(self, where: Whereabouts) -> None:
        super().__init__()
        self.where = where
        self.running: list[tuple[str, Args]] = [("", ())]

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        name = function_name(func)
        by_name = recognise(name, args, kwargs or {}) is not None or name.strip("_") in KINDS
        self.running.append(("" if by_name else self.where.name(name.strip("_"), ""), args))
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.running.pop()


def function_name(func: object) -> str:
    """What a torch function is called: "relu", also for a method and for an operation in one
    overload."""
    return str(getattr(func, "__name__", "")).split(".")[0]


@contextmanager
def trial() -> Iterator[None]:
    """A forward pass in which nothing is hidden or kept, on neutral ground and without gradients.

    Random numbers are those of seed 0 in every trial, so that two of them can be compared.
    """
    with neutral(), torch.no_grad(), _fix_seeds(), _run_eagerly():
        yield


@contextmanager
def _fix_seeds() -> Iterator[None]:
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
def _run_eagerly() -> Iterator[None]:
    """Functions that a net has compiled run as they are written, where their calls can be seen."""
    # then nothing is compiled, and importing it takes seconds
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
