"""Measurements travel as JSON: what comes out at the other end is what went in, and is not measured
again."""

import json
from typing import Any

import pytest

from retroact.attacks.fgsm import FGSM
from retroact.crafting.threat import Linf
from retroact.experiments.carried import as_json, read_json
from retroact.experiments.cell import Cell, Model
from retroact.experiments.facts import measured
from retroact.experiments.store import Store
from retroact.experiments.sweep import plan, sweep
from retroact.spec import spec

CELL = Cell(Model("digits-cnn"), "digits[:5]", FGSM(), Linf(0.1))
calls: list[str] = []


@spec
class CarriedForATest:
    model: Model = Model("digits-cnn")
    data: str = "digits[:5]"

    def __call__(self) -> dict[str, Any]:
        calls.append(self.data)
        return {"pair": (1, 2.5)}


def test_facts_travel_and_are_not_measured_again(tmp_path):
    calls.clear()
    with Store(tmp_path / "a.sqlite") as a, Store(tmp_path / "b.sqlite") as b:
        first = measured(CarriedForATest(), a)
        measured(CarriedForATest(data="digits[:6]"), a)
        path = tmp_path / "facts.json"
        path.write_text(as_json(a))
        assert read_json(path, b) == 2
        assert read_json(path, b) == 0
        again = measured(CarriedForATest(), b)
        assert as_json(b) == path.read_text()
    assert again.stored and again.facts["pair"] == [1, 2.5] and again.seconds == first.seconds
    assert calls == ["digits[:5]", "digits[:6]"]


def test_records_travel_whole_but_for_their_images(tmp_path):
    path = tmp_path / "facts.json"
    with Store(tmp_path / "a.sqlite") as a, Store(tmp_path / "b.sqlite") as b:
        (first,) = sweep([CELL], a, keep=2)
        path.write_text(as_json(a))
        assert "examples" not in path.read_text() and len(path.read_text().splitlines()) == 3
        assert read_json(path, b) == 1 and read_json(path, b) == 0
        assert plan([CELL], b).todo == () and len(plan([CELL], b, keep=2).todo) == 1
        (again,) = sweep([CELL], b)
        assert again == first and again.pedigree == first.pedigree and again.examples is None
        assert b.rows()[0].fields == a.rows()[0].fields and as_json(b) == path.read_text()


def test_what_the_store_has_is_not_overwritten_by_a_file(tmp_path):
    (tmp_path / "f.json").write_text('[{"key": "k", "what": "w", "seconds": 1, "facts": {"a": 1}}]')
    with Store(tmp_path / "a.sqlite") as store:
        store.put_facts("k", "w", {"a": 2}, 3.0)
        assert read_json(tmp_path / "f.json", store) == 0
        assert store.read_facts("k") == ({"a": 2}, 3.0)


BROKEN = {"key": "k", "cell": "c", "fields": {}}


@pytest.mark.parametrize(
    "text",
    ["", "{}x", '[{"key": "k"}]', "[1]", "3", '{"a": 1}']
    + [json.dumps([BROKEN | {"record": r}]) for r in ("no base64!", "YWJj", "eJxLTEoGAAJNASc=")],
)
def test_another_file_is_no_list_of_facts_and_leaves_the_store_alone(tmp_path, text):
    (tmp_path / "f.json").write_text(text)
    with Store(tmp_path / "a.sqlite") as store:
        with pytest.raises(ValueError, match="expected a JSON list of facts in"):
            read_json(tmp_path / "f.json", store)
        assert len(store) == 0 and not list(store.facts())
