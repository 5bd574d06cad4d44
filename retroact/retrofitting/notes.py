"""Notes: what a forward pass keeps beside its result, so that tracing can see it and take it back.

A net may count its calls, list shapes, keep a feature map: in attributes, in containers, in objects
of its own, in closures, class attributes and globals. `Notes` remembers all of that by identity and
content.
"""

from __future__ import annotations

import itertools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

_SIMPLE = (int, float, complex, str, bytes, type(None))
_WHOLE = (*_SIMPLE, Tensor, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
_CONTAINERS = (list, dict, set, deque)
_NOTED = (*_SIMPLE, *_CONTAINERS, Tensor)
_ABSENT = object()
_MADE_BY_TRACING = "_tensor_constant"  # torch.fx stores under this name what it found in a closure


Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any]
Content = dict[Any, Any] | list[Any]
"""What is in a container: by key, or one after the other."""


class Notes:
    """Everything that a forward pass of `net` can write to, as it is now."""

    def __init__(self, net: nn.Module) -> None:
        self._seen: set[int] = set()
        # a container and its content; the container stays alive
        self._kept: list[tuple[Container, Content]] = []
        self._scopes: list[tuple[Scope, dict[str, object]]] = []
        self._states: list[tuple[object, str]] = []
        self._random = _random_states()
        for module in net.modules():
            self._keep(vars(module))
            self._keep_code(module)

    def changed(self) -> bool:
        """Whether anything is another object or has another content."""
        return (
            any(not _alike(_content(held), content) for held, content in self._kept)
            or any(not _alike(scope.read(), content) for scope, content in self._scopes)
            or any(_state(held) != state for held, state in self._states)
            or not _same_states(self._random, _random_states())
        )

    def restore(self) -> None:
        """Puts back what changed."""
        for held, content in self._kept:
            if not _alike(_content(held), content):
                _refill(held, content)
        for scope, before in self._scopes:
            now = scope.read()
            for name in {*now, *before}:
                if now.get(name, _ABSENT) is not before.get(name, _ABSENT):
                    scope.write(name, before.get(name, _ABSENT))
        pythons, numpys = self._random
        random.setstate(pythons)
        if numpys is not None:
            sys.modules["numpy"].random.set_state(numpys)

    def _keep(self, start: object) -> None:
        stack: list[object] = [start]
        while stack:
            held = stack.pop()
            if isinstance(held, _WHOLE) or id(held) in self._seen:
                continue
            self._seen.add(id(held))
            if isinstance(held, _CONTAINERS):
                self._kept.append((held, _content(held)))
            elif _state(held):
                self._states.append((held, _state(held)))
            elif slots := _Slots(held).read():
                self._scopes.append((_Slots(held), slots))
            stack.extend(_inside(held))

    def _keep_code(self, module: nn.Module) -> None:
        """What the module's own methods can write to: class attributes, closures, the globals they
        name."""
        for cls in type(module).__mro__:
            if id(cls) in self._seen or cls.__module__.split(".")[0] in ("torch", "builtins"):
                continue
            self._seen.add(id(cls))
            self._keep_scope(_OfClass(cls))
            for method in vars(cls).values():
                self._keep_function(method)
        hooks = [
            h for kept in vars(module).values() if isinstance(kept, dict) for h in kept.values()
        ]
        for value in (*vars(module).values(), *hooks):
            self._keep_function(value)

    def _keep_function(self, function: object) -> None:
        function = getattr(function, "func", function)  # a partial
        function = getattr(function, "__func__", function)  # a method
        if not isinstance(function, types.FunctionType) or id(function) in self._seen:
            return
        self._seen.add(id(function))
        self._keep(vars(function))
        self._keep_scope(_Globals(function))
        for cell in function.__closure__ or ():
            self._keep_scope(_Cell(cell))

    def _keep_scope(self, scope: Scope) -> None:
        content = scope.read()
        self._scopes.append((scope, content))
        for value in content.values():
            self._keep(value)
            self._keep_function(value)


# ------------------------------------------------------------------------------------------- scopes


class Scope(Protocol):
    """Names that code can write to, and what they stand for now."""

    def read(self) -> dict[str, object]: ...

    def write(self, name: str, value: object) -> None: ...


