"""Noise per example: the draw of example i under seed s is the same in any batch, order, worker or
resume.

A counter-based generator: entry j of example i is a hash of (seed, stream, i, j), so there is no
state to carry and nothing depends on who was drawn before. The hash is SplitMix64's finaliser
(Steele, Lea & Flood 2014), in wrapping int64 arithmetic, which is exact on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB
_ROOM = 65536  # numbers that are drawn at once for an example


def uniform(shape: tuple[int, ...], index: Tensor, seed: int, stream: int | Tensor = 0) -> Tensor:
    """Independent draws from [0, 1): float32 (n, *shape) for `index` (n,) int64.

    `stream`, one or one for each example (n,), tells draws of one attack apart (restart, step): the
    same stream gives the same noise.
    """
    return (_bits(shape, index, seed, stream) >> 40 & 0xFFFFFF).float() * 2.0**-24


def normal(shape: tuple[int, ...], index: Tensor, seed: int, stream: int | Tensor = 0) -> Tensor:
    """Independent standard normal draws, float32 (n, *shape), by Box and Muller's transform."""
    bits = _bits(shape, index, seed, stream)
    radius = (((bits >> 32 & 0xFFFFFFFF).double() + 1.0) * 2.0**-32).log().mul(-2.0).sqrt()
    angle = (bits & 0xFFFFFFFF).double() * (2.0 * math.pi * 2.0**-32)
    return (radius * angle.cos()).float()


def portions(draws: int, entries: int) -> list[int]:
    """How many of the `draws`, of so many `entries` each, are made at once, so that memory suffices
    for large examples, too: the same whoever shares a chunk, so that noise is."""
    most = max(1, _ROOM // entries)
    return [min(most, draws - done) for done in range(0, draws, most)]


def _bits(shape: tuple[int, ...], index: Tensor, seed: int, stream: int | Tensor) -> Tensor:
    entries = torch.arange(math.prod(shape), device=index.device)
    example = _mix(_mix(_mix(index.new_tensor(seed)) + stream) + index)
    return _mix(example[:, None] + (entries + 1) * _GOLDEN).view(len(index), *shape)


def _mix(z: Tensor) -> Tensor:
    z = z + _GOLDEN
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)  # int64's >> keeps the sign; the hash wants zeros
