"""What a slice holds is read once, and again where its files are others."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retroact as ra
from retroact.experiments.costs import estimate
from retroact.experiments.store import Store
from retroact.nets import sources
from retroact.nets.data import DataSlice
from retroact.nets.remembered import Holding, holding


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "retroact" / "holdings"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The slices that are read."""
    told: list[str] = []
    call = DataSlice.__call__
    monkeypatch.setattr(DataSlice, "__call__", lambda self: told.append(str(self)) or call(self))
    return told


def written(path: Path, n: int = 12) -> str:
    digits = ra.data(f"digits[:{n}]")
    np.savez(path, x=digits.images.numpy(), y=digits.labels.numpy())
    return f"npz:{path}"


def test_a_slice_is_read_once(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    text = f"{written(tmp_path / 'a.npz')}/train[:5]"
    reads.clear()
    first = holding(text)
    assert first == holding(text) and reads == [text]
    assert first == Holding(5, (1, 8, 8), ra.data(text).fingerprint[:16])


def test_other_files_are_read_anew(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    text = written(tmp_path / "a.npz", 20) + "/train"
    before = holding(text)
    written(tmp_path / "a.npz", 40)
    after = holding(text)
    assert after.n > before.n and after.pixels != before.pixels
    reads.clear()
    os.utime(tmp_path / "a.npz", ns=(0, 0))
    assert holding(text) == after and len(reads) == 1


@pytest.mark.parametrize("said", ["", "[]", '{"n": 5}', '{"n": "many", "shape": 1, "pixels": 2}'])
def test_a_damaged_note_is_read_over(
    tmp_path: Path, cache: Path, reads: list[str], said: str
) -> None:
    text = written(tmp_path / "a.npz") + "/train"
    expected = holding(text)
    (note,) = cache.iterdir()
    note.write_text(said)
    assert holding(text) == expected == holding(text)
    assert reads.count(text) == 2


def test_what_cannot_be_looked_at_from_outside_is_not_remembered(
    cache: Path, reads: list[str]
) -> None:
    assert holding("digits[:7]").n == holding("digits[:7]").n == 7
    assert len(reads) == 2 and not cache.exists()


def test_tables_are_told_by_name_size_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROACT_DATA", str(tmp_path))
    assert sources.state_of("mnist") == ""
    (tmp_path / "mnist").mkdir()
    table = tmp_path / "mnist" / "test-0.parquet"
    table.write_bytes(b"1")
    states = [sources.state_of("mnist")]
    os.utime(table, ns=(5, 5))
    states.append(sources.state_of("mnist"))
    (tmp_path / "mnist" / "train-0.parquet").write_bytes(b"22")
    states.append(sources.state_of("mnist"))
    assert len(set(states)) == 3


def test_a_second_dry_run_reads_no_data_and_knows_what_is_there(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, text = tmp_path / "s.sqlite", written(tmp_path / "a.npz", 30) + "/train[:5]"
    cells = [ra.Cell("digits-cnn", text, f"PGD(steps={n})", "Linf(0.1)") for n in (2, 3)]
    with Store(path) as store:
        ra.sweep(cells[:1], store)
    first = estimate(cells, path, chunk=None)

    def refuse(*_: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr(sources, "find", refuse)
    again = estimate(cells, path, chunk=None)
    assert again["already in the store"] == first["already in the store"] == 1
    assert again["gradients at most"] == first["gradients at most"] == 3 * 5
