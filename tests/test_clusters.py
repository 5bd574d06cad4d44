"""Tasks on the nodes of a Ray cluster: as in `test_executors`, and what is lost is run again."""

import os
import pickle
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import retroact as ra
from retroact import clusters
from retroact.auditing.battery import Battery
from retroact.clusters import KEPT, Provided, Ray, Remembered
from retroact.executors import Executor, in_order
from retroact.experiments.cell import Brought
from retroact.experiments.store import Store
from retroact.experiments.sweep import _Run, _Unfinished, grid, sweep
from retroact.nets import data as room
from retroact.spec import CallError, SpecError, parse


@dataclass(frozen=True)
class Power:
    """Work that names its results and can write them."""

    exponent: int
    seen: str = ""

    def __call__(self, base: int) -> int:
        if base < 0:
            raise ArithmeticError(f"no power of {base}")
        if self.seen:
            Path(self.seen, f"{base}.{time.time_ns()}").touch()
        return base**self.exponent

    def name(self, base: int) -> str:
        return f"{base}-to-{self.exponent}"

    def to_bytes(self, result: int) -> bytes:
        return str(result).encode()

    def from_bytes(self, data: bytes) -> int:
        return int(data)


def cells(n: int = 40):
    return grid(["digits-cnn"], [None, "JumpReLU(0.5)"], ["FGSM", "PGD(steps=3)"], ["Linf(0.05)"],
                f"digits[:{n}]")  # fmt: skip


# -------------------------------------------------------------------------- what needs no cluster


def test_it_is_a_spec_like_the_others():
    assert parse("Ray(address='auto', gpus=0.25)", Executor) == Ray("auto", gpus=0.25)
    assert parse("Ray", Executor) == Ray() and ra.Ray is Ray
    for wrong in ("Ray(cpus=0)", "Ray(gpus=-1)", "Ray(retries=-2)", "Ray(in_flight=1.5)"):
        with pytest.raises(SpecError):
            parse(wrong, Executor)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "retroact\[ray\]"'):
        list(Ray()(abs, [1]))
    assert list(Ray()(abs, [])) == []  # nothing to do asks for nothing


def sender(work, folder=None):
    """Packs and runs here what would travel; the parcels that were put, too."""
    put = []
    ray = SimpleNamespace(cloudpickle=pickle, put=lambda array: put.append(array) or array)
    return clusters._Sender(ray, clusters._run_there, work, folder), put


@pytest.fixture
def untouched(monkeypatch):
    """What a task does to its process is taken back."""
    monkeypatch.setattr(room, "_brought", {})
    monkeypatch.setattr("retroact.experiments.cell._brought", {})
    monkeypatch.setattr(clusters, "_ARRIVED", type(clusters._ARRIVED)())


def test_work_networks_and_images_are_put_once(untouched):
    from retroact.experiments.cell import alike, all_locked

    groups = alike(all_locked(cells()))
    run = _Run(0, None, "cpu", _Unfinished(None), print)
    assert isinstance(run, Provided) and isinstance(run, Remembered)
    send, put = sender(run)
    results = [send(group) for group in groups]
    assert len(groups) == 4 and len(put) == 3  # the work, ten images, one network
    assert results == [run(group) for group in groups]


def test_images_and_networks_are_found_where_the_files_are_not(untouched, monkeypatch):
    part = room.data("digits[:5]")
    net = Brought.of(ra.Model("digits-cnn"))
    monkeypatch.setattr("retroact.nets.sources.find", None)
    monkeypatch.setattr("retroact.checkpoint.load", None)
    run = _Run(0, None, "cpu", _Unfinished(None), print)
    for thing in (part, net):
        run.receive(pickle.loads(pickle.dumps(thing)))
    assert room.data("digits[:5]").fingerprint == part.fingerprint
    model = ra.Model("digits-cnn")
    assert model.bare((1, 8, 8))(part.images).equal(net.network(part.images))


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("only I may hold this")


@dataclass(frozen=True)
class Brings(Power):
    """Work that brings what cannot travel."""

    def brings(self, task):
        yield "thing", Unpicklable

    def receive(self, thing):
        raise AssertionError("nothing has come")


def test_what_cannot_travel_is_refused_but_a_thing_is_looked_for_on_the_node(untouched):
    with pytest.raises(TypeError, match=r"cannot be sent .*only I.*; give Threads\(2\)"):
        sender(SimpleNamespace(inner=Unpicklable()))
    send, put = sender(Brings(2))
    assert send(3) == 9 and len(put) == 2


def test_a_process_keeps_few_parcels(untouched):
    for i in range(3 * KEPT):
        send, _ = sender(Power(i))
        assert send(2) == 2**i
    assert len(clusters._ARRIVED) == KEPT


def test_a_node_with_other_versions_is_refused(untouched, monkeypatch):
    send, _ = sender(Power(2))
    monkeypatch.setattr(clusters, "_versions", lambda: (("retroact", "0.0"), ("torch", "1.0")))
    with pytest.raises(RuntimeError, match=r"expected retroact .* on every node.*got retroact 0.0"):
        send(2)


