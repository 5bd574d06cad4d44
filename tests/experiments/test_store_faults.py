"""A store whose bits rot, whose file is busy, moved or write-protected: an error or a wait, never a
number."""

import importlib.util
import multiprocessing
import os
import random
import shutil
import sqlite3
import threading
import zlib
from pathlib import Path

import pytest

from retroact.experiments import sealed
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store, StoreError

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "stored" / "store-0.1.0.db"
SPEC = importlib.util.spec_from_file_location("bits", ROOT / "bench" / "faults" / "bits.py")
bits = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bits)
record = bits.record


@pytest.fixture
def path(tmp_path):
    bits.make(tmp_path / "s.sqlite")
    return tmp_path / "s.sqlite"


def put(path, name="k", seed=0, **how):
    with Store(path, **how) as store:
        store.put(name, f"Cell({name})", CellFields(net=name), record(20, seed))


@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_bit_changes_an_answer(path, seed):
    whole, told = path.read_bytes(), bits.read(path)
    chance = random.Random(seed)
    hurt = [bits.flip(whole, chance.randrange(8 * len(whole))) for _ in range(60)]
    found = [bits.judge(path, data, told) for data in hurt]
    assert "changed" not in found
    assert found.count("an error") > 30  # so the flips do hit what was written


def test_no_zeroed_page_changes_an_answer(path):
    whole, told = path.read_bytes(), bits.read(path)
    found = [
        bits.judge(path, bits.zero(whole, page), told) for page in range(len(whole) // bits.PAGE)
    ]
    assert set(found) <= {"an error", "harmless"} and found.count("an error") > 0.9 * len(found)


@pytest.mark.parametrize("table", ["cells", "records", "facts"])
def test_a_missing_row_is_an_error_that_names_it(path, table):
    key = f"{7:016x}"
    with sqlite3.connect(path) as db:
        assert db.execute(f"DELETE FROM {table} WHERE key = ?", (key,)).rowcount == 1
    print_ = "Facts" if table == "facts" else "Cell"
    with pytest.raises(StoreError, match=rf"{key} \({print_}\(7\)\).*missing.*repair.*again"):
        Store(path)


def test_a_row_that_goes_missing_while_the_store_is_open_is_noticed(path):
    key = f"{7:016x}"
    with Store(path) as store:
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM cells WHERE key = ?", (key,))
        for question in (
            store.rows,
            lambda: store.has(key),
            lambda: store.read(key),
        ):
            with pytest.raises(StoreError, match=key):
                question()


def test_a_stale_row_is_noticed_though_its_own_checksum_holds(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TEMP TABLE old AS SELECT * FROM cells WHERE key = ?", (f"{3:016x}",))
        with Store(path) as store:
            store.put(f"{3:016x}", "Cell(3)", CellFields(), record(5, 99))
        db.execute("DELETE FROM cells WHERE key = ?", (f"{3:016x}",))
        db.execute("INSERT INTO cells SELECT * FROM old")
    with Store(path) as store:
        with pytest.raises(StoreError, match="damaged"):
            store.rows()
        with pytest.raises(StoreError, match="does not match the checksum"):
            store.read(f"{3:016x}")


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(sealed, "LIMIT", 1000)
    assert sealed.unpack(zlib.compress(bytes(1000))) == bytes(1000)
    for bomb in (zlib.compress(bytes(1001)), zlib.compress(bytes(10))[:-3], b"junk"):
        with pytest.raises(ValueError, match="expected compressed bytes"):
            sealed.unpack(bomb)
    with pytest.raises(ValueError, match="keep fewer"):
        sealed.pack(bytes(1001))


def test_a_record_takes_less_than_half_of_its_arrays(tmp_path):
    put(tmp_path / "empty.sqlite")
    with Store(tmp_path / "s.sqlite") as store:
        store.put("k", "Cell()", CellFields(), record(10_000, 1))
        assert store.read("k") == record(10_000, 1)
    # of random floats; what FGSM gives on 10,000 images of MNIST takes 217 kB
    assert (tmp_path / "s.sqlite").stat().st_size < 0.5 * 971_000


def _open_and_put(path, i, ready):
    ready.wait()
    put(path, f"k{i}", i)


def test_sixteen_processes_open_a_new_store_at_once(tmp_path):
    start = multiprocessing.get_context("fork")
    ready = start.Barrier(16)
    path = tmp_path / "new.sqlite"
    children = [start.Process(target=_open_and_put, args=(path, i, ready)) for i in range(16)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 16
    with Store(path) as store:
        assert {row.key for row in store.rows()} == {f"k{i}" for i in range(16)}
        assert all(store.read(f"k{i}") == record(20, i) for i in range(16))


def test_a_reader_that_holds_the_file_costs_the_writer_nothing(path):
    told: list[str] = []
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM cells").fetchone()  # a shared lock, for good
    with Store(path, patience=0.1, tell=told.append) as store:
        store.put("new", "Cell(new)", CellFields(net="new"), record(20, 5))
        store.put_facts("new", "Facts(new)", {"a": 1}, 2.0)
        assert store.read("new") == record(20, 5) and "new" in store and len(store) == 41
        assert store.read_facts("new") == ({"a": 1}, 2.0)
        assert [row.key for row in store.rows()][-1] == "new"
        assert len(list(store.facts())) == 11
    (waiting,) = path.parent.glob("*.spool")
    assert "is busy" in told[0] and str(waiting) in told[-1]
    reader.close()
    with Store(path) as store:
        assert store.read("new") == record(20, 5) and store.read_facts("new")[0] == {"a": 1}
        assert store.runs()["new"] == 1
    assert not list(path.parent.glob("*.spool"))


def test_a_busy_store_is_waited_for_and_that_is_said(path, monkeypatch):
    monkeypatch.setattr("retroact.experiments.store_file.SOON", 0.1)
    told: list[str] = []
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM cells").fetchone()
    threading.Timer(0.6, reader.close).start()
    put(path, patience=30, tell=told.append)
    assert told == [f"waiting for {path}: another process holds it"]
    assert not list(path.parent.glob("*.spool"))


def test_a_writer_that_ends_first_files_what_waited(path):
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM cells").fetchone()
    with Store(path, patience=0.1, tell=lambda text: None) as store:
        store.put("new", "Cell(new)", CellFields(), record(20, 5))
        assert list(path.parent.glob("*.spool"))
        reader.close()
        store.put("next", "Cell(next)", CellFields(), record(20, 6))
        assert not list(path.parent.glob("*.spool"))
    with Store(path) as store:
        assert store.read("new") == record(20, 5) and store.read("next") == record(20, 6)


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_file_that_is_moved_or_deleted_under_a_run_is_noticed(path, how):
    told: list[str] = []
    with Store(path, tell=told.append) as store:
        if how == "moved":
            path.rename(path.with_name("elsewhere"))
        else:
            path.unlink()
        with pytest.raises(StoreError, match=r"was moved, deleted.*kept in .*\.spool"):
            store.put("new", "Cell(new)", CellFields(), record(20, 5))
    assert not path.exists()  # nothing was made anew in its place
    if how == "moved":
        path.with_name("elsewhere").rename(path)
    with Store(path) as store:
        assert store.read("new") == record(20, 5) and len(store) == (41 if how == "moved" else 1)


def test_a_file_that_is_deleted_after_the_last_write_is_noticed_at_the_end(path):
    told: list[str] = []
    with Store(path, tell=told.append) as store:
        store.put("new", "Cell(new)", CellFields(), record(20, 5))
        path.unlink()
        assert store.read("new") == record(20, 5)  # the file is still open
    assert len(told) == 1 and "was moved, deleted or replaced" in told[0]


def _read_as_nobody(path, answer):
    os.setgid(65534)
    os.setuid(65534)
    try:
        with Store(path) as store:
            rows = store.rows()
            answer.put([(row.key, len(store.read(row.key))) for row in rows])
            store.put("new", "Cell(new)", CellFields(), record(20, 5))
    except StoreError as e:
        answer.put(str(e))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
@pytest.mark.parametrize("source", ["new", "old"])
def test_a_store_that_is_write_protected_is_read(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("protected")
    path = folder / "s.sqlite"
    if source == "old":
        shutil.copy(OLD, path)
    else:
        put(path)
    for up in (folder, *folder.parents):
        if not up.stat().st_mode & 0o077:  # pytest's own, one more of them beside other workers
            up.chmod(0o755)
    before = path.read_bytes()
    start = multiprocessing.get_context("fork")
    answer = start.Queue()
    child = start.Process(target=_read_as_nobody, args=(path, answer))
    child.start()
    cells, refusal = answer.get(timeout=60), answer.get(timeout=60)
    child.join()
    assert len(cells) == (5 if source == "old" else 1) and {n for _, n in cells} == {20}
    assert "can only be read" in refusal and path.read_bytes() == before
    assert os.listdir(folder) == ["s.sqlite"]


def test_an_old_store_is_read_as_it_is_and_brought_up_to_date_by_the_first_write(tmp_path):
    path = shutil.copy(OLD, tmp_path / "old.sqlite")
    before = Path(path).read_bytes()
    with Store(path) as store:
        rows, facts, runs = store.rows(), list(store.facts()), store.runs()
        records = {row.key: bits._bits(store.read(row.key, images=True)) for row in rows}
    assert Path(path).read_bytes() == before and len(rows) == 5 and len(facts) == 1
    with Store(path) as reader:
        put(path, "new")
        assert [row.key for row in reader.rows()] == [*(row.key for row in rows), "new"]
        assert {k: bits._bits(reader.read(k, images=True)) for k in records} == records
    with Store(path) as store:
        assert store.file.format == 2 and store.rows()[:5] == rows
        assert list(store.facts()) == facts and store.runs() == {**runs, "new": 1}
        assert {k: bits._bits(store.read(k, images=True)) for k in records} == records


@pytest.mark.parametrize("what", ["folder", "no folder", "empty"])
def test_what_is_no_store_is_refused_in_one_sentence(tmp_path, what):
    path = tmp_path / "none" / "s.sqlite" if what == "no folder" else tmp_path / "s"
    if what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
        assert Store(path).rows() == []  # a new store
        return
    with pytest.raises(StoreError, match="s") as refused:
        Store(path)
    assert "\n" not in str(refused.value) and str(path.parent) in str(refused.value)
