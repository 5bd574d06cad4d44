"""The L1 ball: its projection is exact, its steps are sparse, and its attacks not weaker than their
peers."""

import importlib.util
import os

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import retroact as ra
from retroact.crafting.domain import Domain
from retroact.crafting.driver import craft

BOX = Domain((6,), -0.5, 1.5)
has_data = os.path.isdir(os.path.join(os.environ.get("RETROACT_DATA", ""), "mnist"))
needs_mnist = pytest.mark.skipif(
    not has_data, reason="no MNIST: set RETROACT_DATA to a folder that has mnist/"
)
needs_autoattack = pytest.mark.skipif(
    not importlib.util.find_spec("pyautoattack"), reason="no pyautoattack"
)


def points(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres in the box, some entries at its edges, and points far from them."""
    generator = torch.Generator().manual_seed(seed)
    centre = 2 * torch.rand(n, 6, generator=generator) - 0.5
    centre[:, 0], centre[:, 1] = -0.5, 1.5
    return centre, centre + 2 * torch.randn(n, 6, generator=generator)


@pytest.mark.parametrize("eps", [0.3, 1.0, 3.0, 11.0])
def test_the_projection_is_the_nearest_point_of_ball_and_box(eps):
    centre, x = points(12, int(10 * eps))
    nearest = ra.L1(eps).project(x, centre, BOX)
    for c, far, found in zip(centre.double(), x.double(), nearest.double(), strict=True):
        # in d = up - down, both at least 0, the ball is one linear bound and the box another
        c, far, found = (v.numpy() for v in (c, far, found))

        def loss(v, c=c, far=far):
            return float(((c + v[:6] - v[6:] - far) ** 2).sum())

        ball = {"type": "ineq", "fun": lambda v: eps - v.sum()}
        edges = [(0, e) for e in 1.5 - c] + [(0, e) for e in c + 0.5]
        best = minimize(loss, np.zeros(12), bounds=edges, constraints=[ball], method="SLSQP")
        assert ((found - far) ** 2).sum() <= best.fun + 1e-4
        assert np.abs(found - c).sum() <= eps * (1 + 1e-5) + 1e-6


def test_the_shortest_way_over_a_boundary_takes_the_steepest_entries_to_their_edges():
    x, w = torch.tensor([[0.0, 0.9, 0.5, 0.5]]), torch.tensor([[-9.0, 4.0, 3.0, 1.0]])
    # the first entry is at its edge; the second has room for 0.1, which gives 0.4 of the 1.0
    d = ra.L1(9.0).shortest(w, torch.tensor([1.0]), x, Domain((4,)))
    assert torch.allclose(d, torch.tensor([[0.0, 0.1, 0.2, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("attack", [ra.FMN(), ra.DeepFool()], ids=str)
def test_the_minimum_norm_of_a_linear_network_is_found(attack):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x = 0.4 + 0.2 * torch.rand(16, 1, 6, 6)
    y = net(x).argmax(1)
    far = ra.L1(36.0)
    found = far.size(craft(attack, net, x, y, torch.arange(16), far).x_adv - x)
    w = (net[1].weight[1] - net[1].weight[0]).detach()
    gap = (net(x)[:, 1] - net(x)[:, 0]).abs().detach()
    toward = torch.where(y == 0, 1.0, -1.0)[:, None] * w[None]
    shortest = far.size(far.shortest(toward, gap, x.flatten(1), Domain((36,))))
    assert bool((found >= shortest * (1 - 1e-4)).all()), "nothing is nearer than the nearest point"
    assert float((found / shortest).median()) < 1.02


def test_a_step_of_pgd_moves_few_entries_from_the_clean_example():
    x = torch.full((3, 1, 8, 8), 0.5)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    moved = ra.L1(4.0).step(x, gradient, 0.4, x, Domain((1, 8, 8))) - x
    assert bool(((moved != 0).flatten(1).sum(1) <= 2).all())
    assert torch.allclose(ra.L1.size(moved), torch.tensor(0.4), atol=1e-5)


@pytest.mark.slow
@needs_mnist
@needs_autoattack
@pytest.mark.parametrize("eps", [6.0, 10.0])
def test_apgd_is_not_weaker_than_pyautoattacks(eps):
    from pyautoattack.autopgd_base import APGDAttack

    net, data = ra.load("lenet-mnist"), ra.data("mnist/validation[:60]")
    theirs = APGDAttack(
        net, n_iter=50, norm="L1", eps=eps, loss="ce", n_restarts=1, device="cpu", verbose=False
    )
    x, y = data.images, data.labels
    peer = theirs.perturb(x, y)
    ours = craft(ra.APGD(steps=50), net, x, y, data.index, ra.L1(eps)).x_adv
    with torch.no_grad():
        robust = [float((net(v).argmax(1) == y).float().mean()) for v in (ours, peer)]
    assert robust[0] <= robust[1] + 0.035, "two images of sixty"
    assert bool(ra.L1(eps)(ours, x).all())


def test_an_audit_and_a_sweep_take_it(tmp_path):
    made = ra.audit("digits-cnn", "JumpReLU(0.5)", "digits[:60]", "L1(3.0)", battery="quick")
    assert made.threat == "L1(eps=3.0)" and made.verdict.counts.n == 60
    record = ra.evaluate("digits-cnn", "digits[:30]", "PGD", "L1(1.0)")
    assert 0.0 < ra.robust_accuracy(record) < ra.clean_accuracy(record)


def test_an_entry_of_which_rounding_alone_is_left_has_not_moved():
    d = torch.tensor([[0.3, 0.3, 0.1, 0.1 + 2e-16, 0.0]], dtype=torch.float64)
    # λ = 0.1, on which the third lies and from which the fourth rounds away
    near = ra.L1.cut(d, 0.4)
    assert (near != 0).tolist() == [[True, True, False, False, False]]
    assert near.sum().item() == pytest.approx(0.4, abs=1e-15)
