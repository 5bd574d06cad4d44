"""Examples on their way to a device: the next ones go over while those before are computed on.

    ahead = Ahead(device, chunk, images, labels)
    for rows in chunks(len(images), chunk):
        sent = ahead.take(rows)
        x, y = sent.at(rows, device)

On a CPU nothing is sent, and what comes back are views.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retroact.crafting.oracle import is_out_of_memory


class Ahead:
    """Sends rows of `tensors` (n, …) to a device, `size` at once, and asks for those after them
    before it gives these.

    A GPU takes them from pinned memory in a stream of their own, so that nothing that it computes
    waits for any but its own.
    """

    def __init__(self, device: torch.device, size: int, *tensors: Tensor) -> None:
        self._device, self._size, self._tensors = device, size, tensors
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._waiting: Sent | None = None

    def take(self, rows: slice) -> Sent:
        """These rows, asked for now unless they were before."""
        here, self._waiting = self._waiting, None
        if here is None or here.rows != rows:
            here = self._send(rows)
        if rows.stop < len(self._tensors[0]):
            following = min(rows.stop + self._size, len(self._tensors[0]))
            self._waiting = self._send(slice(rows.stop, following))
        return here

    def _send(self, rows: slice) -> Sent:
        parts = tuple(t[rows] for t in self._tensors)
        try:
            return Sent(rows, *self._sent(parts))
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            return Sent(rows, parts, None)  # whoever takes some of them sends those

    def _sent(
        self, parts: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], torch.cuda.Event | None]:
        if self._beside is None:
            return tuple(t.to(self._device) for t in parts), None
        with torch.cuda.stream(self._beside):
            there = tuple(_pinned(t).to(self._device, non_blocking=True) for t in parts)
            return there, self._beside.record_event()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


@dataclass(frozen=True, eq=False)
class Sent:
    """The `rows` of some tensors on a device, which may still be taking them until `arrived`."""

    rows: slice
    there: tuple[Tensor, ...]
    arrived: torch.cuda.Event | None = None

    def at(self, rows: slice, device: torch.device) -> tuple[Tensor, ...]:
        """Some of the rows, counted as in the whole tensors; the device's work waits until they are
        there, and this program does not."""
        if self.arrived is not None:
            working = torch.cuda.current_stream(device)
            working.wait_event(self.arrived)
            for tensor in self.there:
                tensor.record_stream(working)
        part = slice(rows.start - self.rows.start, rows.stop - self.rows.start)
        return tuple(t[part].to(device) for t in self.there)
