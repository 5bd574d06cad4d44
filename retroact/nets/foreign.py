"""Checkpoints as people have them: the weights of a net out of whatever file its training left.

    state, notes = weights_for(module, "epoch_90.pth")

The file is read with `weights_only=True`, so none of its code runs; what else lies in it
(arguments, numbers of numpy, a config) is left out, unmade. The weights are found wherever the file
has them, under "state_dict" or elsewhere, and the wrappers' prefixes (`module.`, `model.`,
`_orig_mod.`) are taken off: the names and shapes of the net decide, all of them, and what was done
is said.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from retroact.files import check_unpacked
from retroact.ground import neutral
from retroact.nets.tensors import find_faults, overlaps_itself, state_of, ties
from retroact.spec import shorten

WRAPPERS = frozenset(
    (
        "_forward_module",
        "_orig_mod",
        "backbone",
        "base_model",
        "model",
        "module",
        "net",
        "network",
        "student",
    )
)
"""Names under which trainers keep the net itself; beside one of them may lie whatever else was
trained."""

BESIDE = (
    "criterion",
    "ema",
    "ema_model",
    "loss",
    "loss_fn",
    "metrics",
    "model_ema",
    "optimizer",
    "scheduler",
    "teacher",
)
"""Names of what trainers keep beside the net, in the same state dict."""

_AVERAGES = ("ema", "swa", "teacher", "average")
_COUNTER = "num_batches_tracked"  # of batches seen in training: eval mode does not read it


LONGEST, MOST = 1000, 1000
"""Characters of a weight's name, and dictionaries in a file: no net has more, and each is compared
with the net's own."""


class WeightsError(ValueError):
    """A file that holds no weights, or not those of the net."""


