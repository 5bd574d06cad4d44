"""The audit as an assertion: it passes where non-inferiority is shown, and nowhere else."""

import subprocess
import sys
import unittest
from pathlib import Path
from types import SimpleNamespace

import pytest

from retroact.auditing.verdict import Counts, judge
from retroact.testing import assert_not_weaker

SAID = {"names": ("plain", "changed"), "threat": "Linf(eps=0.1)", "data": "digits"}


def made(n=400, v0=200, gained=4, lost=4, doubts=(), also=None):
    shares = v0 / n, (v0 + gained - lost) / n
    counts = Counts(n, (1.0, 1.0), shares, shares, gained, lost)
    return SimpleNamespace(verdict=judge(counts, [], doubts), also=also, **SAID)


def asked(monkeypatch, answer, **how):
    """What the assertion does where the audit answers so."""

    def audit(*_, **__):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr("retroact.auditing.audit.audit", audit)
    return assert_not_weaker("plain", "changed", "digits", "Linf(0.1)", **how)


@pytest.mark.parametrize("how", [{}, {"gained": 40}, {"v0": 400, "gained": 0, "lost": 0}])
def test_what_is_shown_to_cost_less_than_the_margin_passes(monkeypatch, how):
    outcome = made(**how)
    assert asked(monkeypatch, outcome) is outcome


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"lost": 60}, "WEAKER: the lower end .*HARMFUL"),
        ({"doubts": ["a control broke more"]}, "ABSTAINED.*a control broke more"),
        ({"n": 40, "v0": 20}, "INCONCLUSIVE"),
        ({"v0": 2, "gained": 1, "lost": 0}, "TOO STRONG A THREAT"),
        ({"also": made(lost=60)}, "WEAKER"),
    ],
)
def test_all_else_fails_with_the_verdict(monkeypatch, how, said):
    with pytest.raises(AssertionError, match=f"(?s){said}") as failed:
        asked(monkeypatch, made(**how))
    assert "changed beside plain, Linf(eps=0.1) on digits" in str(failed.value)


def test_the_margin_is_what_matters(monkeypatch):
    assert asked(monkeypatch, made(gained=0, lost=20), margin=0.2)
    with pytest.raises(AssertionError, match="required: above -1.0"):
        asked(monkeypatch, made(), margin=0.01)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("remembers"),
        SystemExit(0),
        pytest.skip.Exception("not today"),
        pytest.xfail.Exception("as ever"),
        unittest.SkipTest("not today"),
        MemoryError(),
    ],
    ids=repr,
)
def test_whatever_keeps_it_from_a_verdict_fails(monkeypatch, error):
    with pytest.raises(AssertionError, match=rf"no verdict: {type(error).__name__}"):
        asked(monkeypatch, error)


def test_ctrl_c_is_no_failure_of_the_network(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        asked(monkeypatch, KeyboardInterrupt())


TESTS = """
import pytest
import retroact as ra
from torch import nn
from retroact.auditing.battery import Battery

HOW = {"battery": Battery(1, 1, 1, 1, trial_steps=0, sample=4, queries=0, points=20)}

class Skipping(nn.Module):
    def forward(self, x):
        pytest.skip("not on this machine")

@pytest.mark.parametrize("after", ["SReLU(1)", "JumpReLU(1.0)", Skipping()])
def test_it(assert_not_weaker, after):
    assert_not_weaker("digits-cnn", after, "digits[:70]", "Linf(0.1)", **HOW)
"""


def test_the_plugin_gives_the_run_its_baseline_and_its_time_box(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nretroact_baseline = before.json\n")
    words = "-q", "-p", "retroact.pytest_plugin", "-p", "no:cacheprovider", "--junit-xml", "it.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "--retroact-budget", "10m"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "2 failed, 1 passed" in done.stdout, done.stdout
    assert ": the lower end of" in done.stdout and "Skipped: not on this" in done.stdout
    assert "NO EFFECT" in (tmp_path / "it.xml").read_text()
    assert (tmp_path / "before.json").read_text().count('"n": 70') == 1


def test_the_plugin_costs_other_tests_no_torch():
    code = "import sys, retroact.pytest_plugin; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_plugin_is_declared_by_its_modules_name():
    """So that `-p retroact.pytest_plugin` and the entry point are one plugin, and not two."""
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    name = "retroact.pytest_plugin"
    assert project["entry-points"]["pytest11"] == {name: name}
