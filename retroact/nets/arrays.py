"""Arrays as people hold them, made the house's: pixels float32 (n, c, h, w) in [0,1], or other
examples (n, …) in a box of their own, labels int64 (n,).

Tensors of any float type, on any device, with or without a graph; numpy arrays with any strides and
byte order; lists of numbers, of arrays, or of pictures. What is not plainly one thing is refused
with the cure, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retroact.doors import IMAGE, Shape, check_batch, check_images, check_labels

Array: TypeAlias = NDArray[np.generic]

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
    images: object,
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
    x = _scale(x) if box == UNIT else _as_floats(x)
    check_batch(x, None)
    return within(x, *box)


def within(examples: object, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Float32 (n, …) on the CPU from floats of any rank from 2, checked to lie in [low, high]."""
    x = plain(examples)
    check_images(x, tuple(x.shape[1:]) if x.ndim > 1 else None, low, high)
    return x.to(torch.float32).contiguous()


def classes(labels: object, n: int) -> Tensor:
    """Labels int64 (n,) on the CPU, from whole numbers of any type; what they must be,
    `check_labels` says."""
    y = plain(labels)
    if not (y.is_floating_point() or y.is_complex()):
        y = y.to(torch.int64)
    check_labels(y, n=n)
    return y.contiguous()


def numbers(rows: object, what: str) -> Tensor:
    """Whole numbers, such as rows of images, int64 (n,) on the CPU; a bool mask stays one."""
    x = plain(rows)
    if x.ndim != 1 or (x.is_floating_point() and len(x)):
        raise TypeError(
            f"expected {what} as whole numbers (n,), got {x.dtype} of shape {tuple(x.shape)}"
        )
    return x if x.dtype == torch.bool else x.to(torch.int64)


def stack(items: Sequence[object]) -> Tensor | Array:
    """Arrays or pictures of one size, one after the other: (n, …). ValueError for the first that
    differs."""
    parts = [_as_array(item) for item in items]
    first = parts[0]
    for i, part in enumerate(parts):
        if type(part) is not type(first) or part.shape != first.shape or part.dtype != first.dtype:
            raise ValueError(
                f"image {i} is {_describe(part)} and image 0 is {_describe(first)}, expected one"
                " size and type for all; resize or convert them first"
            )
    if isinstance(first, Tensor):
        return torch.stack([part for part in parts if isinstance(part, Tensor)])
    return np.stack([part for part in parts if isinstance(part, np.ndarray)])


def plain(what: object) -> Tensor:
    """A plain tensor on the CPU without a graph, sharing memory where it can."""
    if isinstance(what, list | tuple) and what and _is_array(what[0]):
        what = stack(what)
    x = what if isinstance(what, Tensor) else _from_numpy(what)
    # Inference mode marks its tensors for life, and a network could not be differentiated on them.
    with torch.inference_mode(False):
        dense = x if x.layout is torch.strided else _fill_in(x)
        x = dense.detach().as_subclass(Tensor).cpu()
        return x.clone() if x.is_inference() else x


def _fill_in(x: Tensor) -> Tensor:
    """A sparse tensor with its zeros."""
    dense: Tensor = x.to_dense()  # type: ignore[attr-defined]
    return dense


# ---------------------------------------------------------------------------------------- one array


def _from_numpy(what: object) -> Tensor:
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


class Picture(Protocol):
    """What is asked of an image of Pillow, which need not be imported for that."""

    @property
    def mode(self) -> str: ...
    def getbands(self) -> tuple[str, ...]: ...
    def convert(self, mode: str) -> Picture: ...


def is_picture(item: object) -> TypeGuard[Picture]:
    """Whether it is an image of Pillow."""
    return hasattr(item, "getbands") and hasattr(item, "convert")


def _is_array(item: object) -> bool:
    return hasattr(item, "shape") or is_picture(item)


def _as_array(item: object) -> Tensor | Array:
    if is_picture(item):
        return _read_picture(item)
    return item if isinstance(item, Tensor) else np.asarray(item)


def _read_picture(picture: Picture) -> Tensor:
    """A picture as uint8 (c, h, w)."""
    if picture.mode not in ("L", "RGB"):
        raise ValueError(
            f"expected pictures in grey (L) or RGB of 8 bits, got mode {picture.mode};"
            " convert('RGB') first"
        )
    array = torch.from_numpy(np.array(upright(picture)))
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def upright(picture: Picture) -> Picture:
    """A picture turned and mirrored as its EXIF data say, as viewers show it."""
    from PIL import Image, ImageOps

    if isinstance(picture, Image.Image) and picture.getexif().get(_ORIENTATION, 1) != 1:
        return ImageOps.exif_transpose(picture)
    return picture


_ORIENTATION = 0x0112


def _describe(array: Tensor | Array) -> str:
    return f"{tuple(array.shape)} of {str(array.dtype).removeprefix('torch.')}"


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


def _scale(x: Tensor) -> Tensor:
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
