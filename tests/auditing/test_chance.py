"""A network that draws: what falls is wrong by more than chance, and whoever looks often enough at
means over few draws is not misled."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from little import two_layers
from torch import Tensor, nn

import retroact as ra
from retroact.auditing import attack_run
from retroact.auditing import indicators as indicators_of
from retroact.auditing.battery import Battery
from retroact.auditing.chance import FINAL, SURE, Chance, judges_of
from retroact.auditing.indicators import FirstLook, indicators
from retroact.crafting.expectation import Expectation, same_draws
from retroact.crafting.goals import BeyondChance, view_of
from retroact.evaluation.proof import leave_as_is

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
    first, last = judges_of(mean)
    assert Chance(mean, 0.1).judge.seed == first.seed
    assert (first.draws, last.draws) == (SURE * 4, FINAL * 4)
    assert len({mean.seed, first.seed, last.seed}) == 3
    assert first.net is last.net is mean.net


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


def test_images_that_are_lucky_together_are_judged_twice():
    """Of a network that draws once for a batch, all of it is ahead by luck in some of the means."""

    class Together(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x - 0.15 + torch.randn(())], 1)

    x, labels = torch.full((8, 1), 0.5), torch.zeros(8).long()
    hits = []
    for seed in range(150):
        chance = Chance(Expectation(Together(), 4, seed=7 * seed), 0.5)
        with torch.no_grad():
            once = chance.judge(x).diff(dim=1).flatten() > 0
        hits.append((bool(once.all()), bool((chance.decide(x, labels) == 1).all())))
    single, double = (sum(column) / len(hits) for column in zip(*hits, strict=True))
    assert 0.1 < single < 0.25 and double < 0.03


def test_what_is_wrong_by_little_stays_wrong():
    x, labels = torch.full((50, 1), 0.5), torch.zeros(50).long()
    slightly = NoisyLogits(nn.Linear(1, 2), 0.1)
    with torch.no_grad():
        slightly.net.weight.zero_()
        slightly.net.bias.copy_(torch.tensor([0.0, 0.05]))
    assert (Chance(Expectation(slightly, 20), 0.5).decide(x, labels) == 1).all()


class Dropped(nn.Module):
    """A net that sees a share of its pixels, others each time, by a backward pass of one's own."""

    def __init__(self, net: nn.Module, blind: bool) -> None:
        super().__init__()
        self.net, self.blind = net, blind

    def forward(self, x: Tensor) -> Tensor:
        seen = x * (torch.rand_like(x) > 0.2)
        if self.blind:  # half of the image hands no gradient back
            left, right = seen.chunk(2, -1)
            seen = torch.cat([left.detach(), right], -1)
        return self.net(seen)


def heard(net: nn.Module, data: ra.Images) -> set[str]:
    """What fires on the mean of a net that draws, beside the plain one, of jumps and gradients."""
    points = data.images, data.labels, data.index, ra.Linf(0.1)
    both = two_layers(), Expectation(net, 6)
    before, after = (FirstLook(leave_as_is(n), *points) for n in both)
    asked = [i for i in indicators() if i.mechanism in ("jump", "wrong gradient")]
    return {i.title for i in asked if i(after, before).fired}


@pytest.mark.parametrize("n", [20, 70])  # beside the 50 points of which random directions are asked
def test_alarms_do_not_hear_the_draws_and_hear_what_is_wrong_beside_them(n, monkeypatch):
    plain, data = two_layers(), ra.data(f"digits[:{n}]")
    assert heard(Dropped(plain, blind=False), data) == set()
    assert heard(Dropped(plain, blind=True), data) >= {"random directions", "single entries"}
    monkeypatch.setattr(indicators_of, "same_draws", nullcontext)
    assert heard(Dropped(plain, blind=False), data)


def test_single_entries_of_a_net_that_draws_are_asked_of_images_of_any_size():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 4))
    x, y = torch.rand(8, 3, 12, 12), torch.zeros(8).long()
    mean = Expectation(NoisyLogits(plain, 0.5), 6)
    look = FirstLook(leave_as_is(mean), x, y, torch.arange(8), ra.Linf(0.1))
    at, found, foretold = look.entries
    assert at.shape == found.shape and found.shape[1] < 3 * 12 * 12  # some of the entries
    torch.testing.assert_close(found, foretold, atol=1e-3, rtol=1e-2)
    assert look.missing == 0


def test_draws_are_the_same_within_the_block_alone():
    mean = Expectation(NoisyLogits(nn.Linear(3, 2), 1.0), 3)
    x, y = torch.rand(2, 4, 3)
    with same_draws():
        noise = mean(x) - mean.net.net(x)
        torch.testing.assert_close(mean(y) - mean.net.net(y), noise)
    assert (mean(y) - mean.net.net(y) - noise).abs().max() > 0.1


def test_a_network_whose_mean_is_the_plain_one_withstands_what_that_does(monkeypatch):
    plain, data = two_layers(), ra.data("digits[:24]")
    noisy = NoisyLogits(plain, 8.0)
    how = {"draws": 4, "battery": replace(SMALL, alarmed_finish=8), "kernels": ()}
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

    def decide(self, x, labels, chunk=None):
        return self._decide(self.judge, x, labels, chunk)
