"""What a sweep over many machines sends, stores and costs its driver; the numbers of docs/scale.md.

    python bench/scale.py --cells 5000            # no cluster
    python bench/scale.py --tasks 10000           # through Ray on this machine
    python bench/scale.py --imagenet              # one gradient of a ResNet-50, needs transformers

Seconds are CPU seconds of this process, so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from retroact import clusters
from retroact.clusters import Ray
from retroact.evaluation.record import Record, to_bytes
from retroact.experiments.cell import Brought, Cell, Model
from retroact.experiments.sealed import pack
from retroact.experiments.store import Store
from retroact.experiments.sweep import _Run, grid, plan
from retroact.ground import one_thread
from retroact.nets.data import data
from retroact.spec import key, show


def main() -> None:
    """Prints a line for each number."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=0)
    parser.add_argument("--tasks", type=int, default=0)
    parser.add_argument("--imagenet", action="store_true")
    args = parser.parse_args()
    if args.cells:
        say_sizes()
        with tempfile.TemporaryDirectory() as folder:
            time_driver(args.cells, Path(folder, "store.sqlite"))
    if args.tasks:
        time_tasks(args.tasks)
    if args.imagenet:
        time_gradient()


def say_sizes() -> None:
    """Bytes of what travels, and of what is stored of a cell."""
    for name in ("lenet-mnist", "resnet20-cifar10"):
        print(f"{name}: {packed(Brought.of(Model(name))):,} bytes to each node")
    for name in ("mnist[:1000]", "cifar10[:1000]"):
        print(f"{name}: {packed(data(name)):,} bytes to each node")
    cell = Cell("lenet-mnist", "mnist[:1000]", "FGSM", "Linf(0.1)").locked()
    record = cell()
    facts = to_bytes(record)
    small = pack(facts)
    assert small is not None
    print(f"a task: {len(pickle.dumps([cell])):,} bytes and two references")
    print(f"a result of 1,000 examples: {len(facts):,} bytes; in the store {len(small):,}")
    ray = SimpleNamespace(cloudpickle=pickle, put=lambda array: print_first(array))
    clusters._Sender(ray, print, _Run(0, None, "cpu", silent), None)


def print_first(array: Any) -> Any:
    print(f"work and luggage of a sweep: {array.nbytes:,} bytes to each node")
    return array


def silent(*at: object) -> None:
    """What travels of a progress bar."""


def packed(thing: object) -> int:
    return len(pickle.dumps(thing, protocol=5))


def time_driver(count: int, path: Path) -> None:
    """CPU seconds of a driver for so many cells: to plan them, to file them, to read them."""
    cells: list[Cell] = grid(
        ["lenet-mnist"], [None], ["FGSM"], ["Linf(0.1)"], "mnist[:1000]", seeds=range(count)
    )
    record = cells[0]()
    with Store(path) as store:
        with told("to plan a cell", count):
            planned = plan(cells, store)
        some = min(count, 500)
        with told("to file a record of 1,000 examples", some):
            for name in planned.todo[:some]:
                cell = planned.cells[name]
                store.put(key(cell), show(cell), cell.fields(), record)
        with told("to read one", some):
            for name in planned.todo[:some]:
                store.read(name)
    print(f"such a record in memory: {in_memory(record):,} bytes")


def in_memory(record: Record) -> int:
    return sum(array.nbytes for array in record.facts().values())


def time_tasks(count: int) -> None:
    """Tasks that do nothing, through Ray on this machine: what each costs the driver."""
    executor = Ray()
    list(executor(abs, range(100)))  # the processes are there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    with told("of a driver for a task that does nothing", count):
        assert sum(result for _, result in executor(abs, range(count))) == sum(range(count))
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{count:,} tasks: {count / wall:,.0f} in a second (wall clock, {executor.workers} cpus)")
    print(f"the driver's largest resident set grew by {(after - before) / 1024:,.0f} MB")


def time_gradient() -> None:
    """One gradient of a ResNet-50 at 224 x 224, on one thread."""
    from transformers import ResNetConfig, ResNetForImageClassification

    net = ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()
    x = torch.rand(4, 3, 224, 224, requires_grad=True)
    with one_thread():
        torch.autograd.grad(net(x).logits.sum(), x)
        with told("a gradient of a ResNet-50 for an image, on one core", len(x)):
            torch.autograd.grad(net(x).logits.sum(), x)
    print(f"resnet50: {packed(net):,} bytes; an image of 224 x 224: {x[0].nbytes:,} bytes")


@contextmanager
def told(what: str, count: int) -> Iterator[None]:
    """Prints the CPU milliseconds that one of `count` takes."""
    began = time.process_time()
    yield
    print(f"{what}: {1000 * (time.process_time() - began) / count:.2f} ms of CPU, {count:,} times")


if __name__ == "__main__":
    main()
