"""The doors that data passes once, before any work: what was expected, what came, and what to do.

Everyone may use them; they know tensors only.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

SLACK = 1e-6
"""How far outside [0,1] a pixel may lie: the rounding of a float32 decoder, never an unscaled image."""

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
        return "divide by 255"
    if low >= -1 - SLACK and high <= 1 + SLACK:
        return "map [-1,1] to [0,1] with (x + 1) / 2 and give the net Classifier(net, mean=0.5, std=0.5)"
    return "leave normalisation to Classifier(net, mean=…, std=…) and pass raw pixels / 255"


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
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        found = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"expected labels as an int64 tensor, got {found}; use torch.as_tensor(labels).long()")
    if labels.ndim != 1 or (n is not None and len(labels) != n):
        expected = "(n,)" if n is None else f"({n},)"
        raise ValueError(f"expected one label per image, shape {expected}, got {tuple(labels.shape)}")
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        below = "" if classes is None else f" and below {classes}"
        raise ValueError(f"expected labels at least 0{below}, got {low} to {high}; check the order of classes")


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
