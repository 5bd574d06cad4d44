"""Baselines: how the network before fared, stored, so that later audits of other changes of it read
the same number instead of attacking it again.

`before.json` says for each key what was attacked with what, and how much was robust; the arrays and
the adversarial images lie beside it, `before.KEY.safetensors`. A key is a hash of the weights, the
data, the threat, the claimed attack, the battery and its version, and what else changes the attacks
on that network. Code is not in it; so what is read is judged on the network at hand first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retroact.auditing import kept
from retroact.auditing.attack_run import Conditions, Side
from retroact.auditing.battery import VERSION, Battery
from retroact.auditing.numbers import Fingerprints, Pair
from retroact.auditing.subjects import Schedule
from retroact.crafting.attack import Attack
from retroact.crafting.oracle import Network
from retroact.evaluation.evaluate import decide
from retroact.executors import Executor, in_order
from retroact.files import read_object, replacing
from retroact.spec import quote, shorten, show

FORMAT = 1
OTHERWISE = 0.01
"""Of the examples: how many another processor's rounding may decide otherwise."""

T = TypeVar("T")


class StoredSideError(ValueError):
    """A file that holds no baselines, or a baseline that is not of the network at hand."""


@dataclass(frozen=True)
class StoredSide:
    """The side of the network before, in the file `path` under the key of `about`; nowhere without
    a path."""

    path: Path | None
    about: dict[str, Any]

    @classmethod
    def of(
        cls,
        path: str | Path | None,
        prints: Fingerprints,
        under: Conditions,
        claimed: Attack,
        battery: Battery,
        *,
        draws: int = 0,
        kernels: Sequence[Schedule] | None = None,
        counted: str | None = None,
    ) -> StoredSide:
        """Raises StoredSideError for a network without weights, which nothing names, and where the
        file could not be written."""
        path = None if path is None else Path(path)
        if path is not None and not path.absolute().parent.is_dir():
            raise StoredSideError(f"no folder {path.absolute().parent} for {path.name}; make it")
        if path is not None and not prints.weights.before:
            raise StoredSideError(
                "baseline= needs a network before the change that has weights, as a module has;"
                " leave it out"
            )
        about = {
            "weights": prints.weights.before,
            "data": prints.data,
            "threat": show(under.threat),
            "claimed": show(claimed),
            "battery": show(battery),
            "battery_version": VERSION,
            "draws": draws,
        }
        about |= {} if kernels is None else {"kernels": show(tuple(kernels))}
        about |= {} if counted is None else {"rejected": counted}
        return cls(path, about)

    @property
    def key(self) -> str:
        """16 hex digits of a SHA-256 over what it is about."""
        said = json.dumps(self.about, sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def attack(
        self,
        executor: Executor,
        attack: Callable[[T], Side],
        subjects: Pair[T],
        net: Network,
        under: Conditions,
    ) -> Pair[Side]:
        """Both sides; that of the network before as it is stored, where it is."""
        stored = self.read(net, under)
        if stored is None:
            return Pair(*in_order(executor, attack, subjects))
        return Pair(stored, attack(subjects.after))

    def read(self, net: Network, under: Conditions) -> Side | None:
        """The side that is stored, None where there is none; its images are judged on `net`.

        Raises StoredSideError for a file that holds no baselines, and where `net` decides
        otherwise.
        """
        if self.path is None or self.key not in _read(self.path) or not self._images.exists():
            return None
        try:
            side = kept.side_of(*kept.read(self._images), under.data)
        except kept.UNREADABLE as e:
            raise StoredSideError(
                f"{self._images} holds no side of an audit: {shorten(str(e))}; delete it"
            ) from e
        if not _is_of(side, net, under):
            raise StoredSideError(
                f"{self.path}: the network before decides otherwise than when {self.key} was"
                f" stored, with the same weights and data: its code has changed; delete"
                f" {self._images}"
            )
        return replace(side, stored=self.key)

    def keep(self, side: Side) -> None:
        """Stores a side that was not read."""
        if self.path is None or side.stored or not kept.is_whole(side):
            return
        shares = {k: float(np.mean(getattr(side, k))) for k in ("clean", "claimed", "verified")}
        kept.write(side, self._images)
        known = _read(self.path) | {self.key: self.about | {"n": len(side.clean)} | shares}
        text = json.dumps({"format": FORMAT, "baselines": known}, indent=2, sort_keys=True)
        with replacing(self.path) as draft:
            draft.write_text(text + "\n", encoding="utf-8")

    @property
    def _images(self) -> Path:
        assert self.path is not None
        return self.path.with_name(f"{self.path.stem}.{self.key}.safetensors")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        said = read_object(path)
        if said["format"] != FORMAT:
            raise ValueError(f"its format is {quote(said['format'])}, expected {FORMAT}")
        return dict(said["baselines"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StoredSideError(
            f"{path} holds no baselines: {shorten(repr(e))}; give another file"
        ) from e


def _is_of(side: Side, net: Network, under: Conditions) -> bool:
    """Whether the network decides the clean images and those that fell as it did, but for a few."""
    x, labels = under.data.images, under.data.labels
    clean = (decide(net, x, chunk=under.chunk) == labels).numpy()
    fallen = side.attacked(x)
    robust = (decide(net, fallen, chunk=under.chunk, attacked=True) == labels).numpy()
    others = (clean != side.clean) | (robust != side.verified)
    return float(np.mean(others)) <= OTHERWISE
