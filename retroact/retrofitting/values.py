"""Recognition by values: what an operation computes, in whatever words it is written, and what it
reads: pixels, features, or constants.

By values an operation is max(0, z) or z · 1[z > κ] of a tensor z with values on both sides,
exactly: `z * (z > 0)`, `z[z <= k] = 0` in place, `(z + z.abs()) / 2`. Where its zeros come from a
mask of another kind (k winners take all), or the negative side is not zero (a LeakyReLU by hand),
it is named as a kind that stays.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from retroact.activations.ramp import RELU
from retroact.retrofitting.recognition import COMPOSED, TWO, Args, Call, call_of_jump, number_in

_ENOUGH = 4
"""So many values on either side, or a tensor says nothing about the function that made it."""

_PIECEWISE = {"where", "masked_fill", "index_put", *TWO}
_COMPARISONS = {"gt", "ge", "lt", "le"}
_CONSTANT = {
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros"),
    *("new_ones", "new_full", "new_empty", "bernoulli"),
}
_SAME_ROOT = {
    *("neg", "abs", "sign", "sgn", "mul", "div", "_to_copy", "clone", "pow", "sqrt", "detach"),
    *("alias",),
}
_ELEMENTWISE = {
    *_SAME_ROOT,
    *_COMPARISONS,
    *("add", "sub", "rsub", "eq", "ne", "logical_not", "bitwise_not", "heaviside", "where"),
    *("masked_fill", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"),
}
_MOVES = {
    *("_to_copy", "to", "clone", "copy", "detach", "alias", "contiguous", "lift_fresh"),
    *("as_strided", "view", "_unsafe_view", "reshape", "_reshape_alias", "expand", "permute"),
    *("transpose", "t", "squeeze", "unsqueeze", "flip", "roll", "select", "slice", "index"),
    *("split", "chunk", "unbind", "cat", "stack"),
}
"""Operations that only put values elsewhere."""

_KEEPS_PIXELS = {
    *_MOVES,
    *("add", "sub", "rsub", "mul", "div", "neg", "reciprocal", "pow", "sqrt", "rsqrt", "abs"),
    *("round", "floor", "clamp", "clamp_min", "clamp_max", "hardtanh", "relu", "maximum"),
    *("minimum", "where", "lerp", "nan_to_num", "mean", "std", "var", "var_mean", "std_mean"),
    *("amax", "amin", "sum", "gt", "ge", "lt", "le", "index_put", "constant_pad_nd"),
    *("reflection_pad2d", "replication_pad2d", "upsample_nearest2d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
}
"""Operations after which an image is still an image: normalising, quantising, resizing,
cropping."""


class Reader:
    """Follows the tensors of one forward pass on `inputs`, and reads operations by their values."""

    def __init__(self, inputs: Args) -> None:
        # a tensor: whether it is still pixels; constants are not in it
        self._from = WeakIdKeyDictionary()
        self._recent: deque[Tensor] = deque(maxlen=8)
        self._thresholds: deque[tuple[torch.Size, float]] = deque(maxlen=8)
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

    def looks_past(self, call: Call, args: Args) -> bool:
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

    def read(self, name: str, args: Args, before: Args, out: object, inplace: bool) -> Call | None:
        """The call, if `out` is an activation of one of the arguments, or of a tensor shortly
        before."""
        out = out[0] if isinstance(out, tuple) and out else out  # max(dim) also says where
        if not isinstance(out, Tensor) or not out.is_floating_point() or out.numel() < 2 * _ENOUGH:
            return None
        if name in _CONSTANT or name in _MOVES:
            return None
        given = [
            (a, b)
            for a, b in _tensors_before(args, before)
            if b.shape == out.shape and b.dtype == out.dtype
        ]
        if any(torch.equal(out, z) for _, z in given):
            return None
        for argument, z in given:
            call = self._recognise_step(name, args, argument, z, out, inplace)
            if call and not self._follows(call, args):
                return call
        call = self._recognise_steps(out)
        return None if call is None or self._follows(call, args) else call

    def follow(self, name: str, args: Args, before: Args, out: object) -> None:
        """Notes what the result of an operation depends on, and what it was compared with."""
        read = [a for a in _tensors(args) if a in self._from]
        depends = read and name not in _CONSTANT and not (name == "mul" and _times_zero(args))
        weighted = any(isinstance(a, nn.Parameter) for a in _tensors(args))
        pixels = name in _KEEPS_PIXELS and not weighted and all(self._from[a] for a in read)
        for result in _tensors(out):
            if depends:
                self._from[result] = pixels
            if result.is_floating_point():
                self._recent.append(result)
        self._recent.extend(b for a, b in _tensors_before(args, before) if b is not a)
        if name in _COMPARISONS:
            self._thresholds.extend(_thresholds_in(args[0], args[1]))
        self._follow_roots(name, args, out)

    def note(self, call: Call, out: Tensor) -> None:
        """Notes an activation, of which others may now be made: z + relu(-z)."""
        for result in _tensors(out):  # a log_sigmoid also returns a buffer
            self._behind[result] = self._root_of(call.z)
            self._root[result] = next(self._roots)

    def _follow_roots(self, name: str, args: Args, out: object) -> None:
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

    def _follows(self, call: Call, args: Args) -> bool:
        """Whether the call computes with an activation of the same z that was found before."""
        root = self._root_of(call.z)
        return any(self._behind.get(a) == root for a in _tensors(args) if a is not call.z)

    def _recognise_step(
        self, name: str, args: Args, argument: Tensor, z: Tensor, out: Tensor, inplace: bool
    ) -> Call | None:
        """The call, if `out` is an activation of z, which is what `argument` was before."""
        # of two tensors that both depend on the input the larger is no ReLU, though one may be all
        # zeros here
        others = [a for a in _tensors(args) if a is not argument]
        two = name in TWO and not all(map(self.is_constant, others))
        call = None if two else self._recognise_gate(name, others, argument, z, out)
        if call is None and name in _PIECEWISE:
            call = _recognise_by_hand(argument, z, out)
        if call is None:
            return None
        return Call(call.kind, argument, call.own, inplace and out is argument, True)

    def _recognise_gate(
        self, name: str, others: list[Tensor], argument: Tensor, z: Tensor, out: Tensor
    ) -> Call | None:
        """Where out is z at some places and 0 at all others."""
        if not bool(_is_gate(z.flatten()[:512], out.flatten()[:512])) or not bool(_is_gate(z, out)):
            return None
        kept, dropped = z[(out == z) & (z != 0)], z[(out == 0) & (z != 0)]
        if min(len(kept), len(dropped)) < _ENOUGH:
            return None
        low, high = float(dropped.max()), float(kept.min())
        kappa = self._threshold(z, low, high) if low <= high else None
        if kappa is not None:
            call = call_of_jump(argument, kappa, False)
            return Call(name, argument, call.own) if call.kind == "relu" else call
        # a mask that does not depend on the input is no activation: padding, pruning
        return None if all(map(self.is_constant, others)) else Call("mask", argument, None)

    def _threshold(self, z: Tensor, low: float, high: float) -> float | None:
        """The number between what was dropped and what was kept, as the code said it."""
        compared = [
            number
            for shape, number in self._thresholds
            if shape == z.shape and low <= number <= high
        ]
        return compared[-1] if compared else (0.0 if low <= 0.0 < high else None)

    def _recognise_steps(self, out: Tensor) -> Call | None:
        """The call, if `out` is max(0, z) of a tensor z that was there shortly before."""
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


def _recognise_by_hand(argument: Tensor, z: Tensor, out: Tensor) -> Call | None:
    """z where it is positive and something else everywhere below."""
    above, below = z > 0, z < 0
    if min(int(above.sum()), int(below.sum())) < _ENOUGH:
        return None
    if not torch.equal(out[above], z[above]) or bool((out[below] == z[below]).any()):
        return None
    slope = out[below] / z[below]
    alike = bool((slope - slope.mean()).abs().max() <= 1e-3 * slope.mean().abs())
    return Call("leaky_relu" if alike else "piecewise", argument, None)


def _times_zero(args: Args) -> bool:
    return any(number_in(a) == 0 for a in args if not isinstance(a, Tensor) or a.numel() == 1)


def _thresholds_in(left: object, right: object) -> Iterator[tuple[torch.Size, float]]:
    """The shape of what a comparison asks about, and the number that it is compared with."""
    for z, bound in ((left, right), (right, left)):
        number = number_in(bound)
        if number is not None and isinstance(z, Tensor):
            yield z.shape, number
            return


def _tensors_before(args: Args, before: Args) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors among the arguments of one operation, each with what it was before it ran."""
    for argument, value in zip(args, before, strict=True):
        if isinstance(argument, Tensor) and isinstance(value, Tensor):
            yield argument, value


def _tensors(values: object) -> Iterator[Tensor]:
    """Those among the arguments or results of one operation."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _tensors(value)
