"""Copies of a net: deep, eager, and whole whatever the net holds.

A net may keep what deepcopy refuses: a feature map of its last forward pass, still tied to that
pass's graph, or the weight that weight norm computes. Such tensors are copied without their graph,
wherever they lie. A compiled net is copied as the net that was compiled. What cannot be copied at
all (a lock, a generator, an open file) is named.
"""

from __future__ import annotations

import copy
import gc
import types
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

N = TypeVar("N")

_NOT_COPIED = (
    *(
        type,
        types.ModuleType,
        types.FunctionType,
        types.BuiltinFunctionType,
        types.CodeType,
        types.FrameType,
    ),
    *(str, bytes, int, float, complex, type(None)),
)
"""What deepcopy hands on as it is, so that nothing behind it needs a copy."""


def deep_copy(net: nn.Module) -> nn.Module:
    """A deep copy outside any autograd graph; ValueError that names the attribute which cannot be
    copied.

    A compiled net is copied as the net inside, also where it lies inside another; tensors that
    belong to the graph of an earlier forward pass are detached. The caller's inference mode makes
    no difference.
    """
    _refuse_closures(net)
    try:
        with torch.inference_mode(False):
            return _copy(net, {})
    except Exception:
        pass
    try:
        with torch.inference_mode(False):
            return _copy(net, _detach(net))
    except Exception as e:  # whatever an attribute's own copying may raise
        raise ValueError(
            f"{type(net).__name__} cannot be copied: {e}{_blame(net)}; "
            "set it to None or load the weights into a fresh net"
        ) from e


def _refuse_closures(net: nn.Module) -> None:
    """A function is not copied, and what it closes over neither: the copy would run the weights of
    the net."""
    modules = set(map(id, net.modules()))
    for path, module in net.named_modules():
        if "_orig_mod" in module._modules:  # a compiled net, which is copied as the net inside
            continue
        cells = getattr(vars(module).get("forward"), "__closure__", None) or ()
        held = [getattr(cell, "cell_contents", None) for cell in cells]
        if any(id(getattr(value, "__self__", value)) in modules for value in held):
            raise ValueError(
                f"{type(net).__name__} cannot be copied: the forward of {path or 'the net'} was"
                " replaced by a function that holds the old one, so that a copy would run this"
                " net; write it as a method of a class, or set types.MethodType(forward, module)"
            )


def copy_of(network: N) -> N | None:
    """A deep copy of any network, as one that may remember what it is asked needs; None where there
    is none."""
    try:
        if isinstance(network, nn.Module):
            return cast(N, deep_copy(network))
        return copy.deepcopy(network)
    except Exception:  # whatever a stranger's network raises as a copy
        return None


def shadow(net: nn.Module) -> nn.Module:
    """A deep copy that shares every tensor with the net: what can be read and rewritten at no
    cost."""
    return _copy(net, {id(t): t for t in _tensors(net)})


def _copy(net: nn.Module, memo: dict[int, Tensor | nn.Module]) -> nn.Module:
    for module in list(net.modules()):
        if "_orig_mod" in module._modules:  # those of a script have no get()
            inner = module._modules["_orig_mod"]
            assert inner is not None
            memo[id(module)] = copy.deepcopy(inner, memo)
    return copy.deepcopy(net, memo)


def _detach(net: object) -> dict[int, Tensor | nn.Module]:
    """What a copy holds in the place of tensors that belong to a graph, by their ids."""
    return {id(t): t.detach().clone() for t in _tensors(net) if t.grad_fn is not None}


def _tensors(net: object) -> Iterator[Tensor]:
    """Every tensor that a deep copy of the net would meet: parameters, attributes, in lists, dicts,
    objects."""
    seen: set[int] = set()
    stack: list[object] = [net]
    while stack:
        held = stack.pop()
        if id(held) in seen or isinstance(held, _NOT_COPIED):
            continue
        seen.add(id(held))
        if isinstance(held, Tensor):
            yield held
            stack.extend([vars(held), held.grad if held.is_leaf else None])
        else:
            stack.extend(gc.get_referents(held))


def _blame(net: nn.Module) -> str:
    """Which attribute it is, as far as one alone is to blame."""
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            inside = value if name in ("_parameters", "_buffers") else {name: value}
            for key, held in {} if name == "_modules" else inside.items():
                try:
                    copy.deepcopy(held, {id(net): net, **_detach(held)})
                except Exception:
                    return (
                        f" (its attribute {'.'.join(p for p in (path, key) if p)!r}, a"
                        f" {type(held).__name__})"
                    )
    return ""
