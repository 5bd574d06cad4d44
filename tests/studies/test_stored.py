"""The measurements that are committed beside a study's page: every key in them is one that the code
still gives, the page is printed from them to the byte, and they hold nothing that it does not
use."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from retroact.experiments.carried import carried_keys, read_json
from retroact.experiments.cell import Cell, hashed_once
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.reports import studied
from retroact.spec import key, parse
from retroact.studies import study as studies
from retroact.studies.jumprelu.measured import EARLIER

PAGES = Path(__file__).parents[2] / "docs" / "studies"
COMMITTED = PAGES / "jumprelu.json"

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROACT_DATA"), reason="keys hold pixels: needs MNIST and CIFAR-10"
)


@pytest.fixture(autouse=True)
def _weights_are_hashed_once():
    with hashed_once():
        yield


@cache
def stored() -> list[dict[str, Any]]:
    return json.loads(COMMITTED.read_text("utf-8"))


def keys_of(line: dict[str, Any]) -> set[str | None]:
    """The keys that today's code, and the page's own versions, give what a line is a result of."""
    for name in studies.items("jumprelu"):
        studies.importlib.import_module(f"retroact.studies.jumprelu.{name}")
    what = parse(line.get("what") or line["cell"])
    then = {type(attack): v for attack, v in EARLIER.attacks.values()}
    if "cell" in line:
        return {key(what), key(what, then)}
    return {locked_key(what), locked_key(what, then), locked_key(what, EARLIER.measurements)}


def test_every_stored_key_follows_from_its_print():
    lost = [line["key"] for line in stored() if line["key"] not in keys_of(line)]
    assert len(stored()) > 300 and lost == []


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_carried_is_small(path):
    assert path.stat().st_size < 1_000_000


def test_records_are_carried_of_pictures_alone():
    cells = [parse(line["cell"], Cell) for line in stored() if "cell" in line]
    assert all(cell.data.endswith("[:24]") for cell in cells) and len(cells) <= 6


@pytest.mark.slow
def test_the_page_is_printed_from_what_is_carried_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "retroact.experiments.facts._Work.__call__",
        lambda work, what: pytest.fail(f"{what} is measured anew"),
    )
    with Store(tmp_path / "s.sqlite") as store:
        assert read_json(COMMITTED, store) == len(stored())
        made = studies.study("jumprelu", store, stored=True)
    text, _ = studied.markdown(made, "jumprelu")
    assert text == (PAGES / "jumprelu.md").read_text("utf-8")
    used = {name for item in made.items for name in item.keys}
    assert used == carried_keys(COMMITTED)
    assert len(made.lines) <= studied.MOST
