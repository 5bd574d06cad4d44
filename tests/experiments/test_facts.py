"""Measurements that are no record: stored once, under what they depend on."""

from typing import Any, ClassVar

import numpy as np
import pytest

from retroact.activations.piecewise import JumpReLU
from retroact.executors import Processes
from retroact.experiments.carried import as_json
from retroact.experiments.cell import Cell, Model
from retroact.experiments.facts import locked_key, measured, measured_all
from retroact.experiments.store import Store
from retroact.parts import NOWHERE, HasParts
from retroact.spec import spec
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.question_training import Zeros

calls: list[str] = []


@spec
class CountedForATest:
    model: Model = Model("digits-cnn")
    data: str = "digits[:5]"
    again: tuple[str, ...] = ()
    version: ClassVar[int] = 1

    def __call__(self) -> dict[str, Any]:
        calls.append(self.data)
        return {"pair": (1, 2.5), 3: float("nan")}


def test_facts_are_measured_once_and_read_as_they_were_the_first_time(tmp_path):
    calls.clear()
    with Store(tmp_path / "s.sqlite") as store:
        first, second = measured(CountedForATest(), store), measured(CountedForATest(), store)
    assert calls == ["digits[:5]"] and not first.stored and second.stored
    assert (
        first.facts["pair"] == second.facts["pair"] == [1, 2.5]
        and second.facts["3"] != second.facts["3"]
    )
    assert first.seconds == second.seconds >= 0


def test_the_key_knows_weights_and_pixels(monkeypatch):
    plain = locked_key(CountedForATest())
    assert plain != locked_key(CountedForATest(data="digits[:6]"))
    assert plain != locked_key(CountedForATest(again=("digits[:6]",)))
    monkeypatch.setattr(CountedForATest, "version", 2)
    assert plain != locked_key(CountedForATest())


@pytest.mark.parametrize("what", ["weights", "pixels"])
def test_other_weights_or_pixels_are_another_key(monkeypatch, what):
    from retroact.experiments import facts

    before = locked_key(CountedForATest())
    if what == "weights":
        monkeypatch.setattr(
            Model, "locked", lambda self: Model(self.net, weights="0123456789abcdef")
        )
    else:
        monkeypatch.setattr(facts, "pixels_of", lambda part: "other")
    assert locked_key(CountedForATest()) != before


def test_two_workers_measure_the_same_and_progress_counts_each(tmp_path):
    asked = [Zeros(Model("digits-cnn", JumpReLU(k)), "digits[:5]") for k in (0.0, 0.5, 0.0)]
    seen: list[tuple[int, int]] = []
    with Store(tmp_path / "a.sqlite") as a, Store(tmp_path / "b.sqlite") as b:
        one = [m.facts for m in measured_all(asked, a)]
        two = [
            m.facts
            for m in measured_all(
                asked, b, executor=Processes(2), progress=lambda *at: seen.append(at)
            )
        ]
    assert one == two and one[0] == one[2] != one[1]
    assert seen == [(0, 2), (1, 2), (2, 2)]


# ----------------------------------------------------------------------- after a stop, and anew


@spec
class InPartsForATest:
    """Files three parts, one after the other, and says how many it made."""

    data: str = "digits[:5]"
    resumes: ClassVar[bool] = True

    def __call__(self, store: HasParts | None = None) -> dict[str, Any]:
        parts: Any = NOWHERE if store is None else store.parts
        for i in range(3):
            if parts.find(f"a part {i}") is None:
                if len(calls) == stop[0]:
                    raise KeyboardInterrupt
                calls.append(str(i))
                parts.keep(f"a part {i}", "of a test", {"i": np.array([i])})
        return {"parts": 3}


stop = [-1]


def test_a_long_measurement_goes_on_behind_its_last_part(tmp_path):
    calls.clear()
    with Store(tmp_path / "s.sqlite") as store:
        stop[0] = 2
        with pytest.raises(KeyboardInterrupt):
            measured(InPartsForATest(), store)
        stop[0] = -1
        assert measured(InPartsForATest(), store).facts == {"parts": 3}
        assert calls == ["0", "1", "2"]
        assert "part" not in as_json(store).replace("parts", "").replace("InPartsForATest", "")
        measured_all([InPartsForATest()], store, fresh=True)
        assert calls == ["0", "1", "2"] * 2
    with Store(":memory:") as store:
        assert measured(InPartsForATest(), store).facts == {"parts": 3}


def test_a_fresh_desk_makes_everything_once_more(tmp_path):
    calls.clear()
    with Store(tmp_path / "s.sqlite") as store:
        Desk(store).facts(CountedForATest())
        Desk(store).facts(CountedForATest())
        assert len(calls) == 1
        anew: set[Any] = set()
        cell = Cell("digits-cnn", "digits[:5]", "FGSM", "Linf(0.1)")  # type: ignore[arg-type]
        for _ in range(2):  # two items of a study
            desk = Desk(store, anew=anew)
            desk.facts(CountedForATest())
            desk.again(CountedForATest())
            desk.records([cell])
        assert len(calls) == 2 and list(store.runs().values()) == [1]
        Desk(store, anew=set()).records([cell])
        assert list(store.runs().values()) == [2]
