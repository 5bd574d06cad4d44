"""Files of arrays (.npz): examples and labels by name, and the box that the examples lie in.

    np.savez("wine.npz", x=x, y=y, low=-4.0, high=4.0)
    np.savez("mnist.npz", x_train=…, y_train=…, x_test=…, y_test=…)

Examples may have any shape of rank 1 or more. Images need no box; pixels of 8 bits are divided by
255, and grey ones of 8 bits, (n, h, w), receive their channel; where the channels of images leave a
doubt, they are (n, c, h, w). All else is taken as it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from retroact.doors import check_box
from retroact.nets import arrays

SUFFIXES = ("", "_train", "_validation", "_val", "_test")
"""What may follow the names of a part's two arrays; those without belong to one part, train."""


class Parts(NamedTuple):
    """Examples (n, …) and labels (n,) by the file's own splits, the box, and what classes are
    called."""

    splits: dict[str, tuple[Tensor, Tensor]]
    box: tuple[float, float]
    class_names: tuple[str, ...]


def read(path: Path) -> Parts:
    """The arrays of a file; raises ValueError or TypeError, as `pixels` does, where they are no
    examples with labels."""
    with np.load(path, allow_pickle=False) as file:
        held = {name: file[name] for name in file.files}
    box = check_box(held.get("low", 0.0), held.get("high", 1.0))
    splits = dict(_splits(held, box))
    if not splits:
        raise ValueError(
            "expected arrays under names such as x and y, or x_train and y_train, got"
            f" {', '.join(held) or 'none'}"
        )
    most = max(int(labels.max()) for _, labels in splits.values())
    said = [str(name) for name in held.get("class_names", ())]
    return Parts(splits, box, tuple(said or map(str, range(most + 1))))


def _splits(
    held: Mapping[str, NDArray[np.generic]], box: tuple[float, float]
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    for suffix in SUFFIXES:
        x, y = (
            next((held[word + suffix] for word in words if word + suffix in held), None)
            for words in (arrays.IMAGE_WORDS, arrays.LABEL_WORDS)
        )
        if x is not None and y is not None:
            labels = arrays.classes(y, len(x) if x.ndim else 0)
            yield suffix.removeprefix("_") or "train", (_examples(x, len(labels), box), labels)


def _examples(x: NDArray[np.generic], n: int, box: tuple[float, float]) -> Tensor:
    pictures = x.ndim == 4 or (x.ndim == 3 and x.dtype == np.uint8)
    shape = None if pictures else x.shape[1:]
    return arrays.pixels(arrays.plain(x), n=n, shape=shape, box=box)
