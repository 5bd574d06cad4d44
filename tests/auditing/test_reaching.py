"""A gain by a front end that blinds attacks is told by what stands in all that it can give, where
nothing behind it blinds them too."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.auditing import doubts
from retroact.auditing.attack_run import Conditions, Some
from retroact.auditing.audit import Audit
from retroact.auditing.battery import QUICK
from retroact.auditing.doubts import Doubts
from retroact.auditing.indicators import FirstLook, indicators
from retroact.auditing.mechanisms.mechanism import Front
from retroact.crafting.domain import domain_of
from retroact.crafting.reach import find_reaches
from retroact.evaluation.proof import leave_as_is

EPS = ra.Linf(0.1)


def coarse(x: Tensor) -> Tensor:
    """Two levels by numpy, whose edges lie within the cube of few pixels."""
    return torch.from_numpy((x.detach().numpy() > 0.55).astype("float32")).to(x)


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Tampered(nn.Module):
    """A network whose first features go the wrong way."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(Negated.apply(x))
        return out


def black_and_white(n: int) -> ra.Images:
    digits = ra.data(f"digits[:{n}]")
    return ra.Images.of((digits.images > 0.55).float(), digits.labels)


def audit(after: nn.Module) -> Audit:
    return ra.audit(ra.load("digits-cnn"), after, black_and_white(80), EPS, battery="quick")


def test_what_stands_in_all_that_a_front_end_can_give_is_a_gain(monkeypatch):
    made = audit(Front(ra.load("digits-cnn"), coarse))
    assert made.verdict.effect == "GENUINE" and not made.verdict.doubts, str(made)
    said = made.numbers().reach
    assert said.endswith("that stand do so within all that its front end can give")
    assert said in str(made) and made.numbers().to_json()["reach"] == said
    assert type(made.numbers()).from_json(made.numbers().to_json()).reach == said
    monkeypatch.setattr(doubts, "find_reaches", lambda *_: iter(()))
    unasked = audit(Front(ra.load("digits-cnn"), coarse))
    assert unasked.verdict.effect == "ABSTAINED" and unasked.numbers().reach == ""


def fires(network: nn.Module) -> list[tuple[tuple[str, ...], bool]]:
    """By place, whether an indicator fires behind it."""
    data = ra.data("digits[:40]")
    under = Conditions(data, EPS, 10)
    asked = SimpleNamespace(under=under, battery=QUICK)
    some = Some.of(under, torch.arange(40))
    plain = FirstLook(leave_as_is(ra.load("digits-cnn")), data.images, data.labels, data.index, EPS)
    readings = [
        SimpleNamespace(title=i.title, before=i.function(plain, plain)[1], fired=False)
        for i in indicators()
    ]
    found = find_reaches(network, some.images, some.index, EPS, domain_of(data))
    return [(r.behind.place, Doubts._fire_behind(asked, r, some, readings)) for r in found]


def rounded(x: Tensor) -> Tensor:
    return ((32 * x).round() / 32).detach()


@pytest.mark.parametrize("blind", [Tampered, lambda net: Front(net, rounded)])
def test_what_blinds_attacks_is_no_answer_in_front_of_itself(blind):
    normalised = ra.Classifier(ra.load("digits-cnn").module, 0.0, 0.5, shape=(1, 8, 8))
    behind = dict(fires(Front(blind(normalised), lambda x: 0.5 * x + 0.01)))
    assert behind[("net",)]  # all that blinds lies behind it
    assert not behind[("net.net.module",)]  # and nothing behind that


def test_a_jump_among_the_activations_is_heard_behind_every_place():
    jumped = ra.retrofit(ra.load("digits-cnn"), ra.JumpReLU(0.5))
    behind = fires(Front(jumped, rounded))
    assert behind and all(fired for _, fired in behind)
    assert not dict(fires(Front(ra.load("digits-cnn"), rounded)))[("net",)]
