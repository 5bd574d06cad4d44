"""The store: a cell is there whole or not at all, whatever happens to the process, the disk or the
file."""

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from retroact.evaluation.record import Record
from retroact.experiments.fields import CellFields
from retroact.experiments.store import FORMAT, Store, StoreError


def record(n: int = 5, seed: int = 0, images: bool = False) -> Record:
    rng = np.random.default_rng(seed)
    kept = np.random.default_rng(9).random((n, 1, 4, 4)).astype(np.float32) if images else None
    return Record(
        index=np.arange(n),
        label=rng.integers(0, 10, n),
        target=np.full(n, -1),
        clean=rng.integers(0, 10, n),
        adversarial=rng.integers(0, 10, n),
        distance=rng.random((n, 4)).astype(np.float32),
        size=rng.random((n, 4)).astype(np.float32),
        queries=rng.integers(0, 10, n),
        gradients=rng.integers(0, 10, n),
        zero_gradients=np.zeros(n, np.int64),
        nonfinite=np.zeros(n, np.bool_),
        examples=kept,
        originals=kept,
        pedigree={"seconds": 1.0},
    )


def test_what_is_put_is_read_back(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put("k1", "Cell(1)", CellFields(net="a"), record(images=True))
        assert store.read("k1") == record() and store.read("k1").examples is None
        assert np.array_equal(store.read("k1", images=True).examples, record(images=True).examples)
        assert "k1" in store and "k2" not in store and len(store) == 1
    with Store(tmp_path / "s.sqlite") as again:
        assert again.read("k1") == record()
        (row,) = again.rows()
        assert (row.key, row.cell, row.fields, row.n, row.kept) == (
            "k1",
            "Cell(1)",
            CellFields(net="a"),
            5,
            5,
        )
        with pytest.raises(KeyError, match="no cell k9"):
            again.read("k9")


def test_cells_are_found_and_removed_by_glob(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        for i in range(4):
            store.put(f"k{i}", f"Cell(model=Model(net='n{i % 2}'))", CellFields(), record(seed=i))
        assert [r.key for r in store.rows("*net='n1'*")] == ["k1", "k3"]
        assert store.remove("*net='n1'*") == 2
        assert [r.key for r in store.rows()] == ["k0", "k2"]
        assert store.runs() == {f"k{i}": 1 for i in range(4)}


def test_facts_are_removed_by_glob_too(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        for what in ("Audited(net='n1')", "Audited(net='n2')"):
            store.put_facts(f"key of {what}", what, {"n": 1}, 0.5)
        assert store.remove("Audited(net='n1')") == 1
        assert store.read_facts("key of Audited(net='n1')") is None
        assert store.read_facts("key of Audited(net='n2')") == ({"n": 1}, 0.5)


def test_a_newer_store_a_foreign_database_and_a_text_file_are_refused(tmp_path):
    newer = tmp_path / "newer.sqlite"
    Store(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("UPDATE about SET value = ?", (str(FORMAT + 1),))
    before = newer.read_bytes()
    with pytest.raises(StoreError, match="upgrade retroact"):
        Store(newer)
    assert newer.read_bytes() == before

    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(StoreError, match="is a database but no store"):
        Store(foreign)

    text = tmp_path / "notes.txt"
    text.write_text("dear diary, " * 200)
    with pytest.raises(StoreError, match="cannot open"):
        Store(text)
    assert text.read_text().startswith("dear diary")
    with pytest.raises(StoreError, match="no store at"):
        Store(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_full_disk_loses_the_cell_at_hand_and_nothing_else(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        store.put("k0", "Cell(0)", CellFields(), record())
        pages = store.file._db.execute("PRAGMA page_count").fetchone()[0]
        store.file._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StoreError, match="every finished cell is still there"):
            store.put("big", "Cell(big)", CellFields(), record(20_000))
        assert store.read("k0") == record() and "big" not in store
        store.file._db.execute("PRAGMA max_page_count = 100000")
        store.put("big", "Cell(big)", CellFields(), record(20_000))
    with Store(tmp_path / "s.sqlite") as again:
        assert len(again) == 2 and again.read("big") == record(20_000)


WRITER = """
import sys
sys.path.insert(0, {here!r})
from test_store import CellFields, record
from retroact.experiments.store import Store
store = Store({path!r})
for i in range(100_000):
    store.put(f"k{{i}}", f"Cell({{i}})", CellFields(), record(2000, seed=i))
    print(i, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_every_finished_cell(tmp_path):
    path = str(tmp_path / "s.sqlite")
    code = textwrap.dedent(WRITER).format(here=os.path.dirname(__file__), path=path)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said = [child.stdout.readline() for _ in range(5)]
    time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    finished = [int(line) for line in [*said, *child.stdout.read().split()] if str(line).strip()]
    child.wait()
    with Store(path) as store:
        keys = {row.key for row in store.rows()}
        assert {f"k{i}" for i in finished} <= keys
        assert len(keys) <= len(finished) + 1
        for i in finished:
            assert store.read(f"k{i}") == record(2000, seed=i)
