"""How many examples a network is best asked about at once.

On a CPU small networks are fastest in chunks of 256, where calls cost more than sums; larger ones
in chunks of 64, whose activations stay in its caches. On a GPU a chunk is what its free memory
holds. A CPU's chunk depends on the network and the shape of its images alone, never
on a measured time, so that the same run has the same bits.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from retroact.crafting.drawing import drawing
from retroact.crafting.oracle import Network, device_of, evaluating, in_float, modules_of

_CACHED = 2**23
"""Numbers, of all activations of a chunk, that a CPU still computes at full speed."""
_LARGEST = 256
"""Examples of a chunk on a CPU: no network was faster with more."""
_LARGEST_THERE = 4096
"""Examples of a chunk on a GPU: beyond, it has long been busy."""
_LARGE = 2**20
"""Numbers of one image's activations, from which on a network is slow on a CPU."""
_STREAM_THERE = 4
"""Batches that run together on a GPU."""
_SHARE = 0.25
"""Of a GPU's free memory that one copy of the activations may take: a graph keeps about two."""
_ASKED = 3  # examples at once, a number that few tensors have as their first for another reason

_ROOM: weakref.WeakKeyDictionary[Any, tuple[tuple[int, ...], int]] = weakref.WeakKeyDictionary()


def chunk_for(network: Network, images: Tensor, least: int) -> int:
    """How many of the `images` (n, …) to attack at once: a power of two, `least` or more."""
    if len(images) <= least:
        return least
    entries = _entries(network, images)
    if entries == 0:
        return least
    device = device_of(network)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return _fit(least, _LARGEST_THERE, int(_SHARE * free / 4) // entries)
    return _fit(least, _LARGEST, _CACHED // entries)


def stream_for(network: Network, images: Tensor, batch: int) -> int:
    """How many examples to run together where they leave one by one and the network is asked about
    `batch` of them at once; no more than that of a large network, as a stop loses what runs."""
    if len(images) <= batch:
        return batch
    if device_of(network).type == "cuda":
        return _STREAM_THERE * batch
    return batch if _entries(network, images) > _LARGE else max(batch, _LARGEST)


def _fit(least: int, most: int, room: int) -> int:
    """The largest power of two within `most` and `room`, and no less than `least`."""
    return max(least, min(most, 1 << max(0, room.bit_length() - 1)))


def _entries(network: Network, images: Tensor) -> int:
    """Numbers that the network computes on the way from one image to its logits, counted once per
    network and shape; 0 where that cannot be told."""
    shape = tuple(images.shape[1:])
    with suppress(TypeError):  # of what cannot be remembered, such as a slotted object
        known: tuple[tuple[int, ...], int] = _ROOM.get(network, ((), 0))
        if known[0] == shape:
            return known[1]
    entries = _count(network, images[:_ASKED])
    with suppress(TypeError):
        _ROOM[network] = shape, entries
    return entries


def _count(network: Network, few: Tensor) -> int:
    if isinstance(network, torch.jit.ScriptFunction) or any(map(_is_sealed, modules_of(network))):
        return 0
    device, counting = device_of(network), _Counting(len(few))
    try:
        with evaluating(network), torch.no_grad(), drawing(0, device), counting:
            in_float(network, few.to(device))
    except Exception:  # whatever a stranger's code makes of being looked at
        return 0
    return counting.entries


def _is_sealed(module: nn.Module) -> bool:
    """Whether what it computes cannot be seen (a script), or only by compiling it again."""
    return any(isinstance(m, torch.jit.ScriptModule) for m in module.modules()) or hasattr(
        module, "_orig_mod"
    )


class _Counting(TorchFunctionMode):
    """Adds up the entries per example of what is computed within its block."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self._n, self.entries = n, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim and len(out) == self._n and not _is_seen(out, args):
            self.entries += out.numel() // self._n
        return out


def _is_seen(out: Tensor, args: Any) -> bool:
    """Whether it is a view of what it was made of."""
    given = (a for a in args if isinstance(a, Tensor))
    return any(a.untyped_storage().data_ptr() == out.untyped_storage().data_ptr() for a in given)
