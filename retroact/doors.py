"""The doors that data passes once, before any work: what was expected, what came, and what to do.

Everyone may use them; they know tensors only.
"""

from __future__ import annotations

import importlib
import math
import operator
import os
import warnings
from typing import Any

import torch
from torch import Tensor

SLACK = 1e-6
"""How far outside [0,1] a pixel may lie: the rounding of a float32 decoder, never an unscaled image."""

SEEDS = 2**62
"""Seeds lie below: attacks add small numbers to them, and their sum must be an int64."""

Shape = tuple[int, int, int]


def check_images(images: Tensor, shape: Shape | None = None) -> None:
    """Raises unless `images` are floats (n, c, h, w), finite and in [0,1] with 1e-6 of slack."""
    check_batch(images, shape)
    if images.numel() == 0:
        raise ValueError(f"expected at least one image, got shape {tuple(images.shape)}")
    low, high = (float(v) for v in torch.aminmax(images))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("expected finite pixels, got NaN or infinity; look for a division by zero before")
    if low < -SLACK or high > 1 + SLACK:
        raise ValueError(f"expected pixels in [0,1], got [{low:g}, {high:g}]; {_cure(low, high)}")


def _cure(low: float, high: float) -> str:
    if low > -0.01 and high < 1.01:
        return "where that is rounding, use images.clamp(0, 1)"
    if low >= 0 and high <= 255:
        return "divide by 255" + ("" if high > 127 else f", or by what white is ({high:g}?)")
    if low >= 0 and high <= 65535:
        return "divide by 65535, or by what white is"
    if low >= -1 - SLACK and high <= 1 + SLACK:
        return "map [-1,1] to [0,1] with (x + 1) / 2 and give the net Classifier(net, mean=0.5, std=0.5)"
    return (
        "leave normalisation to Classifier(net, mean=…, std=…), out of the data and its transforms, "
        "and pass raw pixels / 255"
    )


def check_batch(images: Tensor, shape: Shape | None) -> None:
    """Raises unless `images` are floats (n, c, h, w), of `shape` (c, h, w) where that is known; reads no values."""
    if not isinstance(images, Tensor):
        raise TypeError(f"expected a tensor of images (n, c, h, w), got {type(images).__name__}; use torch.as_tensor")
    if not images.is_floating_point():
        raise TypeError(f"expected float images in [0,1], got {images.dtype}; use images.float() / 255")
    if images.ndim != 4:
        raise ValueError(f"expected images (n, c, h, w), got shape {tuple(images.shape)}; one image needs images[None]")
    if shape is not None and tuple(images.shape[1:]) != shape:
        swapped = tuple(images.permute(0, 3, 1, 2).shape[1:]) == shape
        cure = "permute(0, 3, 1, 2) puts channels first" if swapped else "resize them or choose another net"
        raise ValueError(f"expected images of shape {shape}, got {tuple(images.shape[1:])}; {cure}")


def check_labels(labels: Tensor, classes: int | None = None, n: int | None = None) -> None:
    """Raises unless `labels` are int64 (n,), each at least 0 and below `classes` where that is known."""
    if not isinstance(labels, Tensor):
        found = type(labels).__name__
        raise TypeError(f"expected labels as an int64 tensor, got {found}; use torch.as_tensor(labels).long()")
    if labels.ndim != 1 or (n is not None and len(labels) != n):
        expected = "(n,)" if n is None else f"({n},)"
        raise ValueError(
            f"expected one label per image, shape {expected}, got {tuple(labels.shape)}{_one_label(labels, n)}"
        )
    if labels.dtype != torch.int64:
        cure = "use torch.as_tensor(labels).long()"
        if labels.is_floating_point() and not bool((labels == labels.round()).all()):
            cure = "an attack needs classes, numbered from 0"
        raise TypeError(f"expected labels as an int64 tensor, got {labels.dtype}; {cure}")
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        below = "" if classes is None else f" and below {classes}"
        cure = "check the order of classes"
        if low == 1 and high == classes:
            cure = "they count from 1: use labels - 1"
        raise ValueError(f"expected labels at least 0{below}, got {low} to {high}; {cure}")


def _one_label(labels: Tensor, n: int | None) -> str:
    """The cure for labels of another shape."""
    if labels.ndim == 2 and n in (None, len(labels)):
        return "; use labels.flatten()" if labels.shape[1] == 1 else "; where they are one-hot, use labels.argmax(1)"
    if labels.ndim == 1:
        return "; images and labels must be of the same examples, in the same order"
    return "" if labels.ndim else "; one image needs a list of one label"


def whole(value: object, name: str, low: int = 0, high: int | None = None) -> int:
    """`value`, of any type of integer, as an int; ValueError unless it is a whole number from `low` to `high`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value!r}")
    return number


def checked(seed: object, chunk: object = None, keep: object = 0) -> tuple[int, int | None, int]:
    """The three numbers of a run as ints: its seed, images per chunk (None: the attack's own), images to keep."""
    return whole(seed, "seed", 0, SEEDS), None if chunk is None else whole(chunk, "chunk", 1), whole(keep, "keep")


def named(net: Any) -> Any:
    """`net`, or, where it is a text or a path, the network that `retroact.load` finds by it.

    By its public name, as `parse` finds specs, for whoever may stand before networks on disk.
    """
    return importlib.import_module(__package__).load(net) if isinstance(net, str | os.PathLike) else net


def warn_of_probabilities(logits: Tensor) -> bool:
    """Warns, and says True, where every row of `logits` (n, k) is at least 0 and sums to 1 within 1e-3.

    Attacks need logits: a softmax in the net makes their gradients vanish and flatters it.
    """
    rows = logits.detach().float()
    found = rows.shape[1] > 1 and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all())
    if found:
        warnings.warn(
            "the net seems to return probabilities, not logits; attacks on it would see vanishing gradients: "
            "remove its softmax, or pass output=lambda p: p.log()",
            stacklevel=2,
        )
    return found
