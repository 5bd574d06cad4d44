"""The measurements that are committed beside a study's page: every key in them is one that the code
still gives, the page is printed from them to the byte, and they hold nothing that it does not
use."""

import importlib
import io
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retroact.experiments.carried import carried_keys, read_json
from retroact.experiments.cell import Cell, hashed_once
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.nets import sources
from retroact.reports import studied
from retroact.spec import key, parse
from retroact.studies import study as studies
from retroact.studies.earlier import Earlier

PAGES = Path(__file__).parents[2] / "docs" / "studies"
COMMITTED = sorted(PAGES.glob("*.json"))

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROACT_DATA"), reason="keys hold pixels: needs MNIST and CIFAR-10"
)
each = pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)


@pytest.fixture(autouse=True, scope="module")
def _weights_and_pixels_are_hashed_once():
    with hashed_once():
        yield


@pytest.fixture(autouse=True, scope="module")
def _pictures_are_decoded_once():
    """Keys name many slices of the same pictures, which are upright PNGs of one size, so that
    after the first ones none is looked at for what a picture from elsewhere may hold."""
    decode, known = sources._pixels, {}

    def decoded(cell, row):
        name = cell["bytes"] or cell["path"]
        if name not in known:
            known[name] = decode(cell, row) if len(known) < 100 else read(cell)
        return known[name]

    def read(cell):
        with Image.open(io.BytesIO(cell["bytes"])) as picture:
            pixels = np.asarray(picture)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_pixels", decoded)
        yield


@cache
def stored(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text("utf-8"))


def keys_of(line: dict[str, Any], paper: str) -> set[str | None]:
    """The keys that today's code, and the page's own versions, give what a line is a result of."""
    for name in studies.items(paper):
        importlib.import_module(f"retroact.studies.{paper}.{name}")
    earlier: Earlier = importlib.import_module(f"retroact.studies.{paper}.measured").EARLIER
    what = parse(line.get("what") or line["cell"])
    then = {type(attack): v for attack, v in earlier.attacks.values()}
    if "cell" in line:
        return {key(what), key(what, then)}
    return {locked_key(what), locked_key(what, then), locked_key(what, earlier.measurements)}


def one_of_each(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line of each kind of measurement with each kind of attack and activation in it."""
    text = [line.get("what") or line["cell"] for line in lines]
    kinds = [tuple(sorted(set(re.findall(r"\w+(?=\()", said)))) for said in text]
    return [line for i, line in enumerate(lines) if kinds.index(kinds[i]) == i]


def lost(lines: list[dict[str, Any]], paper: str) -> list[str]:
    return [line["key"] for line in lines if line["key"] not in keys_of(line, paper)]


# the page is printed from all of them, each found by its key
@each
def test_a_stored_key_of_each_kind_follows_from_its_print(path):
    assert len(stored(path)) > 300 and len(one_of_each(stored(path))) > 20
    assert lost(one_of_each(stored(path)), path.stem) == []


@each
@pytest.mark.long
def test_every_stored_key_follows_from_its_print(path):
    assert lost(stored(path), path.stem) == []


@each
def test_what_is_carried_is_small(path):
    assert path.stat().st_size < 1_000_000


@each
def test_records_are_carried_of_pictures_alone(path):
    cells = [parse(line["cell"], Cell) for line in stored(path) if "cell" in line]
    assert all(cell.data.endswith("[:24]") for cell in cells) and len(cells) <= 6


@each
@pytest.mark.slow
def test_the_page_is_printed_from_what_is_carried_to_the_byte(path, monkeypatch):
    monkeypatch.setattr(
        "retroact.experiments.facts._Work.__call__",
        lambda work, what: pytest.fail(f"{what} is measured anew"),
    )
    with Store(":memory:") as store:
        assert read_json(path, store) == len(stored(path))
        made = studies.study(path.stem, store, stored=True)
    text, _ = studied.markdown(made, path.stem)
    assert text == path.with_suffix(".md").read_text("utf-8")
    used = {name for item in made.items for name in item.keys}
    assert used == carried_keys(path)
    assert len(made.lines) <= studied.MOST
