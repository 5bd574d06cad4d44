"""Where tasks run on many machines: a Ray cluster (extra `ray`).

    sweep(cells, store, executor=Ray(address="auto"))

Ray places the tasks, and runs those of a lost machine elsewhere; what is here is how our tasks
travel. Work, networks and data are put into Ray's object store once and fetched once by each node;
a task is a few references. The program that calls is the only one that files results.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import signal
import socket
import sys
import threading
import time
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

import retroact
from retroact.executors import Executor, LostTaskError, Luggage, luggage
from retroact.files import replacing
from retroact.spec import AtLeast0, CallError, Positive, Within, show, spec

A = TypeVar("A")
B = TypeVar("B")
ENOUGH = 16  # tasks in flight at least, so that an autoscaler sees that there is work
LOOK = 5.0  # seconds between two looks at which nodes there are
KEPT = 8  # parcels that a process of a node keeps unpacked


@runtime_checkable
class Remembered(Protocol):
    """Work whose results can wait in a file: what `Ray(results=…)` keeps of a lost driver."""

    def name(self, task: Any, /) -> str:
        """Names the result of a task by all that it depends on; a file's name."""
        ...

    def to_bytes(self, result: Any, /) -> bytes:
        """The result as it lies in the file."""
        ...

    def from_bytes(self, data: bytes, /) -> Any:
        """The result that a file holds. Raises ValueError for a damaged one."""
        ...


@runtime_checkable
class Provided(Protocol):
    """Work that brings along what its tasks would else look for on the node's own disk."""

    def brings(self, task: Any, /) -> Iterable[tuple[str, Callable[[], object]]]:
        """What a task needs: a name for each thing, made of what it holds, and how to get it."""
        ...

    def receive(self, thing: Any, /) -> None:
        """Makes a thing known in the process that runs the task."""
        ...


@spec
class Ray(Executor):
    """The machines of a Ray cluster; each task takes `cpus` and `gpus` (also a part of one) of one.

    `address`: "auto" for the cluster that runs on this machine, or its host:port; None: that of
    RAY_ADDRESS, else one that runs here, else one that is started on this machine and ends with
    this process. `memory` is what a task reserves, in GiB. A task whose process or machine is lost
    runs again elsewhere, `retries` times (-1: always). `in_flight` bounds the tasks that are
    handed to Ray at once; 0: twice as many as run at once, 16 at least. In the folder `results`,
    which all machines see, a task leaves its result until it has been filed, so that the next
    driver finds what a lost one had not filed (cells of sweeps and studies).

    The environment of every node must be the same: the same versions, and like processors for the
    same bits. Raises ModuleNotFoundError without ray, ConnectionError where there is no cluster,
    TypeError for what cannot travel, LostTaskError for tasks that were lost more than `retries`
    times, once all others are done.
    """

    address: str | None = None
    cpus: Positive = 1.0
    gpus: AtLeast0 = 0.0
    memory: AtLeast0 = 0.0
    retries: Annotated[int, Within(-1)] = 10
    in_flight: Annotated[int, Within(0)] = 0
    results: str = ""

    @property
    def workers(self) -> int:
        """How many tasks the nodes that are there now can run at once."""
        return max(1, self._slots())

    def __call__(self, work: Callable[[A], B], tasks: Iterable[A], /) -> Iterator[tuple[A, B]]:
        shelf = _Shelf.of(self.results, work)
        waiting: deque[A] = deque()
        for task in tasks:
            found = shelf.find(task)
            if found:
                yield task, found[0]
                shelf.clear(task)
            else:
                waiting.append(task)
        if waiting:
            yield from self._run(work, waiting, shelf)

    def _run(
        self, work: Callable[[A], B], waiting: deque[A], shelf: _Shelf
    ) -> Iterator[tuple[A, B]]:
        ray, running = self._connect(), dict[Any, A]()
        send = _Sender(ray, self._options(ray), work, shelf.folder)
        most, looked = 0, -math.inf
        lost: dict[str, list[A]] = {}
        try:
            while waiting or running:
                if time.monotonic() > looked + LOOK:  # nodes come and go
                    most, looked = self._most(), time.monotonic()
                while waiting and len(running) < most:
                    task = waiting.popleft()
                    running[send(task)] = task
                for ref in _ended(ray, running):
                    task = running.pop(ref)
                    try:
                        result = ray.get(ref)
                    except ray.exceptions.RayTaskError as e:
                        raise e.cause from e
                    except ray.exceptions.RayError as e:
                        lost.setdefault(_say(e), []).append(task)
                        continue
                    yield task, result
                    shelf.clear(task)
            if lost:
                gone = [task for tasks in lost.values() for task in tasks]
                raise LostTaskError(gone, "; ".join(lost), self.retries + 1)
        finally:
            for ref in running if ray.is_initialized() else ():  # else this would start a cluster
                ray.cancel(ref, force=True)

    def _options(self, ray: Any) -> Callable[..., Any]:
        """Submits a task with the resources that it takes."""
        if not self._slots():
            warnings.warn(
                f"no node of the cluster has what a task of {show(self)} takes; waiting for one",
                stacklevel=2,
            )
        how: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        how |= {"memory": int(self.memory * 2**30)} if self.memory else {}
        # 0 calls: as many as there are; else a process that uses a GPU would end after each task
        remote = ray.remote(max_calls=0, max_retries=self.retries, **how)(_run_there)
        return remote.remote  # type: ignore[no-any-return]

    def _most(self) -> int:
        """How many tasks are handed to Ray at once."""
        return self.in_flight or max(ENOUGH, 2 * self._slots())

    def _slots(self) -> int:
        """How many tasks fit into the nodes that are alive."""
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory * 2**30}
        nodes = (node["Resources"] for node in self._connect().nodes() if node["Alive"])
        return sum(
            int(min(has.get(what, 0.0) / share for what, share in asked.items() if share))
            for has in nodes
        )

    def _connect(self) -> Any:
        """The module ray, connected: once in a process, which stays so until it ends."""
        ray = _module()
        if not ray.is_initialized():
            with _own_signals():
                _begin(ray, self.address)
        elif self.address not in (None, "auto", ray.get_runtime_context().gcs_address):
            raise CallError(
                f"expected the cluster {self.address}, but this process is connected to"
                f" {ray.get_runtime_context().gcs_address}; call ray.shutdown() first"
            )
        return ray


