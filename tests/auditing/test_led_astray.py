"""Networks whose margin rises with the size of their logits rather than with what decides: seen,
climbed around, and never praised or blamed for it."""

from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from little import two_layers as plain
from torch import Tensor, nn

import retroact as ra
from retroact.auditing import subjects
from retroact.auditing.attack_run import Conditions
from retroact.auditing.audit import Audit
from retroact.auditing.battery import Battery
from retroact.auditing.doubts import Doubts
from retroact.auditing.indicators import FirstLook, indicators
from retroact.auditing.subjects import INNER, Subject
from retroact.evaluation.proof import leave_as_is

LINF = ra.Linf(0.1)


class Digits(nn.Module):
    """A digits net in one function, so that no module of it gives the plain logits."""

    def __init__(self, net: nn.Sequential, how: str) -> None:
        super().__init__()
        self.how = how
        self.weights = nn.ParameterList([net[1].weight, net[3].weight])
        self.biases = nn.ParameterList([net[1].bias, net[3].bias])

    def forward(self, x: Tensor) -> Tensor:
        (a, b), (c, d) = self.weights, self.biases
        z = F.linear(F.relu(F.linear(x.flatten(1), a, c)), b, d)
        top = z.topk(2, 1).values
        gap = top[:, :1] - top[:, 1:]
        if self.how == "cooler where sure":
            return z / (1 + (gap / 2).square())
        if self.how == "cooler by a sum":
            signs = torch.arange(64).remainder(2).mul(2).sub(1).to(x)
            return z * torch.exp(-2.0 * (x.flatten(1) @ signs)[:, None])
        largest = F.one_hot(z.argmax(1), 10).to(z)
        if self.how == "surer by the image":
            return z + largest * 20 * x.square().flatten(1).sum(1, keepdim=True)
        return z + largest * F.relu(2 * (9 - gap))


HOWS = ("cooler where sure", "cooler by a sum", "surer by the image", "mirrored")


def now(*some: str) -> list[object]:
    """All of them, but only some in every run: the others are met there in another test."""
    return [how if how in some else pytest.param(how, marks=pytest.mark.long) for how in HOWS]


@cache
def made(before: str, after: str) -> Audit:
    """A network of another seed after one of the first, each as it is or led astray, or the first
    one alone (after: "itself")."""
    old = Digits(plain(), before) if before else plain()
    new = plain() if after == "itself" else Digits(plain(1), after)
    return ra.audit(old, new, ra.data("digits[:80]"), LINF, battery="quick")


@cache
def bare() -> Audit:
    return ra.audit(plain(), plain(1), ra.data("digits[:80]"), LINF, battery="quick")


@pytest.mark.parametrize("how", HOWS)
def test_it_decides_as_the_plain_one_and_withstands_no_more(how):
    x = ra.data("digits[:80]").images
    assert torch.equal(Digits(plain(1), how)(x).argmax(1), plain(1)(x).argmax(1))
    audit = made("", how)
    assert "misled margin" in [r.title for r in audit.readings if r.fired]
    assert audit.verdict.effect != "GENUINE"
    after, expected = (a.verdict.counts.verified[1] for a in (audit, bare()))
    assert after <= expected + 0.03
    assert audit.verdict.counts.claimed[1] > after + 0.2  # there was something to see through


@pytest.mark.parametrize("how", now("cooler where sure", "mirrored"))
def test_two_that_are_led_astray_alike_hide_nothing(how):
    audit = made(how, how)
    expected = bare().verdict.counts.verified
    assert all(v <= e + 0.03 for v, e in zip(audit.verdict.counts.verified, expected, strict=True))
    assert audit.verdict.claim != "HONEST"


@pytest.mark.parametrize("how", now("cooler by a sum", "surer by the image"))
def test_what_is_taken_away_harms_nothing(how):
    audit = made(how, "itself")
    assert audit.verdict.effect == "NO EFFECT" and not audit.verdict.doubts
    alarms = [r.title for r in audit.readings if r.fired_before]
    assert "misled margin" in alarms


NETS = ["digits-cnn", "mnist-cnn", "lenet-mnist", "lenet-mnist-robust", "resnet20-cifar10"]
LARGE = pytest.param("resnet20-cifar10", 0.2, marks=pytest.mark.long)  # near the boundary it runs


@pytest.mark.parametrize(
    ("net", "share"), [*product(NETS[:-1], [0.2, 1.0]), (NETS[-1], 1.0), LARGE]
)
def test_it_is_silent_on_plain_networks_deep_within_and_near_the_boundary(net, share):
    name = "digits" if "digits" in net else "mnist" if "mnist" in net else "cifar10"
    eps, data = 2 / 255 if name == "cifar10" else 0.1, ra.data(f"{name}/validation[:40]")
    network = ra.load(net)
    with torch.no_grad():
        data = data.select((network(data.images).argmax(1) == data.labels).nonzero()[:, 0])
    part = data.images, data.labels, data.index
    look = FirstLook(leave_as_is(network), *part, ra.Linf(share * eps))
    ask = next(i for i in indicators() if i.title == "misled margin")
    assert not ask(look, look).fired


def test_two_classes_have_no_other_margin():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    x = ra.data("digits/validation[:30]").images
    part = x, net(x).argmax(1), torch.arange(30)
    assert FirstLook(leave_as_is(net), *part, ra.Linf(0.01)).misled == 0.0


# ------------------------------------------------------------------- what fooled the other network


def test_what_fools_both_is_a_doubt_about_the_one_whose_attacks_missed_it():
    audit = made("", "mirrored")
    net, side = plain(), audit.before
    missed = type(side)(**vars(side) | {"verified": side.clean.copy()})  # as if nothing fell
    subject = Subject(leave_as_is(net), leave_as_is(net), leave_as_is(net))
    under = Conditions(ra.data("digits[:80]"), LINF, 10)
    ask = lambda beside: list(  # noqa: E731
        Doubts(subject, missed, under, Battery(queries=0), beside)._find_shared()
    )
    (said,) = ask(side)
    fell = len(side.examples)
    assert said.startswith(f"{fell} of {fell} that it withstood and the other network did not")
    assert ask(None) == []
    honest = Doubts(subject, side, under, Battery(queries=0), side)
    assert list(honest._find_shared()) == []


# -------------------------------------------------------------------------- where nothing is traced


class Branches(nn.Module):
    """A network that looks at its values first, so that no trace is made of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (2.0 if float(x.detach().sum()) < 0 else 1.0)


@pytest.fixture
def led() -> nn.Module:
    """Led astray, and robust to what goes around it without looking inside."""
    return Branches(Digits(plain(1), "mirrored"))


def test_scores_inside_are_climbed_as_the_network_runs(led):
    audit = ra.audit(plain(), led, ra.data("digits[:80]"), LINF, battery="quick")
    assert audit.verdict.counts.verified[1] <= bare().verdict.counts.verified[1] + 0.03
    assert audit.verdict.effect != "GENUINE" and not audit.verdict.doubts
    broke = {a.kernel for a in audit.after.attacks if a.broken > 1}
    assert INNER in broke


def test_what_goes_around_it_alone_is_no_answer(led, monkeypatch):
    monkeypatch.setattr(subjects, "watch_inside", lambda *_: None)
    audit = ra.audit(plain(), led, ra.data("digits[:80]"), LINF, battery="quick")
    assert audit.verdict.counts.verified[1] > bare().verdict.counts.verified[1]
    assert audit.verdict.effect == "ABSTAINED"
    assert any("misled margin" in doubt for doubt in audit.verdict.doubts)
