"""A student of a network's answers: it learns them, repeats, and shows a way that the network does
not."""

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.attacks.momentum import Momentum
from retroact.auditing import subjects
from retroact.crafting.domain import Domain
from retroact.crafting.driver import craft
from retroact.crafting.student import train_student
from retroact.evaluation.evaluate import decide

DOMAIN, EPS = Domain((1, 8, 8)), ra.Linf(0.1)


class Hard(nn.Module):
    """The decision alone, without a graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.net(x).argmax(1), 10).float()


@pytest.fixture(scope="module")
def data() -> ra.Images:
    return ra.data("digits/validation[:100]")


def learn(teacher, start, data) -> nn.Module:
    return train_student(teacher, start, data.images, data.index, EPS, DOMAIN)


def broken(net, data, source) -> int:
    found = craft(
        Momentum(20), net, data.images, data.labels, data.index, EPS, source=source, domain=DOMAIN
    )
    right = decide(net, data.images) == data.labels
    return int((right & (decide(net, found.x_adv) != data.labels)).sum())


@pytest.fixture(scope="module")
def from_scratch(plain, data) -> nn.Module:
    """What is learned where the start has no gradient, so that none is taken."""
    return learn(Hard(plain), Hard(plain), data)


def test_a_student_from_scratch_breaks_what_shows_no_way(plain, data, from_scratch):
    net = Hard(plain)
    assert not isinstance(from_scratch, Hard)
    agree = (decide(from_scratch, data.images) == decide(net, data.images)).float().mean()
    assert agree > 0.9
    least = broken(plain, data, plain)
    assert least > 20 and broken(net, data, from_scratch) > 0.4 * least


def test_a_start_with_a_gradient_is_copied_and_left_alone(plain, data):
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    student = learn(Hard(plain), plain, data)
    assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())
    assert {k for k, _ in student.named_parameters()} == {k for k, _ in plain.named_parameters()}
    assert broken(Hard(plain), data, student) > 0.9 * broken(plain, data, plain)


def test_it_is_the_same_again_whatever_the_generators_say(plain, data, from_scratch):
    torch.manual_seed(5)
    again = learn(Hard(plain), None, data)
    pairs = zip(from_scratch.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_audit_asks_for_a_student_where_nothing_else_answers(plain, data, monkeypatch):
    monkeypatch.setattr(subjects, "_derive", lambda *_: subjects._NOTHING)
    monkeypatch.setattr(subjects, "_stand_in", lambda *_: ())
    given = ra.audit(plain, Hard(plain), data, EPS, battery="quick")
    taught = [a for a in given.after.attacks if "student" in a.title]
    assert [bool(a.asked_by) for a in taught] == [True, True]
    assert sum(a.broken for a in taught) > 0
    assert not [a for a in given.before.attacks if "student" in a.title]
