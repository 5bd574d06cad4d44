"""The audit's own test passes on the digits net, and fails for an audit that is blind, damns
everything or nothing."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from little import two_layers
from torch import nn

import retroact as ra
from retroact.auditing import selftest as selftesting
from retroact.auditing.audit import Audit
from retroact.auditing.battery import Battery
from retroact.auditing.mechanisms.collection import mechanisms
from retroact.auditing.mechanisms.mechanism import Given
from retroact.auditing.selftest import FEW, Check, selftest

# Small enough for seconds, and enough for what is asked here: 100 images, a few dozen gradients
# each.
SMALL = Battery(
    steps=15, targets=3, targeted_steps=20, finish=30, trial_steps=10, sample=24, queries=0
)
EPS, WIDE = ra.Linf(0.08), ra.Linf(0.1)


@cache
def scaled() -> nn.Module:
    """The digits net with all pre-activations twice as large: the same function, bit for bit.

    A jump of 1 is one of 0.5 here. The net as it is has pre-activations so small that a jump of 1
    wrecks it.
    """
    net = ra.load("digits-cnn")
    inside = net.module
    with torch.no_grad():
        inside.conv1.weight *= 2
        for layer in (inside.conv1, inside.conv2, inside.fc1):
            layer.bias *= 2
        inside.fc2.weight /= 2
    return net


@cache
def small() -> ra.Classifier:
    return ra.Classifier(two_layers(), shape=(1, 8, 8))


@cache
def robust() -> nn.Module:
    recipe = ra.Hardening(learn="all", steps=200, batch=128, lr=0.003)
    return ra.harden(small(), ra.data("digits/train"), EPS, recipe).net


@cache
def data() -> ra.Images:
    return ra.data("digits[:100]")


def run(**how: object) -> dict[str, Check]:
    made = selftest(small(), data(), EPS, robust=robust(), battery=SMALL, **how)
    return {check.title: check for check in made}


@cache
def honest_run() -> dict[str, Check]:
    return run()


def test_the_scaled_net_is_the_net():
    x = ra.data("digits[:40]").images
    with torch.no_grad():
        assert torch.equal(scaled()(x), ra.load("digits-cnn")(x))


def test_all_checks_pass():
    checks = honest_run()
    assert len(checks) == 7
    assert all(check.passed for check in checks.values()), [
        str(c) for c in checks.values() if not c.passed
    ]
    assert all(
        str(check).startswith(f"passed: {title}: expected ") for title, check in checks.items()
    )
    jump = checks["JumpReLU(1)"].audit.verdict
    assert jump.mechanism == "jump" and "MASKED" in jump.claim
    assert checks["adversarial training"].audit.verdict.counts.verified_gain > 0.1


def test_a_fake_that_decides_as_the_net_does_has_the_very_same_verified_accuracy():
    made = honest_run()["logits times 2^14"].audit
    assert made.before.verified.tolist() == made.after.verified.tolist()
    assert made.after.claimed.mean() > made.before.claimed.mean() + 0.3


def test_without_kernels_and_controls_it_fails(monkeypatch):
    every, titles = selftesting._cases, ("itself", "JumpReLU(1)")
    asked = lambda *how: [case for case in every(*how) if case[0] in titles]  # noqa: E731
    monkeypatch.setattr(selftesting, "_cases", asked)
    monkeypatch.setattr(Battery, "add_controls", lambda battery, side, *_: side)
    made = selftest(scaled(), data(), ra.Linf(0.12), battery=SMALL, kernels=())
    checks = {check.title: check for check in made}
    assert not checks["JumpReLU(1)"].passed and checks["itself"].passed
    assert str(checks["JumpReLU(1)"]).startswith("FAILED: JumpReLU(1): expected ")
    assert checks["JumpReLU(1)"].audit.verdict.counts.verified_gain > 0.03


def wrongly(monkeypatch: pytest.MonkeyPatch, **said: object) -> dict[str, Check]:
    """The self-test of an audit that finds the same facts and always says the same of them."""
    made = iter([check.audit for check in honest_run().values()])
    monkeypatch.setattr(selftesting, "audit", lambda *a, **k: with_verdict(next(made), **said))
    done: list[tuple[int, int]] = []
    checks = run(progress=lambda *at: done.append(at))
    assert done == [(k, 7) for k in range(1, 8)]
    return checks


def with_verdict(made: Audit, **said: object) -> Audit:
    return replace(made, verdict=replace(made.verdict, **said))


def test_the_replay_of_the_facts_alone_passes(monkeypatch):
    assert all(check.passed for check in wrongly(monkeypatch).values())


def test_an_audit_that_damns_everything_fails(monkeypatch):
    checks = wrongly(
        monkeypatch, effect="HARMFUL", claim="MASKED", mechanisms=("saturation", "jump")
    )
    assert not checks["itself"].passed and not checks["adversarial training"].passed


def test_an_audit_that_passes_everything_fails(monkeypatch):
    checks = wrongly(monkeypatch, effect="GENUINE", claim="HONEST", mechanisms=())
    failed = {title for title, check in checks.items() if not check.passed}
    assert failed >= {
        "itself",
        "logits times 2^14",
        "SReLU(10) beside its folded net",
        "JumpReLU(1)",
    }


def test_an_audit_that_never_commits_itself_fails(monkeypatch):
    checks = wrongly(monkeypatch, effect="ABSTAINED", claim="HONEST", mechanisms=())
    failed = {title for title, check in checks.items() if not check.passed}
    assert failed >= {"itself", "logits times 2^14", "adversarial training"}


# ---------------------------------------------------------- mechanisms that it was told nothing of

NAMES = (
    "backward pass zero",
    "images of 2 levels",
    "one-hot of the decision",
    "answers remembered",
)


def run_fakes(
    monkeypatch: pytest.MonkeyPatch, audit: Callable[..., Audit], truth: Callable[..., object]
) -> dict[str, Check]:
    """The self-test of some mechanisms alone, by this audit and this truth."""
    some = [m for name in NAMES for m in mechanisms() if m.name == name]
    monkeypatch.setattr(selftesting, "mechanisms", lambda fast: some)
    monkeypatch.setattr(selftesting, "_cases", lambda *_: [])
    monkeypatch.setattr(selftesting, "audit", audit)
    monkeypatch.setattr(selftesting, "truth", truth)
    net = small()
    fakes = [Given(net, (), ra.data("digits/train[:200]"), WIDE.eps)]
    checks = selftest(net, data(), WIDE, battery=SMALL, fakes=fakes)
    assert [check.title for check in checks] == [f"{name}, the same seed" for name in NAMES]
    return dict(zip(NAMES, checks, strict=True))


def noting(told: list[object], ask: Callable[..., object]) -> Callable[..., object]:
    """What is asked, with every answer and every refusal put into the list."""

    def noted(*what: object, **how: object) -> object:
        try:
            told.append(made := ask(*what, **how))
        except ValueError as error:
            told.append(error)
            raise
        return made

    return noted


@cache
def found() -> tuple[list[Audit | ValueError], list[object]]:
    """What the audit finds of each, or refuses it with, and what is true of them, in order."""
    audits, truths = [], []
    asked = noting(audits, selftesting.audit), noting(truths, selftesting.truth)
    with pytest.MonkeyPatch.context() as patch:
        run_fakes(patch, *asked)
    return audits, truths


def replay_fakes(monkeypatch: pytest.MonkeyPatch, audit: Callable[..., Audit]) -> dict[str, Check]:
    """The self-test of an audit that says other words of the same truths."""
    truths = iter(found()[1])
    return run_fakes(monkeypatch, audit, lambda *_, **__: next(truths))


def saying(**words: object) -> Callable[..., Audit]:
    """An audit that finds the same facts and says these words of them."""
    facts = iter(found()[0])

    def say(*_: object, **__: object) -> Audit:
        made = next(facts)
        if isinstance(made, ValueError):
            raise made
        return with_verdict(made, **words)

    return say


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if not check.passed}


def test_a_fake_that_is_called_genuine_fails(monkeypatch):
    checks = replay_fakes(monkeypatch, saying(effect="GENUINE", claim="MASKED", doubts=()))
    assert "backward pass zero" in failed(checks)
    check = checks["backward pass zero"]
    assert str(check).startswith("FAILED: backward pass zero, the same seed: expected not GENUINE")
    assert len(check.audit.before.verified) == FEW
    # a real gain may be called one
    assert checks["images of 2 levels"].passed
    assert "expected GENUINE or no verdict" in str(checks["images of 2 levels"])


def test_a_masked_claim_that_is_called_honest_fails(monkeypatch):
    said = saying(effect="ABSTAINED", claim="HONEST", doubts=("nothing is sure",))
    assert "backward pass zero" in failed(replay_fakes(monkeypatch, said))


def test_an_audit_that_doubts_passes(monkeypatch):
    said = saying(effect="ABSTAINED", claim="MASKED", doubts=("nothing is sure",))
    assert not failed(replay_fakes(monkeypatch, said)) - {"one-hot of the decision"}


def test_a_crash_fails_and_a_refusal_passes_where_answers_depend_on_the_past(monkeypatch):
    def crash(*_: object, **__: object) -> Audit:
        raise RuntimeError("no graph\nhere")

    checks = replay_fakes(monkeypatch, crash)
    assert failed(checks) == set(NAMES)
    assert str(checks["backward pass zero"]).endswith("RuntimeError: no graph")

    def refuse(*_: object, **__: object) -> Audit:
        raise ValueError("it remembers")

    assert failed(replay_fakes(monkeypatch, refuse)) == set(NAMES) - {"answers remembered"}


def test_what_is_tried_in_another_process_says_the_same(tmp_path):
    net = small()
    fakes = (Given(net, (), ra.data("digits/train[:200]"), EPS.eps),)
    trial = selftesting._Trial(net, data()[:20], EPS, SMALL, 0, tmp_path / "b.json", fakes)
    names = [m.name for m in mechanisms(fast=True)]
    fake = selftesting._Fake(names.index("off-grid images get constant logits"), 0)
    here, there = trial(fake), pickle.loads(pickle.dumps(trial))(fake)
    assert pickle.loads(pickle.dumps(here)).title == there.title == here.title
    assert str(there) == str(here) and there.passed
    assert there.audit.after.verified.tolist() == here.audit.after.verified.tolist()