def _module() -> Any:
    # before the import, which reads it; nobody is told about a run
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"Ray(…) needs ray, which is not installed (no module {e.name!r}); pip install"
            ' "retroact[ray]"',
            name=e.name,
        ) from e
    return ray


def _begin(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        _knock(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, include_dashboard=None if address else False, **quiet)
    except (OSError, ValueError) as e:
        first = str(e).strip().splitlines()[0]
        raise ConnectionError(
            f"no Ray cluster answers at {address or os.environ.get('RAY_ADDRESS')}: {first}; start"
            " one with `ray start --head`, or leave address= out to use this machine alone"
        ) from e


def _knock(address: str) -> None:
    """OSError where nobody listens: ray itself would end this program after a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """What this program does about SIGTERM stays; ray takes it for itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _ended(ray: Any, running: Iterable[Any]) -> list[Any]:
    """The tasks that have ended: one at least, and all others that have by now."""
    refs = list(running)
    ray.wait(refs, num_returns=1)
    ended, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
    return list(ended)


def _say(error: Exception) -> str:
    """Why a task was lost, in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


# ------------------------------------------------------------------------------------- what travels


@dataclass(frozen=True)
class _Place:
    """What a process on another node must have like this one: its luggage, its folder, where
    modules and networks are found, and its versions."""

    luggage: Luggage
    folder: str
    path: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]

    @classmethod
    def here(cls) -> _Place:
        settings = sorted((k, v) for k, v in os.environ.items() if k.startswith("RETROACT_"))
        path = tuple(folder for folder in sys.path if folder)
        return cls(luggage(), os.getcwd(), path, tuple(settings), _versions())

    def __call__(self) -> None:
        """Makes it so in this process."""
        if self.versions != _versions():
            ours, theirs = (
                ", ".join(f"{name} {number}" for name, number in versions)
                for versions in (self.versions, _versions())
            )
            raise RuntimeError(
                f"expected {ours} on every node, as on the driver's, got {theirs} on"
                f" {os.uname().nodename}; install the same there"
            )
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        sys.path += [folder for folder in self.path if folder not in sys.path]
        os.environ.update(self.settings)
        self.luggage()


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    return ("retroact", retroact.__version__), ("torch", torch.__version__)


class _Sender:
    """Hands tasks to Ray; what several tasks need is put into its object store once."""

    def __init__(
        self, ray: Any, submit: Callable[..., Any], work: Callable[[Any], Any], folder: Path | None
    ) -> None:
        self._ray, self._submit, self._work = ray, submit, work
        self._folder = None if folder is None else str(folder.absolute())
        self._brings = work.brings if isinstance(work, Provided) else _brings_nothing
        packed = self._pack((_Place.here(), self._pack(work)))
        self._first = hashlib.sha256(packed).hexdigest(), self._put(packed)
        self._sent: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, task: Any) -> Any:
        """A reference to the result to come."""
        parcels = [self._first, *(self._parcel(*thing) for thing in self._brings(task))]
        names, refs = zip(*parcels, strict=True)
        return self._submit(names, self._folder, task, *refs)

    def _parcel(self, name: str, thing: Callable[[], object]) -> tuple[str, Any]:
        if name not in self._sent:
            try:
                packed = self._pack(thing())
            except TypeError:  # then the node looks for it where its name says
                packed = self._pack(None)
            self._sent[name] = self._put(packed)
        self._sent.move_to_end(name)
        if len(self._sent) > KEPT:  # those in flight hold what they need
            self._sent.popitem(last=False)
        return name, self._sent[name]

    def _put(self, packed: bytes) -> Any:
        # as an array, which every process of a node reads where it lies, without a copy
        return self._ray.put(np.frombuffer(packed, np.uint8))

    def _pack(self, thing: object) -> bytes:
        try:
            return self._ray.cloudpickle.dumps(thing)  # type: ignore[no-any-return]
        except (TypeError, AttributeError, ValueError, RuntimeError, pickle.PickleError) as e:
            raise TypeError(
                f"this work cannot be sent to another machine ({e}); give Threads(2) or Serial()"
            ) from e


def _brings_nothing(task: object) -> tuple[tuple[str, Callable[[], object]], ...]:
    return ()


_ARRIVED: OrderedDict[str, Any] = OrderedDict()


def _run_there(names: tuple[str, ...], folder: str | None, task: Any, *packed: Any) -> Any:
    """Runs one task in a process of a node; `packed` are the parcels of these names."""
    place, work = _unpack(names[0], packed[0], _settle)
    place()  # again at each task: this process may have had another's since
    for name, parcel in zip(names[1:], packed[1:], strict=True):
        thing = _unpack(name, parcel, _take_out)
        if thing is not None:
            work.receive(thing)
    result = work(task)
    _Shelf.of(folder, work).keep(task, result)
    return result


def _unpack(name: str, packed: Any, take: Callable[[Any], Any]) -> Any:
    """What a parcel holds; it is taken out once in a process, while that keeps it."""
    if name not in _ARRIVED:
        _ARRIVED[name] = take(packed.data)
    _ARRIVED.move_to_end(name)
    while len(_ARRIVED) > KEPT:
        _ARRIVED.popitem(last=False)
    return _ARRIVED[name]


def _settle(packed: Any) -> tuple[_Place, Any]:
    """The driver's place, and the work, which may be read once this process is like it."""
    place, work = pickle.loads(packed)
    place()
    return place, pickle.loads(work)


def _take_out(packed: Any) -> Any:
    """A thing; None where this node lacks the module that it is written in."""
    try:
        return pickle.loads(packed)
    except (ImportError, AttributeError):
        return None


# ------------------------------------------------------------------------------------ what is kept


@dataclass(frozen=True)
class _Shelf:
    """The folder in which results lie until they are filed; none where the work names none."""

    folder: Path | None
    work: Any

    @classmethod
    def of(cls, folder: str | None, work: object) -> _Shelf:
        return cls(Path(folder) if folder and isinstance(work, Remembered) else None, work)

    def find(self, task: Any) -> tuple[Any, ...]:
        """The result of a task as a tuple of one; empty where none lies here whole."""
        if self.folder is None:
            return ()
        try:
            return (self.work.from_bytes(self._file(task).read_bytes()),)
        except (FileNotFoundError, ValueError):
            return ()

    def keep(self, task: Any, result: Any) -> None:
        """Lays a result down, whole or not at all."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._file(task)) as draft:
                draft.write_bytes(self.work.to_bytes(result))

    def clear(self, task: Any) -> None:
        """Takes away what has been filed."""
        if self.folder is not None:
            self._file(task).unlink(missing_ok=True)

    def _file(self, task: Any) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.work.name(task)}.result"
