"""The Sloped-ReLU page from its JSON: to the byte on a small run, and at full size small enough for
a repository, reckoned from all that its items ask for."""

import importlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retroact.experiments.carried import as_json, carried_keys, read_json
from retroact.experiments.store import Store
from retroact.reports import studied
from retroact.reports.studied import Claim, Item, Study
from retroact.spec import parse, show
from retroact.studies import study as studies
from retroact.studies.counted import Counted, Counts
from retroact.studies.desk import Desk
from retroact.studies.packed import pack, unpack
from retroact.studies.published import claims
from retroact.studies.srelu import question_averaging

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROACT_DATA"), reason="keys hold pixels: needs MNIST and CIFAR-10"
)
AUDITS = Path(__file__).parents[2] / "docs" / "studies" / "jumprelu.json"
DRAWN = {"figure_9": ("_maps",), "question_saliency": ("_draw", "_show")}
"""What draws, where it is not `panels`."""
RANDOM = np.random.default_rng(0)


@cache
def longest_audit() -> dict[str, Any]:
    """The longest that the other study carries."""
    told = [line["facts"] for line in json.loads(AUDITS.read_text("utf-8")) if "facts" in line]
    return max((f for f in told if "verified_twin" in f), key=lambda f: len(json.dumps(f)))


def some_counts(n: int, cells: int, beyond: int) -> Counts:
    """With as many digits as there can be."""
    many, few = (999_999,) * cells, (9_876,) * cells
    left = tuple(4_000 + i for i in range(cells))
    return Counts(n, 9_876, left, many, many, few, 4_000, (4_321,) * beyond)


def made_up(what: Any) -> dict[str, Any]:
    """Facts as long as those that `what` would give at full size."""
    share, net = 12.345678901234567, getattr(getattr(what, "model", None), "net", "")
    if isinstance(what, Counted):
        sizes = len(what.cells()), len(what.beyond)
        first = {"first": some_counts(what.first, *sizes).facts()} if what.first else {}
        return some_counts(10_000, *sizes).facts() | first
    eps = [share + i for i, _ in enumerate(getattr(what, "eps", ()))]
    layer = {"between": share, "within": share, "ratio": share, "map_ratio": share}
    place = pack(RANDOM.normal(0, 500, 4000), "<i2")
    maps = [pack(RANDOM.normal(0, 40, 4 * (784 if net == "mnist-cnn" else 1024)), "i1")] * 2
    by_kind: dict[str, Any] = {
        "Audited": longest_audit,
        "RaisedBias": longest_audit,
        "HardenedAudit": lambda: longest_audit() | {"upward": share, "mean": share},
        "TargetedRates": lambda: {
            "n": 10_000,
            "led": [[1234.0 + i for i, _ in enumerate(eps)]] * 10,
            "zero": [1234.0] * 10,
            "asked": [9876.0] * 10,
        },
        "ScaledPixels": lambda: {
            "n": 10_000,
            "right": 9_876,
            "zero": 1_234,
            "left": [4_567 + i for i, _ in enumerate(eps)],
        },
        "OnFolded": lambda: {"accuracy": [share, *eps]},
        "Transferred": lambda: {"agree": 95.0 + share / 100, "FGSM": eps, "PGD": eps},
        "Clusters": lambda: {k: layer | {"map": place} for k in ("hidden", "logits")},
        "Saliency": lambda: {
            "n": 2000,
            "alike": share / 100,
            "zero": {"cross_entropy": share, "margin": share},
            "rows": [1, 2, 3, 4],
            "maps": dict(zip(("cross_entropy", "margin"), maps, strict=True)),
        },
        "GradCam": lambda: {
            "n": 2000,
            "alike": share / 100,
            "dead": share,
            "shown": [[[0.123] * 8] * 8] * 4,
        },
        "RuinedImages": lambda: {
            **dict.fromkeys(("n", "nan", "as_class_0", "labelled_0"), 1_987),
            **dict.fromkeys(("counted", "kept_out"), eps),
        },
        "CleanGradients": lambda: {
            **dict.fromkeys(("right", "wrong", "zero32", "zero64"), 1_234),
            **dict.fromkeys(("size_right", "size_wrong"), 1.2345678901234567e-30),
        },
        "SlopeAlgebra": lambda: {
            "sites": 4,
            **dict.fromkeys(("negative", "folded", "bias_free", "scaled"), 1.2345678901234567e-16),
            "same_decisions": share / 100,
        },
        "Trained": lambda: {
            "clean": 98.7,
            **{name: [share] for name in ("FGSM", "PGD", "PGD, margin")},
        },
    }
    return by_kind[type(what).__name__]()  # type: ignore[no-any-return]


