"""A long cell files its chunks: a kill loses one of them, and the record has the same bits."""

from dataclasses import replace

import pytest
import torch

import retroact as ra
from retroact.crafting import driver, kept_chunks
from retroact.experiments.part_files import PartFiles
from retroact.experiments.store import Store
from retroact.experiments.sweep import grid, sweep


class Killed(BaseException):
    pass


@pytest.fixture
def chunks(monkeypatch):
    """Notes where the chunks that are run begin, and kills the one that is told; each is filed."""
    monkeypatch.setattr(kept_chunks, "SECONDS", 0.0)
    craft, done = driver._craft_chunk, []

    def noted(run, images, labels, index):
        if len(done) == done_at[0]:
            raise Killed
        done.append(int(index[0]))
        return craft(run, images, labels, index)

    done_at = [None]
    monkeypatch.setattr(driver, "_craft_chunk", noted)
    return done, done_at


def run(store, cells, **how):
    return sweep(cells, store, chunk=10, **how)


CELLS = grid("digits-cnn", None, "PGD(steps=3)", "Linf(0.1)", "digits[:40]")


@pytest.mark.parametrize(
    "cells",
    [
        CELLS,
        # one run for two radii, and what a minimum-norm attack found beyond them
        grid("digits-cnn", None, "DeepFool(steps=3)", ["L2(0.1)", "L2(0.5)"], "digits[:40]"),
        # a lean form that differs is attacked again
        grid("digits-cnn", "JumpReLU(1.0)", "PGD(steps=3)", "Linf(0.1)", "digits[:40]"),
    ],
    ids=["budget", "minimum-norm", "jump"],
)
def test_a_cell_goes_on_behind_its_last_chunk_with_the_same_bits(tmp_path, chunks, cells):
    done, until = chunks
    with Store(tmp_path / "whole.sqlite") as store:
        whole = run(store, cells)
    order = [*done]
    assert len(order) >= 4
    done.clear()
    with Store(tmp_path / "a.sqlite") as store:
        for stop in (1, 2):
            until[0] = stop
            with pytest.raises(Killed):
                run(store, cells)
        assert done == order[:2] and (tmp_path / "a.sqlite.parts").is_dir()
        until[0] = None
        assert run(store, cells) == whole
        assert done == order
        assert not (tmp_path / "a.sqlite.parts").exists()


def test_chunks_of_another_run_are_not_taken(tmp_path, chunks):
    done, until = chunks
    (cell,) = CELLS
    with Store(tmp_path / "a.sqlite") as store:
        until[0] = 2
        with pytest.raises(Killed):
            run(store, [cell])
        until[0] = None
        for other in ({"seed": 1}, {"attack": ra.PGD(steps=2)}, {"threat": ra.Linf(0.09)}):
            done.clear()
            run(store, [replace(cell, **other)])
            assert len(done) >= 4, other
        done.clear()
        sweep([cell], store, chunk=8)  # another chunk is another rounding
        assert len(done) == 5


def test_fresh_takes_neither_cells_nor_chunks(tmp_path, chunks):
    done, until = chunks
    with Store(tmp_path / "a.sqlite") as store:
        until[0] = 2
        with pytest.raises(Killed):
            run(store, CELLS)
        until[0] = None
        done.clear()
        first = run(store, CELLS, fresh=True)
        assert len(done) == 4
        done.clear()
        assert run(store, CELLS) == first and not done
        assert run(store, CELLS, fresh=True) == first and len(done) == 4
        assert list(store.runs().values()) == [2]


def test_short_cells_file_nothing(tmp_path, chunks, monkeypatch):
    monkeypatch.setattr(kept_chunks, "SECONDS", 60.0)
    chunks[1][0] = 3
    with Store(tmp_path / "a.sqlite") as store, pytest.raises(Killed):
        run(store, CELLS)
    assert not (tmp_path / "a.sqlite.parts").exists()


def test_a_damaged_part_is_as_if_it_were_not_there(tmp_path):
    parts = PartFiles(tmp_path / "a.sqlite.parts" / "run")
    assert parts.find("x") is None
    parts.keep("x", "what", {"a": torch.arange(5).numpy()})
    assert parts.find("x")["a"].tolist() == [0, 1, 2, 3, 4]
    path = parts.folder / "x"
    for i in range(len(whole := path.read_bytes())):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        assert parts.find("x") is None
        path.write_bytes(whole[:i])
        assert parts.find("x") is None
    parts.drop()
    assert not (tmp_path / "a.sqlite.parts").exists()


def test_what_a_kill_left_of_cells_that_are_filed_is_removed(tmp_path, chunks, monkeypatch):
    """A kill may come between a cell's filing and the removal of its chunks."""
    kept = PartFiles.drop
    monkeypatch.setattr(PartFiles, "drop", lambda self: (_ for _ in ()).throw(Killed()))
    with Store(tmp_path / "a.sqlite") as store:
        with pytest.raises(Killed):
            run(store, CELLS)
        assert (tmp_path / "a.sqlite.parts").is_dir() and len(store) == 1
        monkeypatch.setattr(PartFiles, "drop", kept)
        other = tmp_path / "a.sqlite.parts" / "of-another-sweep"
        other.mkdir()
        run(store, CELLS)
        assert list((tmp_path / "a.sqlite.parts").iterdir()) == [other]
        other.rmdir()
        run(store, CELLS)
        assert not (tmp_path / "a.sqlite.parts").exists()
