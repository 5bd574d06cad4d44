"""The measurements that are committed beside a study's page: every key in them is one that the code
still gives, and the page asks for nothing else."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroact.experiments.carried import read_json
from retroact.experiments.cell import Model
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.nets.data import data
from retroact.spec import key, parse
from retroact.studies import desk
from retroact.studies import study as studies
from retroact.studies.jumprelu import table_3
from retroact.studies.jumprelu.measured import EARLIER

COMMITTED = Path(__file__).parents[2] / "docs" / "studies" / "jumprelu.json"
FULL = ("table_1", "table_2", "figure_9", "question_layers", "question_training")
"""The items that docs/performance.md makes at full size, with question_appendix."""

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROACT_DATA"), reason="keys hold pixels: needs MNIST and CIFAR-10"
)


@pytest.fixture(autouse=True)
def _weights_are_hashed_once(monkeypatch):
    monkeypatch.setattr(Model, "locked", cache(Model.locked))


@cache
def stored() -> list[dict[str, Any]]:
    return json.loads(COMMITTED.read_text("utf-8"))


def keys_of(line: dict[str, Any]) -> set[str]:
    """The keys that today's code, and the page's own versions, give what a line is a result of."""
    for name in studies.items("jumprelu"):
        studies.importlib.import_module(f"retroact.studies.jumprelu.{name}")
    what = parse(line.get("what") or line["cell"])
    if "facts" in line:
        return {locked_key(what), locked_key(what, EARLIER.measurements)}
    then = {type(attack): v for attack, v in EARLIER.attacks.values() if attack == what.attack}
    return {key(what), key(what, then)}


def test_every_stored_key_follows_from_its_print():
    lost = [line for line in stored() if line["key"] not in keys_of(line)]
    assert len(stored()) > 700 and lost == []


@pytest.fixture
def carried(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        assert read_json(COMMITTED, store) == len(stored())
        yield store


@pytest.mark.slow
def test_the_page_finds_all_of_its_measurements_and_makes_none(carried, monkeypatch):
    """Images are not carried, so records that are shown as pictures get empty ones here."""
    missing = []

    def found(cells, store, *, keep=0, **how):
        asked = list(cells)
        missing.extend(cell for cell in asked if not store.has(key(cell.locked())))
        records = [store.read(key(cell.locked())) for cell in asked if cell not in missing]
        return [_pictured(cell, r, keep) for cell, r in zip(asked, records, strict=True)]

    def known(asked, store, **how):
        missing.extend(what for what in asked if store.read_facts(locked_key(what)) is None)
        return original(asked, store, **how)

    original = desk.measured_all
    monkeypatch.setattr(table_3, "_compare", lambda *facts: (0.0, 0.0, (0.0, 0.0)))
    monkeypatch.setattr(desk, "sweep", found)
    monkeypatch.setattr(desk, "measured_all", known)
    monkeypatch.setattr(
        "retroact.experiments.facts._Work.__call__",
        lambda work, what: pytest.fail(f"{what} is measured anew"),
    )
    made = studies.study(
        "jumprelu", carried, quick=True, large=True, full=(*FULL, "question_appendix")
    )
    assert missing == [] and len(made.items) == len(studies.items("jumprelu"))


def _pictured(cell, record, keep):
    if not keep:
        return record
    images = data(cell.data).images.numpy()[:keep]
    return replace(record, originals=images, examples=np.clip(images + 0.01, 0, 1))
