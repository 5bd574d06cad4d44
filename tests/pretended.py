"""A device for machines that have none: its tensors say that they lie on `meta` and are computed on
the CPU.

As on a real one, an operation whose tensors lie on both sides is an error (numbers without
dimensions aside, and a CPU tensor of indices), and nothing comes back unless it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "meta"
aten = torch.ops.aten
_CROSSING = (aten.copy_.default, aten._to_copy.default, aten.index.Tensor)
_PUTTING = (aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Makes the device `NAME` hold numbers; autocast does nothing there."""
    autocast, tensor = torch.autocast, torch.tensor

    def cast(kind: str, **options: Any) -> Any:
        return contextlib.nullcontext() if kind == NAME else autocast(kind, **options)

    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        found = tensor(data, **options)
        return found if device is None else found.to(device)

    future = torch.__future__
    before = future.get_overwrite_module_params_on_conversion()
    future.set_overwrite_module_params_on_conversion(True)
    try:
        with _Pretending(), mock.patch("torch.autocast", cast), mock.patch("torch.tensor", made):
            yield
    finally:
        future.set_overwrite_module_params_on_conversion(before)


class There(torch.Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME),
        )
        made.inner = inner
        return made

    def __init__(self, inner: torch.Tensor) -> None: ...

    def __repr__(self) -> str:
        return f"There({self.inner})"

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:
        return torch.tensor(data, dtype=self.dtype).to(NAME)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat: list[torch.Tensor] = []
    plain_args = tuple([_plain(v, flat) for v in args])
    plain = {k: _plain(v, flat) for k, v in kwargs.items()} if kwargs else {}
    there = [t for t in flat if isinstance(t, There)]
    device = kwargs.get("device")
    sent = device is not None and torch.device(device).type == NAME
    if 0 < len(there) < len(flat):
        _refuse_mixtures(func, args, flat)
    known = {id(t.inner): t for t in there}
    out = func(*plain_args, **(plain | {"device": torch.device("cpu")} if sent else plain))
    if func is aten.copy_.default:
        return args[0]
    fetched = func is aten._to_copy.default and device is not None and not sent
    if fetched or not (there or sent):
        return out

    def wrapped(t: Any) -> Any:
        if not isinstance(t, torch.Tensor):
            return t
        return known[id(t)] if id(t) in known else There(t)

    return _mapped(wrapped, out)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """As torch's `tree_map`, for what operations give, in a third of the time."""
    if isinstance(value, tuple | list):
        return type(value)([_mapped(function, v) for v in value])
    return function(value)


def _plain(value: Any, flat: list[torch.Tensor]) -> Any:
    """What an operation takes, with the numbers in the place of tensors, which `flat` collects."""
    if isinstance(value, torch.Tensor):
        flat.append(value)
        return value.inner if isinstance(value, There) else value
    if isinstance(value, tuple | list):
        return type(value)([_plain(v, flat) for v in value])
    return value


def _refuse_mixtures(func: Any, args: Any, flat: list[torch.Tensor]) -> None:
    if not any(not isinstance(t, There) and t.dim() for t in flat):
        return
    if func in _PUTTING:
        mixed = not isinstance(args[0], There) or not (
            isinstance(args[2], There) or args[2].dim() == 0
        )
    elif func is aten.index.Tensor:
        mixed = not isinstance(args[0], There)
    else:
        mixed = func not in _CROSSING
    if mixed:
        raise RuntimeError(f"expected all tensors to be on the same device, got two: {func}")
