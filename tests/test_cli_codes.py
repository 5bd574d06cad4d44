"""Exit codes: a script that reads them lets nothing pass that was not shown."""

import itertools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import typer

from retroact.auditing import claims
from retroact.auditing.verdict import Counts, Effect, Verdict
from retroact.cli import audits, codes
from retroact.cli.app import app
from retroact.experiments.store import Store

QUESTION = ("--threat", "Linf(0.1)", "--data", "digits[:60]", "--quick")
SHORT = ("--claimed", "PGD(steps=2)")  # for what does not hang on what the claimed attack finds
AUDIT = ("audit", "digits-cnn", "SReLU(100)", *QUESTION)
ITSELF = ("audit", "digits-cnn", "--against", "digits-cnn", *QUESTION)
SURE = {"n": 1000, "gained": 0, "lost": 0}  # an interval within half a point of 0


def verdict(effect, *, gained=0, lost=0, n=1000, doubts=(), claim="HONEST"):
    robust = (0.1 + lost / n, 0.1 + gained / n)
    counts = Counts(n, (1.0, 1.0), robust, robust, gained, lost)
    return Verdict(effect, claim, (), counts, tuple(doubts))


def answer(said, *, fail_on=None, require=None, margin=0.05):
    return audits._Asked.read(fail_on, require, margin).answer(said)


# ------------------------------------------------------------------------------------ of a verdict


@pytest.mark.parametrize("effect", get_args(Effect))
def test_a_word_that_is_named_is_always_found(effect):
    for require, doubts in itertools.product((None, "not-weaker"), ((), ("a doubt",))):
        asked = {"fail_on": effect.lower(), "require": require}
        assert answer(verdict(effect, doubts=doubts), **asked) == 1


@pytest.mark.parametrize("claim", ["MASKED", "MASKED, WEAK PROTOCOL"])
def test_a_claim_is_found_before_the_effect_is_called_open(claim):
    assert answer(verdict("ABSTAINED", claim=claim), fail_on="MASKED") == 1
    assert answer(verdict("ABSTAINED", claim="WEAK PROTOCOL"), fail_on="MASKED") == 4


def test_what_is_open_passes_no_question_and_is_nothing_where_none_is_asked():
    for effect in ("INCONCLUSIVE", "ABSTAINED"):
        assert answer(verdict(effect)) == 0
        assert answer(verdict(effect), fail_on="HARMFUL") == 4
        assert answer(verdict(effect), require="not-weaker") == 4
    for effect in ("GENUINE", "NO EFFECT"):
        assert answer(verdict(effect), fail_on="HARMFUL") == 0
        assert answer(verdict(effect), require="not-weaker") == 0


def test_a_floor_is_no_answer_to_what_is_required():
    floor = verdict("TOO STRONG A THREAT", **SURE)
    assert floor.counts.not_weaker() and floor.compare() == "NOT SETTLED"
    assert answer(floor, require="not-weaker") == 4
    assert answer(floor, fail_on="HARMFUL") == 0 == answer(floor)


# --------------------------------------------------------------------------------- non-inferiority


@pytest.mark.parametrize(
    ("effect", "gained", "lost", "margin", "doubts", "said"),
    [
        ("NO EFFECT", 0, 0, 0.05, (), "NOT WEAKER"),
        ("NO EFFECT", 0, 0, 0.002, (), "NOT SETTLED"),  # the interval ends near −0.3 points
        ("NO EFFECT", 0, 0, 0.05, ("a doubt",), "NOT SETTLED"),
        ("GENUINE", 80, 10, 0.01, (), "NOT WEAKER"),
        ("GENUINE", 80, 10, 0.01, ("a doubt",), "NOT SETTLED"),
        ("ABSTAINED", 80, 10, 0.01, ("a doubt",), "NOT SETTLED"),
        ("ABSTAINED", 10, 200, 0.05, ("a doubt",), "NOT SETTLED"),
        ("INCONCLUSIVE", 60, 20, 0.05, (), "NOT SETTLED"),
        ("HARMFUL", 10, 200, 0.05, (), "WEAKER"),
        ("HARMFUL", 10, 200, 0.05, ("a doubt",), "WEAKER"),
        ("HARMFUL", 1, 20, 0.05, (), "NOT WEAKER"),  # less than the margin, and shown to be
        ("HARMFUL", 1, 20, 0.02, (), "WEAKER"),
    ],
)
def test_a_change_passes_only_where_it_is_shown_to_cost_less_than_the_margin(
    effect, gained, lost, margin, doubts, said
):
    made = verdict(effect, gained=gained, lost=lost, doubts=doubts)
    assert made.compare(margin) == said
    code = {"NOT WEAKER": 0, "WEAKER": 1, "NOT SETTLED": 4}[said]
    assert answer(made, require="not-weaker", margin=margin) == code


