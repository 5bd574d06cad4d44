"""`retroact store …`: what it says, and with which code it ends."""

import importlib.util
import json
import os
import sqlite3
from pathlib import Path

import pytest

from retroact.experiments.store import Store

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("bits", ROOT / "bench" / "faults" / "bits.py")
bits = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bits)


@pytest.fixture(autouse=True)
def _stored(call, tmp_path):
    bits.make(tmp_path / "s.sqlite", 4)


def _lose(key):
    with sqlite3.connect("s.sqlite") as db:
        db.execute("DELETE FROM records WHERE key = ?", (key,))


@pytest.mark.parametrize("words", [("check", "s.sqlite"), ("check", "--store", "s.sqlite")])
def test_a_store_that_holds_ends_with_0(call, words):
    code, out, err = call("store", *words)
    assert (code, out, err) == (0, "s.sqlite: 4 cells and 1 facts hold\n", "")


def test_a_damaged_store_ends_with_1_and_repair_mends_it(call):
    _lose(f"{2:016x}")
    code, out, err = call("store", "check", "s.sqlite")
    assert code == 1 and f"{2:016x} (Cell(2)): its record is damaged or missing" in out
    assert "1 damaged: `retroact store repair s.sqlite` keeps the rest" in err
    code, out, _ = call("store", "check", "s.sqlite", "--json")
    assert code == 1 and json.loads(out)["cells"] == 3 and len(json.loads(out)["damaged"]) == 1
    code, out, err = call("list", "store", "--store", "s.sqlite")
    assert code == 3 and out == "" and err.count("\n") == 1 and "(Cell(2))" in err
    code, out, _ = call("store", "repair", "s.sqlite")
    assert code == 0 and "as it was: s.sqlite.damaged" in out
    assert call("store", "check", "s.sqlite")[0] == 0
    code, out, _ = call("store", "repair", "s.sqlite")
    assert code == 0 and "nothing is damaged" in out


def test_stores_are_merged_exported_and_pruned(call):
    code, out, _ = call("store", "merge", "new.sqlite", "s.sqlite")
    assert code == 0 and out == "new.sqlite: 5 added from s.sqlite, 0 were there already\n"
    with Store("new.sqlite") as store:
        store.put(f"{1:016x}", "Cell(1)", store.rows()[1].fields, bits.record(4, 9))
    code, out, err = call("store", "merge", "new.sqlite", "s.sqlite")
    assert code == 1 and f"{1:016x} (Cell(1))" in out and "1 have other results" in err
    code, _, err = call("store", "export", "s.sqlite", "--out", "s.json")
    assert code == 0 and len(json.loads(Path("s.json").read_text())) == 5 and "wrote 4 cells" in err
    code, out, _ = call("store", "prune", "s.sqlite", "--cells", "Cell(1)", "--dry-run")
    assert code == 0 and "would remove 1" in out
    code, out, _ = call("store", "prune", "s.sqlite", "--cells", "Cell(1)")
    assert code == 0 and "removed 1" in out and call("store", "check", "s.sqlite")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("check", "none.sqlite"), 3, "no store at none.sqlite"),
        (("repair", "none.sqlite"), 3, "no store at none.sqlite"),
        (("check", "text.txt"), 3, "cannot open text.txt"),
        (("merge", "s.sqlite", "s.sqlite"), 3, "expected two stores"),
        (("merge", "s.sqlite", "none.sqlite"), 3, "no store at none.sqlite"),
        (("export", "s.sqlite", "--out", "s.xlsx"), 3, "in .parquet or .json"),
        (("prune", "s.sqlite"), 2, "expected what to remove"),
        (("prune", "s.sqlite", "--before", "yesterday"), 2, "expected a date"),
    ],
)
def test_an_error_is_one_sentence(call, words, code, said):
    Path("text.txt").write_text("dear diary, " * 200)
    found, out, err = call("store", *words)
    assert (found, out) == (code, "") and said in err and err.count("\n") == 1
    assert sorted(os.listdir()) == ["s.sqlite", "text.txt"]


def test_a_long_listing_is_printed_as_it_is_read(call, monkeypatch):
    monkeypatch.setattr("retroact.cli.listing.MANY", 3)
    code, out, _ = call("list", "store", "--store", "s.sqlite")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and lines[0][:4] == ["key", "written", "n", "net"] and len(lines) == 5
    assert [line[3] for line in lines[1:]] == ["net0", "net1", "net2", "net3"]
    code, out, _ = call("list", "store", "--store", "s.sqlite", "--json")
    assert [row["net"] for row in json.loads(out)] == ["net0", "net1", "net2", "net3"]