def test_a_result_waits_until_it_is_filed(untouched, tmp_path):
    send, _ = sender(Power(2), tmp_path)
    send(2), send(3)
    (tmp_path / "3-to-2.result").write_bytes(b"half of i")  # what no draft would have left
    results = Ray(results=str(tmp_path))(Power(2), [2])  # no cluster is asked
    assert next(results) == (2, 4) and (tmp_path / "2-to-2.result").exists()
    assert list(results) == [] and not (tmp_path / "2-to-2.result").exists()
    assert clusters._Shelf.of(str(tmp_path), Power(2)).find(3) == ()
    assert clusters._Shelf.of(str(tmp_path), abs).folder is None  # it cannot name its results


def test_no_cluster_is_one_sentence(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConnectionError, match=r"no Ray cluster answers at 127.0.0.1:1: .*start"):
        list(Ray("127.0.0.1:1")(abs, [1]))


# ------------------------------------------------------------------------------- what needs one


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one cpu on this machine, and a place for a third."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # else 15, and a busy machine lets them wait
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.add_node(num_cpus=1, object_store_memory=200 * 2**20)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def where(_: int) -> tuple[int, str]:
    import ray

    time.sleep(0.5)  # so that no node does it all
    return os.getpid(), ray.get_runtime_context().get_node_id()


@pytest.mark.slow
class TestCluster:
    def test_every_task_is_yielded_once_with_its_result(self, cluster):
        here = Ray(cluster.address)
        assert here.workers == 2
        assert sorted(here(sum, [[3], [1], [2], [1]])) == [([1], 1), ([1], 1), ([2], 2), ([3], 3)]
        assert in_order(here, Power(2), [3, 1, 2]) == [9, 1, 4]
        nodes = {node for _, node in in_order(here, where, range(6))}
        assert len(nodes) == 2

    def test_an_error_is_raised_here_as_itself(self, cluster):
        with pytest.raises(ArithmeticError, match="no power of -1") as caught:
            list(Ray(cluster.address)(Power(2), [1, -1]))
        assert type(caught.value) is ArithmeticError

    def test_few_tasks_are_handed_over_at_once_and_none_begins_when_nobody_asks(
        self, cluster, tmp_path
    ):
        results = Ray(cluster.address, in_flight=3)(Power(2, str(tmp_path)), range(100))
        next(results)
        time.sleep(1)  # while nobody takes results
        begun = len(list(tmp_path.iterdir()))
        assert 1 <= begun <= 4
        results.close()
        time.sleep(0.5)
        assert len(list(tmp_path.iterdir())) == begun

    def test_the_program_keeps_its_own_answer_to_sigterm(self, cluster):
        import ray

        ray.shutdown()
        before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            assert in_order(Ray(cluster.address), abs, [-1]) == [1]
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_another_cluster_is_refused_while_connected(self, cluster):
        assert in_order(Ray(cluster.address), abs, [-1]) == [1]
        with pytest.raises(CallError, match=r"expected the cluster 127.0.0.1:1, .*ray.shutdown"):
            list(Ray("127.0.0.1:1")(abs, [-1]))

    def test_what_is_known_here_is_known_there(self, cluster):
        mine = ra.Images.of(torch.rand(3, 1, 4, 4), torch.arange(3), name="mine")
        name = ra.Cell("digits-cnn", mine, "FGSM", "Linf(0.1)").data
        assert in_order(Ray(cluster.address), knows, [name]) == [knows(name)]

    def test_a_sweep_has_the_same_bits_and_a_lost_driver_s_results_are_found(
        self, cluster, tmp_path
    ):
        with Store(tmp_path / "serial.sqlite") as store:
            serial = sweep(cells(), store)
        here = Ray(cluster.address, results=str(tmp_path / "results"))
        with Store(tmp_path / "ray.sqlite") as store:
            assert sweep(cells(), store, executor=here) == serial
            assert set(store.runs().values()) == {1} and len(store) == 4
        assert list((tmp_path / "results").iterdir()) == []

    def test_tune_and_audit_run_there_as_here(self, cluster):
        here, part = Ray(cluster.address), "digits/validation[:12]"
        how = {"grid": [0.0, 0.5]}
        assert ra.tune("digits-cnn", "JumpReLU", part, "Linf(0.05)", executor=here, **how) == (
            ra.tune("digits-cnn", "JumpReLU", part, "Linf(0.05)", **how)
        )
        asked = "digits-cnn", "JumpReLU(0.5)", "digits[:12]", "Linf(0.05)"
        little = Battery(
            steps=4,
            targets=2,
            targeted_steps=4,
            finish=4,
            trial_steps=2,
            queries=4,
            points=8,
            alarmed_finish=4,
        )
        how = {"battery": little, "claimed": "PGD(steps=2)"}
        there, mine = (ra.audit(*asked, executor=e, **how) for e in (here, "Serial"))
        assert there.verdict == mine.verdict

    def test_a_node_that_is_killed_loses_nothing(self, cluster, tmp_path):
        chance = random.Random(0)
        with Store(tmp_path / "serial.sqlite") as store:
            serial = sweep(cells(200), store)
        third = cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)
        done = []

        def watch(at, total):
            if at and not done:
                cluster.remove_node(third, allow_graceful=False)
            done.append(at)
            time.sleep(chance.random() / 10)

        with Store(tmp_path / "ray.sqlite") as store:
            found = sweep(cells(200), store, executor=Ray(cluster.address), progress=watch)
            assert found == serial and set(store.runs().values()) == {1}


def knows(name: str) -> tuple[str, int, str]:
    """What a process has of images that are kept under a name, and where it is."""
    return ra.data(name).fingerprint, torch.get_num_threads(), os.getcwd()
