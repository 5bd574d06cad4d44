"""A network that draws: what falls is wrong by more than chance, and whoever looks often enough at
means over few draws is not misled."""

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.auditing import attack_run
from retroact.auditing.battery import Battery
from retroact.auditing.chance import SURE, Chance
from retroact.crafting.expectation import Expectation
from retroact.crafting.goals import BeyondChance, view_of

SMALL = Battery(steps=8, targets=2, targeted_steps=8, finish=8, trial_steps=0, sample=8, queries=0)


class NoisyLogits(nn.Module):
    """A net whose mean over draws is the net itself."""

    def __init__(self, net: nn.Module, deviation: float) -> None:
        super().__init__()
        self.net, self.deviation = net, deviation

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return z + self.deviation * torch.randn_like(z)


def test_the_true_class_is_ahead_by_so_much():
    logits, labels = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0, 1])
    view = view_of(BeyondChance(1.5))
    assert view is not None and view(logits, labels).tolist() == [[2.5, 2.0], [0.0, 0.5]]


def test_the_error_of_a_mean_is_that_of_its_margin():
    net, x = nn.Linear(3, 2), torch.rand(32, 3)
    mean = Expectation(NoisyLogits(net, 0.7), 50)
    expected = 0.7 * 2**0.5 / 50**0.5
    errors = mean.errors_of(x, torch.zeros(32).long())
    assert float(errors.median()) == pytest.approx(expected, rel=0.15)
    assert Expectation(net, 50).errors_of(x, torch.zeros(32).long()).tolist() == [0.0] * 32


def test_the_judge_sees_more_draws_and_none_of_the_attackers():
    mean = Expectation(NoisyLogits(nn.Linear(3, 2), 1.0), 4, seed=7)
    judge = Chance(mean, 0.1).judge
    assert judge.draws == SURE * 4 and judge.seed != mean.seed and judge.net is mean.net


def test_chance_is_what_it_is_where_the_attack_ended():
    """A network that draws much on clean examples and nothing elsewhere gains nothing by it."""

    class Loud(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.cat([x, 1 - x], 1)
            return z + torch.where(x > 0.5, 40.0, 0.0) * torch.randn_like(z)

    clean, attacked = torch.full((40, 1), 0.9), torch.full((40, 1), 0.45)
    labels = torch.zeros(40).long()
    chance = Chance.of(Expectation(Loud(), 10), ra.Images(clean, labels, torch.arange(40)))
    assert chance.error > 5
    assert (chance.decide(attacked, labels) == 1).all()


def test_a_network_whose_mean_is_the_plain_one_withstands_what_that_does(monkeypatch):
    plain, data = ra.load("digits-cnn"), ra.data("digits[:24]")
    noisy = NoisyLogits(plain, 8.0)
    how = {"draws": 4, "battery": SMALL, "kernels": ()}
    made = ra.audit(plain, noisy, data, ra.Linf(0.05), **how)
    assert abs(made.verdict.counts.verified_gain) <= 3 / 24
    # a judge that sees as many draws as the attacks do finds many to be fooled
    monkeypatch.setattr(attack_run, "Chance", _Credulous)
    credulous = ra.audit(plain, noisy, data, ra.Linf(0.05), **how)
    assert credulous.after.verified.sum() < made.after.verified.sum() - 5


class _Credulous(Chance):
    @classmethod
    def of(cls, mean, data, aimed=None):
        return cls(mean, 0.0, aimed)

    @property
    def judge(self) -> Expectation:
        return self.mean
