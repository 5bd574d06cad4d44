"""Losses against hand-computed values, and the goals that carry their sign."""

import pytest
import torch

from retroact.attacks.goals import Aim, LeastLikely, Random, Targeted, Untargeted
from retroact.attacks.losses import cross_entropy, dlr, loss_of, margin

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


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr", "log_odds"])
@pytest.mark.parametrize("aim", [RIGHT, TARGET])
def test_climbing_a_loss_leads_to_the_goal(name, aim):
    z = LOGITS.clone()
    for _ in range(400):
        z.requires_grad_()
        (g,) = torch.autograd.grad(loss_of(name)(z, aim).sum(), z)
        z = (z + 0.1 * g.sign()).detach()
    if name == "dlr" and aim.targets is not None:  # it sets the target against the true class, not against all
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
    torch.testing.assert_close(dlr(1e4 * LOGITS + 7, RIGHT), dlr(LOGITS, RIGHT), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(margin(5 * LOGITS, RIGHT), 5 * margin(LOGITS, RIGHT))


def test_dlr_refuses_a_binary_classifier_and_names_the_cure():
    with pytest.raises(ValueError, match='at least 3 classes, got 2; use loss="margin"'):
        dlr(LOGITS[:, :2], RIGHT)
    with pytest.raises(ValueError, match="at least 4 classes"):
        dlr(LOGITS[:, :3], TARGET)


def test_nothing_is_reached_where_a_logit_is_not_finite():
    bad = torch.tensor([[0.0, float("inf"), 0.0], [0.0, float("nan"), 0.0], [0.0, 1.0, 0.0]])
    assert Aim(torch.zeros(3, dtype=torch.int64)).reached(bad).tolist() == [False, False, True]


def test_goals_choose_their_targets():
    labels, index = torch.tensor([0, 1]), torch.tensor([5, 6])
    assert Untargeted()(labels, LOGITS, index).targets is None
    assert Targeted(3)(labels, LOGITS, index).targets.tolist() == [3, 3]
    assert LeastLikely()(labels, LOGITS, index).targets.tolist() == [3, 0]
    with pytest.raises(ValueError, match="expected a class from 0 to 3, got 4"):
        Targeted(4)(labels, LOGITS, index)


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
