"""Losses against hand-computed values, and the goals that carry their sign."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.crafting.driver import craft
from retroact.crafting.goals import (
    Aim,
    LeastLikely,
    PerImage,
    Random,
    Targeted,
    Untargeted,
    goal_of,
)
from retroact.crafting.losses import (
    Loss,
    away_from_true,
    cross_entropy,
    dlr,
    log_odds,
    logit,
    loss_of,
    margin,
    scaled_log_odds,
    spread,
    towards_and_away,
)
from retroact.crafting.oracle import apart, settled
from retroact.crafting.threat import Linf
from retroact.spec import SpecError, key, parse

LOGITS = torch.tensor([[4.0, 1.0, 0.0, -1.0], [0.0, 2.0, 3.0, 1.0]])
RIGHT = Aim(torch.tensor([0, 1]))
TARGET = Aim(torch.tensor([0, 1]), torch.tensor([1, 2]))


def test_margin():
    assert margin(LOGITS, RIGHT).tolist() == [-3.0, 1.0]
    assert margin(LOGITS, TARGET).tolist() == [-3.0, 1.0]


def test_dlr():
    torch.testing.assert_close(dlr(LOGITS, RIGHT), torch.tensor([-3.0 / 4.0, 1.0 / 2.0]))
    torch.testing.assert_close(dlr(LOGITS, TARGET), torch.tensor([-3.0 / 4.5, 1.0 / 2.5]))


def test_cross_entropy():
    p = LOGITS.softmax(1)
    torch.testing.assert_close(cross_entropy(LOGITS, RIGHT), -p[[0, 1], [0, 1]].log())
    torch.testing.assert_close(cross_entropy(LOGITS, TARGET), p[[0, 1], [1, 2]].log())


def test_away_from_true_raises_the_true_classs_loss_whatever_the_goal():
    p = LOGITS.softmax(1)
    for aim in (RIGHT, TARGET):
        torch.testing.assert_close(away_from_true(LOGITS, aim), -p[[0, 1], [0, 1]].log())
    assert torch.equal(away_from_true(LOGITS, RIGHT), cross_entropy(LOGITS, RIGHT))


def test_towards_and_away_is_the_difference_of_the_two_losses():
    assert towards_and_away(LOGITS, TARGET).tolist() == [1.0 - 4.0, 3.0 - 2.0]
    apart = cross_entropy(LOGITS, RIGHT) + cross_entropy(LOGITS, TARGET)  # CE(z, y) − CE(z, t)
    torch.testing.assert_close(towards_and_away(LOGITS, TARGET), apart)
    assert torch.equal(towards_and_away(LOGITS, RIGHT), cross_entropy(LOGITS, RIGHT))


def test_logit_is_the_score_of_one_class_alone():
    assert logit(LOGITS, RIGHT).tolist() == [-4.0, -2.0]
    assert logit(LOGITS, TARGET).tolist() == [1.0, 3.0]
    # no softmax: a shift of all logits is seen
    assert logit(LOGITS + 5, TARGET).tolist() == [6.0, 8.0]


def test_log_odds():
    p = LOGITS.softmax(1)
    torch.testing.assert_close(log_odds(LOGITS, RIGHT), -torch.logit(p[[0, 1], [0, 1]]))
    torch.testing.assert_close(log_odds(LOGITS, TARGET), torch.logit(p[[0, 1], [1, 2]]))


def test_scaled_log_odds_are_those_of_logits_of_one_spread_whatever_their_scale_and_offset():
    assert spread(LOGITS).tolist() == [5.0, 3.0]
    for aim in (RIGHT, TARGET):
        one = scaled_log_odds(LOGITS, aim)
        torch.testing.assert_close(one, log_odds(LOGITS * torch.tensor([[8 / 5], [8 / 3]]), aim))
        assert torch.equal(scaled_log_odds(2.0**60 * LOGITS, aim), one)
        torch.testing.assert_close(
            scaled_log_odds(LOGITS.double() + 1e6, aim), one.double(), rtol=1e-6, atol=1e-6
        )
    z = LOGITS.clone().requires_grad_()
    (slope,) = torch.autograd.grad(scaled_log_odds(z, RIGHT).sum(), z)
    torch.testing.assert_close(slope.sum(1), torch.zeros(2))  # the divisor is held constant
    assert (slope.abs().amax(1) <= 1.0).all()
    (small,) = torch.autograd.grad(scaled_log_odds(z * 2.0**-14, RIGHT).sum(), z)
    assert torch.equal(small, slope * 2.0**-14)
    assert scaled_log_odds(torch.zeros(1, 3), Aim(torch.tensor([0]))).isfinite().all()


# What the gradient of each loss is, over the logits, as weights of the gradients of single logits;
# p = softmax(z).
SLOPES = {
    "cross_entropy": lambda p, y, t: t - p,
    "away_from_true": lambda p, y, t: p - y,
    "towards_and_away": lambda p, y, t: t - y,
    "logit": lambda p, y, t: t,
}


@pytest.mark.parametrize("name", SLOPES)
def test_targeted_fgsm_moves_as_its_loss_says(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    x = 0.3 + 0.4 * torch.rand(16, 3, 8, 8)
    y, one = net(x).argmax(1), torch.eye(6)
    with torch.no_grad():
        slope = (SLOPES[name](net(x).softmax(1), one[y], one[[2] * 16]) @ net[1].weight).view_as(x)
    made = craft(FGSM(loss=name), net, x, y, torch.arange(16), Linf(0.1), Targeted(2)).x_adv
    todo = y != 2
    assert int(todo.sum()) > 8 and torch.equal(made[~todo], x[~todo])
    sure = slope.abs() > 1e-6  # a slope of zero may round to either side
    torch.testing.assert_close(made[todo][sure[todo]], (x + 0.1 * slope.sign())[todo][sure[todo]])


@pytest.mark.parametrize("name", ["away_from_true", "towards_and_away"])
def test_a_targeted_attack_has_won_only_at_its_target_whatever_it_climbs(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    x = 0.3 + 0.4 * torch.rand(16, 3, 8, 8)
    y, index, attack = (
        net(x).argmax(1),
        torch.arange(16),
        PGD(steps=10, random_start=False, loss=name),
    )
    made = craft(attack, net, x, y, index, Linf(0.1), LeastLikely())
    decided, target = net(made.x_adv).argmax(1), net(x).argmin(1)
    elsewhere = (decided != y) & (decided != target)
    # a wrong class is not enough
    assert bool(elsewhere.any()) and bool((made.gradients[elsewhere] == 10).all())
    assert bool((decided == target)[made.gradients < 10].all())


def test_the_targeted_losses_are_ways_of_their_own():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    x = 0.3 + 0.4 * torch.rand(16, 3, 8, 8)
    y = net(x).argmax(1)
    least = Aim(y, net(x).argmin(1))
    made = [
        craft(FGSM(loss=n), net, x, y, torch.arange(16), Linf(0.02), LeastLikely()).x_adv
        for n in SLOPES
    ]
    assert not any(torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])
    lead = {n: margin(net(m), least).mean().item() for n, m in zip(SLOPES, made, strict=True)}
    assert min(lead, key=lambda n: lead[n]) == "away_from_true"  # it leaves the target to chance


def test_every_loss_is_a_function_of_its_name():
    for name in get_args(Loss):
        assert loss_of(name).__name__ == name and loss_of(name)(LOGITS, RIGHT).shape == (2,)


@pytest.mark.parametrize(
    "name", ["cross_entropy", "margin", "dlr", "log_odds", "scaled_log_odds", "towards_and_away"]
)
@pytest.mark.parametrize("aim", [RIGHT, TARGET])
def test_climbing_a_loss_leads_to_the_goal(name, aim):
    z = LOGITS.clone()
    for _ in range(400):
        z.requires_grad_()
        (g,) = torch.autograd.grad(loss_of(name)(z, aim).sum(), z)
        z = (z + 0.1 * g.sign()).detach()
    if (
        name in ("dlr", "towards_and_away") and aim.targets is not None
    ):  # it sets the target against the true class, not against all
        assert bool((z.gather(1, aim.targets[:, None]) > z.gather(1, aim.labels[:, None])).all())
    else:
        assert bool(aim.reached(z).all())


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_the_sign_tells_whether_the_goal_is_reached(name):
    z = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 10
    for aim in (Aim(y), Aim(y, (y + 3) % 10)):
        if aim.targets is None or name == "margin":
            assert torch.equal(loss_of(name)(z, aim) > 0, aim.reached(z))


def test_dlr_does_not_change_with_scale_or_shift_and_margin_scales():
    torch.testing.assert_close(
        dlr(1e4 * LOGITS + 7, RIGHT), dlr(LOGITS, RIGHT), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(margin(5 * LOGITS, RIGHT), 5 * margin(LOGITS, RIGHT))
    for aim in (RIGHT, TARGET):
        for power in (-100, 100):
            assert torch.equal(dlr(2.0**power * LOGITS, aim), dlr(LOGITS, aim))
        assert dlr(torch.zeros(2, 4), aim).tolist() == [0.0, 0.0]


def test_nothing_is_reached_where_a_logit_is_not_finite_or_all_are_alike():
    bad = torch.tensor(
        [[0.0, float("inf"), 0.0], [0.0, float("nan"), 0.0], [0.0, 1.0, 0.0], [3.0, 3.0, 3.0]]
    )
    assert Aim(torch.full((4,), 2)).reached(bad).tolist() == [False, False, True, False]
    assert Aim(torch.zeros(1).long()).reached(torch.tensor([[1e8, 1e8 + 8, 1e8]])).tolist() == [
        False
    ]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_logits_are_settled_by_their_spread_and_not_by_their_size(classes):
    logits = torch.randn(
        50, classes, generator=torch.Generator().manual_seed(0)
    ) + 0.1 * torch.arange(classes)
    lost = (
        torch.full_like(logits, torch.nan),
        torch.full_like(logits, -torch.inf),
        0 * logits + 7,
        logits + 1e8,
    )
    for power in (-90, -30, 0, 30, 90):
        assert settled(2.0**power * logits).all() and apart(2.0**power * logits).all()
        assert not any(settled(2.0**power * bad).any() for bad in lost)
        assert not any(apart(2.0**power * bad).any() for bad in lost)
    assert settled(logits.double() + 1e8).all()
    # numbers still, but no slopes
    assert not settled(1e37 * logits).any() and apart(1e37 * logits).all()
    assert not settled(1e-37 * logits).any() and apart(1e-37 * logits).all()


def test_two_classes_may_be_nearly_tied_and_more_may_be_but_for_one():
    near = 2.0**-20  # 8 roundings of 1
    tied = torch.tensor([[1.0, 1.0 + near], [1.0, 1.0], [1.0, 1.0 + 1e-5]])
    assert apart(tied).tolist() == [True, False, True] and settled(tied).tolist() == [
        False,
        False,
        True,
    ]
    assert settled(torch.tensor([[1.0, 1.0 + near, 0.0], [1.0, 1.0, 0.0]])).all()


def test_goals_choose_their_targets():
    labels, index = torch.tensor([0, 1]), torch.tensor([5, 6])
    assert Untargeted()(labels, LOGITS, index).targets is None
    assert Targeted(3)(labels, LOGITS, index).targets.tolist() == [3, 3]
    assert LeastLikely()(labels, LOGITS, index).targets.tolist() == [3, 0]
    with pytest.raises(ValueError, match="expected a class from 0 to 3, got 4"):
        Targeted(4)(labels, LOGITS, index)


def test_a_goal_may_be_a_class_for_each_image():
    labels, index = torch.tensor([0, 1]), torch.tensor([5, 6])
    for given in (
        [3, 2],
        (3, 2),
        torch.tensor([3, 2]),
        np.array([3, 2]),
        np.array([3, 2], dtype=np.uint8),
    ):
        goal = goal_of(given, index)
        assert goal == PerImage((3, 2), (5, 6)) and parse(str(goal)) == goal
        assert goal(labels, LOGITS, index).targets.tolist() == [3, 2]
        # each example's own, in any order
        assert goal(labels, LOGITS, index.flip(0)).targets.tolist() == [2, 3]
        assert goal(labels[1:], LOGITS[1:], index[1:]).targets.tolist() == [2]
    assert goal_of(None, index) == Untargeted() and goal_of(LeastLikely(), index) == LeastLikely()


def test_one_goal_per_image_has_one_print_and_one_key():
    goal = PerImage((3, 1, 2), (0, 1, 2))
    assert str(goal) == "PerImage(targets=(3, 1, 2))" == str(PerImage([2, 3, 1], [2, 0, 1]))
    assert (
        key(goal)
        == key(PerImage(torch.tensor([3, 1, 2])))
        == key(PerImage((3, 1, 2, 2), (0, 1, 2, 2)))
    )
    assert key(goal) != key(PerImage((3, 1, 2), (4, 5, 6)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([3], r"one target per example, shape \(2,\), got \(1,\)"),
        (torch.eye(4)[:2], r"shape \(2,\), got \(2, 4\); .* argmax"),
        ([1.0, 2.0], "whole numbers"),
        (torch.tensor([True, False]), "whole numbers"),
        ([3, -1], "at least 0, got -1"),
        (3, r"a goal such as Targeted\(3\), or a class for each example, got 3"),
        (Untargeted, "a goal such as"),
        (["a", "b"], "whole numbers"),
    ],
)
def test_what_is_no_goal_is_refused_with_the_cure(given, says):
    with pytest.raises((TypeError, ValueError), match=says):
        goal_of(given, torch.tensor([5, 6]))


def test_targets_that_cannot_be_are_refused():
    labels, index = torch.tensor([0, 1]), torch.tensor([5, 6])
    with pytest.raises(ValueError, match="classes from 0 to 3, got 4"):
        # found before the example it belongs to
        PerImage((1, 4), (5, 9))(labels[:1], LOGITS[:1], index[:1])
    with pytest.raises(ValueError, match="no target for the example of index 6"):
        PerImage((1, 2), (5, 9))(labels, LOGITS, index)
    with pytest.raises(SpecError, match="got 1 for 2"):
        PerImage((1,), (5, 6))
    with pytest.raises(SpecError, match="two different ones for the same index"):
        PerImage((1, 2), (5, 5))


def test_the_least_likely_class_is_never_the_true_one():
    logits = torch.tensor([[-9.0, 1.0, 2.0]])
    assert LeastLikely()(torch.tensor([0]), logits, torch.tensor([0])).targets.tolist() == [1]


def test_random_targets_are_wrong_even_and_the_examples_own():
    labels = torch.arange(4000) % 10
    index, logits = torch.arange(4000), torch.zeros(4000, 10)
    targets = Random(seed=1)(labels, logits, index).targets
    assert not bool((targets == labels).any())
    assert float(torch.bincount((targets - labels) % 10)[1:].float().std()) < 50
    assert torch.equal(Random(seed=1)(labels[7:], logits[7:], index[7:]).targets, targets[7:])
    assert not torch.equal(Random(seed=2)(labels, logits, index).targets, targets)
