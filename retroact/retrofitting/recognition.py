"""Recognition: whether one operation of a forward pass is an activation, and which, by its name and
its arguments: relu, clamp(0, 6), gelu, …; `values` recognises what is written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retroact.activations.ramp import RELU, Ramp

OTHERS = {
    "celu": "celu",
    "elu": "elu",
    "erf": "erf",  # a GELU by hand
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

KINDS = frozenset({*OTHERS.values(), "relu", "hardtanh", "jumprelu", "threshold"})
"""What can be replaced; all but "relu" where it is asked for."""

COMPOSED = "composed"
"""The kind of a ReLU that several operations make together."""


Function = Callable[..., Any]
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
"""What a call is made of, whatever it calls."""


@dataclass(frozen=True)
class Call:
    """One activation call: its kind, its input, the net's own activation; None where that is no
    ReLU.

    `by_value`: its arguments do not say what it is, so in another pass the same call may be none.
    """

    kind: str
    z: Tensor
    own: Ramp | None
    inplace: bool = False
    by_value: bool = False


def recognise(name: str, args: Args, kwargs: Kwargs, *, values: bool = False) -> Call | None:
    """Reads one call, of a torch function or of an operation, as an activation; None where it is
    none.

    With `values`, tensors among the arguments are looked into: maximum(z, 0), clamp(z, min=zeros).
    """
    if "out" in kwargs or not (args or "input" in kwargs):
        return None
    inplace = bool(kwargs.get("inplace")) or name.endswith("_")
    z, *rest = args or (kwargs["input"],)
    words = {word: value for word, value in kwargs.items() if word not in ("inplace", "input")}
    name = name.strip("_")
    bounds = any(isinstance(a, Tensor) for a in (*rest, *words.values()))
    by_value = bounds and name in (*TWO, "clamp", "clip")
    if by_value and not values:
        return None
    if name in TWO:
        z, rest, words = _beside_zero(z, *rest, **words), [], {}
    if not isinstance(z, Tensor) or not z.is_floating_point():  # clamp(min=0) of an index is none
        return None
    if name in OTHERS:
        return Call(OTHERS[name], z, None, inplace)
    reader = _READERS.get(name)
    call = None if reader is None else reader(z, inplace, *rest, **words)
    return Call(name, call.z, call.own, call.inplace, True) if call and by_value else call


def _relu(z: Tensor, inplace: bool, *_: object, **__: object) -> Call:
    return Call("relu", z, RELU, inplace)


def _relu6(z: Tensor, inplace: bool, *_: object, **__: object) -> Call:
    return Call("relu", z, Ramp(cap=6.0), inplace)


def _hardtanh(
    z: Tensor, inplace: bool, min_val: float = -1.0, max_val: float = 1.0, *_: object, **__: object
) -> Call:
    own = Ramp(cap=float(max_val)) if min_val == 0 and max_val > 0 else None
    return Call("relu" if own else "hardtanh", z, own, inplace)


def _threshold(
    z: Tensor, inplace: bool, threshold: float, value: float, *_: object, **__: object
) -> Call:
    if value != 0:
        return Call("threshold", z, None, inplace)
    return call_of_jump(z, float(threshold), inplace)


def _clamp(
    z: Tensor, inplace: bool, min: object = None, max: object = None, **_: object
) -> Call | None:
    low, high = number_in(min), math.inf if max is None else number_in(max)
    if low != 0 or high is None or high <= 0:
        return None
    return Call("relu", z, Ramp(cap=float(high)), inplace)


def call_of_jump(z: Tensor, kappa: float, inplace: bool) -> Call:
    """z · 1[z > kappa]: a ReLU at 0, a JumpReLU above, and below neither."""
    if kappa < 0:
        return Call("threshold", z, None, inplace)
    if kappa > 0:
        return Call("jumprelu", z, Ramp(kappa=kappa), inplace)
    return Call("relu", z, RELU, inplace)


TWO = ("maximum", "max", "fmax")
"""Operations that take the larger of two tensors."""

_READERS: dict[str, Callable[..., Call | None]] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    **dict.fromkeys(TWO, _relu),
}


def _beside_zero(first: object, second: object = None, *_: object, **__: object) -> Tensor | None:
    """The z of maximum(z, 0) and of maximum(0, z)."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return None
    if number_in(second) == 0:
        return first
    return second if number_in(first) == 0 else None


def number_in(value: object) -> float | None:
    """The number that a bound is, also where it is given as a tensor of equal numbers."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, int | float) else None
    if value.numel() == 0 or bool((value != value.flatten()[0]).any()):
        return None
    return float(value.flatten()[0])
