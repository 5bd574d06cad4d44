"""Numbers that are no record: any spec whose call gives them, computed once and then read from the
store.

    @spec
    class ZeroGradients:
        model: Model
        data: str
        def __call__(self) -> dict[str, Any]: ...

    measured(ZeroGradients(Model("mnist-cnn"), "mnist[:1000]"), store)

The key holds what the numbers depend on: the spec with the weights of its models, and the pixels of
its slices. JSON keeps lists, numbers and texts; the keys of a dictionary come back as texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from retroact.executors import SERIAL, Executor, one_thread
from retroact.experiments.cell import Model, pixels
from retroact.experiments.store import Store
from retroact.nets.data import DataSlice, data
from retroact.nets.sources import HUB
from retroact.spec import key, show


class Measurement(Protocol):
    """A spec that measures: plain numbers when called."""

    def __call__(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Measured:
    """What came out, the CPU seconds that it took, and whether it was there already."""

    facts: dict[str, Any]
    seconds: float
    stored: bool


def measured(what: Measurement, store: Store) -> Measured:
    """The facts of `what`: from the store, or measured now on one thread and stored."""
    return measured_all([what], store)[0]


def measured_all(
    asked: Sequence[Measurement],
    store: Store,
    *,
    executor: Executor = SERIAL,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measured]:
    """The facts of several measurements, in order; what the store lacks is measured where the
    `executor` runs it.

    Each is stored as it is done, so a stop loses those that were running.
    """
    names = [locked_key(what) for what in asked]
    missing = {
        name: what
        for name, what in zip(names, asked, strict=True)
        if store.read_facts(name, show(what)) is None
    }
    if missing:
        store.check_writable()
    done = len(set(names)) - len(missing)
    progress(done, done + len(missing))
    for i, ((name, what), made) in enumerate(executor(_measure, missing.items()), start=1):
        store.put_facts(name, show(what), *made)
        progress(done + i, done + len(missing))
    return [_read(store, name, name not in missing) for name in names]


def _measure(named: tuple[str, Measurement]) -> tuple[dict[str, Any], float]:
    """The facts, and the CPU seconds that they took."""
    began = time.process_time()
    with one_thread():
        facts = named[1]()
    return facts, time.process_time() - began


def _read(store: Store, name: str, stored: bool) -> Measured:
    found = store.read_facts(name)  # as it will be read next time: lists for tuples, texts for keys
    assert found is not None
    return Measured(*found, stored=stored)


def locked_key(what: Measurement, versions: Mapping[type, int] | None = None) -> str:
    """The spec's key with the hashes of the weights and pixels that it names in fields of its own;
    `versions` as in `key`."""
    values = [getattr(what, f.name) for f in dataclasses.fields(what)]  # type: ignore[arg-type]
    inner = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    weights = [model.locked().weights for model in inner if isinstance(model, Model)]
    seen = [pixels(data(part)) for part in inner if isinstance(part, str) and _is_data(part)]
    said = "|".join([key(what, versions), *weights, *seen])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _is_data(text: str) -> bool:
    try:
        part = DataSlice.read(text)
    except ValueError:
        return False
    return part.name in ("digits", *HUB)
