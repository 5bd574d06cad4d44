"""Arrays as people hold them, made the house's: pixels float32 (n, c, h, w) in [0,1], or other
examples (n, …) in a box of their own, labels int64 (n,).

Tensors of any float type, on any device, with or without a graph; numpy arrays with any strides and
byte order; lists of numbers, of arrays, or of pictures. What is not plainly one thing is refused
with the cure, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retroact.doors import IMAGE, Shape, check_batch, check_images, check_labels

IMAGE_WORDS = ("image", "images", "img", "imgs", "pixel_values", "pixels", "x", "data", "X")
LABEL_WORDS = ("label", "labels", "target", "targets", "y", "class", "fine_label")
"""Under which names a dictionary, a table or a file may hold its images and their labels."""

CHANNELS = (1, 3, 4)
"""Grey, RGB, RGBA: an axis of one of these lengths at either end may be the channels."""

DARK = 32
"""Whole pixels of which none is brighter have another white than 255, such as the 16 of
scikit-learn's digits."""


UNIT = (0.0, 1.0)
"""The box of pixels."""


def pixels(
    images: Any,
    *,
    shape: Shape | None = None,
    n: int | None = None,
    box: tuple[float, float] = UNIT,
) -> Tensor:
    """Float32 (n, c, h, w) in [0,1] on the CPU, from whole numbers up to 255 or floats in [0,1].

    Grey (n, h, w) receives its channel where `n`, the number of labels, says that it is no single
    image. Channels last are put first where the known `shape` (c, h, w) says so, or an end of 1, 3
    or 4. A `shape` of another rank says that they are no images but (n, *shape); then, and in
    another `box`, whole numbers are taken as they are. Raises ValueError or TypeError where that is
    ambiguous, and for entries outside the box.
    """
    x = plain(images)
    if shape is not None and len(shape) != IMAGE:
        x = _as_floats(_channels_first(x, shape))
        check_batch(x, shape)
        return within(x, *box)
    x = _with_channel(x, n, shape)
    sure = isinstance(images, Tensor)
    x = _channels_where_plain(x, sure=sure) if shape is None else _channels_first(x, shape)
    x = _scaled(x) if box == UNIT else _as_floats(x)
    check_batch(x, None)
    return within(x, *box)


