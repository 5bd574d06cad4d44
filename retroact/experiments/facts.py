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
from typing import Any, ClassVar, Protocol

from retroact.executors import SERIAL, Executor
from retroact.experiments.cell import Model, pixels_of, remembered
from retroact.experiments.store import Store
from retroact.ground import one_thread
from retroact.nets.data import DataSlice
from retroact.nets.sources import HUB
from retroact.parts import Anew, HasParts
from retroact.spec import key, show


class Measurement(Protocol):
    """A spec that measures: plain numbers when called."""

    def __call__(self) -> dict[str, Any]: ...


class LongMeasurement(Protocol):
    """One that files its parts as they are done, and goes on from them after a stop; it says so
    (`resumes`)."""

    resumes: ClassVar[bool]

    def __call__(self, store: HasParts | None = None) -> dict[str, Any]: ...


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
    fresh: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Measured]:
    """The facts of several measurements, in order; what the store lacks is measured where the
    `executor` runs it.

    Each is stored as it is done, so a stop loses those that were running, and of those that file
    their parts (audits) one part. `fresh` measures all anew. Raises StoreInUseError
    where another process fills the store, or waits (Store(…, wait=True)).
    """
    names = [locked_key(what) for what in asked]
    by_name = dict(zip(names, asked, strict=True))
    first = list(by_name) if fresh else _missing(by_name, store)
    if first:
        with store.claimed():
            _measure_missing(by_name, store, executor, fresh, progress)
    else:
        progress(len(by_name), len(by_name))
    return [_read(store, name, name not in first) for name in names]


def _missing(asked: Mapping[str, Measurement], store: Store) -> list[str]:
    return [name for name, what in asked.items() if store.read_facts(name, show(what)) is None]


def _measure_missing(
    by_name: Mapping[str, Measurement],
    store: Store,
    executor: Executor,
    fresh: bool,
    progress: Callable[[int, int], None],
) -> None:
    """Measures what the store lacks by now (`fresh`: all), and stores it."""
    missing = {name: by_name[name] for name in (by_name if fresh else _missing(by_name, store))}
    work = _Work(_parts_of(store, fresh))
    done = len(by_name) - len(missing)
    progress(done, len(by_name))
    for i, ((name, what), made) in enumerate(executor(work, missing.items()), start=1):
        store.put_facts(name, show(what), *made)
        progress(done + i, len(by_name))


def _parts_of(store: Store, fresh: bool) -> HasParts | None:
    """Where long measurements file their parts; nowhere for a store in memory."""
    if str(store.path) == ":memory:":
        return None
    return Anew(store.parts) if fresh else store.parts


@dataclass(frozen=True)
class _Work:
    """Gives the facts, and the CPU seconds that they took."""

    parts: HasParts | None

    def __call__(self, named: tuple[str, Measurement]) -> tuple[dict[str, Any], float]:
        what, began = named[1], time.process_time()
        with one_thread():
            facts = what(self.parts) if getattr(what, "resumes", False) else what()  # type: ignore[call-arg]
        return facts, time.process_time() - began


def _read(store: Store, name: str, stored: bool) -> Measured:
    found = store.read_facts(name)  # as it will be read next time: lists for tuples, texts for keys
    assert found is not None
    return Measured(*found, stored=stored)


def locked_key(what: Any, versions: Mapping[type, int] | None = None) -> str:
    """A spec's key with the hashes of the weights and pixels that it names in fields of its own;
    `versions` as in `key`."""
    named = ("key", what, tuple((versions or {}).items()))
    return remembered(named, lambda: _lock(what, versions))


def _lock(what: Any, versions: Mapping[type, int] | None) -> str:
    values = [getattr(what, f.name) for f in dataclasses.fields(what)]
    inner = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    weights = [model.locked().weights for model in inner if isinstance(model, Model)]
    seen = [pixels_of(part) for part in inner if isinstance(part, str) and _is_data(part)]
    said = "|".join([key(what, versions), *weights, *seen])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _is_data(text: str) -> bool:
    try:
        part = DataSlice.read(text)
    except ValueError:
        return False
    return part.name in ("digits", *HUB)
