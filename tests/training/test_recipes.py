import pytest
import torch
from torch import nn

from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.crafting.driver import craft
from retroact.crafting.goals import Aim
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Linf
from retroact.nets.classifier import Classifier
from retroact.nets.zoo import NETWORKS
from retroact.spec import SpecError, key, parse, show
from retroact.training.recipes import RECIPES, Adversarial, MixedFGSM, Recipe, Shifted, Standard


@pytest.mark.parametrize(
    "recipe", [*RECIPES.values(), Standard(), MixedFGSM(), Adversarial()], ids=str
)
def test_recipes_print_as_they_are_read(recipe: Recipe) -> None:
    assert parse(show(recipe)) == recipe
    assert key(parse(show(recipe))) == key(recipe)


def test_every_network_has_its_recipe() -> None:
    assert RECIPES.keys() == NETWORKS.keys()


def test_robust_recipes_are_the_papers_in_pixels() -> None:
    for name, recipe in RECIPES.items():
        assert isinstance(recipe, MixedFGSM | Adversarial) == ("-robust" in name)
        assert isinstance(recipe, Adversarial) == (name == "preactresnet18-cifar10-robust")
        if isinstance(recipe, MixedFGSM):
            mnist = "mnist-robust" in name
            # 0.3 of 0.3081; 0.031 of about 0.2; and 38 or 76 of 128 images
            assert recipe.eps == pytest.approx(0.0924 if mnist else 1.6 / 255, abs=1e-4)
            assert int(recipe.standard.batch * recipe.ratio) == (38 if mnist else 76)


def test_a_shifted_recipe_shows_normalised_images_and_leaves_the_net_its_pixels() -> None:
    recipe, pixels = RECIPES["mnist-cnn-shifted"], torch.rand(4, 1, 28, 28)
    assert isinstance(recipe, Shifted) and recipe.standard == RECIPES["mnist-cnn"]
    shown = recipe(nn.Identity(), pixels, torch.zeros(4))
    torch.testing.assert_close(shown * 0.3081 + 0.1307, pixels)
    assert NETWORKS["mnist-cnn-shifted"] == NETWORKS["mnist-cnn"]


# ------------------------------------------------------------------------------------------- rates


def test_one_cycle_rises_for_a_quarter_and_falls_to_nothing() -> None:
    recipe = Standard(epochs=4, lr=1.0, schedule="one-cycle")
    rates = [recipe.lr_at(step, 100) for step in range(400)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[100] == max(rates) == pytest.approx(1.0)
    assert rates[250] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-4
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_steps_multiply_at_the_end_of_each_milestone() -> None:
    recipe = Standard(epochs=90, lr=0.02, schedule="steps", milestones=(30, 60, 80), factor=0.2)
    at = {epoch: recipe.lr_at(epoch * 429, 429) for epoch in (0, 29, 30, 59, 60, 79, 80, 89)}
    expected = {0: 0.02, 29: 0.02, 30: 4e-3, 59: 4e-3, 60: 8e-4, 79: 8e-4, 80: 1.6e-4, 89: 1.6e-4}
    assert at == pytest.approx(expected)


def test_constant_is_constant() -> None:
    assert {Standard(lr=0.1, schedule="constant").lr_at(s, 10) for s in range(100)} == {0.1}


@pytest.mark.parametrize(
    "field", [{"lr": 0}, {"epochs": 0}, {"batch": -1}, {"lr": float("nan")}, {"momentum": 2}]
)
def test_numbers_that_no_recipe_has_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        Standard(**field)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------- FGSM


def _net() -> Classifier:
    return Classifier(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)), 0.5, 0.25)


X = 0.3 + 0.4 * torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3


def test_the_first_part_of_a_batch_is_replaced_and_the_rest_is_left() -> None:
    mixed = MixedFGSM(ratio=0.38, eps=0.1)(_net(), X, Y)
    assert torch.equal(mixed[3:], X[3:])
    torch.testing.assert_close((mixed[:3] - X[:3]).abs(), torch.full((3, 1, 4, 4), 0.1))


def test_fgsm_steps_along_the_sign_of_the_gradient_that_a_linear_net_has() -> None:
    net = _net()
    probabilities = net(X).softmax(1)
    by_hand = (probabilities - nn.functional.one_hot(Y, 3)) @ net.module[2].weight
    moved = MixedFGSM(ratio=1.0, eps=0.01)(net, X, Y) - X
    assert torch.equal(moved.flatten(1).sign(), by_hand.sign())


def test_fgsm_stays_in_the_unit_interval() -> None:
    moved = MixedFGSM(ratio=1.0, eps=0.9)(_net(), X, Y)
    assert (moved.min(), moved.max()) == (0.0, 1.0)


def test_fgsm_is_made_in_eval_mode_and_leaves_flags_and_gradients() -> None:
    net = _net().train()
    once, again = (MixedFGSM(ratio=1.0)(net, X, Y) for _ in range(2))
    assert torch.equal(once, again)
    assert net.training
    assert net.module[1].training
    assert all(p.grad is None for p in net.parameters())


