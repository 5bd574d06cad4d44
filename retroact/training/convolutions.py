"""Convolutions whose backward pass oneDNN is slow at in bfloat16 on a CPU, computed another way.

    with speed_up_bf16(net): ...

The numbers are the same but for rounding, and after the block the net is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

CACHE = 2**21
"""Bytes of a core's own cache; oneDNN adds up a gradient of the weights there image by image."""


@contextmanager
def speed_up_bf16(net: nn.Module) -> Iterator[None]:
    """Replaces the forward passes of the convolutions that are slow under autocast on a CPU.

    Strided depthwise ones run in float32, since their backward pass is some 25 times slower in
    bf16 (oneDNN); those whose weights do not fit the cache take the gradient of these from one
    product of matrices (`WeightsByMatmul`).
    """
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    depthwise = [conv for conv in convs if _is_strided_depthwise(conv)]
    large = [conv for conv in convs if _has_large_weights(conv)]
    for conv in depthwise:
        conv.forward = _in_float32(conv.forward)  # type: ignore[assignment, method-assign]
    for conv in large:
        conv.forward = partial(_by_matmul, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        _put_back([*depthwise, *large])


def _put_back(convs: Iterable[nn.Conv2d]) -> None:
    for conv in convs:
        del conv.forward


def _is_strided_depthwise(conv: nn.Conv2d) -> bool:
    strided = conv.groups == conv.in_channels > 1 and max(conv.stride) > 1
    return strided and conv.weight.device.type == "cpu"


def _has_large_weights(conv: nn.Conv2d) -> bool:
    # no subclass, whose forward may be its own; and autocast leaves float64 alone
    plain = type(conv) is nn.Conv2d and conv.weight.dtype == torch.float32
    usual = conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    large = conv.weight.device.type == "cpu" and conv.weight.nbytes > CACHE
    return plain and usual and large and conv.groups == 1 and isinstance(conv.padding, tuple)


def _in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def inside(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return inside


def _by_matmul(conv: nn.Conv2d, x: Tensor) -> Tensor:
    # in eval mode the recipe asks for the pixels' gradient alone
    if not (conv.training and torch.is_autocast_enabled(x.device.type)):
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
    bias = None if conv.bias is None else conv.bias.bfloat16()
    out: Tensor = WeightsByMatmul.apply(
        x.bfloat16(), conv.weight.bfloat16(), bias, conv.stride, conv.padding
    )
    return out


class _Context(Protocol):
    """What a pass of `WeightsByMatmul` keeps for its backward pass, as torch hands it over."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    biased: bool
    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class WeightsByMatmul(torch.autograd.Function):
    """A convolution whose weights' gradient is sum over images and places of (dy)ᵀ patches(x): one
    product.

    oneDNN goes image by image, and where the gradient (256·256·9 numbers) does not fit the cache
    and the maps are of 4 to 8 pixels, most of its time is the adding up. Same numbers but for
    rounding.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(
        ctx: _Context, *dy: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        (g,) = dy
        first = not ctx.needs_input_grad[0]
        dx = None if first else conv2d_input(x.shape, weight, g, ctx.stride, ctx.padding)
        rows = g.permute(0, 2, 3, 1).flatten(0, 2)
        products = rows.t() @ patches_of(x, g, weight, ctx.stride, ctx.padding)
        dw = products.view(len(weight), *weight.shape[2:], -1)
        return dx, dw.permute(0, 3, 1, 2), rows.sum(0) if ctx.biased else None, None, None


def patches_of(
    x: Tensor, g: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """What the kernel sees of `x` at each place of each image: (n·h·w, k·k·c), in the order of `g`
    (n, o, h, w)."""
    (down, across), (n, _, h, w), (_, c, kh, kw) = padding, g.shape, weight.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, across, across, down, down)).contiguous()
    image, row, column, channel = padded.stride()
    steps = (image, row * stride[0], column * stride[1], row, column, channel)
    return padded.as_strided((n, h, w, kh, kw, c), steps).reshape(n * h * w, kh * kw * c)
