"""A stored network before: read and not attacked again, and never one that it is not."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import retroact as ra
from retroact.auditing.attack_run import AttackRun
from retroact.auditing.baseline import StoredSideError
from retroact.auditing.battery import Battery

EPS = ra.Linf(0.1)
LITTLE = Battery(
    steps=4,
    targets=2,
    targeted_steps=4,
    finish=4,
    trial_steps=3,
    sample=12,
    queries=20,
    points=16,
    alarmed_finish=4,
)


def audit(path, after="JumpReLU(1.0)", before="digits-cnn", data="digits[:24]", **how):
    how = {"battery": LITTLE, "threat": EPS, "claimed": "PGD(steps=4)"} | how
    return ra.audit(before, after, data, baseline=path, **how)


@pytest.fixture
def attacked(monkeypatch):
    """The networks on which the claimed attack was run, with which every battery begins."""
    run, nets = AttackRun.attempt, []

    def attempt(self, title, role, attack, climb, **how):
        if title == "claimed":
            nets.append(getattr(climb.on.network, "retrofit", None))
        return run(self, title, role, attack, climb, **how)

    monkeypatch.setattr(AttackRun, "attempt", attempt)
    return nets


def equal(one, other):
    for name in ("clean", "claimed", "verified", "broken_by"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert one.attacks == other.attacks and one.kernel == other.kernel
    for a, b in zip(one.examples, other.examples, strict=True):
        assert (a.row, a.label, a.decided, a.by, a.role, a.turn) == (
            *(b.row, b.label, b.decided, b.by, b.role, b.turn),
        )
        assert np.array_equal(a.x_adv, b.x_adv) and np.array_equal(a.image, b.image)


def test_the_network_before_is_attacked_once_and_its_number_stays(tmp_path, attacked):
    path = tmp_path / "before.json"
    first = audit(path)
    assert [net is None for net in attacked] == [True, False]
    assert not first.before.stored and "baseline" not in first.numbers().pedigree.to_json()
    again = audit(path)
    assert [net is None for net in attacked[2:]] == [False]
    equal(first.before, again.before)
    assert again.before.stored and again.verdict.counts == first.verdict.counts
    assert again.numbers().pedigree.to_json()["baseline"] == again.before.stored
    # another partner, another seed, another margin: the same number
    other = audit(path, "JumpReLU(0.3)", seed=5, margin=0.1)
    equal(first.before, other.before)
    kept = json.loads(path.read_text())["baselines"]
    assert list(kept) == [again.before.stored]
    said = kept[again.before.stored]
    assert said["verified"] == first.verdict.counts.verified[0] and said["n"] == 24
    assert said["weights"] == first.fingerprints.weights.before and said["battery_version"] >= 2
    assert ra.verify(ra.write_evidence(again, tmp_path / "evidence")).holds


def test_what_the_number_depends_on_is_in_the_key(tmp_path):
    path = tmp_path / "before.json"
    asked = partial(audit, path, kernels=[])  # which is quick: nothing is derived
    net = ra.load("digits-cnn")
    with torch.no_grad():
        next(net.parameters()).mul_(1.0001)
    plain = asked("ReLU")
    others = [
        asked("ReLU", data="digits[1:25]"),
        asked("ReLU", kernels=None),
        asked("ReLU", threat=ra.Linf(0.09)),
        asked("ReLU", claimed="PGD(steps=5)"),
        asked("ReLU", battery=ra.parse("Battery(steps=5, finish=0, queries=0, points=50)")),
        asked("ReLU", before=net),
        asked("digits-cnn", before=ra.retrofit(ra.load("digits-cnn"), ra.SReLU(2.0))),
    ]
    assert not any(made.before.stored for made in (plain, *others))
    assert len(json.loads(path.read_text())["baselines"]) == 1 + len(others)
    assert asked("ReLU").before.stored


class Code(nn.Module):
    """A network whose code can change under the same weights."""

    flipped = False

    def __init__(self):
        super().__init__()
        self.inner = ra.load("digits-cnn")

    def forward(self, x):
        return self.inner((x * 4).round() / 4 if self.flipped else x)


def test_other_code_under_the_same_weights_is_refused(tmp_path):
    path, net = tmp_path / "before.json", Code()
    audit(path, Code(), before=net)
    assert audit(path, Code(), before=net).before.stored
    net.flipped = True
    with pytest.raises(StoredSideError, match="its code has changed"):
        audit(path, Code(), before=net)


def test_what_is_no_baseline_says_so(tmp_path):
    path = tmp_path / "before.json"
    for text in ("no JSON", "[]", '{"format": 9, "baselines": {}}'):
        path.write_text(text)
        with pytest.raises(StoredSideError, match="holds no baselines"):
            audit(path)
    path.unlink()
    with pytest.raises(StoredSideError, match="no folder"):
        audit(tmp_path / "nowhere" / "before.json")
    inner = ra.load("digits-cnn")
    with pytest.raises(StoredSideError, match="that has weights"):
        audit(path, inner, before=lambda x: inner(x))


def test_images_that_are_gone_are_made_again_and_damaged_ones_refused(tmp_path):
    path = tmp_path / "before.json"
    first = audit(path)
    (file,) = tmp_path.glob("before.*.safetensors")
    file.unlink()
    again = audit(path)
    assert not again.before.stored and file.exists()
    equal_but_for_time = [(a.title, a.broken) for a in again.before.attacks]
    assert equal_but_for_time == [(a.title, a.broken) for a in first.before.attacks]
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(StoredSideError, match="holds no side"):
        audit(path)
