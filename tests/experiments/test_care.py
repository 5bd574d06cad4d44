"""Care of a store: check names what is damaged, repair keeps the rest, merge and prune lose nothing
that they should keep, export says the same numbers."""

import json
import random
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from test_store_faults import OLD, bits, record

from retroact.experiments.care import check, repair
from retroact.experiments.carried import as_json
from retroact.experiments.exported import export
from retroact.experiments.fields import CellFields
from retroact.experiments.merging import merge, prune
from retroact.experiments.store import Store, StoreError


@pytest.fixture
def path(tmp_path):
    bits.make(tmp_path / "s.sqlite")
    return tmp_path / "s.sqlite"


def key(i):
    return f"{i:016x}"


def hurt(path, table, column, i):
    """Flips a bit in the value of a column, as a disk would: in a text, its first 9 is an 8."""
    with sqlite3.connect(path) as db:
        (old,) = db.execute(f"SELECT {column} FROM {table} WHERE key = ?", (key(i),)).fetchone()
    part, at = (old[-40:], 20) if isinstance(old, bytes) else (old[:40].encode(), old.index("9"))
    data = bytearray(path.read_bytes())
    data[data.index(part) + at] ^= 1
    path.write_bytes(data)


def test_a_store_that_holds_is_said_to_and_left_as_it_is(path):
    before = path.read_bytes()
    for look in (check, repair):
        found = look(path)
        assert (found.cells, found.facts, found.damaged, found.aside) == (40, 10, [], None)
    assert path.read_bytes() == before


def test_what_is_damaged_is_named_dropped_and_run_again(path):
    hurt(path, "records", "record", 5)
    hurt(path, "cells", "fields", 9)
    hurt(path, "facts", "facts", 9)
    damaged = path.read_bytes()
    named = check(path).damaged
    assert [any(f"{key(i)} (" in line for line in named) for i in (5, 9)] == [True, True]
    assert sum("Facts(9)" in line for line in named) == 1 and len(named) == 3
    found = repair(path)
    assert found.damaged == named and found.aside.read_bytes() == damaged
    assert check(path).damaged == []
    with Store(path) as store:
        kept = set(range(40)) - {5, 9}
        assert {row.key for row in store.rows()} == {key(i) for i in kept}
        assert all(store.read(key(i)) == record(3 + 7 * i, i) for i in kept)
        assert not store.has(key(5)) and store.read_facts(key(9)) is None
        store.put(key(5), "Cell(5)", CellFields(), record(38, 5))
        assert store.read(key(5)) == record(38, 5) and store.runs()[key(5)] == 2


def test_damaged_images_do_not_cost_the_record(path):
    hurt(path, "records", "images", 6)
    with Store(path) as store:
        assert store.read(key(6)) == record(45, 6)
        with pytest.raises(StoreError, match="its images does not match"):
            store.read(key(6), images=True)
    assert "its images are damaged" in check(path).damaged[0]
    repair(path)
    with Store(path) as store:
        assert store.read(key(6)) == record(45, 6) and not store.has(key(6), keep=1)


def test_repair_keeps_what_lies_on_pages_that_hold(path):
    """Any page but the first zeroed: what repair keeps is as it was, and nearly all is kept."""
    whole = path.read_bytes()
    chance = random.Random(0)
    for page in chance.sample(range(1, len(whole) // bits.PAGE), 12):
        path.write_bytes(bits.zero(whole, page))
        repair(path)
        assert check(path).damaged == []
        with Store(path) as store:
            rows = store.rows()
            assert len(rows) >= 25
            for row in rows:
                i = int(row.key, 16)
                assert store.read(row.key) == record(3 + 7 * i, i)
        for aside in path.parent.glob("*.damaged*"):
            aside.unlink()


def test_a_missing_row_is_named_and_no_longer_after_repair(path):
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM cells WHERE key = ?", (key(3),))
        db.execute("DELETE FROM records WHERE key = ?", (key(3),))
    assert check(path).damaged == [f"cell {key(3)} (Cell(3)): it is missing"]
    repair(path)
    with Store(path) as store:
        assert len(store) == 39 and not store.has(key(3))


def test_two_stores_are_made_one(path, tmp_path):
    other, both = tmp_path / "b.sqlite", tmp_path / "both.sqlite"
    with Store(other) as store:
        store.put(key(1), "Cell(1)", CellFields(), record(10, 1))  # as the first has it
        store.put(key(2), "Cell(2)", CellFields(), record(17, 77))  # other numbers
        store.put("new", "Cell(new)", CellFields(net="new"), record(5, 3))
        store.put_facts("new", "Facts(new)", {"a": 1}, 1.0)
    found = merge(path, other)
    assert (found.added, found.there, found.differ) == (2, 1, [f"{key(2)} (Cell(2))"])
    with Store(path) as store:
        assert store.read("new", images=True).examples is not None
        assert store.read(key(2)) == record(17, 2) and len(store) == 41
        assert store.read_facts("new") == ({"a": 1}, 1.0)
    assert merge(both, path).added == 52 and check(both).damaged == []
    with Store(both) as a, Store(path) as b:
        assert as_json(a) == as_json(b)
    with pytest.raises(StoreError, match="expected two stores"):
        merge(path, path)


def test_more_images_of_the_same_record_are_taken(tmp_path):
    a, b = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    for path, images in ((a, None), (b, True)):
        with Store(path) as store:
            made = record(10, 3)
            if images is None:
                made = type(made)(**made.facts(), pedigree=made.pedigree)
            store.put("k", "Cell()", CellFields(), made)
    assert merge(a, b).added == 1 and merge(b, a).added == 0
    with Store(a) as store:
        assert store.has("k", keep=2)


def test_old_stores_are_merged_and_repaired(tmp_path):
    new, old = tmp_path / "new.sqlite", shutil.copy(OLD, tmp_path / "old.sqlite")
    assert merge(new, old).added == 6 and merge(new, old).there == 6
    assert repair(old).aside is None
    with Store(new) as a, Store(old) as b:
        assert as_json(a) == as_json(b) and b.file.format == 1


def test_prune_removes_what_was_asked_and_says_what_would_go(path):
    size = path.stat().st_size
    assert len(prune(path, glob="*Cell(1?)", dry=True)) == 10
    assert prune(path, before="2000-01-01") == [] and path.stat().st_size == size
    assert len(prune(path, images=True)) == 14 and path.stat().st_size < size
    with Store(path) as store:
        assert store.read(key(3), images=True).examples is None and len(store) == 40
        assert store.runs()[key(3)] == 1
    assert len(prune(path, glob="*(1?)")) == 10
    assert len(prune(path, before="2999-01-01")) == 40
    assert check(path).damaged == [] and check(path).cells == 0


def test_an_export_has_the_numbers_of_the_store(path, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    with Store(path) as store:
        assert export(store, tmp_path / "s.parquet") == 40
        table = parquet.read_table(tmp_path / "s.parquet")
        assert table.num_rows == sum(row.n for row in store.rows())
        cell = table.filter(np.array(table["key"].to_pylist()) == key(8))
        assert np.array_equal(cell["distance_l2"].to_numpy(), store.read(key(8)).distance[:, 2])
        assert cell["net"].to_pylist() == ["net8"] * 59
        assert export(store, tmp_path / "s.json") == 40
        assert json.loads((tmp_path / "s.json").read_text()) == json.loads(as_json(store))
        with pytest.raises(ValueError, match=r"\.parquet or \.json"):
            export(store, tmp_path / "s.xlsx")
    assert not Path(tmp_path / "s.xlsx").exists()