def test_the_margin_is_met_by_the_interval_not_by_the_difference():
    counts = verdict("INCONCLUSIVE", gained=0, lost=3, n=60).counts
    low = counts.interval[0]
    assert counts.verified_gain == -0.05 and not counts.not_weaker(0.06)
    assert counts.not_weaker(-low + 1e-9) and not counts.not_weaker(-low)
    for margin in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"margin in \(0, 1\)"):
            counts.not_weaker(margin)


# ---------------------------------------------------------------------------------- of the command


@pytest.fixture
def one_of_each_margin(monkeypatch):
    """One audit for all that is asked of the same networks with the same margin."""
    run, made = audits.run_audit, {}

    def ask_once(before, after, *what, margin, **how):
        key = str(after), margin
        if key not in made:
            made[key] = run(before, after, *what, margin=margin, **how)
        return made[key]

    monkeypatch.setattr(audits, "run_audit", ask_once)


def test_an_audit_answers_what_it_is_asked(call, brief, one_of_each_margin):
    itself = (*ITSELF, *SHORT, "--store", "s.sqlite")
    code, out, _ = call(*AUDIT, "--fail-on", "masked")
    assert code == 1 and "MASKED by saturation" in out
    code, out, _ = call(*itself, "--require", "not-weaker", "--margin", "0.1")
    assert code == 0 and "NOT WEAKER: the lower end" in out and "above -10.0" in out
    code, out, _ = call(*itself, "--require", "not-weaker", "--margin", "0.01")
    assert code == 4 and "NOT SETTLED" in out  # 60 images cannot tell one point
    code, out, _ = call(*itself, "--fail-on", "HARMFUL", "--margin", "0.01")
    assert code == 4 and "INCONCLUSIVE" in out
    assert call(*itself, "--margin", "0.01")[0] == 0
    asked = ("--require", "not-weaker", "--fail-on", "NO EFFECT", "--margin", "0.1")
    assert call(*itself, *asked)[0] == 1


def test_a_weaker_network_is_found(call, brief):
    words = ("audit", "digits-cnn", "JumpReLU(1.2)", *QUESTION, *SHORT)
    code, out, _ = call(*words, "--require", "not-weaker")
    assert code == 1 and "HARMFUL" in out and "\nWEAKER: " in out


def test_whatever_ends_a_command_is_told_by_its_code(call, monkeypatch):
    def end(error):
        def ended(*_, **__):
            raise error

        monkeypatch.setattr("retroact.checkpoint.load", ended)
        return call(*AUDIT)

    asked = ("--fail-on", "HARMFUL")
    assert call("audit", *asked)[0] == 2
    for error in (RuntimeError("r"), OSError("o"), MemoryError("m"), AssertionError("a")):
        code, _, err = end(error)
        assert code == 3 and str(error) in err
    for left in (SystemExit(0), SystemExit(1), SystemExit("done")):
        code, _, err = end(left)
        assert code == 3 and "ended the program" in err
    assert end(KeyboardInterrupt())[0] == 130 == end(typer.Abort())[0]
    assert (
        "stopped; nothing of it is kept: the same command begins anew"
        in end(KeyboardInterrupt())[2]
    )
    monkeypatch.setenv("RETROACT_DEBUG", "1")
    code, _, err = end(ValueError("v"))
    assert code == 3 and "Traceback" in err and "error: v" in err


def test_a_network_that_fails_could_not_be_audited(call, tmp_path):
    (tmp_path / "failing.py").write_text(
        "import torch\nfrom torch import nn\nimport retroact as ra\n"
        "class Failing(nn.Module):\n"
        "    def forward(self, x):\n"
        "        raise RuntimeError('nothing comes of it')\n"
        "def build():\n    return ra.Classifier(Failing(), shape=(1, 8, 8))\n"
    )
    words = ("audit", "digits-cnn", "--against", "failing:build", *QUESTION)
    code, _, err = call(*words, "--require", "not-weaker")
    assert code == 3 and "nothing comes of it" in err


def test_the_codes_stand_in_the_help_and_in_the_docs(call):
    text = call("audit", "--help")[1]
    listed = {int(code) for code in re.findall(r"^ +(\d+)  \w", text, re.M)}
    named = {v for v in vars(codes).values() if type(v) is int}
    assert listed == named | {0} == {0, 1, 2, 3, 4, 130}
    assert app.info.epilog == codes.CODES and codes.EPILOG.endswith(codes.CODES)
    page = (Path(__file__).parents[1] / "docs" / "your-network.md").read_text()
    table = page.partition("## Exit codes")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)} == listed


