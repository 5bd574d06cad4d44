"""VirtualAdversarial: its direction on a network whose answer is known, beside Foolbox's step by
step, and where no gradient is left."""

import copy

import pytest
import torch
from torch import nn

import retroact as ra
from retroact.crafting.driver import craft
from retroact.crafting.noise import normal
from retroact.experiments.cell import Model
from retroact.nets.data import data


def two_classes() -> tuple[nn.Module, torch.Tensor]:
    """Logits ±w·x/2: the Hessian of the divergence is p (1 − p) w wᵀ, of rank one."""
    torch.manual_seed(0)
    w = torch.randn(16, dtype=torch.float64) / 4
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, dtype=torch.float64))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([w, -w]) / 2)
        net[1].bias.zero_()
    return net, w


def attacked(attack, net, x, threat, **more):
    return craft(attack, net, x, net(x).argmax(1), torch.arange(len(x)), threat, **more).x_adv


@pytest.mark.parametrize("steps", [1, 4])
def test_it_finds_the_only_direction_that_matters(steps):
    net, w = two_classes()
    x = 0.4 + 0.2 * torch.rand(6, 1, 4, 4, dtype=torch.float64)
    moved = attacked(ra.VirtualAdversarial(steps, xi=1e-4), net, x, ra.L2(0.1)) - x
    along = torch.cosine_similarity(moved.flatten(1), w[None])
    assert torch.allclose(along.abs(), torch.ones_like(along), atol=1e-6)
    assert torch.allclose(moved.flatten(1).norm(dim=1), torch.full_like(along, 0.1))
    sign = attacked(ra.VirtualAdversarial(steps, xi=1e-4), net, x, ra.Linf(0.1)) - x
    assert torch.allclose(sign.abs(), torch.full_like(sign, 0.1))


def test_it_goes_as_foolboxs_does_from_the_same_draw(monkeypatch):
    foolbox, eagerpy = pytest.importorskip("foolbox"), pytest.importorskip("eagerpy")
    images = data("digits[:20]")
    net = copy.deepcopy(Model("digits-cnn")()).double().eval()
    x, y = images.images.double(), net(images.images.double()).argmax(1)
    draw = normal(tuple(x.shape[1:]), torch.arange(20), 0).double()
    monkeypatch.setattr(eagerpy, "normal", lambda *a, **k: eagerpy.astensor(draw))
    seen = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.VirtualAdversarialAttack(steps=5, xi=1e-3)
    _, (expected,), _ = theirs(seen, x, y, epsilons=[0.3])
    ours = craft(ra.VirtualAdversarial(5, xi=1e-3), net, x, y, torch.arange(20), ra.L2(0.3))
    assert float((ours.x_adv - expected).abs().max()) < 1e-8
    assert float((ours.x_adv - x).abs().max()) > 0.01 and set(ours.gradients.tolist()) == {5}


def test_where_no_gradient_is_left_the_direction_stays_as_it_was_drawn():
    net, _ = two_classes()
    with torch.no_grad():
        net[1].weight.mul_(1e9)  # all probabilities are 0 or 1, and stay so
    x = 0.5 + 0.1 * torch.rand(6, 1, 4, 4, dtype=torch.float64)
    made = craft(
        ra.VirtualAdversarial(3), net, x, net(x).argmax(1), torch.arange(6), ra.L2(0.01), seed=2
    )
    drawn = normal((1, 4, 4), torch.arange(6), 2).double()
    along = torch.cosine_similarity((made.x_adv - x).flatten(1), drawn.flatten(1))
    assert torch.allclose(along, torch.ones_like(along)) and not made.nonfinite.any()
    assert set(made.zero_gradients.tolist()) == {3}
