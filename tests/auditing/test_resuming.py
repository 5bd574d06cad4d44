"""An audit that is stopped goes on from its store: the same verdict, the same bits."""

import sqlite3

import numpy as np
import pytest
import torch
from torch import nn

import retroact as ra
from retroact.auditing import battery
from retroact.auditing.attack_run import AttackRun
from retroact.auditing.battery import Battery
from retroact.auditing.indicators import indicators
from retroact.experiments.store import StoreError
from retroact.parts import PartError

EPS = ra.Linf(0.1)
WHOLE = Battery(
    steps=3,
    targets=2,
    targeted_steps=3,
    finish=3,
    trial_steps=2,
    sample=8,
    queries=6,
    points=12,
    alarmed_finish=3,
)
"""Every step of the whole battery, at next to no cost."""


class Killed(BaseException):
    pass


class Runs:
    """Notes the attacks that are run, and kills the one that is told: by its number, or title."""

    def __init__(self, monkeypatch):
        self.again()
        make = AttackRun._make

        def noted(run, result, *how):
            if self.until in (len(self.done), result.title):
                raise Killed
            made = make(run, result, *how)
            self.done.append(result.title)
            return made

        monkeypatch.setattr(AttackRun, "_make", noted)

    def again(self, until=None):
        self.done, self.until = [], until


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


@pytest.fixture
def one_look(monkeypatch):
    """One indicator looks before the attacks, for what is not about what they see."""
    monkeypatch.setattr("retroact.auditing.audit.indicators", lambda: indicators()[:1])


def audit(store=None, after="JumpReLU(1.0)", before="digits-cnn", data="digits[:20]", **how):
    how = {"battery": WHOLE, "threat": EPS, "claimed": "PGD(steps=2)"} | how
    return ra.audit(before, after, data, store=store, **how)


def assert_same(one, other):
    assert one.verdict == other.verdict and str(one) == str(other)
    assert one.readings == other.readings and one.curves == other.curves
    for side, beside in zip(one.sides, other.sides, strict=True):
        for name in ("clean", "claimed", "verified", "broken_by"):
            assert np.array_equal(getattr(side, name), getattr(beside, name))
        assert side.kernel == beside.kernel
        assert [_told(a) for a in side.attacks] == [_told(a) for a in beside.attacks]
        for a, b in zip(side.examples, beside.examples, strict=True):
            assert (a.row, a.decided, a.by, a.turn) == (b.row, b.decided, b.by, b.turn)
            assert a.x_adv.tobytes() == b.x_adv.tobytes()


def _told(attack):
    return {name: value for name, value in attack.to_json().items() if name != "seconds"}


def test_an_audit_goes_on_where_it_was_killed_and_runs_no_attack_twice(tmp_path, runs):
    whole = audit()
    count = len(runs.done)
    assert count > 6
    stops, ran = (1, count - 3), []
    with ra.Store(tmp_path / "a.sqlite") as store:
        for stop in stops:  # each goes on from the last
            runs.again(stop - len(ran))
            with pytest.raises(Killed):
                audit(store)
            ran += runs.done
            assert len(ran) == stop
        runs.again()
        assert_same(whole, audit(store))
        assert len(ran) + len(runs.done) == count
        runs.again()
        last = audit(store)
        assert_same(whole, last) and not runs.done
        assert last.before.seconds > 0  # as they were measured
        # anew: everything again, and the same
        assert_same(whole, audit(store, fresh=True))
        assert len(runs.done) == count


class Kept(dict):
    """Parts in memory."""

    find = dict.get

    def keep(self, key, what, arrays):
        self[key] = {name: value.copy() for name, value in arrays.items()}


def test_a_student_is_not_taught_again(tmp_path, runs, monkeypatch):
    taught, teach = [], battery.train_student
    monkeypatch.setattr(battery, "train_student", lambda *what: taught.append(1) or teach(*what))

    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ra.load("digits-cnn")

        def forward(self, x):
            return self.inner(torch.from_numpy(x.detach().numpy().round(1)))

    how = {"after": Detached(), "data": "digits[:16]"}
    whole = audit(**how)
    assert taught
    with ra.Store(tmp_path / "a.sqlite") as store:
        assert_same(whole, audit(store, **how))
        taught.clear()
        runs.again()
        assert_same(whole, audit(store, **how))
        assert not taught