# ------------------------------------------------------------------------------------ of a claim


CHECK = ("check", "digits-cnn", *QUESTION, *SHORT)
AUDITS = []


@pytest.fixture
def one_audit(brief, monkeypatch):
    """One audit for every question about it."""
    audit = claims.audit

    def ask_once(*what, **how):
        AUDITS[:] = AUDITS or [audit(*what, **how)]
        return AUDITS[0]

    monkeypatch.setattr(claims, "audit", ask_once)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ((), 0, "verified"),
        (("--reported", "50"), 0, "stands"),
        (("--reported", "90"), 0, "too high by at least"),
        (("--reported", "50", "--require-stands"), 0, "stands"),
        (("--reported", "90", "--require-stands"), 1, "too high by at least"),
        (("--reported", "0.9"), 2, "expected per cent"),
        (("--require-stands",), 2, "give --reported"),
        (("--quick", "--thorough"), 2, "got both"),
    ],
)
def test_what_check_says_and_answers(call, more, code, said, one_audit):
    exit_code, out, err = call(*CHECK, *more)
    assert exit_code == code and said in " ".join((out + err).split())


SWEEP = ("--net", "digits-cnn", "--data", "digits[:8]", "--threat", "Linf(0.1)", "--attack", "FGSM")


@pytest.mark.parametrize(
    ("words", "target", "truth"),
    [
        (("sweep", *SWEEP, "--workers", "1"), "experiments.sweep.run_together", "0 of 1 cells are"),
        (
            ("sweep", *SWEEP),
            "experiments.sweep.plan",
            "what was finished is in retroact.sqlite; the",
        ),
        (("study", "srelu", "--quick"), "studies.study._make", "what was measured is in"),
        (
            ("demo",),
            "demo._read",
            "nothing of it is kept: the same command begins anew",
        ),
        (
            ("train", "digits-cnn"),
            "training.train.fit",
            "finished epochs are kept; the same command",
        ),
        (
            ("store", "prune", "--images"),
            "experiments.merging.prune",
            "it was done wholly or not at all",
        ),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_a_stop_says_what_is_true_of_this_command(call, monkeypatch, words, target, truth):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"retroact.{target}", stopped)
    code, _, err = call(*words)
    assert code == 130 and f"stopped; {truth}" in err


def test_a_store_in_use_could_not_be_filled(call, tmp_path):
    with Store(tmp_path / "retroact.sqlite") as store, store.claimed():
        code, _, err = call("sweep", *SWEEP, "--workers", "1")
    assert code == 3 and "is being filled by process" in err and "--wait" in err
    assert call("sweep", *SWEEP, "--workers", "1")[0] == 0


STUCK = """
import ctypes, sys
from retroact import cli
from retroact.experiments import care
def stuck(path):
    print("stuck", flush=True)
    lock = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(lock)
    ctypes.CDLL(None).pthread_mutex_lock(lock)  # which no signal ends
care.check = stuck
sys.argv = ["retroact", "store", "check"]
cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="deadlocks on glibc's own mutex")
def test_a_second_control_c_ends_a_program_that_is_stuck_in_native_code():
    child = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        stdout=subprocess.PIPE,
        text=True,
        # a shell starts its background jobs deaf to Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert child.stdout.readline() == "stuck\n"
    time.sleep(0.5)  # it says so just before it is
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.3)
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130


QUIET = ("--data", "digits[:10]", "--threat")


def test_an_error_names_the_word_that_would_do(call, tmp_path):
    assert "did you mean Linf(0.1)?" in call("audit", "digits-cnn", "ReLU", *QUIET, "Linf 0.1")[2]
    code, _, err = call("play", "digits-cnn")
    assert code == 2 and "No such command 'play'. Did you mean playground?" in err
    code, _, err = call("audit", "digits-cnn", "ReLU", *QUIET, "Linf(0.1)", "--device", "gpu")
    assert code == 3 and "torch calls a graphics card cuda" in err and "one of: cpu" in err
    code, _, err = call("audit", "digits-cnn", "ReLU", *QUIET, "Linf(0.1)", "--device", "abacus")
    assert code == 3 and "device 'abacus' is not here; choose one of: cpu" in err
    (tmp_path / "rec.json").write_text("[]")
    code, _, err = call("report", "rec.json", "--html", "x.html")
    assert code == 3 and "rec.json holds no audit" in err and "reads the store (--store)" in err
