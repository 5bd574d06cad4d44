"""The tensors of a module as a file holds them: bits and dtypes, ties and views of one storage,
extra state.

    tensors, layout = pack(module)      # to write, and what is said beside them
    unpack(module, tensors, layout)     # into another instance, equal to the last bit, tied alike

A tensor that several names share is held once. Tensors that overlap in one storage, and a tensor
that overlaps itself (an expanded buffer), are held as that storage and views of it. The wrappers of
`torch.compile` and `DataParallel` have no part in a name.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class View(NamedTuple):
    """A tensor that is a part of a held storage."""

    storage: str
    offset: int
    size: list[int]
    stride: list[int]


class Layout(TypedDict, total=False):
    """What is said beside the tensors: which names share one (`tied`: name -> the name that holds
    it), which are `views` of a storage, `extra` state, and the buffers that a state dict leaves out
    (`hidden`)."""

    tied: dict[str, str]
    views: dict[str, View]
    extra: dict[str, object]
    hidden: list[str]


_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def bare(name: str) -> str:
    """A name in a state dict without the wrappers of torch.compile."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def inner(module: nn.Module) -> nn.Module:
    """The module that was trained, without what runs it in parallel or compiled."""
    while True:
        wrapped = getattr(module, "_orig_mod", None)
        if wrapped is None and isinstance(module, _PARALLEL):
            wrapped = module.module
        if wrapped is None:
            return module
        module = wrapped


def state_of(module: nn.Module) -> dict[str, object]:
    """The module's own state by bare names: its parameters and buffers themselves, and extra
    state."""
    return {bare(name): value for name, value in module.state_dict(keep_vars=True).items()}


def pack(
    module: nn.Module, leave: Callable[[nn.Module], bool] = lambda _: False
) -> tuple[dict[str, Tensor], Layout]:
    """What a file holds of a module: tensors by name, on the CPU, and what else is said of them.

    Buffers that its state dict leaves out are kept too (`hidden`), but for those of modules that
    `leave` names. Raises ValueError for what safetensors cannot hold, saying which name it is.
    """
    module = inner(module)
    state = state_of(module)
    hidden = {name: held[last] for name, held, last in _list_hidden(module, leave)}
    named = {name: v for name, v in (state | hidden).items() if isinstance(v, Tensor)}
    for name, tensor in named.items():
        _check_plain(name, tensor)
    tied = ties(named)
    owners = {name: tensor.detach() for name, tensor in named.items() if name not in tied}
    tensors, views = _pack_storages(owners)
    tensors |= {
        f"module.{name}": t.cpu().contiguous() for name, t in owners.items() if name not in views
    }
    extra = {name: _jsonable(name, v) for name, v in state.items() if not isinstance(v, Tensor)}
    layout = Layout()
    if tied:
        layout["tied"] = tied
    if views:
        layout["views"] = views
    if extra:
        layout["extra"] = extra
    if hidden:
        layout["hidden"] = list(hidden)
    return tensors, layout


def _pack_storages(owners: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, View]]:
    """The storages in which tensors overlap, each once, and these tensors as views of them."""
    storages, views = {}, {}
    for i, cluster in enumerate(clusters(owners)):
        low = min(_span(owners[name])[0] for name in cluster)
        high = max(_span(owners[name])[1] for name in cluster)
        whole = owners[cluster[0]].as_strided((high - low + 1,), (1,), low)
        storages[f"storage.{i}"] = whole.cpu().clone()
        for name in cluster:
            t = owners[name]
            offset = int(t.storage_offset()) - low
            views[name] = View(f"storage.{i}", offset, list(t.shape), list(t.stride()))
    return storages, views


