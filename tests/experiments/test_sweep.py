"""Sweeps: killed and run again, in any order, in two processes: the same bits, none lost, none run
twice."""

import dataclasses
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from retroact import executors
from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.crafting.threat import L2, Linf
from retroact.experiments import sweep as sweeping
from retroact.experiments.cell import Cell, Model, alike, knowledge, run_together
from retroact.experiments.costs import estimate
from retroact.experiments.store import Store
from retroact.experiments.sweep import grid, plan, sweep
from retroact.spec import SpecError, key, parse


def cells() -> list[Cell]:
    return grid(
        ["digits-cnn"],
        [None, JumpReLU(0.5), SReLU(10.0)],
        [FGSM(), PGD(steps=10, loss="margin")],
        [Linf(0.05), L2(0.5)],
        "digits[:60]",
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("sweep") / "s.sqlite") as store:
        return sweep(cells(), store)


def test_a_second_run_runs_nothing(tmp_path, undisturbed):
    with Store(tmp_path / "s.sqlite") as store:
        assert sweep(cells(), store) == undisturbed
        assert sweep(cells(), store) == undisturbed
        assert set(store.runs().values()) == {1} and len(store.runs()) == 12


@pytest.mark.slow
def test_any_order_and_two_processes_give_the_same_bits(tmp_path, undisturbed):
    shuffled = np.random.default_rng(0).permutation(12)
    with Store(tmp_path / "s.sqlite") as store:
        found = sweep([cells()[i] for i in shuffled], store, executor="Processes(2)")
    assert all(found[k] == undisturbed[i] for k, i in enumerate(shuffled))


@pytest.mark.parametrize(
    ("device", "cards", "beside", "used"),
    [
        ("cuda", 3, True, {"cuda:0", "cuda:1", "cuda:2"}),
        ("cuda", 1, False, {"cuda"}),
        ("cuda:1", 3, False, {"cuda:1"}),
    ],
)
def test_every_card_has_a_process_of_its_own(monkeypatch, tmp_path, device, cards, beside, used):
    """On cards that are not there: a process is a place, and each names the card that it takes."""
    seen, sizes = set(), []

    def run(group, *, device, **how):
        seen.add(device)
        return run_together(group)

    def taken_in_turn(size, arrive, work, tasks):
        sizes.append(size)
        for i, task in enumerate(tasks):
            monkeypatch.setattr(executors, "own_place", lambda i=i: i % size)
            yield task, work(task)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(sweeping, "check_device", lambda device: None)
    monkeypatch.setattr(sweeping, "run_together", run)
    monkeypatch.setattr(executors, "run_beside", taken_in_turn)
    asked = cells()[::2]
    with Store(tmp_path / "s.sqlite") as store, Store(tmp_path / "cpu.sqlite") as plain:
        found = sweep(asked, store, device=device)
        assert found == sweep(asked, plain, executor="Serial")
        assert store.runs().keys() == plain.runs().keys()  # no key knows of a card
    assert used == seen - {"cpu"} and sizes == [cards] * beside


