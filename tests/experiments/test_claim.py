"""One writer: a store that another process is filling is waited for, or refused."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from retroact.executors import Executor, LostTaskError
from retroact.experiments import care, merging
from retroact.experiments.cell import Cell
from retroact.experiments.facts import measured
from retroact.experiments.store import Store, StoreError, StoreInUseError
from retroact.experiments.sweep import sweep
from retroact.spec import key, spec

OWNER = """
import sys, time
from retroact.experiments.store import Store
with Store(sys.argv[1]) as store, store.claimed():
    print("mine", flush=True)
    time.sleep(60)
"""
CELLS = [Cell("digits-cnn", "digits[:8]", "FGSM", f"Linf({eps})") for eps in (0.05, 0.1)]


@spec
class Seven:
    """A measurement."""

    def __call__(self):
        return {"n": 7}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.sqlite"


@pytest.fixture
def owner(path):
    """Another process that fills the store."""
    words = [sys.executable, "-c", OWNER, path]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "mine\n"
    yield child
    child.kill()
    child.wait()


def test_whoever_would_fill_a_store_in_use_is_refused_and_readers_are_not(path, owner):
    with Store(path) as store:
        match = rf"s\.sqlite is being filled by process {owner.pid} on .*--wait, wait=True"
        for fill in (
            lambda: sweep(CELLS, store),
            lambda: measured(Seven(), store),
            lambda: merging.prune(path),
            lambda: merging.merge(path, path.with_name("other.sqlite")),
            lambda: care.repair(path),
        ):
            Store(path.with_name("other.sqlite")).close()
            with pytest.raises(StoreInUseError, match=match):
                fill()
        assert len(store) == 0 and care.check(path).cells == 0
        assert sweep([], store) == [] and merging.prune(path, dry=True) == []


def test_a_claim_ends_with_its_owner_however_that_ends(path, owner):
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert path.with_name("s.sqlite.lock").exists()
    with Store(path) as store:
        assert len(sweep(CELLS, store)) == 2
    assert not path.with_name("s.sqlite.lock").exists()


def test_who_waits_goes_on_when_the_other_ends_and_runs_nothing_twice(path, monkeypatch):
    monkeypatch.setattr("retroact.experiments.claim.SOON", 0.0)
    told, waits = [], threading.Event()

    def tell(text):
        told.append(text)
        waits.set()

    def second():
        with Store(path, wait=True, tell=tell) as store:
            sweep(CELLS, store)

    other = threading.Thread(target=second)
    with Store(path) as store, store.claimed():
        other.start()
        assert waits.wait(20)
        sweep(CELLS, store)
    other.join(20)
    with Store(path) as store:
        assert store.runs() == {key(cell.locked()): 1 for cell in CELLS}
    assert len(told) == 1 and f"being filled by process {os.getpid()}" in told[0]


def test_what_is_claimed_within_a_block_is_kept_to_its_end(path):
    lock = path.with_name("s.sqlite.lock")
    with Store(path) as store:
        with store.claim_kept():
            assert not lock.exists()
            measured(Seven(), store)
            assert lock.exists()
        assert not lock.exists()


def test_a_folder_that_knows_no_locks_is_said(path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    with Store(path) as store, pytest.raises(StoreError, match="network disks are not supported"):
        sweep(CELLS, store)


def test_two_that_claim_at_once_are_one_after_the_other(path):
    inside, most = [], []

    def claim(i):
        with Store(path, wait=True) as store:
            for _ in range(20):
                with store.claimed():
                    inside.append(i)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.remove(i)

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 40 and set(most) == {1}


def test_an_interrupt_while_a_result_is_filed_keeps_it_and_says_so(path, monkeypatch):
    cells = [Cell("digits-cnn", "digits[:8]", f"PGD(steps={n})", "Linf(0.1)") for n in (1, 2, 3)]
    with Store(path) as store:
        monkeypatch.setattr(store, "_write_somewhere", _then_interrupt(store._write_somewhere))
        with pytest.raises(KeyboardInterrupt) as stop:
            sweep(cells, store)
        assert stop.value.__notes__ == [
            f"1 of 3 cells are in {path}; the same command goes on with the rest"
        ]
        assert len(store) == 1 and not path.with_name("s.sqlite.lock").exists()


def _then_interrupt(write):
    def written(do):
        signal.raise_signal(signal.SIGINT)
        write(do)

    return written


@spec
class Losing(Executor):
    """Every process that does another than the first task ends."""

    def __call__(self, work, tasks, /):
        first, *others = tasks
        yield first, work(first)
        raise LostTaskError(others, "signal 11")


def test_a_cell_that_ends_each_process_that_runs_it_is_named(path):
    cells = [Cell("digits-cnn", "digits[:8]", f"PGD(steps={n})", "Linf(0.1)") for n in (1, 2, 3)]
    lost = key(cells[1].locked())
    with Store(path) as store:
        match = rf"{lost} \(Cell\(.*\) and 1 more ended each process that ran it \(signal 11\)"
        with pytest.raises(RuntimeError, match=match):
            sweep(cells, store, executor=Losing())
        assert len(store) == 1