@torch.no_grad()
def unpack(module: nn.Module, tensors: Mapping[str, Tensor], layout: Layout) -> None:
    """Puts what `pack` gave into another instance, which takes its dtypes and ties as well.

    Parameters stay the objects they are wherever the instance shares them as the file does, so that
    whatever else of the module refers to them sees them filled. Raises RuntimeError where names or
    shapes differ.
    """
    module = inner(module)
    tied, hidden = layout.get("tied", {}), set(layout.get("hidden", ()))
    values, own = _unpack_storages(tensors, layout), state_of(module)
    mine = {name: t for name, t in own.items() if isinstance(t, Tensor) and not is_lazy(t)}
    shared = {name for cluster in clusters(mine) for name in cluster} | layout.get(
        "views", {}
    ).keys()
    placed = dict(layout.get("extra", {}))
    sharers = _names_by_value(own)
    for name in [n for n in values if n not in hidden]:
        names = [name, *(n for n, owner in tied.items() if owner == name)]
        value = _place(own, names, sharers, values[name], name in shared)
        placed |= dict.fromkeys(names, value)
    full = {bare(name): name for name in module.state_dict()}
    module.load_state_dict(
        {full.get(name, name): value for name, value in placed.items()}, assign=True
    )
    for name, held, last in _list_hidden(module):
        if name in hidden:
            owner = tied.get(name, name)
            content = placed[owner] if owner in placed else values[owner]
            held[last] = _renew(held[last], content, name in shared or owner in placed)


