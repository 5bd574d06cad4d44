"""Files of arrays (.npz): examples and labels by name, and the box that the examples lie in.

    np.savez("wine.npz", x=x, y=y, low=-4.0, high=4.0)
    np.savez("mnist.npz", x_train=…, y_train=…, x_test=…, y_test=…)

Examples may have any shape of rank 1 or more. Images need no box; pixels of 8 bits are divided by
255, and grey ones of 8 bits, (n, h, w), receive their channel; where the channels of images leave a
doubt, they are (n, c, h, w). All else is taken as it stands. Arrays of other names are not read.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from retroact.doors import check_box
from retroact.files import check_unpacked
from retroact.nets import arrays
from retroact.spec import shorten

SUFFIXES = ("", "_train", "_validation", "_val", "_test")
"""What may follow the names of a part's two arrays; those without belong to one part, train."""

NAMES = frozenset(
    f"{word}{suffix}" for suffix in SUFFIXES for word in (*arrays.IMAGE_WORDS, *arrays.LABEL_WORDS)
) | {"low", "high", "class_names"}
"""The arrays that are read."""


class Parts(NamedTuple):
    """Examples (n, …) and labels (n,) by the file's own splits, the box, and what classes are
    called."""

    splits: dict[str, tuple[Tensor, Tensor]]
    box: tuple[float, float]
    class_names: tuple[str, ...]


def read(path: Path) -> Parts:
    """The arrays of a file; raises ValueError or TypeError, as `pixels` does, where they are no
    examples with labels, and ValueError where it would unpack to far more than it is."""
    held = _arrays(path)
    box = check_box(held.get("low", 0.0), held.get("high", 1.0))
    splits = dict(_splits(held, box))
    if not splits:
        raise ValueError(
            "expected arrays under names such as x and y, or x_train and y_train, got"
            f" {shorten(', '.join(_names(path)) or 'none')}"
        )
    most = max(int(labels.max()) for _, labels in splits.values())
    said = _names_of_classes(held.get("class_names", np.array([])))
    return Parts(splits, box, said or tuple(map(str, range(most + 1))))


def _names_of_classes(held: object) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in np.atleast_1d(held))  # type: ignore[call-overload]
    except SystemError as e:  # what numpy makes of four bytes that are no character
        raise ValueError(f"its class_names are damaged: {e}") from None


def _arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of a file that have one of the `NAMES`, each first held against its size."""
    try:
        check_unpacked(path)
        with zipfile.ZipFile(path) as packed:
            members = [info for info in packed.infolist() if _is_read(info.filename)]
            for info in members:
                _check_array(packed, info)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name in NAMES}
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as e:
        raise ValueError(f"expected a file that np.savez wrote, got something else: {e}") from None
    except Exception as e:
        if isinstance(e, ValueError) and not isinstance(e, UnicodeError):
            raise
        # what a damaged header, or one of its numbers, makes of numpy and zlib
        kind = type(e).__name__
        raise ValueError(f"its arrays are damaged: {kind}: {shorten(str(e))}") from None


def _names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as packed:
        return [name.removesuffix(".npy") for name in packed.namelist()]


def _is_read(member: str) -> bool:
    return member.removesuffix(".npy") in NAMES


def _check_array(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raises ValueError where an array says that it holds other than what lies there: numpy makes
    room for what it says."""
    with packed.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = getattr(np.lib.format, f"read_array_header_{version[0]}_0", None)
        if read is None:
            raise ValueError(f"its array {info.filename} has format {version}; np.savez it again")
        shape, _, dtype = read(file)
        held = info.file_size - file.tell()
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != held:
        raise ValueError(
            f"its array {shorten(info.filename)} says that it is {shorten(str(shape))} of {dtype},"
            f" and has {held:,} bytes; np.savez it again"
        )


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
