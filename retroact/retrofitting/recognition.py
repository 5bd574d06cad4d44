"""Recognition: whether one operation of a forward pass is an activation, and which.

    recognise   by its name and its arguments: relu, clamp(0, 6), gelu, …
    Reader      by its values, in whatever words it is written: `z * (z > 0)`, `z[z <= k] = 0` in
                place,
                `(z + z.abs()) / 2`; and what an operation reads: pixels, features, or constants

By values an operation is max(0, z) or z · 1[z > κ] of a tensor z with values on both sides,
exactly. Where its zeros come from a mask of another kind (k winners take all), or the negative side
is not zero (a LeakyReLU by hand), it is named as a kind that stays.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

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


# ------------------------------------------------------------------------------------------ by name


def recognise(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, values: bool = False
) -> Call | None:
    """Reads one call, of a torch function or of an operation, as an activation; None where it is
    none.

    With `values`, tensors among the arguments are looked into: maximum(z, 0), clamp(z, min=zeros).
    """
    if "out" in kwargs or not (args or "input" in kwargs):
        return None
    inplace = bool(kwargs.get("inplace")) or name.endswith("_")
    z, *rest = args or (kwargs["input"],)
    said = {word: value for word, value in kwargs.items() if word not in ("inplace", "input")}
    name = name.strip("_")
    by_value = any(isinstance(a, Tensor) for a in (*rest, *said.values())) and name in (
        *_TWO,
        "clamp",
        "clip",
    )
    if by_value and not values:
        return None
    if name in _TWO:
        z, rest, said = _beside_zero(z, *rest, **said), [], {}
    if not isinstance(z, Tensor) or not z.is_floating_point():  # clamp(min=0) of an index is none
        return None
    if name in OTHERS:
        return Call(OTHERS[name], z, None, inplace)
    reader = _READERS.get(name)
    call: Call | None = None if reader is None else reader(z, inplace, *rest, **said)
    return Call(name, call.z, call.own, call.inplace, True) if call and by_value else call


def _relu(z: Tensor, inplace: bool, *_: Any, **__: Any) -> Call:
    return Call("relu", z, RELU, inplace)


def _relu6(z: Tensor, inplace: bool, *_: Any, **__: Any) -> Call:
    return Call("relu", z, Ramp(cap=6.0), inplace)


def _hardtanh(
    z: Tensor, inplace: bool, min_val: Any = -1.0, max_val: Any = 1.0, *_: Any, **__: Any
) -> Call:
    own = Ramp(cap=float(max_val)) if min_val == 0 and max_val > 0 else None
    return Call("relu" if own else "hardtanh", z, own, inplace)


def _threshold(z: Tensor, inplace: bool, threshold: Any, value: Any, *_: Any, **__: Any) -> Call:
    return (
        _jump(z, float(threshold), inplace) if value == 0 else Call("threshold", z, None, inplace)
    )


def _clamp(z: Tensor, inplace: bool, min: Any = None, max: Any = None, **_: Any) -> Call | None:
    low, high = _number(min), math.inf if max is None else _number(max)
    if low != 0 or high is None or high <= 0:
        return None
    return Call("relu", z, Ramp(cap=float(high)), inplace)


def _jump(z: Tensor, kappa: float, inplace: bool) -> Call:
    """z · 1[z > kappa]: a ReLU at 0, a JumpReLU above, and below neither."""
    if kappa < 0:
        return Call("threshold", z, None, inplace)
    return (
        Call("jumprelu", z, Ramp(kappa=kappa), inplace)
        if kappa > 0
        else Call("relu", z, RELU, inplace)
    )


_TWO = ("maximum", "max", "fmax")

_READERS: dict[str, Any] = {
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "threshold": _threshold,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    **dict.fromkeys(_TWO, _relu),
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


# ---------------------------------------------------------------------------------------- by values

_ENOUGH = 4
"""So many values on either side, or a tensor says nothing about the function that made it."""

_PIECEWISE = {"where", "masked_fill", "index_put", *_TWO}
_COMPARISONS = {"gt", "ge", "lt", "le"}
_CONSTANT = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "bernoulli"),
}
_SAME_ROOT = {
    "neg",
    "abs",
    "sign",
    "sgn",
    "mul",
    "div",
    "_to_copy",
    "clone",
    "pow",
    "sqrt",
    "detach",
    "alias",
}
_ELEMENTWISE = {
    *_SAME_ROOT,
    *_COMPARISONS,
    *(
        "add",
        "sub",
        "rsub",
        "eq",
        "ne",
        "logical_not",
        "bitwise_not",
        "heaviside",
        "where",
        "masked_fill",
    ),
    *("clamp", "clamp_min", "clamp_max", "maximum", "minimum"),
}
_MOVES = {
    *(
        "_to_copy",
        "to",
        "clone",
        "copy",
        "detach",
        "alias",
        "contiguous",
        "lift_fresh",
        "as_strided",
    ),
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "expand",
        "permute",
        "transpose",
        "t",
        "squeeze",
    ),
    *(
        "unsqueeze",
        "flip",
        "roll",
        "select",
        "slice",
        "index",
        "split",
        "chunk",
        "unbind",
        "cat",
        "stack",
    ),
}
"""Operations that only put values elsewhere."""

_KEEPS_PIXELS = {
    *_MOVES,
    *(
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "neg",
        "reciprocal",
        "pow",
        "sqrt",
        "rsqrt",
        "abs",
        "round",
        "floor",
    ),
    *(
        "clamp",
        "clamp_min",
        "clamp_max",
        "hardtanh",
        "relu",
        "maximum",
        "minimum",
        "where",
        "lerp",
        "nan_to_num",
    ),
    *(
        "mean",
        "std",
        "var",
        "var_mean",
        "std_mean",
        "amax",
        "amin",
        "sum",
        "gt",
        "ge",
        "lt",
        "le",
        "index_put",
    ),
    *(
        "constant_pad_nd",
        "reflection_pad2d",
        "replication_pad2d",
        "upsample_nearest2d",
        "upsample_bilinear2d",
    ),
    *("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
}
"""Operations after which an image is still an image: normalising, quantising, resizing,
cropping."""


class Reader:
    """Follows the tensors of one forward pass on `inputs`, and reads operations by their values."""

    def __init__(self, inputs: Any) -> None:
        # a tensor: whether it is still pixels; constants are not in it
        self._from = WeakIdKeyDictionary()
        self._recent: deque[Tensor] = deque(maxlen=8)
        self._thresholds: deque[tuple[Any, float]] = deque(maxlen=8)
        # what a tensor is another form of: of z are -z, |z|, 2 z
        self._root = WeakIdKeyDictionary()
        # of which z the tensor knows an activation that was found
        self._behind = WeakIdKeyDictionary()
        self._roots = itertools.count()
        for tensor in _tensors(inputs):
            self._from[tensor] = True

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether it does not depend on the input."""
        return tensor not in self._from

    def looks_past(self, call: Call, args: Any) -> bool:
        """Whether a bound that made a call an activation depends on the input, and is another one
        next time."""
        return call.by_value and not all(
            self.is_constant(a) for a in _tensors(args) if a is not call.z
        )

    def is_on_pixels(self, call: Call, z: Tensor, out: Tensor) -> bool:
        """A clamp of the image before any layer ran, or a ReLU that changes nothing there: no
        activation."""
        if self._from.get(call.z) is not True:
            return False
        if call.own is None:
            return call.kind == "hardtanh"
        return call.own.cap < math.inf or torch.equal(out, z)

    def read(self, name: str, args: Any, before: Any, out: Any, inplace: bool) -> Call | None:
        """The call, if `out` is an activation of one of the arguments, or of a tensor shortly
        before."""
        out = out[0] if isinstance(out, tuple) and out else out  # max(dim) also says where
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.numel() < 2 * _ENOUGH:
            return None
        if name in _CONSTANT or name in _MOVES:
            return None
        given = [
            (a, b)
            for a, b in zip(args, before, strict=True)
            if isinstance(b, Tensor) and b.shape == out.shape and b.dtype == out.dtype
        ]
        if any(torch.equal(out, z) for _, z in given):
            return None
        for one, z in given:
            call = self._one_step(name, args, one, z, out, inplace)
            if call and not self._follows(call, args):
                return call
        call = self._composed(out)
        return None if call is None or self._follows(call, args) else call

    def follow(self, name: str, args: Any, before: Any, out: Any) -> None:
        """Notes what the result of an operation depends on, and what it was compared with."""
        read = [a for a in _tensors(args) if a in self._from]
        for made in _tensors(out):
            if read and name not in _CONSTANT and not (name == "mul" and _times_zero(args)):
                weighted = any(isinstance(a, nn.Parameter) for a in _tensors(args))
                self._from[made] = (
                    name in _KEEPS_PIXELS and not weighted and all(self._from[a] for a in read)
                )
            if made.is_floating_point():
                self._recent.append(made)
        self._recent.extend(
            b for a, b in zip(args, before, strict=True) if isinstance(b, Tensor) and b is not a
        )
        if name in _COMPARISONS:
            sides = ((args[0], args[1]), (args[1], args[0]))
            said = [
                (z.shape, k)
                for z, other in sides
                if (k := _number(other)) is not None and isinstance(z, Tensor)
            ]
            self._thresholds.extend(said[:1])
        self._follow_roots(name, args, out)

    def found(self, call: Call, out: Tensor) -> None:
        """Notes that an activation was found, of which others may now be made: z + relu(-z)."""
        for made in _tensors(out):  # a log_sigmoid also returns a buffer
            self._behind[made] = self._root_of(call.z)
            self._root[made] = next(self._roots)

    def _follow_roots(self, name: str, args: Any, out: Any) -> None:
        if not isinstance(out, Tensor) or name not in _ELEMENTWISE:
            return
        alike = [a for a in _tensors(args) if a.shape == out.shape and a is not out]
        behind = [self._behind[a] for a in alike if a in self._behind]
        if behind and out not in self._behind:
            self._behind[out] = behind[0]
        if len(alike) == 1 and name in _SAME_ROOT:
            self._root[out] = self._root_of(alike[0])

    def _root_of(self, tensor: Tensor) -> int:
        if tensor not in self._root:
            self._root[tensor] = next(self._roots)
        return int(self._root[tensor])

    def _follows(self, call: Call, args: Any) -> bool:
        """Whether the call computes with an activation of the same z that was found before."""
        root = self._root_of(call.z)
        return any(self._behind.get(a) == root for a in _tensors(args) if a is not call.z)

    def _one_step(
        self, name: str, args: Any, one: Tensor, z: Tensor, out: Tensor, inplace: bool
    ) -> Call | None:
        # of two tensors that both depend on the input the larger is no ReLU, though one may be all
        # zeros here
        two = name in _TWO and not all(self.is_constant(a) for a in _tensors(args) if a is not one)
        call = None if two else self._gate(name, args, one, z, out)
        if call is None and name in _PIECEWISE:
            call = _by_hand(one, z, out)
        return Call(call.kind, one, call.own, inplace and out is one, True) if call else None

    def _gate(self, name: str, args: Any, one: Tensor, z: Tensor, out: Tensor) -> Call | None:
        """Where out is z at some places and 0 at all others."""
        if not bool(_is_gate(z.flatten()[:512], out.flatten()[:512])) or not bool(_is_gate(z, out)):
            return None
        kept, dropped = z[(out == z) & (z != 0)], z[(out == 0) & (z != 0)]
        if min(len(kept), len(dropped)) < _ENOUGH:
            return None
        low, high = float(dropped.max()), float(kept.min())
        kappa = self._threshold(z, low, high) if low <= high else None
        if kappa is not None:
            call = _jump(one, kappa, False)
            return Call(name, one, call.own) if call.kind == "relu" else call
        others = [a for a in _tensors(args) if a is not one]
        # a mask that does not depend on the input is no activation: padding, pruning
        return None if all(self.is_constant(a) for a in others) else Call("mask", one, None)

    def _threshold(self, z: Tensor, low: float, high: float) -> float | None:
        """The number between what was dropped and what was kept, as the code said it."""
        said = [
            number
            for shape, number in self._thresholds
            if shape == z.shape and low <= number <= high
        ]
        return said[-1] if said else (0.0 if low <= 0.0 < high else None)

    def _composed(self, out: Tensor) -> Call | None:
        if float(out.min()) != 0.0 or int((out > 0).sum()) < _ENOUGH:
            return None
        recent = [t for t in self._recent if t.shape == out.shape and t.dtype == out.dtype]
        if any(torch.equal(out, t) for t in recent if t.data_ptr() != out.data_ptr()):
            return None
        z = next(
            (
                t
                for t in recent
                if int((t < 0).sum()) >= _ENOUGH and torch.equal(out, t.clamp(min=0))
            ),
            None,
        )
        return None if z is None else Call(COMPOSED, z, RELU, False, True)


def _is_gate(z: Tensor, out: Tensor) -> Tensor:
    return ((out == z) | (out == 0)).all()


def _by_hand(one: Tensor, z: Tensor, out: Tensor) -> Call | None:
    """z where it is positive and something else everywhere below."""
    above, below = z > 0, z < 0
    if min(int(above.sum()), int(below.sum())) < _ENOUGH:
        return None
    if not torch.equal(out[above], z[above]) or bool((out[below] == z[below]).any()):
        return None
    slope = out[below] / z[below]
    alike = bool((slope - slope.mean()).abs().max() <= 1e-3 * slope.mean().abs())
    return Call("leaky_relu" if alike else "piecewise", one, None)


def _times_zero(args: Any) -> bool:
    return any(_number(a) == 0 for a in args if not isinstance(a, Tensor) or a.numel() == 1)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those among the arguments or results of one operation."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
