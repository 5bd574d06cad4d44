"""A stored network before: read and not attacked again, and never one that it is not."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import retroact as ra
from retroact.auditing.attack_run import AttackRun
from retroact.auditing.baseline import StoredSideError
from retroact.auditing.battery import Battery
from retroact.auditing.indicators import indicators

EPS = ra.Linf(0.1)
LITTLE = Battery(
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


def audit(path, after="JumpReLU(1.0)", before="digits-cnn", data="digits[:24]", **how):
    how = {"battery": LITTLE, "threat": EPS, "claimed": "PGD(steps=2)"} | how
    return ra.audit(before, after, data, baseline=path, **how)


def note_attacked(monkeypatch):
    """The networks on which the claimed attack is run from now on, with which every battery
    begins."""
    run, nets = AttackRun.attempt, []

    def attempt(self, title, role, attack, climb, **how):
        if title == "claimed":
            nets.append(getattr(climb.on.network, "retrofit", None))
        return run(self, title, role, attack, climb, **how)

    monkeypatch.setattr(AttackRun, "attempt", attempt)
    return nets


@pytest.fixture
def attacked(monkeypatch):
    return note_attacked(monkeypatch)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The first audit, the networks that it attacked, and the folder of what it kept."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        nets = note_attacked(patch)
        return audit(folder / "before.json"), list(nets), folder


@pytest.fixture
def path(begun, tmp_path):
    """The file of the network before, as the first audit left it."""
    shutil.copytree(begun[2], tmp_path / "kept")
    return tmp_path / "kept" / "before.json"


def equal(one, other):
    for name in ("clean", "claimed", "verified", "broken_by"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert one.attacks == other.attacks and one.kernel == other.kernel
    for a, b in zip(one.examples, other.examples, strict=True):
        assert (a.row, a.label, a.decided, a.by, a.role, a.turn) == (
            *(b.row, b.label, b.decided, b.by, b.role, b.turn),
        )
        assert np.array_equal(a.x_adv, b.x_adv) and np.array_equal(a.image, b.image)


def test_the_network_before_is_attacked_once_and_its_number_stays(begun, path, tmp_path, attacked):
    first, nets, _ = begun
    assert [net is None for net in nets] == [True, False]
    assert not first.before.stored and "baseline" not in first.numbers().pedigree.to_json()
    again = audit(path)
    assert [net is None for net in attacked] == [False]
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


@pytest.fixture
def one_look(monkeypatch):
    """One indicator looks before the attacks, for what is not about what they see."""
    monkeypatch.setattr("retroact.auditing.audit.indicators", lambda: indicators()[:1])


class Attacked(BaseException):
    pass


def test_what_the_number_depends_on_is_in_the_key(tmp_path, monkeypatch, one_look):
    path = tmp_path / "before.json"
    asked = partial(audit, path, kernels=[])  # which is quick: nothing is derived
    net = ra.load("digits-cnn")
    with torch.no_grad():
        next(net.parameters()).mul_(1.0001)
    assert not asked("ReLU").before.stored
    others = [
        ("ReLU", {"data": "digits[1:25]"}),
        ("ReLU", {"kernels": None}),
        ("ReLU", {"threat": ra.Linf(0.09)}),
        ("ReLU", {"claimed": "PGD(steps=5)"}),
        ("ReLU", {"battery": replace(LITTLE, finish=0)}),
        ("ReLU", {"before": net}),
        ("digits-cnn", {"before": ra.retrofit(ra.load("digits-cnn"), ra.SReLU(2.0))}),
    ]
    with monkeypatch.context() as patch:

        def attempt(self, title, role, attack, climb, **how):
            assert climb.on.network is before  # else it was found, and the next is attacked
            raise Attacked

        patch.setattr(AttackRun, "attempt", attempt)
        for after, how in others:
            before = how.setdefault("before", ra.load("digits-cnn"))
            with pytest.raises(Attacked):
                asked(after, **how)
    asked("ReLU", data="digits[1:25]")
    assert len(json.loads(path.read_text())["baselines"]) == 2
    assert asked("ReLU").before.stored


class Code(nn.Module):
    """A network whose code can change under the same weights."""

    flipped = False

    def __init__(self):
        super().__init__()
        self.inner = ra.load("digits-cnn")

    def forward(self, x):
        return self.inner((x * 4).round() / 4 if self.flipped else x)


def test_other_code_under_the_same_weights_is_refused(tmp_path, one_look):
    path, net = tmp_path / "before.json", Code()
    asked = partial(audit, path, Code(), before=net, kernels=[])
    asked()
    assert asked().before.stored
    net.flipped = True
    with pytest.raises(StoredSideError, match="its code has changed"):
        asked()


def test_what_is_no_baseline_says_so(tmp_path):
    path = tmp_path / "before.json"
    asked = partial(audit, kernels=[])
    for text in ("no JSON", "[]", '{"format": 9, "baselines": {}}'):
        path.write_text(text)
        with pytest.raises(StoredSideError, match="holds no baselines"):
            asked(path)
    path.unlink()
    with pytest.raises(StoredSideError, match="no folder"):
        asked(tmp_path / "nowhere" / "before.json")
    inner = ra.load("digits-cnn")
    with pytest.raises(StoredSideError, match="that has weights"):
        asked(path, inner, before=lambda x: inner(x))


def test_images_that_are_gone_are_made_again_and_damaged_ones_refused(begun, path):
    first = begun[0]
    (file,) = path.parent.glob("before.*.safetensors")
    file.unlink()
    again = audit(path)
    assert not again.before.stored and file.exists()
    equal_but_for_time = [(a.title, a.broken) for a in again.before.attacks]
    assert equal_but_for_time == [(a.title, a.broken) for a in first.before.attacks]
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(StoredSideError, match="holds no side"):
        audit(path)