CHILD = """
import sys
sys.path.insert(0, {here!r})
from test_sweep import cells
from retroact.experiments.costs import estimate
from retroact.experiments.store import Store
from retroact.experiments.sweep import sweep
if __name__ == "__main__":
    sweep(cells(), Store({path!r}), progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_goes_on_where_it_was(tmp_path, undisturbed):
    path = str(tmp_path / "s.sqlite")
    code = CHILD.format(here=os.path.dirname(__file__), path=path)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while float(child.stdout.readline() or 12) < 4.5:
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    with Store(path) as store:
        before = set(store.runs())
        assert 4 <= len(before) < 12
        assert sweep(cells(), store) == undisturbed
        assert set(store.runs().values()) == {1} and len(store) == 12 and before < set(store.runs())


def test_more_images_are_run_for_only_where_they_are_missing(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        first = cells()[:1]
        sweep(first, store)
        (record,) = sweep(first, store, keep=3)
        assert record.examples.shape == (3, 1, 8, 8)
        sweep(first, store, keep=2)
        assert list(store.runs().values()) == [2]


def test_cells_that_differ_in_eps_alone_share_a_run_where_the_attack_can():
    groups = alike(cells())
    assert sorted(len(g) for g in groups) == [1] * 12  # two norms never share
    one_norm = grid(
        ["digits-cnn"],
        [None],
        [FGSM(), PGD(steps=2)],
        [Linf(0.05), Linf(0.1), Linf(0.2)],
        "digits[:40]",
    )
    assert sorted(len(g) for g in alike(one_norm)) == [1, 1, 1, 3]
    together = run_together(one_norm[:3])
    assert together == [cell() for cell in one_norm[:3]]


def test_progress_ends_at_the_total(tmp_path):
    told = []
    with Store(tmp_path / "s.sqlite") as store:
        sweep(cells()[:2], store, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (2.0, 2) and all(a <= b for (a, _), (b, _) in pairwise(told))


def test_a_cell_reads_back_from_its_print_and_locks_what_is_behind_its_names():
    for cell in (
        *cells(),
        Cell(Model("digits-cnn", JumpReLU(0.5)), "digits", PGD(), Linf(0.1), beta=8.0),
    ):
        locked = cell.locked()
        assert parse(repr(locked)) == locked and key(parse(repr(locked))) == key(locked)
        assert len(locked.pixels) == len(locked.model.weights) == 16
        assert key(locked) != key(cell) and locked.locked() == locked


def test_new_fields_leave_old_keys_as_they_are():
    cell = Cell(Model("digits-cnn", JumpReLU(0.5)), "digits[:40]", PGD(steps=3), Linf(0.1))
    assert key(cell) == "0eb2db69e3e17c14"  # of version 0.1.0
    assert key(replace(cell, dtype="float32")) != key(cell)
    assert key(replace(cell, model=replace(cell.model, also=("gelu",)))) != key(cell)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_network_is_attacked_in_its_own_dtype_unless_another_is_named(
    tmp_path, monkeypatch, dtype
):
    (tmp_path / f"net_in_{dtype}.py").write_text(
        "import torch, retroact as ra\ndef build(): return"
        f" ra.load('digits-cnn').to(torch.{dtype})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    cell = Cell(
        Model(f"net_in_{dtype}:build", JumpReLU(0.5)), "digits[:40]", PGD(steps=3), Linf(0.1)
    )
    seen = []
    monkeypatch.setattr(
        "retroact.experiments.cell.evaluate_all", lambda net, *_, **__: seen.append(net) or [None]
    )
    cell(), replace(cell, dtype="float32")()
    assert [next(net.parameters()).dtype for net in seen] == [getattr(torch, dtype), torch.float32]
    assert estimate([cell], tmp_path / "s.sqlite", chunk=None)["gradients at most"] == 120


def test_a_grid_takes_models_with_their_weights_and_kinds():
    nets = [Model("mine:build", file="a.pth"), "digits-cnn"]
    cells = grid(nets, [None, JumpReLU(0.5)], [PGD()], [Linf(0.1)], "digits[:40]", also=["gelu"])
    assert [(c.model.file, c.model.also) for c in cells] == [
        ("a.pth", ()),
        ("a.pth", ("gelu",)),
        ("", ()),
        ("", ("gelu",)),
    ]
    assert (
        cells[1].fields().net == "mine:build with a.pth"
        and cells[1].fields().sites == "* with gelu"
    )


def test_other_weights_or_pixels_than_locked_are_refused():
    cell = cells()[0].locked()
    with pytest.raises(ValueError, match="other pixels"):
        dataclasses.replace(cell, pixels="0" * 16)()
    with pytest.raises(ValueError, match="other weights"):
        dataclasses.replace(cell, model=dataclasses.replace(cell.model, weights="0" * 16))()


def test_knowledge_is_derived():
    hard, plain = Model("digits-cnn", JumpReLU(0.5)), Model("digits-cnn")
    white = Cell(hard, "digits", PGD(), Linf(0.1))
    assert knowledge(white) == "white"
    assert knowledge(Cell(hard, "digits", PGD(), Linf(0.1), source=hard)) == "white"
    assert knowledge(Cell(hard, "digits", PGD(), Linf(0.1), source=plain)) == "gray"
    assert knowledge(Cell(hard, "digits", PGD(), Linf(0.1), beta=8.0)) == "white"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cell(Model("digits-cnn"), "digits", Linf(0.1), Linf(0.1)),
        lambda: Cell(Model("digits-cnn"), "digits", PGD(), PGD()),
        lambda: Model("digits-cnn", PGD()),
        lambda: Cell(Model("digits-cnn"), "digits", PGD(), Linf(0.1), beta=8.0),
        lambda: Cell(Model("digits-cnn"), "digits", PGD(), Linf(0.1), dtype="float8"),
        lambda: Cell(Model("digits-cnn"), "digits", PGD(), Linf(0.1), beta=float("nan")),
    ],
)
def test_cells_that_cannot_be_are_refused(make):
    with pytest.raises(SpecError):
        make()


def test_chunks_of_another_size_give_the_same_decisions_but_for_rounding():
    cell = Cell(Model("digits-cnn"), "digits[:100]", PGD(steps=10), Linf(0.05))
    first, second = cell(chunk=64), cell(chunk=17)
    assert int((first.adversarial != second.adversarial).sum()) <= 2
    assert np.abs(first.distance - second.distance).mean() < 1e-3


def test_smoothed_gradients_find_what_autograd_misses():
    hard = Model("digits-cnn", JumpReLU(1.0))
    plain = Cell(hard, "digits[:200]", PGD(steps=40, loss="margin"), Linf(0.1))()
    smooth = Cell(hard, "digits[:200]", PGD(steps=40, loss="margin"), Linf(0.1), beta=8.0)()
    fell = [(r.adversarial != r.label).sum() for r in (plain, smooth)]
    assert fell[1] > fell[0] + 5


def test_plan_counts_what_is_done(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        sweep(cells()[:3], store)
        planned = plan(cells() + cells(), store)
        assert len(planned.cells) == 12 and len(planned.todo) == 9


def test_a_slice_that_cells_share_is_hashed_once_and_each_cell_is_locked_as_by_itself(monkeypatch):
    from retroact.experiments import cell as home

    alone, asked = [c.locked() for c in cells()], []
    monkeypatch.setattr(
        home, "pixels", lambda images, real=home.pixels: asked.append(len(images)) or real(images)
    )
    assert home.all_locked(cells()) == alone
    assert asked == [60]
