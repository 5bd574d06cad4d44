"""Executors: every task once, with its result, and the same result wherever it runs."""

import importlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from functools import cache

import pytest
import torch

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.cli import attacks
from retroact.cli.named import executor_of
from retroact.executors import (
    SERIAL,
    Executor,
    Here,
    Processes,
    Serial,
    Threads,
    in_order,
    luggage,
)
from retroact.experiments.tuning import tune
from retroact.ground import one_thread
from retroact.spec import SpecError, known, parse, spec
from retroact.stopping import NotWanted, Wanted, check_wanted, is_interrupt_held, uninterrupted

PROCESSES = pytest.param(Processes(2), marks=pytest.mark.slow)
each = pytest.mark.parametrize("executor", [Serial(), Threads(2), Threads(3), PROCESSES], ids=str)


@spec
class Backwards(Executor):
    """One of our own: the last task first."""

    def __call__(self, work, tasks, /):
        for task in reversed(list(tasks)):
            yield task, work(task)


@dataclass(frozen=True)
class Power:
    """A piece of work that can travel."""

    exponent: int

    def __call__(self, base: int) -> int:
        if base < 0:
            raise ArithmeticError(f"no power of {base}")
        return base**self.exponent


def where(_: int) -> tuple[int, int]:
    time.sleep(0.05)  # so that no worker does it all
    return os.getpid(), threading.get_ident()


@each
def test_every_task_is_yielded_once_with_its_result(executor):
    tasks = [[3], [1], [2], [1]]  # whatever a task is, it is only passed on
    assert sorted(executor(sum, tasks)) == [([1], 1), ([1], 1), ([2], 2), ([3], 3)]
    assert list(executor(sum, [])) == []


@each
def test_an_error_is_raised_here(executor):
    with pytest.raises(ArithmeticError, match="no power of -1"):
        list(executor(Power(2), [1, -1]))


@pytest.mark.parametrize("executor", [Serial(), Threads(3)], ids=str)
def test_in_order_gives_the_results_in_the_order_of_the_tasks(executor):
    heard = []
    assert in_order(executor, Power(2), [3, 1, 2], heard.append) == [9, 1, 4]
    assert heard == [1, 2, 3]


def test_one_of_our_own_is_one_class():
    heard = []
    assert in_order(Backwards(), Power(3), [1, 2], heard.append) == [1, 8] and heard == [1, 2]
    assert parse("Backwards", Executor) == Backwards() and Backwards().workers == 1
    assert {Backwards, Serial, Threads, Processes} <= set(known(Executor))


def test_where_tasks_run():
    mine = os.getpid(), threading.get_ident()
    assert set(in_order(SERIAL, where, range(3))) == {mine}
    threads = set(in_order(Threads(2), where, range(6)))
    assert len(threads) == 2 and {pid for pid, _ in threads} == {os.getpid()}
    assert mine not in threads
    assert in_order(Processes(2), where, [1]) == [mine]  # a single task needs no company


@pytest.mark.slow
def test_processes_are_others():
    pids = {pid for pid, _ in in_order(Processes(2), where, range(6))}
    # one may have done all before the other had begun
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids


def test_serial_begins_a_task_when_its_result_is_asked_for():
    begun = []
    results = SERIAL(begun.append, [1, 2])
    assert begun == [] and next(results) == (1, None) and begun == [1]


def test_nothing_new_begins_once_nobody_asks_for_more():
    begun, go = [], threading.Event()

    def work(task):
        begun.append(task)
        return go.wait(5) if task else None

    results = Threads(2)(work, [0, 1, 2, 3, 4, 5])
    assert next(results) == (0, None)
    while len(begun) < 3:  # both threads are busy
        time.sleep(0.01)
    results.close()
    go.set()
    time.sleep(0.1)
    assert begun == [0, 1, 2]


def test_a_task_that_fails_stops_the_others_at_their_next_step():
    net, steps, ended = ra.load("digits-cnn"), [], threading.Event()
    images, both = ra.data("digits[:8]"), threading.Barrier(2)

    def counted(x):
        steps.append(len(x))
        if len(steps) == 3:
            both.wait(5)  # now the other fails
        return net(x)

    def work(task):
        if task:
            both.wait(5)
            raise ArithmeticError("one of two")
        try:
            ra.craft(ra.PGD(steps=10**6), counted, *vars_of(images), ra.Linf(0.001))
        finally:
            ended.set()

    with pytest.raises(ArithmeticError, match="one of two"):
        list(Threads(2)(work, [0, 1]))
    assert ended.is_set() and len(steps) < 10**5


def vars_of(images):
    return images.images, images.labels, images.index


def test_work_within_work_stops_with_either():
    outer = Wanted()
    with outer.working():
        inner = Wanted()
        with inner.working():
            check_wanted()
            outer.end()
            with pytest.raises(NotWanted):
                check_wanted()
    check_wanted()


def interrupt(done, times):
    """Is interrupted so often within a block and one around it."""
    with uninterrupted():
        with uninterrupted():
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            done.append("inner")
        assert is_interrupt_held()
        done.append("outer")


@pytest.mark.parametrize(("times", "ends"), [(1, ["inner", "outer"]), (2, [])])
def test_an_interrupt_waits_for_the_end_of_a_block_and_a_second_does_not(times, ends):
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupt(done, times)
    assert done == ends and not is_interrupt_held()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_cannot_travel_is_refused_with_a_cure():
    with pytest.raises(TypeError, match=r"cannot be sent .*; give Threads\(2\) or Serial\(\)"):
        list(Processes(2)(lambda task: task, [1, 2]))
    with pytest.raises(SpecError, match="expected an executor, one of: .*Processes, Ray, Serial"):
        ra.sweep([], None, executor="PGD")


