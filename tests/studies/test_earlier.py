"""What a page was measured with is served for the page, under its own key, and for nothing else."""

from typing import Any, ClassVar

import pytest

from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.crafting.threat import Linf
from retroact.experiments.cell import Cell, Model
from retroact.experiments.facts import locked_key
from retroact.experiments.store import Store
from retroact.spec import key, show, spec
from retroact.studies.desk import Desk
from retroact.studies.earlier import Earlier


@spec
class Battered:
    data: str = "digits[:10]"
    version: ClassVar[int] = 2

    def __call__(self) -> dict[str, Any]:
        return {"by": self.version}


EARLIER = Earlier(measurements={Battered: 1}, attacks={FGSM("margin"): (FGSM(), 1)})


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "s.sqlite") as made:
        yield made


def test_a_raised_version_is_another_key_and_old_facts_are_not_served(store):
    old = locked_key(Battered(), {Battered: 1})
    store.put_facts(old, show(Battered()), {"by": 1}, 60.0)
    assert old != locked_key(Battered()) and locked_key(Battered(), {Battered: 2}) != old
    assert Desk(store).facts(Battered()) == {"by": 2}


def test_a_page_gets_the_facts_that_it_was_measured_with_and_says_so(store):
    store.put_facts(EARLIER.key(Battered()), show(Battered()), {"by": 1}, 60.0)
    desk = Desk(store, earlier=EARLIER)
    assert desk.facts(Battered()) == desk.again(Battered()) == {"by": 1}
    assert "Battered, version 1" in desk.used and desk.seconds == 60.0
    assert store.read_facts(locked_key(Battered())) is None  # nothing is measured


def test_todays_facts_stand_before_earlier_ones(store):
    Desk(store).facts(Battered())
    store.put_facts(EARLIER.key(Battered()), show(Battered()), {"by": 1}, 60.0)
    desk = Desk(store, earlier=EARLIER)
    assert desk.facts(Battered()) == {"by": 2} and list(desk.used) == ["digits[:10]", "seed 0"]


def test_what_neither_key_names_is_measured_now(store):
    desk = Desk(store, earlier=EARLIER)
    assert desk.all_facts([Battered(), Battered("digits[:20]")]) == [{"by": 2}] * 2
    assert store.read_facts(locked_key(Battered())) is not None


def test_a_cell_is_served_for_the_attack_that_says_what_its_own_was(store):
    model, part = Model("digits-cnn"), "digits[:20]"
    then = Cell(model, part, FGSM(), Linf(0.1)).locked()
    Desk(store).records([then])
    asked = Cell(model, part, FGSM("margin"), Linf(0.1))
    assert EARLIER.cell_key(asked) == key(then) != key(asked.locked())
    desk = Desk(store, earlier=EARLIER)
    first, second = desk.records([asked, Cell(model, part, PGD(2), Linf(0.1))])
    assert first == store.read(key(then)) != second and "FGSM, version 1" in desk.used
    assert len(store) == 2
    desk.records([asked], keep=3)  # the page shows pictures, and those were not kept
    assert len(store) == 3


def test_an_attack_that_is_not_named_has_no_earlier_key():
    assert EARLIER.cell_key(Cell(Model("digits-cnn"), "digits[:20]", FGSM(), Linf(0.1))) is None