@neutral()
def fill(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Loads a checkpoint into a module, in the module's own dtypes; returns what there is to say of
    it.

    Raises WeightsError, saying what is missing, unknown, of another shape, or no finite number.
    """
    state, notes = weights_for(module, path)
    own = state_of(module)
    with torch.no_grad():
        for tensor in own.values():
            if isinstance(tensor, Tensor) and not is_lazy(tensor) and overlaps_itself(tensor):
                tensor.data = tensor.contiguous()  # torch does not write into an expanded one
    full = dict(zip(own, module.state_dict(), strict=True))
    module.load_state_dict({full[name]: value for name, value in state.items()})
    return notes


def weights_for(module: nn.Module, path: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    """The state dict of a module out of a file, and sentences on how it was found there."""
    own = state_of(module)
    fits = [_fit(own, module, where, tensors) for where, tensors in _candidates(path)]
    good = [fit for fit in fits if not fit.wrong]
    if not good:
        raise WeightsError(
            _describe_misfit(max(fits, key=lambda fit: len(fit.match)), module, path)
        )
    best = good[0]
    state = {
        name: best.tensors[best.match[name]] if name in best.match else value
        for name, value in own.items()
    }
    also = [fit.where for fit in good[1:]]
    notes = "; ".join((*best.describe(own), *_describe_others(also)))
    return state, (f"{path.name}: {notes}",) if notes else ()


def _describe_others(where: list[str]) -> Iterator[str]:
    if where:
        yield (
            f"{', '.join(map(repr, where))} would fit as well and was not taken (save the one you"
            " mean alone)"
        )


# ----------------------------------------------------------------------------------------- the file


def hash_of(path: Path) -> tuple[str, ...]:
    """A sentence with a file's SHA-256; none where it is known, which it is by a file
    PATH.sha256, as sha256sum writes it. WeightsError where it is another one."""
    _check_there(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    known = path.with_name(f"{path.name}.sha256")
    if not known.is_file():
        return (f"{path.name}: SHA-256 {found}; sha256sum {path.name} > {known.name} keeps it",)
    said = re.match(r"[0-9a-fA-F]{64}(?![0-9a-fA-F])", known.read_bytes()[:65].decode("latin1"))
    if said is None or said[0].lower() != found:
        raise WeightsError(
            f"{path} has SHA-256 {found}, {known.name} says {said[0] if said else 'none'}: it is"
            " another file, or damaged; fetch it again"
        )
    return ()


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file of weights")


def _read(path: Path) -> tuple[object, list[str]]:
    """What a file of weights holds, read without running any of its code, and the objects that were
    not made."""
    _check_there(path)
    if path.suffix == ".safetensors":
        return tensors_in(path.read_bytes(), str(path)), []
    try:
        check_unpacked(path)
    except ValueError as e:
        raise WeightsError(f"{path}: {e}") from None
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        strange = sorted(names, key=lambda name: (name.startswith("torch."), name))
    except Exception:  # an older format, or none: torch.load says which
        strange = []
    inert = [(_Nothing if name.startswith("numpy") else _Emptied, name) for name in strange]
    try:
        with torch.serialization.safe_globals(inert):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True), strange
    except Exception as e:  # bytes that are no checkpoint end in any error, a KeyError among them
        raise _refusal(path, strange) from e


def tensors_in(raw: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    try:
        return safetensors.torch.load(raw)
    except Exception as e:  # a type that torch has not, a shape that it refuses
        raise WeightsError(
            f"{where} is truncated or no safetensors file: {shorten(str(e))}; fetch or train it"
            " again"
        ) from e


class _Emptied:
    """Stands in for what torch would have to run code to make: a plain dict, since some of them are
    filled."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[str, object]:  # type: ignore[misc]
        return OrderedDict()


class _Nothing:
    """Stands in for a number of numpy."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _refusal(path: Path, strange: list[str]) -> WeightsError:
    holds = (
        f" (it asks for {shorten(', '.join(strange[:3]))}{', …' if len(strange) > 3 else ''})"
        if strange
        else ""
    )
    return WeightsError(
        f"{path} was refused: it is truncated, or more than tensors{holds}, and reading it would"
        " run its code; save the weights alone: torch.save(net.state_dict(), 'net.pth')"
    )


def _candidates(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors in a file, by where it lies; running averages of weights
    come last."""
    content, strange = _read(path)
    there = list(_mappings(content))
    if not there and strange:
        raise _refusal(path, strange)
    if not there:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else ""
        what = type(content).__name__ + (f" with {shorten(keys)}" if keys else "")
        raise WeightsError(
            f"{path}: expected a state dict of tensors, got {what}; save net.state_dict()"
        )
    return sorted(there, key=lambda pair: any(word in pair[0].lower() for word in _AVERAGES))


def _mappings(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Outermost first. A file's dictionaries may hold one another in a ring, which is cut."""
    left: list[tuple[str, object, frozenset[int]]] = [("", content, frozenset())]
    mappings = 0
    while left:
        where, content, above = left.pop()
        if not isinstance(content, Mapping) or id(content) in above:
            continue
        mappings += 1
        named = {name: held for name, held in content.items() if isinstance(name, str)}
        tensors = {name: held for name, held in named.items() if isinstance(held, Tensor)}
        _check_names(tensors, mappings)
        if tensors:
            yield where, tensors
        inner = [(f"{where}.{n}".lstrip("."), v, above | {id(content)}) for n, v in named.items()]
        left += reversed(inner)


def _check_names(tensors: Mapping[str, Tensor], mappings: int) -> None:
    longest = max(map(len, tensors), default=0)
    if longest > LONGEST or mappings > MOST:
        raise WeightsError(
            f"expected names of at most {LONGEST:,} characters in at most {MOST:,} dictionaries,"
            f" got {longest:,} in {mappings:,} or more; save net.state_dict() alone"
        )


# ------------------------------------------------------------------------------------------ the fit


@dataclass
class _Fit:
    """One reading of one state dict: which of its tensors is which of the net's, and what is wrong
    with that."""

    where: str
    tensors: Mapping[str, Tensor]
    off: str = ""
    on: str = ""
    match: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def describe(self, own: Mapping[str, object]) -> Iterator[str]:
        """What a person would want to know of it."""
        if self.where:
            yield f"weights found under {self.where!r}"
        if self.off:
            yield f"prefix {self.off!r} taken off"
        if self.on:
            yield f"prefix {self.on!r} put before its names"
        if self.left:
            yield f"left aside: {_few(_group(self.left, self.tensors))}"
        if self.kept:
            yield f"not in the file, so as the net was built: {_few(self.kept)}"
        types = {
            o: f"{self.tensors[k].dtype} to {t.dtype}".replace("torch.", "")
            for o, k in self.match.items()
            if isinstance(t := own[o], Tensor) and _is_cut(self.tensors[k], t)
        }
        if types:
            yield (
                f"rounded from {next(iter(types.values()))}: {_few(list(types))} (build the net in"
                " the file's dtype to keep every bit)"
            )


def _fit(
    own: dict[str, object], module: nn.Module, where: str, tensors: Mapping[str, Tensor]
) -> _Fit:
    """The reading with the least wrong in it; among those without fault the one that changes names
    least."""
    readings = []
    for mode, wrapped in enumerate(((), ("_orig_mod",), ("_orig_mod", "module"))):
        keys = {_without(k, wrapped): k for k in tensors}
        mine = {_without(o, wrapped): o for o in own}
        if len(keys) < len(tensors) or len(mine) < len(own):
            continue  # two names would be one
        for on in _leading(mine):
            for off in _prefixes([o.removeprefix(on) for o in mine], keys):
                fit = _Fit(where, tensors, off, on)
                fit.match = {
                    o: keys[k] for n, o in mine.items() if (k := off + n.removeprefix(on)) in keys
                }
                _judge(fit, own, module, keys)
                if (
                    not fit.wrong
                    and wrapped
                    and any(_without(k, wrapped) != k for k in fit.match.values())
                ):
                    taken = sorted(
                        {p for k in fit.match.values() for p in k.split(".") if p in wrapped}
                    )
                    fit.off = " and ".join(f"{p}." for p in taken) + (
                        f" and {fit.off}" if fit.off else ""
                    )
                readings.append(((len(fit.wrong), mode, bool(off), bool(on), len(fit.left)), fit))
    return min(readings, key=lambda reading: reading[0])[1]


def _without(name: str, wrapped: tuple[str, ...]) -> str:
    return ".".join(part for part in name.split(".") if part not in wrapped)


def _leading(names: Mapping[str, str]) -> list[str]:
    """The prefixes that all of the net's own names share, which a file of its inner net lacks."""
    prefixes, split = [""], [name.split(".") for name in names]
    for depth in range(1, min((len(parts) for parts in split), default=1)):
        heads = {tuple(parts[:depth]) for parts in split}
        if len(heads) > 1 or not WRAPPERS.issuperset(*heads):
            break
        prefixes.append(".".join(heads.pop()) + ".")
    return prefixes


def _prefixes(names: list[str], keys: Mapping[str, str]) -> list[str]:
    """What the file may have before the net's names, the likeliest first."""
    votes: Counter[str] = Counter()
    wanted = set(names)
    for key in keys:
        parts = key.split(".")
        heads = {".".join(parts[i:]): ".".join(parts[:i]) + "." for i in range(1, len(parts))}
        votes.update(heads[name] for name in heads.keys() & wanted)
    return ["", *(prefix for prefix, _ in votes.most_common(6))]


def _judge(fit: _Fit, own: dict[str, object], module: nn.Module, keys: Mapping[str, str]) -> None:
    """Fills in what of the file is left aside, what the net keeps, and what is wrong."""
    shared = ties({name: v for name, v in own.items() if isinstance(v, Tensor)})
    for name in own.keys() - fit.match.keys():
        owner = shared.get(name) or next((n for n, o in shared.items() if o == name), "")
        if owner in fit.match:
            fit.match[name] = fit.match[owner]
        elif name.endswith(_COUNTER) or not isinstance(own[name], Tensor):
            fit.kept.append(name)
        else:
            fit.wrong.append(f"missing {name}")
    hidden = {name for name, _ in module.named_buffers()} - own.keys()
    used, wrapper = set(fit.match.values()), _is_wrapper(fit.off)
    for short, key in keys.items():
        if key in used:
            continue
        inner = short.removeprefix(fit.off) if short.startswith(fit.off) else None
        outside = inner is None and wrapper
        if (
            outside
            or (inner or "").endswith(_COUNTER)
            or inner in hidden
            or short.split(".")[0] in BESIDE
        ):
            fit.left.append(key)
        else:
            fit.wrong.append(f"unknown {key}")
    for name, key in list(fit.match.items()):
        wrong = _differs(name, fit.tensors[key], own[name])
        if wrong and name.endswith(_COUNTER):
            del fit.match[name]
        elif wrong:
            fit.wrong.append(wrong)
    if not fit.wrong:
        fit.wrong += find_faults({o: fit.tensors[k] for o, k in fit.match.items()}, own)
    for name, owner in shared.items():
        a, b = (fit.tensors[fit.match[n]] if n in fit.match else None for n in (name, owner))
        if a is not None and b is not None and a.shape == b.shape and not torch.equal(a, b):
            fit.wrong.append(f"{name} and {owner} are one tensor of the net and differ in the file")
    fit.left.sort()
    fit.kept.sort()


def _is_wrapper(prefix: str) -> bool:
    return bool(prefix) and all(part in WRAPPERS for part in prefix.strip(".").split("."))


def _differs(name: str, given: Tensor, own: object) -> str:
    if not isinstance(own, Tensor) or is_lazy(own):
        return ""
    if given.shape != own.shape:
        return f"{name} is {tuple(given.shape)}, expected {tuple(own.shape)}"
    if (
        given.is_floating_point() != own.is_floating_point()
        or given.is_quantized != own.is_quantized
    ):
        return f"{name} is {given.dtype}, expected {own.dtype}"
    return ""


def _is_cut(given: Tensor, own: Tensor) -> bool:
    if given.dtype == own.dtype or not given.is_floating_point():
        return False
    return not torch.equal(given.to(own.dtype).to(given.dtype).nan_to_num(), given.nan_to_num())


def _describe_misfit(fit: _Fit, module: nn.Module, path: Path) -> str:
    there = f" (under {fit.where!r})" if fit.where else ""
    there += f" (without {fit.off!r})" if fit.off else ""
    wrong = _few(sorted(fit.wrong), 5)
    return f"{path}{there} does not fit {type(module).__name__}: {wrong}; {_cure_of(fit)}"


def _cure_of(fit: _Fit) -> str:
    if all("NaN" in wrong for wrong in fit.wrong):
        return "its training diverged or the file is damaged: take an earlier one"
    return "build the very net whose weights these are"


def _group(names: list[str], among: Mapping[str, Tensor]) -> list[str]:
    """Names, those under one head as one, where a head is the first part in which the names of a
    file differ."""
    split = [name.split(".") for name in among]
    depth = next((i for i, parts in enumerate(zip(*split, strict=False)) if len(set(parts)) > 1), 0)
    groups = Counter(".".join(name.split(".")[: depth + 1]) for name in names)
    alone = [name for name in names if groups[".".join(name.split(".")[: depth + 1])] == 1]
    return sorted([*alone, *(f"{head}.* ({n})" for head, n in groups.items() if n > 1)])


def _few(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(shorten, names[:most]))}{more}"
