"""Numbers that are no record: any spec whose call gives them, computed once and then read from the store.

    @spec
    class ZeroGradients:
        model: Model
        data: str
        def __call__(self) -> dict[str, Any]: ...

    measured(ZeroGradients(Model("mnist-cnn"), "mnist[:1000]"), store)

The key holds what the numbers depend on: the spec with the weights of its models, and the pixels of its slices. JSON
keeps lists, numbers and texts; the keys of a dictionary come back as texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from dataclasses import dataclass
from typing import Any, Protocol

from retroact.experiments.cell import Model, pixels
from retroact.experiments.executors import one_thread
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
    name = locked_key(what)
    found = store.read_facts(name)
    if found is not None:
        return Measured(*found, stored=True)
    began = time.process_time()
    with one_thread():
        facts = what()
    seconds = time.process_time() - began
    store.put_facts(name, show(what), facts, seconds)
    again = store.read_facts(name)  # as it will be read next time: lists for tuples, texts for keys
    assert again is not None
    return Measured(*again, stored=False)


def locked_key(what: Measurement) -> str:
    """The spec's key with the hashes of the weights and pixels that it names in fields of its own."""
    values = [getattr(what, f.name) for f in dataclasses.fields(what)]  # type: ignore[arg-type]
    inner = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    weights = [model.locked().weights for model in inner if isinstance(model, Model)]
    seen = [pixels(data(part)) for part in inner if isinstance(part, str) and _is_data(part)]
    return hashlib.sha256("|".join([key(what), *weights, *seen]).encode()).hexdigest()[:16]


def _is_data(text: str) -> bool:
    try:
        part = DataSlice.read(text)
    except ValueError:
        return False
    return part.name in ("digits", *HUB)
