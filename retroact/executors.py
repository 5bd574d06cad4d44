"""Where independent tasks run: one after the other, in threads, or in processes beside this one.

    for task, result in Processes(workers=4)(work, tasks):
        ...

An executor is a spec, and so is one of your own: a class that inherits `Executor`. Which one runs
the tasks never changes a result: every task brings all that it depends on, its noise is a hash of
seed and example, and its sums are added on as many threads here as there.
"""

from __future__ import annotations

import importlib
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Protocol, TypeVar

import torch

from retroact.nets.data import Images, embed, embedded
from retroact.spec import Count, homes, spec
from retroact.stopping import Wanted
from retroact.workers import LostTaskError as LostTaskError
from retroact.workers import own_place, pack, run_beside

A = TypeVar("A")
B = TypeVar("B")


class Executor(Protocol):
    """A spec that runs tasks which do not depend on one another: `executor(work, tasks)`.

    `workers` is how many of them run at once; only estimates ask for it.
    """

    @property
    def workers(self) -> int:
        return 1

    @abstractmethod
    def __call__(self, work: Callable[[A], B], tasks: Iterable[A], /) -> Iterator[tuple[A, B]]:
        """Yields each task with `work(task)` as it is done, in any order.

        An error that a task raises is raised here, and nothing new begins once nobody asks for
        more. In another process `luggage()`, which travels by pickle, is to be called before the
        first task: it makes known there what is known here.
        """
        ...


@spec
class Serial(Executor):
    """One task after the other, in this thread."""

    def __call__(self, work: Callable[[A], B], tasks: Iterable[A], /) -> Iterator[tuple[A, B]]:
        for task in tasks:
            yield task, work(task)


SERIAL = Serial()


@spec
class Threads(Executor):
    """So many tasks at once in threads of this process: no start to pay, and nothing need travel.

    Once one has failed, or nobody asks for more, the others stop at the next call of a network. The
    threads are daemons, so that an interrupt ends the program at once.
    """

    workers: Count = 2

    def __call__(self, work: Callable[[A], B], tasks: Iterable[A], /) -> Iterator[tuple[A, B]]:
        waiting, done, wanted = deque(tasks), SimpleQueue[tuple[A, Future[B]]](), Wanted()
        count, how = len(waiting), (work, waiting, done, wanted)
        threads = [Thread(target=_serve, args=how, daemon=True) for _ in range(self.workers)][
            :count
        ]
        for thread in threads:
            thread.start()
        patience: float | None = PATIENCE
        try:
            for _ in range(count):
                task, outcome = done.get()
                yield task, outcome.result()
        except Exception:
            patience = None  # they may use what is given back with the error, such as a network
            raise
        finally:
            waiting.clear()
            wanted.end()
            _join(threads, patience)


PATIENCE = 2.0
"""Seconds that threads are waited for whose results nobody wants."""


def _join(threads: Sequence[Thread], patience: float | None) -> None:
    """Waits for threads, so many seconds at most for all of them."""
    until = None if patience is None else time.monotonic() + patience
    for thread in threads:
        thread.join(None if until is None else max(0.0, until - time.monotonic()))


def _serve(
    work: Callable[[A], B],
    waiting: deque[A],
    done: SimpleQueue[tuple[A, Future[B]]],
    wanted: Wanted,
) -> None:
    """Does what is waiting until nothing is, or nobody wants it any more."""
    while True:
        try:
            task = waiting.popleft()
        except IndexError:
            return
        outcome: Future[B] = Future()
        try:
            with wanted.working():
                outcome.set_result(work(task))
        except BaseException as error:
            outcome.set_exception(error)
        done.put((task, outcome))


@spec
class Processes(Executor):
    """So many tasks at once in processes beside this one; work and tasks travel there by pickle.

    A single task runs here. The processes end with this one, however it ends. The task of one that
    is killed is done again by another. Raises TypeError for what cannot travel, LostTaskError for
    tasks that end two processes each, once all others are done.
    """

    workers: Count = 2

    def __call__(self, work: Callable[[A], B], tasks: Iterable[A], /) -> Iterator[tuple[A, B]]:
        waiting = list(tasks)
        if self.workers < 2 or len(waiting) < 2:
            yield from SERIAL(work, waiting)
            return
        pack((work, waiting[0]))  # what cannot travel is refused before a process begins
        yield from run_beside(min(self.workers, len(waiting)), luggage(), work, waiting)


def cards_of(device: str) -> int:
    """How many cards a device stands for: "cuda" for all that are visible, any other for one."""
    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


def one_for_each_card(device: str) -> Executor:
    """A process for each card that `device` stands for; where it is one, this process."""
    cards = cards_of(device)
    return Processes(cards) if cards > 1 else SERIAL


def own_card(device: str) -> str:
    """What `device` means in this process: "cuda" in one of several is the card of its place, and
    that of another one's, too, where processes are more than cards."""
    at, cards = own_place(), cards_of(device)
    return device if at is None or cards == 1 else f"{device}:{at % cards}"


@dataclass(frozen=True)
class Luggage:
    """What another process must know before its first task: the modules in which specs of your own
    are written, images that are kept under a name, and on how many threads sums are added."""

    modules: tuple[str, ...]
    images: tuple[Images, ...]
    threads: int

    def __call__(self) -> None:
        """Makes it known in this process."""
        for module in self.modules:
            importlib.import_module(module)
        for own in self.images:
            embed(own)
        torch.set_num_threads(self.threads)


def luggage() -> Luggage:
    """What this process knows, but for modules that no other would find: those of a folder that
    has left the path since, or that were never in a file."""
    modules = tuple(name for name in homes() if _can_be_found(name))
    return Luggage(modules, tuple(embedded()), torch.get_num_threads())


def _can_be_found(module: str) -> bool:
    package = module.split(".")[0]
    return any(finder.find_spec(package, None) is not None for finder in sys.meta_path)


def in_order(
    executor: Executor,
    work: Callable[[A], B],
    tasks: Iterable[A],
    ended: Callable[[int], object] = lambda count: None,
) -> list[B]:
    """The results of all tasks, in the order of the tasks; `ended` hears how many are done."""
    results: dict[int, B] = {}
    for (place, _), result in executor(partial(_second, work), list(enumerate(tasks))):
        results[place] = result
        ended(len(results))
    return [results[place] for place in sorted(results)]


def _second(work: Callable[[A], B], numbered: tuple[int, A]) -> B:
    return work(numbered[1])


class Here:
    """A callback that is heard in this process only: where it has travelled to another, it is
    silent."""

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *values: object) -> None:
        self._call(*values)

    def __reduce__(self) -> tuple[type[Here], tuple[Callable[..., object]]]:
        return Here, (_ignore,)


def _ignore(*values: object) -> None:
    pass
