"""A time box decides how many images are taken, and nothing else."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest

import retroact as ra
from retroact.auditing import boxed
from retroact.auditing.audit import _ask_within
from retroact.auditing.verdict import bootstrap, fewest
from retroact.durations import seconds_of
from retroact.spec import CallError


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("5m", 300), ("90s", 90), ("1h30m", 5400), ("0.5m", 30), (12, 12), (" 2m ", 120)],
)
def test_budgets_are_read(said, seconds):
    assert seconds_of(said) == seconds


@pytest.mark.parametrize("said", ["", "5", "m", "5 min", "-3s", "0s", 0, -1, float("nan"), "s5"])
def test_what_is_no_time_is_refused(said):
    with pytest.raises(CallError, match="expected a budget such as 90s"):
        seconds_of(said)


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.2])
def test_the_fewest_are_those_at_which_two_alike_are_seen_to_be(margin):
    n = fewest(margin)
    assert bootstrap(0, 0, n)[0] > -margin >= bootstrap(0, 0, n - 1 - n // 100)[0]


@dataclass(frozen=True)
class Run:
    budget: str = ""


@dataclass(frozen=True)
class Made:
    """What an audit of these images would have been."""

    data: str
    pedigree: Run = Run()


class Clock:
    """A machine on which an image takes `pace` seconds."""

    def __init__(self, monkeypatch, pace):
        self.now, self.pace, self.asked = 0.0, pace, []
        monkeypatch.setattr(boxed, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def run(self, *, data, progress=None, baseline=None, **how):
        self.now += len(data) * self.pace / 2
        (progress or (lambda *_: None))(1, 2)
        self.now += len(data) * self.pace / 2
        self.asked.append((len(data), baseline))
        return Made(data.name)


def ask(clock, seconds, most=359, **kept):
    kept = {"baseline": None, "store": None} | kept
    run = partial(clock.run, margin=0.05, **kept)
    return _ask_within(boxed.Box(seconds, "image"), run, ra.data("digits")[:most], None)


def test_as_many_are_taken_as_fit(monkeypatch):
    clock, n = Clock(monkeypatch, 1.0), fewest()
    made = ask(clock, n + 110)
    assert [taken for taken, _ in clock.asked] == [n, 100] and made.data == "digits[:100]"
    assert made.pedigree.budget.startswith("the first 100 of 359 images")
    assert clock.now <= n + 110


def test_where_all_fit_all_are_taken(monkeypatch):
    made = ask(Clock(monkeypatch, 0.01), 60, most=80)
    assert made.data == "digits[:80]" and made.pedigree.budget.startswith("all 80 images")


def test_never_fewer_than_could_tell_anything_nor_once_more(monkeypatch):
    clock = Clock(monkeypatch, 1.0)
    assert ask(clock, 70).data == f"digits[:{fewest()}]"
    assert clock.asked == [(fewest(), None)]


def test_what_is_kept_is_not_what_is_measured(monkeypatch):
    clock = Clock(monkeypatch, 1.0)
    ask(clock, 70, baseline="before.json")
    assert clock.asked == [(fewest(), None), (fewest(), "before.json")]


def test_a_box_in_which_nothing_could_be_told_is_refused(monkeypatch):
    clock = Clock(monkeypatch, 1.0)
    with pytest.raises(boxed.BudgetError, match=f"the {fewest()} images without which nothing"):
        ask(clock, 20)
    assert not clock.asked


@pytest.mark.parametrize("fit", [1, 59, 100, 149.9, 150, 299, 7001, 123456])
def test_the_ladder_is_never_above_nor_far_below(fit):
    n = boxed._step_below(fit)
    assert n <= fit < 1.7 * n + 1
