"""Layers as JSON and one base64 text of half floats, in which equal tensors stand once."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from torch import Tensor

from retroact.playing.layers import Layer

LIMIT = 2_000_000
"""Bytes of half floats that a page may carry."""


class Packing:
    """Numbers one after the other; each tensor is known by where it begins and its shape."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._starts: dict[bytes, int] = {}
        self.size = 0

    def put(self, tensor: Tensor) -> list[Any]:
        """[start, shape] of a tensor, in numbers; one that is there already is not kept again.

        Raises ValueError for a number that a half float cannot hold.
        """
        halves = tensor.detach().cpu().double().numpy().astype("<f2")
        if not np.isfinite(halves).all():
            raise ValueError(
                "the network has numbers beyond 65504 or no numbers at all, which half floats do"
                " not hold; scale its layers first"
            )
        raw = halves.tobytes()
        if raw not in self._starts:
            self._starts[raw] = self.size
            self._parts.append(raw)
            self.size += halves.size
        return [self._starts[raw], list(halves.shape)]

    def layer(self, layer: Layer) -> dict[str, Any]:
        """A layer as the page reads it."""
        tensors = {name: self.put(tensor) for name, tensor in layer.tensors.items()}
        shapes = {"into": layer.into, "out": layer.out}
        return {"op": layer.op, **shapes, **layer.settings, "tensors": tensors}

    @property
    def bytes(self) -> int:
        return 2 * self.size

    def text(self) -> str:
        return base64.b64encode(b"".join(self._parts)).decode()