def test_fgsm_images_are_those_of_the_attack() -> None:
    net = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), 0.5, 0.25
    )
    attacked = FGSM()(Scene.on(net, X, Aim(Y), Linf(0.1)))
    assert torch.equal(MixedFGSM(ratio=1.0, eps=0.1)(net, X, Y), attacked)


# --------------------------------------------------------------------------------------------- PGD


def test_pgd_moves_every_image_within_its_ball_and_the_box() -> None:
    x = torch.rand(10, 1, 4, 4)
    moved = Adversarial(eps=0.1, steps=5, step=0.05)(_net(), x, Y)
    assert ((moved - x).abs().flatten(1).amax(1) > 0.05).all()
    assert ((moved - x).abs() <= 0.1 + 1e-6).all() and moved.min() >= 0 and moved.max() <= 1


def test_pgd_on_a_linear_net_ends_in_the_corner_that_its_gradient_points_to() -> None:
    # of two classes: one direction everywhere
    net = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)))
    corner = MixedFGSM(ratio=1.0, eps=0.01)(net, X, Y % 2)
    torch.testing.assert_close(Adversarial(eps=0.01, steps=20, step=0.005)(net, X, Y % 2), corner)


def test_more_steps_of_pgd_raise_the_loss_and_as_far_as_the_attack_does() -> None:
    torch.manual_seed(0)
    net = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 3)), 0.5, 0.25
    )
    y = net(X).argmax(1)

    def loss(x: torch.Tensor) -> float:
        return nn.functional.cross_entropy(net(x), y).item()

    reached = [loss(Adversarial(eps=0.1, steps=k, step=0.02)(net, X, y)) for k in (1, 5, 20)]
    assert loss(X) < reached[0] < reached[1] <= reached[2] * 1.001
    strong = craft(PGD(steps=40), net, X, y, torch.arange(10), Linf(0.1)).x_adv
    fooled = [
        (net(x).argmax(1) != y).sum()
        for x in (Adversarial(eps=0.1, steps=20, step=0.02)(net, X, y), strong)
    ]
    assert fooled[0] >= fooled[1]


def test_pgd_starts_where_the_generator_says_and_leaves_flags_and_gradients() -> None:
    net, recipe = _net().train(), Adversarial(eps=0.1, steps=1, step=0.001)
    moved = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        moved.append(recipe(net, X, Y))
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])
    assert net.training and net.module[1].training
    assert all(p.grad is None for p in net.parameters())
    assert not moved[0].requires_grad


def test_a_ratio_of_nothing_is_the_standard_recipe() -> None:
    assert MixedFGSM(ratio=0.0)(_net(), X, Y) is X


def test_a_restart_begins_a_new_cosine_at_a_lower_peak():
    recipe = Standard(epochs=30, lr=0.2, factor=0.5, restarts=(10, 20))
    at = {epoch: recipe.lr_at(epoch * 100, 100) for epoch in (2.5, 10, 15, 20, 25)}
    assert at == pytest.approx({2.5: 0.2, 10: 0.1, 15: 0.05, 20: 0.05, 25: 0.025})
    assert [recipe.lr_at(s, 100) for s in range(1000)] == [
        Standard(epochs=10, lr=0.2).lr_at(s, 100) for s in range(1000)
    ]
    assert recipe.lr_at(2999, 100) < 1e-6 < 0.01 > recipe.lr_at(999, 100)
    # as `train --epochs 8` makes it
    short = Standard(epochs=8, lr=0.2, factor=0.5, restarts=(10, 20))
    assert [short.lr_at(s, 100) for s in range(800)] == [
        Standard(epochs=8, lr=0.2).lr_at(s, 100) for s in range(800)
    ]


def test_the_averaged_epochs_run_at_one_rate_a_factor_below_the_last_peak():
    recipe = Standard(epochs=30, lr=0.2, factor=0.5, restarts=(10,), averaged=8)
    before = Standard(epochs=22, lr=0.2, factor=0.5, restarts=(10,))
    assert [recipe.lr_at(s, 100) for s in range(2200)] == [
        before.lr_at(s, 100) for s in range(2200)
    ]
    assert {recipe.lr_at(s, 100) for s in range(2200, 3000)} == {0.05}


@pytest.mark.parametrize(
    "odd", [{"epochs": 5, "averaged": 5}, {"averaged": 2, "schedule": "steps"}]
)
def test_an_average_needs_a_cycle_before_it(odd):
    with pytest.raises(SpecError, match="at least one epoch must fall before"):
        Standard(**odd)


def test_the_last_epochs_see_whole_images():
    with pytest.raises(SpecError, match=r"Standard.sizes: expected fewer than epochs=2, got 2"):
        Standard(epochs=2, sizes=(16, 24))


@pytest.mark.parametrize(
    "recipe", [Standard(epochs=4, lr=0.2), Standard(epochs=4, lr=0.2, factor=0.5, restarts=(2,))]
)
def test_without_an_average_the_rate_ends_at_nothing(recipe):
    assert recipe.lr_at(400, 100) == pytest.approx(0.0, abs=1e-12)
