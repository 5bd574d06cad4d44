"""Commands that go on after a stop, and `--fresh`."""

import json

import pytest

from retroact.auditing.attack_run import AttackRun
from retroact.training.hardening import _Learner

AUDIT = ("digits-cnn", "--data", "digits[:20]", "--threat", "Linf(0.1)", "--quick")
HARDEN = ("harden", "digits-cnn", "--threat", "Linf(0.1)", "--data", "digits/train[:200]")
HARDEN = (
    *HARDEN,
    "--steps",
    "14",
    "--batch",
    "50",
    "--attack-steps",
    "1",
    "--out",
    "h.safetensors",
)


@pytest.fixture
def stop(monkeypatch):
    """Notes the attacks that are run; interrupts the one that is told."""
    make, ran, at = AttackRun._make, [], [None]

    def noted(run, result, *how):
        if at[0] == len(ran):
            raise KeyboardInterrupt
        ran.append(result.title)
        return make(run, result, *how)

    monkeypatch.setattr(AttackRun, "_make", noted)
    return ran, at


def test_an_audit_goes_on_where_it_was_interrupted(call, stop, tmp_path, brief):
    ran, at = stop
    words = ("audit", AUDIT[0], "SReLU(2.0)", *AUDIT[1:], "--executor", "Serial()")
    _, whole, _ = call(*words)
    count = len(ran)
    ran.clear()
    at[0] = 2
    code, _, err = call(*words, "--store", "a.sqlite")
    assert code == 130 and "the attacks that were done are in a.sqlite" in err
    at[0] = None
    code, out, _ = call(*words, "--store", "a.sqlite")
    assert code == 0 and len(ran) == count
    assert [line for line in out.splitlines() if " s" not in line] == [
        line for line in whole.splitlines() if " s" not in line
    ]
    ran.clear()
    assert call(*words, "--store", "a.sqlite", "--fresh")[0] == 0 and len(ran) == count
    code, _, err = call(*words, "--fresh")
    assert code == 2 and "--fresh starts anew what --store keeps, and none is given" in err


def test_a_check_goes_on_where_it_was_interrupted(call, stop, monkeypatch, brief):
    ran, at = stop
    monkeypatch.setenv("RETROACT_STORE", "c.sqlite")
    at[0] = 2
    code, _, err = call("check", *AUDIT)
    assert code == 130 and "c.sqlite" in err
    at[0] = None
    assert call("check", *AUDIT)[0] == 0
    assert ran[0] == "claimed" and ran.count("claimed") == 1


def test_a_hardening_goes_on_where_it_was_interrupted(call, tmp_path, monkeypatch):
    loss, steps = _Learner._loss, []

    def noted(self, rows, seed, share):
        if len(steps) == 12:
            steps.append("stopped")
            raise KeyboardInterrupt
        steps.append(seed)
        return loss(self, rows, seed, share)

    monkeypatch.setattr(_Learner, "_loss", noted)
    code, _, err = call(*HARDEN)
    assert code == 130 and "all but its last 10 steps are in checkpoints/h" in err
    code, out, _ = call(*HARDEN, "--json")
    assert code == 0 and json.loads(out)["learned"]
    assert steps[-4:] == [10, 11, 12, 13] and len(steps) == 12 + 1 + 4
    kept = tmp_path / "checkpoints" / "h"
    assert not kept.exists()
    kept.mkdir(parents=True)
    (kept / "theirs.pt").write_bytes(b"of somebody's own")
    assert call(*HARDEN, "--fresh")[0] == 0
    assert [path.name for path in kept.iterdir()] == ["theirs.pt"]
    assert call(*HARDEN[:-2], "--fresh")[0] == 2


def test_a_sweep_begins_anew_where_it_is_told(call):
    words = ("sweep", "--net", "digits-cnn", "--attack", "FGSM", "--threat", "Linf(0.1)")
    words = (*words, "--data", "digits[:20]", "--store", "s.sqlite", "--workers", "1", "--json")
    _, first, _ = call(*words)
    _, again, _ = call(*words)
    _, anew, _ = call(*words, "--fresh")
    told = [json.loads(out)[0] for out in (first, again, anew)]
    assert told[0] == told[1]
    assert {k: v for k, v in told[2].items() if "second" not in k and k != "written"} == {
        k: v for k, v in told[0].items() if "second" not in k and k != "written"
    }