def knows(name: str) -> tuple[str, int, object]:
    """What a process has of images that are kept under a name, and of specs that a text names."""
    return ra.data(name).fingerprint, torch.get_num_threads(), parse("Backwards()")


@pytest.mark.slow
def test_what_is_known_here_is_known_in_every_process():
    mine = ra.Images.of(torch.rand(3, 1, 4, 4), torch.arange(3), name="mine")
    name = ra.Cell("digits-cnn", mine, "FGSM", "Linf(0.1)").data
    assert in_order(Processes(2), knows, [name, name]) == [knows(name), knows(name)]
    assert __name__ in luggage().modules and "retroact.attacks.pgd" not in luggage().modules


OWN = """
from typing import ClassVar
from retroact.attacks.fgsm import FGSM
from retroact.spec import spec

{line}

@spec
class {name}(FGSM):
    pass
"""


def import_from(folder, monkeypatch, name, line=""):
    folder.mkdir()
    (folder / f"{name.lower()}.py").write_text(OWN.format(name=name, line=line))
    monkeypatch.syspath_prepend(folder)
    importlib.import_module(name.lower())


@pytest.mark.slow
def test_a_module_whose_folder_has_left_the_path_does_not_stop_the_others(tmp_path, monkeypatch):
    with monkeypatch.context() as block:
        import_from(tmp_path / "a", block, "LeftTheseParts")
        assert "lefttheseparts" in luggage().modules
    assert "lefttheseparts" not in luggage().modules
    assert sorted(result for _, result in Processes(2)(abs, [-1, -2])) == [1, 2]


@pytest.mark.slow
def test_a_module_that_cannot_be_imported_there_is_said_by_its_own_error(tmp_path, monkeypatch):
    once = (
        "import multiprocessing\n"
        "if multiprocessing.parent_process(): raise RuntimeError('only the first may')"
    )
    import_from(tmp_path / "a", monkeypatch, "OnlyOnce", once)
    with pytest.raises(RuntimeError, match="only the first may"):
        list(Processes(2)(abs, [-1, -2]))


def test_a_callback_is_heard_here_and_travels_as_silence():
    import pickle

    heard = []
    call = Here(lambda *values: heard.append(values))
    call(1, 2)
    pickle.loads(pickle.dumps(call))(3)
    assert heard == [(1, 2)]


def test_one_thread_is_put_back_by_the_last_that_holds_it():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    inside = threading.Barrier(2)

    def work(_):
        with one_thread():
            inside.wait(5)
            return torch.get_num_threads()

    try:
        assert in_order(Threads(2), work, range(2)) == [1, 1] and torch.get_num_threads() == 3
        with one_thread():
            assert in_order(Threads(2), work, range(2)) == [1, 1] and torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------- results do not depend on it


CELLS = [
    ra.Cell(ra.Model("digits-cnn", a), "digits[:30]", attack, threat)
    for a in (None, ra.JumpReLU(0.5))
    for attack in (ra.PGD(steps=4), ra.FMN(steps=5))
    for threat in (ra.L2(0.5), ra.L2(1.0))
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with ra.Store(tmp_path_factory.mktemp("alone") / "s.sqlite") as store:
        return ra.sweep(CELLS, store)


@pytest.mark.parametrize("executor", [Threads(3), PROCESSES, Backwards()], ids=str)
def test_a_sweep_gives_the_same_bits(tmp_path, alone, executor):
    seen = []
    with ra.Store(tmp_path / "s.sqlite") as store:
        progress = lambda done, total: seen.append((done, total))  # noqa: E731
        assert ra.sweep(CELLS, store, executor=executor, progress=progress) == alone
    assert seen[-1] == (8.0, 8) and all(0 < done <= total for done, total in seen)


LITTLE = Battery(
    steps=4,
    targets=2,
    targeted_steps=4,
    finish=4,
    trial_steps=2,
    queries=4,
    points=8,
    alarmed_finish=4,
)


def tuned(**how):
    net, part = ra.load("digits-cnn"), ra.data("digits/validation[:20]")
    return tune(net, "JumpReLU", part, "Linf(0.1)", grid=[0.0, 0.6], keep=0.9, **how)


def audited(**how):
    of = "digits-cnn", "JumpReLU(0.5)", "digits[:20]", "Linf(0.1)"
    how |= {"battery": LITTLE, "claimed": "PGD(steps=2)", "progress": lambda *at: None}
    found = vars(ra.audit(*of, **how).numbers())
    return {k: v for k, v in found.items() if k not in ("pedigree", "attacks")}


tuned_alone, audited_alone = cache(tuned), cache(audited)


@pytest.mark.parametrize("executor", [Threads(3), PROCESSES, Backwards()], ids=str)
def test_tuning_gives_the_same_curve(executor):
    seen = []
    assert tuned(executor=executor, progress=lambda *at: seen.append(at)) == tuned_alone()
    assert seen == [(1.0, 2), (2.0, 2)]


@pytest.mark.parametrize("executor", ["Threads(2)", PROCESSES, Backwards()], ids=str)
def test_an_audit_gives_the_same_verdict(executor):
    assert audited(executor=executor) == audited_alone()


@pytest.mark.parametrize(
    ("device", "workers", "expected"),
    [
        ("cuda", None, Processes(3)),
        ("cuda", 2, Processes(2)),
        ("cuda:1", None, SERIAL),
        ("mps", None, SERIAL),
    ],
)
def test_a_command_runs_one_cell_at_once_on_each_card(monkeypatch, device, workers, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    default = attacks._at_once_on(device)
    assert executor_of(None, workers, default=default) == expected
    assert attacks._at_once_on("cpu") == 0  # one per core
