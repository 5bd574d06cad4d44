"""A Record: the facts of one attack on one network, example by example. Numbers are computed late.

No torch here: reports read records and never a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

NORMS = ("l0", "l1", "l2", "linf")
FORMAT = "1"


class RecordError(ValueError):
    """Bytes that are no record, or facts that do not belong together."""


@dataclass(frozen=True, eq=False)
class Record:
    """What happened to each of n examples.

    `index` (n,) names the example in its data set, `label`, `target` (−1: untargeted), `clean` and
    `adversarial` are classes (−1: the logits were NaN, infinite or alike but for rounding, so there
    was no decision). `distance` and `size` (n, 4) are ‖x_adv − x‖ and ‖x‖ in pixels of [0, 1], or
    the data's own units, columns L0, L1, L2, L_inf. `queries`, `gradients` count passes;
    `zero_gradients` counts gradients that were exactly zero; `nonfinite` says that a NaN or
    infinite logit or gradient was seen, or logits that rounding has made alike.

    Beside the facts, and not counted for equality: `examples` and `originals` (m, …), the
    adversarial and clean images of the first m ≤ n examples, float32, lossless (None: not kept),
    and `pedigree` (what was run, seconds, machine, versions).
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    clean: NDArray[np.int64]
    adversarial: NDArray[np.int64]
    distance: NDArray[np.float32]
    size: NDArray[np.float32]
    queries: NDArray[np.int64]
    gradients: NDArray[np.int64]
    zero_gradients: NDArray[np.int64]
    nonfinite: NDArray[np.bool_]
    examples: NDArray[np.float32] | None = None
    originals: NDArray[np.float32] | None = None
    pedigree: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, facts in self.facts().items():
            if len(facts) != len(self.index):
                raise RecordError(f"expected {len(self.index)} facts in {name}, got {len(facts)}")

    def __len__(self) -> int:
        return len(self.index)

    def __eq__(self, other: object) -> bool:
        """Equal facts, bit for bit; pedigree and kept images aside."""
        if not isinstance(other, Record):
            return NotImplemented
        theirs = other.facts()
        return all(
            facts.tobytes() == theirs[name].tobytes() for name, facts in self.facts().items()
        )

    def facts(self) -> dict[str, NDArray[Any]]:
        """The arrays that count for equality, by name."""
        aside = ("examples", "originals", "pedigree")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in aside}

    def __repr__(self) -> str:
        return f"Record(n={len(self)}, {', '.join(f'{k}={v}' for k, v in self.pedigree.items())})"


def to_bytes(record: Record) -> bytes:
    """The record's facts and pedigree as safetensors bytes; kept images travel on their own."""
    # One key: safetensors writes several in random order, and the same record should be the same
    # bytes.
    said = {
        "record": json.dumps({"format": FORMAT, "pedigree": dict(record.pedigree)}, sort_keys=True)
    }
    return save({k: np.ascontiguousarray(v) for k, v in record.facts().items()}, metadata=said)


def from_bytes(data: bytes, images: bytes | None = None) -> Record:
    """The record that `to_bytes` wrote. Raises RecordError for anything else."""
    try:
        facts = load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        pedigree = json.loads(head["__metadata__"]["record"])["pedigree"]
        kept = {} if images is None else load(images)
        return Record(**facts, **kept, pedigree=pedigree)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise RecordError(f"expected the bytes of a record, got something else: {e}") from None


def images_to_bytes(record: Record) -> bytes | None:
    """The kept images as safetensors bytes, or None where none were kept."""
    if record.examples is None or record.originals is None:
        return None
    kept = {"examples": record.examples, "originals": record.originals}
    return save({k: np.ascontiguousarray(v) for k, v in kept.items()})