class Dry(Desk):
    """A full desk that measures nothing, makes its facts up, and counts what is carried of them."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.carried: dict[Any, int] = {}

    def all_facts(self, asked: Any) -> list[dict[str, Any]]:
        return [self._fact(what) for what in asked]

    derive = all_facts

    def again(self, what: Any) -> dict[str, Any]:
        return self._fact(what)

    def run_before(self, made_of: Any) -> None:
        pass

    def records(self, cells: Any, *, keep: int = 0) -> Any:
        pytest.fail("an item reads records")

    def _fact(self, what: Any) -> dict[str, Any]:
        if what in self.carried:
            return made_up(what)
        facts = made_up(what)
        line = {"key": "0" * 16, "what": show(what), "seconds": 1234.5678901234, "facts": facts}
        self.carried[what] = len(json.dumps(line)) + 2
        assert parse(show(what)) == what
        return facts


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All items at full size on a dry desk, without their drawings, and what is carried of them."""
    path = tmp_path_factory.mktemp("dry") / "s.sqlite"
    with Store(path) as store, pytest.MonkeyPatch.context() as monkeypatch:
        desk, made = Dry(store), []
        for name in studies.items("srelu"):
            module = importlib.import_module(f"retroact.studies.srelu.{name}")
            for draws in DRAWN.get(name, ("panels",)):
                monkeypatch.setattr(module, draws, lambda *_, **__: "<svg/>", raising=False)
            made.append(Item(name, name, tuple(module.make(desk)), ""))
    return Study("srelu", "", "", tuple(made), claims("srelu")), desk.carried


def test_at_full_size_the_page_carries_less_than_a_megabyte(full):
    _, carried = full
    by_kind: dict[str, int] = {}
    for what, size in carried.items():
        by_kind[type(what).__name__] = by_kind.get(type(what).__name__, 0) + size
    assert len(carried) > 600 and sum(by_kind.values()) < 900_000, by_kind


def test_every_claim_has_one_answer_and_the_page_begins_with_ten_lines(full):
    made, _ = full
    given = [part.about for item in made.items for part in item.parts if isinstance(part, Claim)]
    assert made.unanswered == [] and len(given) == len(set(given)) == len(claims("srelu"))
    assert len(made.lines) == studied.MOST
    assert all(len(line) < 400 for line in made.lines)


def test_packed_numbers_come_back():
    values = np.array([[-3.0, 0.0], [127.0, 5.0]])
    assert unpack(pack(values, "i1"), "i1").tolist() == [-3, 0, 127, 5]
    assert unpack(pack(-300 * np.ones(2), "<i2"), "<i2").tolist() == [-300, -300]


@pytest.mark.long
def test_the_page_of_a_small_run_is_printed_from_its_json_to_the_byte(tmp_path, monkeypatch):
    names = ("question_averaging", "question_saliency")
    path = tmp_path / "srelu.json"
    monkeypatch.setattr(question_averaging, "images", lambda desk, attack: desk.pick(20, 30))
    with Store(tmp_path / "s.sqlite") as store:
        # `large`, of which this paper has none, as a stored study prints what is quick
        made = studies.study("srelu", store, only=names, quick=True, large=True)
        path.write_text(as_json(store, {k for item in made.items for k in item.keys}), "utf-8")
    measures = "retroact.experiments.facts._Work.__call__"
    monkeypatch.setattr(measures, lambda work, what: pytest.fail(f"{what} is measured anew"))
    monkeypatch.setattr("retroact.experiments.sweep._run_missing", lambda *_: pytest.fail("run"))
    with Store(tmp_path / "other.sqlite") as store:
        read_json(path, store)
        assert len(store) == 0  # no records
        again = studies.study("srelu", store, only=names, stored=True)
    (text, figures), (then, drawn) = (studied.markdown(s, "srelu") for s in (again, made))
    assert text == then and figures == drawn and "n = 20" in text
    assert {k for item in again.items for k in item.keys} == carried_keys(path)