def within(examples: Any, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Float32 (n, …) on the CPU from floats of any rank from 2, checked to lie in [low, high]."""
    x = plain(examples)
    check_images(x, tuple(x.shape[1:]) if x.ndim > 1 else None, low, high)
    return x.to(torch.float32).contiguous()


def classes(labels: Any, n: int) -> Tensor:
    """Labels int64 (n,) on the CPU, from whole numbers of any type; what they must be,
    `check_labels` says."""
    y = plain(labels)
    if not (y.is_floating_point() or y.is_complex()):
        y = y.to(torch.int64)
    check_labels(y, n=n)
    return y.contiguous()


def numbers(rows: Any, what: str) -> Tensor:
    """Whole numbers, such as rows of images, int64 (n,) on the CPU; a bool mask stays one."""
    found = plain(rows)
    if found.ndim != 1 or (found.is_floating_point() and len(found)):
        raise TypeError(
            f"expected {what} as whole numbers (n,), got {found.dtype} of shape"
            f" {tuple(found.shape)}"
        )
    return found if found.dtype == torch.bool else found.to(torch.int64)


def stacked(items: Sequence[Any]) -> Any:
    """Arrays or pictures of one size, one after the other: (n, …). ValueError for the first that
    differs."""
    made = [_picture(item) if is_picture(item) else item for item in items]
    made = [item if isinstance(item, Tensor) else np.asarray(item) for item in made]
    first = made[0]
    for i, item in enumerate(made):
        if type(item) is not type(first) or item.shape != first.shape or item.dtype != first.dtype:
            raise ValueError(
                f"image {i} is {_said(item)} and image 0 is {_said(first)}, expected one size and"
                " type for all; resize or convert them first"
            )
    return torch.stack(made) if isinstance(first, Tensor) else np.stack(made)


def plain(what: Any) -> Tensor:
    """A plain tensor on the CPU without a graph, sharing memory where it can."""
    if (
        isinstance(what, list | tuple)
        and what
        and (hasattr(what[0], "shape") or is_picture(what[0]))
    ):
        what = stacked(what)
    if not isinstance(what, Tensor):
        what = _from_numpy(what)
    # Inference mode marks its tensors for life, and a network could not be differentiated on them.
    with torch.inference_mode(False):
        what = what if what.layout is torch.strided else what.to_dense()  # type: ignore[attr-defined]
        found: Tensor = what.detach().as_subclass(Tensor).cpu()
        return found.clone() if found.is_inference() else found


# ---------------------------------------------------------------------------------------- one array


def _from_numpy(what: Any) -> Tensor:
    try:
        array = np.asarray(what)
    except ValueError as e:
        raise ValueError(
            f"expected one array, got rows of several sizes ({e}); resize or convert them first"
        ) from None
    if array.dtype.kind not in "biuf":
        cure = (
            "number the classes from 0"
            if array.dtype.kind in "US"
            else "give a tensor or an array of numbers"
        )
        raise TypeError(f"expected numbers, got {type(what).__name__} of {array.dtype}; {cure}")
    wide = {"f": np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")}
    native = wide.get(array.dtype.kind, array.dtype.newbyteorder("="))
    return torch.from_numpy(np.require(array, native, ["C", "W", "A"]))


def is_picture(item: object) -> bool:
    """Whether it is an image of Pillow, which need not be imported to be asked."""
    return hasattr(item, "getbands") and hasattr(item, "convert")


def _picture(item: Any) -> Tensor:
    """A PIL image as uint8 (c, h, w)."""
    if item.mode not in ("L", "RGB"):
        raise ValueError(
            f"expected pictures in grey (L) or RGB of 8 bits, got mode {item.mode}; convert('RGB')"
            " first"
        )
    array = torch.from_numpy(np.array(item))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def _said(item: Any) -> str:
    return f"{tuple(item.shape)} of {str(item.dtype).removeprefix('torch.')}"


# ------------------------------------------------------------------------------------------- pixels


def _with_channel(x: Tensor, n: int | None, shape: Shape | None) -> Tensor:
    if x.ndim == 3 and len(x) == n:
        return x[:, None]
    if x.ndim == 1:
        raise ValueError(
            f"expected images (n, c, h, w), got shape {tuple(x.shape)}; they come first, then their"
            " labels"
        )
    if x.ndim == 2 and len(x):
        d = x.shape[1]
        raise ValueError(
            f"expected images (n, c, h, w), got rows of {d} numbers; use reshape(-1,"
            f" {_sizes_of(d, shape)}), or where they are a table's Classifier(net, shape=({d},)) or"
            f" Images.of(x, y, shape=({d},))"
        )
    return x


def _sizes_of(d: int, shape: Shape | None) -> str:
    """Channels, height and width of an image of `d` pixels, as far as they are plain."""
    if shape is not None and math.prod(shape) == d:
        return ", ".join(map(str, shape))
    side = round(d**0.5)
    return f"1, {side}, {side}" if side * side == d else "channels, height, width"


def _as_floats(x: Tensor) -> Tensor:
    return x if x.is_floating_point() or x.is_complex() else x.float()


def _channels_first(x: Tensor, shape: Shape) -> Tensor:
    """Examples of `shape` (c, …) that have their channels last, put first."""
    size = tuple(x.shape[1:])
    last = len(size) > 1 and size != shape == (size[-1], *size[:-1])
    return x.movedim(-1, 1) if last else x


def _channels_where_plain(x: Tensor, *, sure: bool) -> Tensor:
    """Channels last put first, where they are last. A tensor whose axes leave a doubt is (n, c, h,
    w), as torch has it (`sure`); for an array that is refused."""
    if x.ndim != 4:
        return x
    size = (x.shape[1], x.shape[2], x.shape[3])
    first, last = size[0] in CHANNELS, size[2] in CHANNELS
    if first != last:
        # Floats (n, 9, 128, 1) in a tensor are nine signals; square pictures are pictures.
        return (
            x.permute(0, 3, 1, 2)
            if last and (not (sure and x.is_floating_point()) or size[0] == size[1])
            else x
        )
    if sure:
        return x
    raise ValueError(
        f"cannot tell the channels in images of shape {size}; give the net its shape,"
        " Classifier(net, shape=(c, h, w)), or a tensor, torch.from_numpy(images), which is (n, c,"
        " h, w)"
    )


def _scaled(x: Tensor) -> Tensor:
    if x.is_floating_point() or x.is_complex() or not x.numel():
        return x.float() if not x.numel() else x
    whole = x.to(torch.int64)  # torch finds no smallest of 16 bits without a sign
    low, high = int(whole.min()), int(whole.max())
    if low < 0 or high > 255 or high < DARK or x.dtype == torch.int8:  # whose brightest is 127
        cure = (
            "bring them to floats in [0,1]"
            if low < 0
            else f"where {high} is white, use images.float() / {high}"
        )
        of = f" of {str(x.dtype).removeprefix('torch.')}" if x.dtype == torch.int8 else ""
        raise ValueError(f"expected whole pixels from 0 to 255, got {low} to {high}{of}; {cure}")
    return x.to(torch.float32).div_(255)
