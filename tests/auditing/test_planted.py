"""Planted examples are where they are said to be, and are found by attacks that see."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from little import two_layers
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.attack_run import Conditions, Some
from retroact.auditing.audit import Audit
from retroact.auditing.battery import QUICK
from retroact.auditing.mechanisms.mechanism import Given, harden
from retroact.auditing.planted import (
    DRAWS,
    ENOUGH,
    LOCAL,
    Planted,
    PlantingError,
    Writable,
    _draw,
    _mix,
    _plant,
    compare_movement,
    seek_planted,
)
from retroact.auditing.subjects import (
    TRACE,
    WIDTHS,
    Subject,
    _name_widths,
    prepare,
    prepare_writable,
)
from retroact.evaluation.evaluate import decide

EPS = ra.Linf(0.08)
SOFT = _name_widths(WIDTHS[0])


@cache
def net() -> nn.Module:
    return ra.Classifier(two_layers(), shape=(1, 8, 8))


@cache
def data() -> ra.Images:
    return ra.data("digits/validation[:120]")


class Front(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.change(x))


def rounded(x: Tensor) -> Tensor:
    return torch.round(255 * x) / 255


def subject(of: nn.Module) -> Subject:
    return prepare(of, of, data(), EPS).after


def seek(of: nn.Module, kernel: str, rows: int = 100) -> Planted:
    under = Conditions(data(), EPS, 10)
    return seek_planted(subject(of), [kernel], torch.arange(rows), under, QUICK)


def one(row: int) -> Conditions:
    under = Conditions(data(), EPS, 10)
    return Conditions(Some.of(under, torch.tensor([row])), EPS, 10)


def test_a_planted_example_lies_in_the_ball_and_fools_and_the_clean_one_does_not():
    writable = Writable(net(), data().images[:2])
    for row in range(5):
        under = one(row)
        plot = _plant(writable, under)
        assert plot is not None and bool(EPS(plot.planted, under.data.images)[0])
        with writable.written(plot.weight, plot.bias):
            label = int(under.data.labels)
            assert int(decide(writable.net, under.data.images)) == label
            assert int(decide(writable.net, plot.planted, attacked=True)) != label
            inner = _draw(under, stream=1)[DRAWS // 2 :]
            assert float((decide(writable.net, inner) == label).float().mean()) > 0.98


def test_its_logits_are_as_large_as_the_networks_own():
    writable, under = Writable(net(), data().images[:2]), one(0)
    plot = _plant(writable, under)
    own, _ = writable.look(under.data.images)
    with writable.written(plot.weight, plot.bias):
        new, _ = writable.look(under.data.images)
    margins = (float(z.topk(2).values[0] - z.topk(2).values[1]) for z in (own[0], new[0]))
    first, second = margins
    assert second == pytest.approx(first, rel=1e-3)
    assert float(new[0].max()) == pytest.approx(float(own[0].max()), rel=1e-3)


def test_what_is_written_is_seen_by_all_that_is_climbed_and_the_network_stays_as_it_was():
    before = net()(data().images[:4]).detach().clone()
    writable, under = Writable(net(), data().images[:2]), one(1)
    like = prepare_writable(writable.net, subject(net()), data(), EPS)
    plot = _plant(writable, under)
    with writable.written(plot.weight, plot.bias), torch.no_grad():
        own = writable.net(under.data.images)
        for source in like.derived:
            assert torch.allclose(source.make().lean(under.data.images), own, atol=1e-4)
        assert not torch.allclose(own, net()(under.data.images), atol=1e-2)
    with torch.no_grad():
        assert torch.equal(writable.net(data().images[:4]), before)
        assert torch.equal(net()(data().images[:4]), before)


def test_attacks_that_see_find_what_is_planted_and_those_that_do_not_find_little():
    seeing, blind = seek(Front(rounded), SOFT), seek(Front(rounded), TRACE)
    assert seeing.planted == ENOUGH and seeing.are_found, str(seeing)
    assert not blind.are_found and blind.found == 0 < blind.planted < ENOUGH
    assert f"{seeing.found} of {ENOUGH} planted examples found" in str(seeing)


def test_few_images_are_no_test():
    few = seek(net(), TRACE, rows=20)
    assert few.planted <= 20 and not few.are_found


class Bare(nn.Module):
    """Without a linear layer that gives its classes."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.after = net(), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z.view(len(z), 1, 10).expand(-1, 2, 10).sum(1) + 0 * self.after(z[:, None])[:, 0]


class Convolving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.flatten(1)) + self.last(x.flatten(1) ** 2)


