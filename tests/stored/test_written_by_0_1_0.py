"""What version 0.1.0 wrote still reads: its store in tables, pages and sweeps, its audit as JSON.

The files were written by that version on `digits`: five cells, two of them with images, and an
audit as a study stores it; beside them the JSON that `report` writes of an audit.
"""

import json
import shutil
from pathlib import Path

import pytest

from retroact.activations.piecewise import JumpReLU
from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.auditing.numbers import AuditNumbers
from retroact.crafting.goals import Targeted
from retroact.crafting.threat import L2, Linf
from retroact.experiments import sweep as sweeping
from retroact.experiments.carried import as_json, read_json
from retroact.experiments.cell import Cell, Model
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.experiments.sweep import plan, sweep
from retroact.reports import audited, tables
from retroact.reports.report import report
from retroact.studies.truth import Audited

HERE = Path(__file__).parent
PLAIN, JUMP = Model("digits-cnn"), Model("digits-cnn", JumpReLU(0.5))
CELLS = [
    Cell(PLAIN, "digits[:20]", FGSM(), Linf(0.1)),
    Cell(JUMP, "digits[:20]", FGSM(), Linf(0.1)),
    Cell(JUMP, "digits[:20]", PGD(steps=5), Linf(0.1), source=PLAIN),
    Cell(JUMP, "digits[:20]", PGD(steps=5), Linf(0.1), beta=16.0),
    Cell(PLAIN, "digits[:20]", PGD(steps=5), L2(0.5), goal=Targeted(3)),
]


@pytest.fixture
def store(tmp_path):
    path = shutil.copy(HERE / "store-0.1.0.db", tmp_path / "old.sqlite")
    with Store(path, create=False) as opened:
        yield opened


@pytest.fixture
def stored_audit():
    return json.loads((HERE / "audit-0.1.0.json").read_text("utf-8"))


def test_its_cells_are_lines_of_a_table(store):
    rows = tables.lines(store)
    assert [line.network for line in rows].count("digits-cnn + JumpReLU(kappa=0.5)") == 3
    assert {line.fields.schema for line in rows} == {1}
    assert {line.attack for line in rows if line.fields.beta} == {"PGD(steps=5) through sigmoid 16"}
    assert [line.fields.source for line in rows if line.fields.knowledge == "gray"] == [
        "digits-cnn"
    ]
    text = tables.markdown(rows)
    line = "| digits-cnn | FGSM(loss='cross_entropy') | white | 95.0% | 60.0% (38.7%–78.1%) |"
    assert line + " 16.8% | 0% |" in text
    assert "**worst case of 3** | | | **45.0%**" in text and text.count("\n|---|") == 2


@pytest.mark.parametrize("suffix", ["html", "md", "csv", "json"])
def test_its_cells_make_a_report(store, tmp_path, suffix):
    text = report(store, tmp_path / f"page.{suffix}").read_text()
    assert "digits-cnn" in text
    if suffix == "html":
        # two cells have kept two images each: as it was, as it became, what moved
        assert text.count('<details class="example"') == 4
        assert text.count("data:image/png;base64") == 3 * 4


def test_old_and_new_cells_stand_in_one_file(store, tmp_path):
    sweep([Cell(PLAIN, "digits[:20]", FGSM(), Linf(0.2))], store)
    rows = json.loads(report(store, tmp_path / "page.json").read_text())
    assert [row["schema"] for row in rows] == [1, 1, 1, 1, 1, 2] and rows[0]["weights"] == ""
    assert rows[5]["retroact"] and len(rows[5]["weights"]) == len(rows[5]["pixels"]) == 16
    assert len(report(store, tmp_path / "page.csv").read_text().splitlines()) == 7


def test_a_sweep_resumes_from_it_and_attacks_nothing(store, monkeypatch):
    assert plan(CELLS, store).todo == ()
    monkeypatch.setattr(sweeping, "run_together", lambda *group, **how: 1 / 0)
    records = sweep(CELLS, store)
    assert len(records) == 5 and all(len(record) == 20 for record in records)
    assert records == [store.read(row.key) for row in store.rows()]


def test_its_measurements_travel_and_come_out_as_they_were(store, tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(as_json(store))
    with Store(tmp_path / "new.sqlite") as new:
        assert read_json(path, new) == 6 and as_json(new) == path.read_text()
    fields = [line["fields"] for line in json.loads(path.read_text()) if "fields" in line]
    assert all("schema" not in each and each["net"] == "digits-cnn" for each in fields)


def test_an_audit_of_another_battery_is_no_audit_of_this_one(store):
    what = Audited(PLAIN, JUMP, "digits[:30]", Linf(0.1), "quick")
    assert store.read_facts(locked_key(what)) is None
    facts, _ = store.read_facts(locked_key(what, {Audited: 1}))
    numbers = AuditNumbers.from_json(facts)
    assert numbers.to_json() == facts and numbers.attacks is None and numbers.indicators == ()


def test_an_audits_json_reads_back_as_it_was_written(stored_audit):
    numbers = AuditNumbers.from_json(stored_audit)
    assert numbers.to_json() == stored_audit
    assert list(numbers.to_json()) == list(stored_audit)
    assert (numbers.schema, numbers.battery_version, numbers.fingerprints) == (1, 0, None)
    assert numbers.clean.before == stored_audit["clean_twin"] >= numbers.verified.before
    assert numbers.words == ("MASKED", "WEAK PROTOCOL")
    assert numbers.explained_claim == "MASKED by jump, WEAK PROTOCOL"
    assert sum(a.broken for a in numbers.attacks.after) > 0


def test_an_audits_json_makes_its_page_again(stored_audit):
    class Stored:
        sides = (None, None)

        def numbers(self):
            return AuditNumbers.from_json(stored_audit)

    text = audited.markdown(Stored())
    assert f"**{stored_audit['effect']} · {stored_audit['claim']}**" in text
    assert text.count("\n| --- |") == 4 and "sigmoid kernel" in text
