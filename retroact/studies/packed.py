"""Arrays in facts: deflated, in base64, since JSON writes a number in some seven signs."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(values: NDArray[Any], kind: str) -> str:
    """The numbers as `kind`, numpy's word such as "<i2" or "u1"; shapes are not kept."""
    return base64.b64encode(zlib.compress(values.astype(kind).tobytes(), 9)).decode("ascii")


def unpack(text: str, kind: str) -> NDArray[Any]:
    """The numbers that `pack` wrote, in a row."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=kind)