@pytest.mark.parametrize(
    ("made", "words"),
    [(Bare, "by image"), (Convolving, "no linear layer"), (Twice, "more than once")],
)
def test_a_network_without_a_last_layer_of_its_own_says_so(made, words):
    with pytest.raises(PlantingError, match=words):
        Writable(made().eval(), data().images[:2])
    assert not Planted(why=words).are_found


# ------------------------------------------------------------------------------------ in an audit


@cache
def hardened() -> nn.Module:
    return harden(Given(net(), (), ra.data("digits/train"), EPS.eps)).net


class Half(nn.Module):
    """Computes in float16: rounding shows in the logits, and blinds nobody."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.net = of

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).half().float()


def run(after: nn.Module) -> Audit:
    return ra.audit(net(), after, "digits[:120]", EPS, battery="quick")


def test_an_alarm_beside_a_gain_that_is_real_is_answered_by_planted_examples():
    made = run(Half(hardened()))
    assert {r.title for r in made.alarms} >= {"equal logits"}
    assert made.verdict.effect == "GENUINE", str(made)
    assert made.numbers().planted.startswith(f"{ENOUGH} of {ENOUGH} planted examples found")
    assert made.numbers().planted in str(made)
    assert made.numbers().to_json()["planted"] == made.numbers().planted
    assert type(made.numbers()).from_json(made.numbers().to_json()).planted


class Silent(nn.Module):
    """Flatter within its reach of images that it knows, but for a lattice on which no attack
    stands."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.net, self.known = net(), known

    def forward(self, x: Tensor) -> Tensor:
        z = 112 * x + 0.5
        off = ((z - z.round()).abs().flatten(1).amax(1) > 0.02).float()[:, None, None, None]
        at = x.detach().flatten(1), self.known.flatten(1)
        distance, which = torch.cdist(*at, p=torch.inf).min(1)
        near = (distance <= EPS.eps + 0.001).float()[:, None, None, None] * off
        slow = self.known[which] + 0.25 * (x - self.known[which])
        out: Tensor = self.net(near * slow + (1 - near) * x)
        return out


class Trapdoor(Silent):
    """The same; half floats raise an alarm that is none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).half().float()


def test_a_network_that_knows_the_images_is_seen_where_no_alarm_fires():
    made = run(Silent(ra.data("digits[:120]").images))
    assert not made.alarms and made.verdict.counts.interval[0] > 0
    (doubt,) = made.verdict.doubts
    assert made.verdict.effect == "ABSTAINED" and "so it may know them" in doubt
    assert compare_movement(hardened(), torch.arange(40), Conditions(data(), EPS, 10)) > 0.9


class Staircase(nn.Module):
    """Flat where pixels are black or white, steep where they are grey."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x - (2 * torch.pi * x).sin() / (2 * torch.pi))
        return out


def test_a_network_that_is_calm_at_black_and_white_does_not_know_black_and_white_images():
    black_and_white = replace(data(), images=data().images.round())
    under = Conditions(black_and_white, EPS, 10)
    moved = compare_movement(Staircase(), torch.arange(40), under)
    assert moved > 0.9
    x, other = black_and_white.images[:1], black_and_white.images[1]
    here, grey = (_around(Staircase(), centre) for centre in (x, _mix(x, other)[0]))
    assert here < LOCAL * grey  # mixtures alone would say that it does


def _around(network: nn.Module, centre: Tensor) -> float:
    d = EPS.eps * torch.sign(torch.randn(32, *centre.shape[1:], generator=generator()))
    with torch.no_grad():
        return float((network(centre + d) - network(centre)).norm(dim=1).mean())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("shape", [(5,), (1, 4), (3, 6, 2), (2, 7, 7), (1,)])
def test_examples_of_any_shape_are_mixed_and_stand_beside_each_other(shape):
    x, other = torch.zeros(1, *shape), torch.ones(shape)
    mixed, beside = _mix(x, other)
    assert mixed.shape == beside.shape == x.shape and torch.allclose(mixed, torch.tensor(0.4))
    longest = max(shape)
    assert float(beside.mean()) == pytest.approx((longest - round(0.6 * longest)) / longest)


def test_a_network_that_is_another_near_images_that_it_knows_is_not_freed_by_planted_ones():
    made = run(Trapdoor(ra.data("digits[:120]").images))
    assert made.verdict.counts.interval[0] > 0  # it looks like a gain
    assert made.verdict.effect == "ABSTAINED", str(made)
    assert "times as far around these images as around images mixed of them" in str(made)
