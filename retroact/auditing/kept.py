"""A side of an audit as tensors of a safetensors file: what evidence and baselines hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from retroact.auditing.attack_run import Broken, Side
from retroact.auditing.numbers import AttackResult
from retroact.evaluation.evaluate import Examples
from retroact.files import parse_json, replacing

UNREADABLE = (
    safetensors.SafetensorError,
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""What `read` raises, and what making a side of it does, for a file that is none of these."""

NAMES = ("x_adv", "row", "label", "decided", "turn", "clean", "claimed", "verified")
"""The tensors of a side."""


def is_whole(side: Side) -> bool:
    """Whether every image that fell is kept."""
    return side.data is not None and len(side.examples) == int((side.broken_by >= 0).sum())


def write(side: Side, path: Path) -> None:
    """x_adv (k, …) with row, label, decided and turn (k,), and clean, claimed and verified (n,);
    the attacks and the kernel in the metadata."""
    assert side.data is not None
    rows = [torch.from_numpy(e.x_adv) for e in side.examples]
    facts = {
        name: torch.tensor([getattr(e, name) for e in side.examples], dtype=torch.int64)
        for name in ("row", "label", "decided", "turn")
    }
    told = {
        name: torch.from_numpy(getattr(side, name).astype(np.uint8))
        for name in ("clean", "claimed", "verified")
    }
    x_adv = torch.stack(rows) if rows else side.data.images[:0]
    attacks = json.dumps([attack.to_json() for attack in side.attacks])
    with replacing(path) as draft:
        draft.write_bytes(
            save({"x_adv": x_adv, **facts, **told}, {"attacks": attacks, "kernel": side.kernel})
        )


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata; raises one of `UNREADABLE`."""
    with safetensors.safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in NAMES}, file.metadata() or {}
    _check(tensors)
    return tensors, metadata


def attacks_in(metadata: Mapping[str, str]) -> tuple[AttackResult, ...]:
    """The attacks that the metadata tell; raises one of `UNREADABLE`."""
    return tuple(map(AttackResult.from_json, parse_json(metadata["attacks"])))


def _check(tensors: Mapping[str, Tensor]) -> None:
    """ValueError for numbers of another kind or count than `write` writes."""
    x_adv, k = tensors["x_adv"], len(tensors["row"])
    if not x_adv.is_floating_point() or not bool(torch.isfinite(x_adv.float()).all()):
        raise ValueError("expected images of finite floats")
    for name in ("row", "label", "decided", "turn"):
        if tensors[name].dtype != torch.int64 or tensors[name].shape != (k,) or len(x_adv) != k:
            raise ValueError(f"expected {k} images and as many whole numbers in {name}")


def side_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], data: Examples) -> Side:
    """The side that was written; raises one of `UNREADABLE` for what is none on this `data`."""
    attacks = attacks_in(metadata)
    clean, claimed, verified = (_flags(tensors[k], data) for k in ("clean", "claimed", "verified"))
    broken_by = np.full(len(clean), -1, dtype=np.int64)
    for name, below in (("row", len(clean)), ("turn", len(attacks))):
        if any(not 0 <= i < below for i in tensors[name].tolist()):
            raise ValueError(f"expected its {name}s from 0, below {below}")
    broken_by[tensors["row"].numpy()] = tensors["turn"].numpy()
    if not np.array_equal(verified, clean & (broken_by < 0)):
        raise ValueError("its images are not those that it says fell")
    examples = tuple(_broken(tensors, i, attacks, data) for i in range(len(tensors["row"])))
    kernel = metadata["kernel"]
    return Side(clean, claimed, verified, broken_by, attacks, examples, kernel, data)


def _flags(stored: Tensor, data: Examples) -> NDArray[np.bool_]:
    if stored.shape != data.labels.shape:
        raise ValueError(f"expected {len(data.labels)} examples, got {tuple(stored.shape)}")
    flags: NDArray[np.bool_] = stored.numpy().astype(bool)
    return flags


def _broken(
    tensors: Mapping[str, Tensor], i: int, attacks: tuple[AttackResult, ...], data: Examples
) -> Broken:
    said: dict[str, Any] = {k: int(tensors[k][i]) for k in ("row", "label", "decided", "turn")}
    by = attacks[said["turn"]]
    image, x_adv = data.images[said["row"]].numpy(), tensors["x_adv"][i].numpy()
    return Broken(**said, image=image, x_adv=x_adv, by=by.title, role=by.role)
