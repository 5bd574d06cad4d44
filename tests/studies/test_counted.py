"""Counts say of records what the metrics say, fit into few bytes, and are filed for themselves."""

import json
from typing import Any

import pytest

from retroact.activations.piecewise import SReLU
from retroact.attacks.corruptions import AdditiveGaussianNoise
from retroact.attacks.fgm import FGM
from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.crafting.threat import L2, Linf
from retroact.evaluation.metrics import (
    clean_accuracy,
    robust_accuracy,
    worst_case,
    zero_gradient_share,
)
from retroact.evaluation.record import to_bytes
from retroact.experiments.carried import as_json, read_json
from retroact.experiments.cell import Model
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.spec import key, parse, show
from retroact.studies.counted import Counted, Counts, counts, cut
from retroact.studies.desk import Desk, NotMeasuredError
from retroact.studies.earlier import Earlier

STEEP = Model("digits-cnn", SReLU(2.0))
GROUPS = (
    ((FGSM(), PGD(3)), (Linf(0.05), Linf(0.1))),
    ((FGM(), AdditiveGaussianNoise()), (L2(0.5), L2(2.0))),
)
ASKED = Counted(STEEP, "digits[:40]", GROUPS, first=10, beyond=(0, 1))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "s.sqlite") as made:
        yield made


def test_counts_are_what_the_records_say(store):
    found = counts(Desk(store), {"all": ASKED})["all"]
    records = Desk(store).records(ASKED.cells())
    assert found.clean == 100 * clean_accuracy(records[0])
    assert found.robust == [100 * robust_accuracy(r) for r in records]
    assert found.blind == [100 * zero_gradient_share(r) for r in records]
    last = [records[i] for i in (1, 3, 5, 7)]  # the last threat of each attack
    assert found.robust_to_all == 100 * worst_case(last).mean() <= min(found.robust)
    right = records[0].clean == records[0].label
    seen = records[0].gradients
    assert found.beyond == (int((right & (seen > 0)).sum()), int((right & (seen > 1)).sum()))
    assert found.first.robust == [100 * robust_accuracy(cut(r, 10)) for r in records]
    assert found.first.clean == 100 * clean_accuracy(cut(records[0], 10))
    assert found.first.n == 10 and 0 < found.blind[0] < 100


def test_each_attack_of_a_group_is_run_under_each_threat_of_it():
    said = [(c.attack, c.threat) for c in ASKED.cells()]
    assert said[:4] == [(a, t) for a in GROUPS[0][0] for t in GROUPS[0][1]]
    assert len(said) == 8 and ASKED.attacks == (*GROUPS[0][0], *GROUPS[1][0])
    gray = Counted(STEEP, "digits[:40]", GROUPS[:1], source=Model("digits-cnn"))
    assert {c.source for c in gray.cells()} == {Model("digits-cnn")}
    assert parse(show(gray)) == gray and locked_key(gray) != locked_key(ASKED)


def test_counts_come_back_from_json_and_are_far_smaller_than_records(store):
    found = counts(Desk(store), {"all": ASKED})["all"]
    told = json.dumps(found.facts())
    assert Counts.read(json.loads(told)) == found
    records = sum(len(to_bytes(r)) for r in Desk(store).records(ASKED.cells()))
    assert len(told) < 800 < records / 20


def test_a_stored_desk_counts_what_it_has_and_carries_no_record(store, tmp_path):
    with pytest.raises(NotMeasuredError):
        counts(Desk(store, stored=True), {"all": ASKED})
    desk = Desk(store)
    made = counts(desk, {"all": ASKED})
    assert set(desk.keys) == {locked_key(ASKED)} and desk.seconds > 0
    path = tmp_path / "facts.json"
    path.write_text(as_json(store, desk.keys), "utf-8")
    with Store(tmp_path / "other.sqlite") as other:
        assert read_json(path, other) == 1 and len(other) == 0
        again = Desk(other, stored=True)
        assert counts(again, {"all": ASKED}) == made and again.seconds == desk.seconds


def test_a_stop_between_two_curves_loses_neither_records_nor_counts(store, monkeypatch):
    other = Counted(STEEP, "digits[:30]", GROUPS[:1])
    both: dict[str, Counted] = {"a": ASKED, "b": other}
    with monkeypatch.context() as stopped:
        stopped.setattr(Desk, "derive", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            counts(Desk(store), both)
    assert len(store) == len(ASKED.cells()) + len(other.cells()) and not list(store.facts())
    counts(Desk(store), both)
    assert set(store.runs().values()) == {1} and len(list(store.facts())) == 2


def test_counts_of_an_earlier_version_stand_under_its_key(store):
    earlier = Earlier(attacks={FGSM("margin"): (FGSM(), 1)})
    asked, then = (
        Counted(STEEP, "digits[:20]", (((a,), (Linf(0.1),)),)) for a in (FGSM("margin"), FGSM())
    )
    (cell,) = then.cells()
    Desk(store).records([cell])
    assert earlier.key(asked) == locked_key(then, {FGSM: 1}) != locked_key(asked)
    assert earlier.key(then) is None and key(cell.locked()) == earlier.cell_key(asked.cells()[0])
    desk = Desk(store, earlier=earlier)
    found: dict[str, Any] = counts(desk, {"then": asked})
    assert "FGSM, version 1" in desk.used and set(desk.keys) == {earlier.key(asked)}
    assert found["then"] == Counts.of(Desk(store).records([cell])) and len(store) == 1