class _OfClass(Scope):
    def __init__(self, cls: type) -> None:
        self.cls = cls

    def read(self) -> dict[str, object]:
        return {k: v for k, v in vars(self.cls).items() if k[:2] != "__" and isinstance(v, _NOTED)}

    def write(self, name: str, value: object) -> None:
        delattr(self.cls, name) if value is _ABSENT else setattr(self.cls, name, value)


class _Globals(Scope):
    """Those that a function names and that can be notes: no modules, functions, classes."""

    def __init__(self, function: types.FunctionType) -> None:
        self.scope, self.names = function.__globals__, set(_names(function.__code__))

    def read(self) -> dict[str, object]:
        here = self.scope.get("__name__")
        named = {n: self.scope[n] for n in self.names if n in self.scope}
        return {
            n: v
            for n, v in named.items()
            if isinstance(v, _NOTED) or type(v).__module__ in (here, "torch.fx.proxy")
        }

    def write(self, name: str, value: object) -> None:
        self.scope.pop(name) if value is _ABSENT else self.scope.__setitem__(name, value)


class _Slots(Scope):
    def __init__(self, held: object) -> None:
        self.held = held
        slots = [vars(cls).get("__slots__", ()) for cls in type(held).__mro__]
        self.names = [n for of in slots for n in ((of,) if isinstance(of, str) else of)]

    def read(self) -> dict[str, object]:
        return {
            n: getattr(self.held, n) for n in self.names if n[:2] != "__" and hasattr(self.held, n)
        }

    def write(self, name: str, value: object) -> None:
        delattr(self.held, name) if value is _ABSENT else setattr(self.held, name, value)


class _Cell(Scope):
    def __init__(self, cell: types.CellType) -> None:
        self.cell = cell

    def read(self) -> dict[str, object]:
        try:
            return {"": self.cell.cell_contents}
        except ValueError:  # still empty
            return {}

    def write(self, _: str, value: object) -> None:
        if value is not _ABSENT:
            self.cell.cell_contents = value


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


# ------------------------------------------------------------------------------------------ content


def _content(held: Container) -> Content:
    if isinstance(held, dict):
        return {k: v for k, v in held.items() if not str(k).startswith(_MADE_BY_TRACING)}
    return list(held)


def _refill(held: Container, content: Content) -> None:
    """Through the methods of the plain containers, as a class of one's own may refuse its own."""
    kind: Any = next(k for k in (OrderedDict, *_CONTAINERS) if isinstance(held, k))
    kind.clear(held)
    for item in content:
        if isinstance(content, dict):
            kind.__setitem__(held, item, content[item])
        else:
            kind.add(held, item) if isinstance(held, set) else kind.append(held, item)


def _inside(held: object) -> Iterator[object]:
    if isinstance(held, dict):
        yield from held.values()
    elif isinstance(held, list | tuple | set | frozenset | deque):
        yield from held
    else:
        yield getattr(held, "__dict__", None)  # an object, or a module that is no submodule
        yield from _Slots(held).read().values()


def _state(held: object) -> str:
    """What an object is that changes without an attribute changing; empty for all others."""
    if isinstance(held, random.Random):
        return repr(held.getstate())
    if isinstance(held, itertools.count):
        return repr(held)
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(held, numpy.ndarray):
        return str(held.tobytes())
    return (
        repr(held.bit_generator.state) if numpy and isinstance(held, numpy.random.Generator) else ""
    )


def _alike(content: Content, other: Content) -> bool:
    if isinstance(content, dict) and isinstance(other, dict):
        return list(content) == list(other) and all(_same(content[k], other[k]) for k in content)
    return len(content) == len(other) and all(map(_same, content, other))


def _same(value: object, other: object) -> bool:
    alike = type(value) is type(other) and isinstance(value, _SIMPLE)
    return value is other or (alike and repr(value) == repr(other))


def _same_states(states: object, other: object) -> bool:
    """Whether two states of generators are alike, arrays by their entries."""
    if isinstance(states, tuple | dict) and type(states) is type(other):
        assert isinstance(other, tuple | dict)
        pair = (list(s.values()) if isinstance(s, dict) else s for s in (states, other))
        one, two = pair
        return len(one) == len(two) and all(map(_same_states, one, two))
    numpy = sys.modules.get("numpy")
    if numpy and isinstance(states, numpy.ndarray):
        return bool(numpy.array_equal(states, other))
    return states == other


def _random_states() -> tuple[tuple[object, ...], dict[str, object] | None]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), numpy.random.get_state(legacy=False) if numpy else None
