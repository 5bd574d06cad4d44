"""A quantised network with floats in the place of its integers, so that it has a gradient.

    twin = float_twin(net, x)  # None where nothing in it is quantised

Integers leave autograd. The network's own code is run, and each call in it of an operation of
`torch.ops.quantized` is answered in floats: the weights that its layer holds, dequantised, through
the float operation of the same name, the result rounded to the scale that the call names, with the
derivative of the identity within its range (straight-through: Bengio et al. 2013, arXiv:1308.3432;
Jacob et al. 2018, arXiv:1712.05877). What it computes is not the same to the bit, so decisions are
the network's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import getattr_static
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SAMPLE = 2
_DEQUANTISE = {torch.dequantize, Tensor.dequantize}
_ASKED_WHETHER = getattr_static(Tensor, "is_quantized").__get__
_ENDINGS = ("_fp16", "_dynamic", "_relu", "_scalar")  # of the names of quantised operations


class FloatTwin(nn.Module):
    """The quantised `network`, computed in floats. Its layers are the network's own."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        with _InFloats():
            return self.network(x)


def float_twin(network: Callable[[Tensor], Tensor], x: Tensor) -> FloatTwin | None:
    """The twin of a network that is quantised, tried on the first of its images `x` (n, …); None
    where nothing in it is, or where it has an operation that no float stands for."""
    twin, meets = FloatTwin(network), _Meets()
    try:
        with torch.no_grad(), meets:
            network(x[:_SAMPLE].clone())
        with torch.enable_grad():
            out = twin(x[:_SAMPLE].clone().requires_grad_())
    except Exception:  # whatever a stranger's code raises on floats
        return None
    return twin if meets.integers and isinstance(out, Tensor) and out.requires_grad else None


class _Meets(TorchFunctionMode):
    """Notes whether anything becomes `integers`, or is computed with them."""

    integers = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.integers |= func is torch.quantize_per_tensor or _packet_of(func) is not None
        return func(*args, **(kwargs or {}))


class _InFloats(TorchFunctionMode):
    """What quantises, dequantises, or computes with integers is answered with floats."""

    def __init__(self) -> None:
        super().__init__()
        self._range = 0, 255
        self._quantised = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.quantize_per_tensor:
            return self._quantise(*args, **kwargs)
        if func in _DEQUANTISE and isinstance(args[0], Tensor) and not args[0].is_quantized:
            return args[0]
        if func == _ASKED_WHETHER and self._quantised:
            return True
        packet = _packet_of(func)
        return func(*args, **kwargs) if packet is None else self._answer(packet, args, kwargs)

    def _quantise(self, x: Tensor, scale: Any, zero_point: Any, dtype: torch.dtype) -> Tensor:
        self._range, self._quantised = _RANGES[dtype], True
        return self._round(x, float(scale), int(zero_point))

    def _round(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *self._range)

    def _answer(self, packet: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """The float operation of the same name, without the scale of its result, on to which it is
        rounded."""
        given = _name_arguments(packet, args, kwargs)
        names = list(given)
        scale = next(((a, b) for a, b in pairwise(names) if "zero_point" in b), None)
        asked = [given[n] for n in names if n not in (scale or ()) and n not in _NOT_IN_FLOATS]
        name, relu = _plain_name(packet.__name__)
        out = _compute(name, asked)
        out = F.relu(out) if relu else out
        if scale is None or given[scale[0]] is None:
            return out
        return self._round(out, float(given[scale[0]]), int(given[scale[1]]))


_RANGES = {torch.quint8: (0, 255), torch.qint8: (-128, 127), torch.qint32: (-(2**31), 2**31 - 1)}
_NOT_IN_FLOATS = {"inplace", "reduce_range"}


def _packet_of(func: Any) -> Any:
    """The operation on quantised tensors that a call is, with all its overloads; None for another
    call."""
    packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
    ours = isinstance(packet, torch._ops.OpOverloadPacket)
    return packet if ours and str(packet).startswith("quantized.") else None


def _name_arguments(packet: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by the names that the operation's schema gives them."""
    schemas = (getattr(packet, overload)._schema for overload in packet.overloads())
    for names in ([a.name for a in schema.arguments] for schema in schemas):
        if len(args) <= len(names) and "out" not in names and kwargs.keys() <= set(names):
            return {**dict(zip(names, args, strict=False)), **kwargs}
    raise NotImplementedError(packet)


def _plain_name(name: str) -> tuple[str, bool]:
    """conv2d_relu_dynamic: conv2d, and that a ReLU comes after it."""
    relu = False
    while not hasattr(F, name) and name.endswith(_ENDINGS):
        relu |= name.endswith("_relu")
        name = name.rpartition("_")[0]
    return name, relu


def _compute(name: str, asked: Sequence[Any]) -> Tensor:
    function = _normalise if name in _NORMS else getattr(F, name, None) or getattr(torch, name)
    if len(asked) > 1 and isinstance(asked[1], torch.ScriptObject):
        out: Tensor = function(asked[0], *_unpack(name, asked[0], asked[1]))
        return out
    plain: Tensor = function(*asked)
    return plain


_NORMS = {f"batch_norm{axes}" for axes in ("", "1d", "2d", "3d")}


def _normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def _unpack(name: str, x: Tensor, layer: Any) -> list[Any]:
    """Weights, bias and, of a convolution, geometry, as the float operation takes them."""
    weight, bias = layer.unpack()
    weight = weight.dequantize() if weight.is_quantized else weight
    if name == "linear":
        return [weight, bias]
    axes = x.dim() - 2
    weight = weight.squeeze(2) if weight.dim() - 2 > axes else weight  # of one axis, kept as of two
    stride, padding, dilation = (
        given()[-axes:] for given in (layer.stride, layer.padding, layer.dilation)
    )
    if layer.transpose():
        more = layer.output_padding()[-axes:]
        return [weight, bias, stride, padding, more, layer.groups(), dilation]
    return [weight, bias, stride, padding, dilation, layer.groups()]