def _unpack_storages(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file by the module's names, also those that are views of a storage."""
    # clones, for a file's tensors lie in memory as it packs them, and sums are added in another
    # order there
    values = {
        name.removeprefix("module."): t.clone()
        for name, t in tensors.items()
        if name.startswith("module.")
    }
    views = {name: View(*view) for name, view in layout.get("views", {}).items()}
    storages = {name: tensors[name].clone() for name in {view.storage for view in views.values()}}
    for name, view in views.items():
        values[name] = storages[view.storage].as_strided(view.size, view.stride, view.offset)
    return values


def _names_by_value(state: Mapping[str, object]) -> dict[int, list[str]]:
    """The names of each object of a state, by the object's identity."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, value in state.items():
        names[id(value)].append(name)
    return names


def _place(
    own: Mapping[str, object],
    names: list[str],
    sharers: Mapping[int, list[str]],
    value: Tensor,
    shared: bool,
) -> Tensor:
    """The instance's own tensor with the value in it, where it shares it under these very `names`;
    elsewhere the value."""
    there = {id(t): t for name in names if isinstance(t := own.get(name), Tensor)}
    like = next(iter(there.values()), None)
    alone = len(there) == 1 and sorted(sharers[id(like)]) == sorted(names)
    if like is not None and alone and _can_be_filled(like):
        return _fill(like, value, shared)
    if isinstance(like, nn.Parameter):
        return nn.Parameter(value, requires_grad=like.requires_grad)
    return value


def _renew(before: Tensor | None, value: object, shared: bool) -> Tensor | None:
    """What takes the place of a hidden buffer: itself, filled, or the value of the file."""
    if not isinstance(value, Tensor) or before is None or not _can_be_filled(before):
        return value  # type: ignore[return-value]  # a name in `tied` has a tensor
    # one of another shape was no more than a cache
    return _fill(before, value, shared) if before.shape == value.shape else before


def _can_be_filled(own: Tensor) -> bool:
    """Whether a tensor takes other numbers: one on the meta device has none, one of inference mode
    keeps its own."""
    return not (own.is_meta or own.is_inference())


def _fill(own: Tensor, value: Tensor, shared: bool) -> Tensor:
    """The module's own tensor, filled; the value itself where the shapes differ, for torch to say
    so."""
    if is_lazy(own):
        own.materialize(value.shape, dtype=value.dtype)  # type: ignore[attr-defined]
    if own.shape != value.shape:
        return value
    if shared or own.dtype != value.dtype:
        own.data = value
        return own
    return own.copy_(value)


# ------------------------------------------------------------------------ who shares what with whom


def ties(named: Mapping[str, Tensor]) -> dict[str, str]:
    """The names that share a tensor with an earlier one, each with that earlier name."""
    first: dict[int, str] = {}
    return {
        name: first[id(t)] for name, t in named.items() if first.setdefault(id(t), name) != name
    }


def clusters(named: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors that overlap in one storage, and of each that overlaps itself, in groups."""
    by_storage: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in named.keys() - ties(named).keys():
        t = named[name]
        if t.numel() and t.layout is torch.strided and t.device.type != "meta":
            by_storage[t.device, t.untyped_storage().data_ptr(), t.dtype].append(name)
    groups = []
    for names in by_storage.values():
        group: list[str] = []
        for name in sorted(names, key=lambda n: (*_span(named[n]), n)):
            if group and _span(named[name])[0] > max(_span(named[n])[1] for n in group):
                groups.append(group)
                group = []
            group.append(name)
        groups.append(group)
    return sorted(g for g in groups if len(g) > 1 or overlaps_itself(named[g[0]]))


def overlaps_itself(t: Tensor) -> bool:
    """Whether two entries of a tensor are one number in memory, as in an expanded one."""
    low, high = _span(t)
    return t.numel() > high - low + 1


def _span(t: Tensor) -> tuple[int, int]:
    """The first and last place of the storage that a tensor reaches."""
    low = int(t.storage_offset())
    return low, low + sum(
        (size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)
    )


def _list_hidden(
    module: nn.Module, leave: Callable[[nn.Module], bool] = lambda _: False, path: str = ""
) -> Iterator[tuple[str, dict[str, Tensor | None], str]]:
    """The buffers that a state dict leaves out: the bare name, and where the module holds it."""
    if leave(module):
        return
    for name in sorted(module._non_persistent_buffers_set):
        yield bare(path + name), module._buffers, name
    for name, inner in module.named_children():
        yield from _list_hidden(inner, leave, f"{path}{name}.")


# ----------------------------------------------------------------------- what no network is made of


def find_faults(values: Mapping[str, object], own: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with numbers that take the place of a module's `own`, a sentence for each name:
    NaN and infinity, but in a buffer that the module itself is built with so (a mask), and whole
    numbers or bools where floats belong. Of names that it has not, NaN alone."""
    for name, value in values.items():
        mine = own.get(name)
        if not isinstance(value, Tensor) or value.is_meta or value.is_quantized:
            continue
        if isinstance(mine, Tensor) and _is_number(mine) and not _is_number(value):
            yield f"{name} is {value.dtype}, expected {mine.dtype}"
        elif _is_number(value) and (wrong := _count_not_finite(value, mine)):
            yield f"{name} has {wrong:,} of {value.numel():,} entries that are NaN or infinite"


def _is_number(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _count_not_finite(value: Tensor, mine: object) -> int:
    entries = value.float() if value.dtype.itemsize == 1 else value
    where = ~torch.isfinite(entries) if isinstance(mine, Tensor) else torch.isnan(entries)
    if isinstance(mine, Tensor) and _may_be_a_mask(mine) and mine.shape == value.shape:
        where &= torch.isfinite(mine.detach().to(where.device))
    return int(where.sum())


def _may_be_a_mask(mine: Tensor) -> bool:
    parameter = isinstance(mine, nn.Parameter) or is_lazy(mine)
    return not parameter and not mine.is_meta and _is_number(mine)


# ---------------------------------------------------------------------------- what no file can hold


def _check_plain(name: str, t: Tensor) -> None:
    if is_lazy(t):
        raise ValueError(
            f"{name} has no shape yet (a lazy module); run the net once on an image and save it"
            " then"
        )
    if t.is_meta and type(t) in (Tensor, nn.Parameter):
        raise ValueError(
            f"{name} lies on the meta device and has no numbers; load the net's weights and save it"
            " then"
        )
    t = t.detach().cpu()  # a device may have a type of its own
    if (
        type(t) is not Tensor
        or t.layout is not torch.strided
        or t.is_quantized
        or t.dtype is torch.complex128
    ):
        kind = f"{type(t).__name__} of {t.dtype}, {str(t.layout).removeprefix('torch.')}"
        raise ValueError(
            f"{name} is a {kind}, expected a plain tensor; safetensors holds no other: make it"
            " dense"
        )


def _jsonable(name: str, value: object) -> object:
    try:
        if json.loads(json.dumps(value)) == value:
            return value
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f"{name} is a {type(value).__name__} that JSON does not give back as it is; "
        "let get_extra_state return a tensor, or lists, texts and numbers"
    )
