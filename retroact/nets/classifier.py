"""The classifier: pixels in [0,1] outside, normalisation inside, logits out.

`Classifier` is the only place of the package that normalises, so every eps elsewhere is a pixel
radius.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retroact.doors import IMAGE, Place, Shape, check_batch, logits_in, switch_to_eval
from retroact.nets.cards import Measured

Output = Place | Callable[[Any], Tensor] | None


class Classifier(nn.Module):
    """Maps images in [0,1], shape (n, c, h, w), to logits, shape (n, k): `module((x - mean) /
    std)`.

    `module` is the net as it was trained and stays reachable under that name. `mean` and `std` are
    in pixel units, one number or one per channel. `shape` is (c, h, w) where it is known; with
    (c, t) or (d,) it takes time series (n, c, t) or the rows of a table (n, d), in any box, and
    `mean` and `std` are in their units, one number or one per channel or feature. `output`
    says where the logits are when the net returns more than one float tensor (n, k): an attribute
    or key, a position, several of these from the outside in, or a function; "sigmoid" makes two
    classes, [0, z], of one sigmoid logit z. Is in eval mode from birth. Raises ValueError or
    TypeError for a std that cannot divide, a batch that cannot be images, and an output in which
    there are no logits (n, k), or several.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        *,
        shape: Shape | None = None,
        output: Output = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module) or isinstance(module, Classifier):
            raise TypeError(f"Classifier: expected a plain nn.Module, got {_describe(module)}")
        self.module = module
        self.shape = None if shape is None else _check_shape(shape)
        self.output = tuple(output) if isinstance(output, list) else output
        self.name = name
        # the print of the spec that built it, where one did: what lets it be saved whole
        self.network = ""
        self.code = ""  # the package.module:function that built it, where one did
        self.change = ""  # the print of the change of the whole net, where it has been through one
        self.notes: tuple[str, ...] = ()  # sentences on how its weights were brought
        self.measured: tuple[Measured, ...] = ()  # by whoever made it; a card that `save` writes
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        like = torch.empty(0, dtype=dtype)
        self.register_buffer("mean", _per_channel(mean, "mean", self.shape, like))
        self.register_buffer("std", _per_channel(std, "std", self.shape, like))
        if not bool((self.std > 0).all()):
            raise ValueError(
                f"Classifier: std must be greater than 0, got {std}; std=1.0 leaves pixels as"
                " they are"
            )
        switch_to_eval(self)

    def forward(self, images: Tensor) -> Tensor:
        images = _batch_door(images, self.shape)
        out = self.module((images - self.mean) / self.std)
        if callable(self.output):
            return _logits_door(self.output(out), images, None)
        return _logits_door(out, images, self.output)

    def extra_repr(self) -> str:
        return (
            f"name={self.name!r}, mean={self.mean.flatten().tolist()},"
            f" std={self.std.flatten().tolist()}"
        )


def sized(net: nn.Module, shape: Sequence[int] | None) -> nn.Module:
    """The net, or where it is a classifier that does not say the shape of its images, one that
    shares all with it and does. ValueError where its mean and std are of other channels."""
    if shape is None or not isinstance(net, Classifier) or net.shape is not None:
        return net
    copied = copy.copy(net)
    copied.shape = _check_shape(shape)
    copied._buffers = dict(net._buffers)
    for what, old in (("mean", net.mean), ("std", net.std)):
        numbers = _per_channel(old.flatten().tolist(), what, copied.shape, old)
        if len(copied.shape) != IMAGE:  # mean and std have the axes of images
            setattr(copied, what, numbers)
    return copied


def _describe(what: object) -> str:
    if isinstance(what, type):
        return f"the class {what.__name__}; make one: {what.__name__}(…)"
    if isinstance(what, Classifier):
        return "a Classifier; it is one already, pass its .module"
    return (
        f"{type(what).__name__}; pass the net, and wrap a function in a module whose forward"
        " calls it"
    )


def _check_shape(shape: Sequence[int]) -> Shape:
    sizes = tuple(int(s) for s in shape)
    if not sizes or min(sizes) < 1:
        raise ValueError(
            f"Classifier: expected shape=(channels, height, width), or (channels, time) or"
            f" (features,) where examples are no images, got {tuple(shape)}"
        )
    return sizes


def _per_channel(
    value: float | Sequence[float], what: str, shape: Shape | None, like: Tensor
) -> Tensor:
    """The numbers (1, c, 1, …), with as many axes as a batch of the shape has, in the dtype and on
    the device of `like`."""
    numbers = [float(v) for v in ([value] if isinstance(value, int | float) else value)]
    if not numbers or not all(math.isfinite(v) for v in numbers):
        raise ValueError(f"Classifier: {what} must be finite numbers, got {value}")
    images = shape is None or len(shape) == IMAGE
    # no mean or spread of pixels in [0,1], and every one of pixels in [0,255]
    if images and max(numbers) > 2:
        raise ValueError(
            f"Classifier: {what}={value} looks like a number for pixels in [0,255], and pixels here"
            " are in [0,1]; divide mean and std by 255"
        )
    if shape is not None and len(numbers) not in (1, shape[0]):
        unit = "feature" if len(shape) == 1 else "channel"
        many = f"1 {unit}; give 1" if shape[0] == 1 else f"{shape[0]} {unit}s; give 1 or {shape[0]}"
        raise ValueError(f"Classifier: {what} has {len(numbers)} numbers for {many}")
    rest = (IMAGE if shape is None else len(shape)) - 1
    return torch.tensor(numbers, dtype=like.dtype, device=like.device).view(1, -1, *[1] * rest)


# The two doors read only shapes and dtypes: no synchronisation with the device, nothing that
# depends on values, so a Classifier exports; `wrap` keeps them whole where torch.fx traces through.
@torch.fx.wrap
def _batch_door(images: Tensor, shape: Shape | None) -> Tensor:
    check_batch(images, shape)
    return images


@torch.fx.wrap
def _logits_door(out: object, images: Tensor, output: Place | None) -> Tensor:
    return logits_in(out, images.shape[0], output)