def test_what_an_outcome_depends_on_is_in_its_key(tmp_path, runs, one_look):
    net = ra.load("digits-cnn")
    with torch.no_grad():
        next(net.parameters()).mul_(1.0001)
    how = {"kernels": []}  # which is quick: nothing is derived
    with ra.Store(tmp_path / "a.sqlite") as store:
        audit(store, **how)
        for other in (
            {"data": "digits[1:21]"},
            {"threat": ra.Linf(0.09)},
            {"seed": 1},
            {"chunk": 7},
            {"before": net},
            {"after": "JumpReLU(0.9)"},
            {"surrogate": net},
            {"kernels": None},
            {"claimed": "PGD(steps=3)"},
        ):
            runs.again(0)
            with pytest.raises(Killed):
                audit(store, **how | other)
        # what a verdict is about is not run again for another margin
        runs.again()
        audit(store, margin=0.1, **how)
        assert not runs.done


def test_threads_file_and_find_as_one_after_the_other(tmp_path, runs):
    whole = audit(kernels=[])
    with ra.Store(tmp_path / "a.sqlite") as store:
        runs.again("targeted")
        with pytest.raises(Killed):
            audit(store, kernels=[], executor="Threads(2)")
        runs.again()
        assert_same(whole, audit(store, kernels=[], executor="Threads(2)"))
        # the side that was stopped with the killed one may have been at its first attack
        assert runs.done and list(runs.done).count("claimed") < 2
        runs.again()
        assert_same(whole, audit(store, kernels=[]))
        assert not runs.done


class Code(nn.Module):
    """A network whose code can change under the same weights, forwards or backwards."""

    forwards, backwards = False, False

    def __init__(self):
        super().__init__()
        self.inner = ra.load("digits-cnn")

    def forward(self, x):
        if self.forwards:
            return self.inner((x * 3).round() / 3)
        z = self.inner(x)
        return (
            0.5 * z + 0.5 * z.detach().flip(1) - 0.5 * z.detach().flip(1) if self.backwards else z
        )


@pytest.mark.parametrize("changed", ["forwards", "backwards"])
def test_other_code_under_the_same_weights_is_refused(tmp_path, changed, one_look):
    net = Code()
    with ra.Store(tmp_path / "a.sqlite") as store:
        audit(store, "ReLU", net, kernels=[])
        setattr(net, changed, True)
        with pytest.raises(PartError, match="code has changed; start anew with fresh=True"):
            audit(store, "ReLU", net, kernels=[])
        audit(store, "ReLU", net, kernels=[], fresh=True)
        audit(store, "ReLU", net, kernels=[])


def test_a_network_without_weights_cannot_be_known_again(tmp_path):
    net = ra.load("digits-cnn")
    weights = pytest.raises(ValueError, match="store= needs networks that have weights")
    with ra.Store(tmp_path / "a.sqlite") as store, weights:
        audit(store, lambda x: net(x))
    with ra.Store(":memory:") as store, pytest.raises(StoreError, match="a file"):
        audit(store)


def test_a_check_goes_on_too(tmp_path, runs):
    how = {"battery": WHOLE, "claimed": "PGD(steps=2)"}
    whole = ra.check("digits-cnn", "digits[:20]", EPS, 40.0, **how)
    count = len(runs.done)
    with ra.Store(tmp_path / "a.sqlite") as store:
        runs.again(count // 2)
        with pytest.raises(Killed):
            ra.check("digits-cnn", "digits[:20]", EPS, 40.0, store=store, **how)
        runs.again()
        assert str(ra.check("digits-cnn", "digits[:20]", EPS, 40.0, store=store, **how)) == str(
            whole
        )
        assert len(runs.done) == count - count // 2


def test_a_damaged_part_is_an_error_that_names_it(tmp_path, one_look):
    path = tmp_path / "a.sqlite"
    with ra.Store(path) as store:
        audit(store, kernels=[])
        assert len(store) == 0 and not store.rows()
        db = sqlite3.connect(path)
        db.execute("UPDATE facts SET facts = replace(facts, 'A', 'B')")
        db.commit()
        with pytest.raises(StoreError, match="does not match its checksum"):
            audit(store, kernels=[])
