"""Attacks on scores and on decisions: known answers, networks without a graph, and what they
count."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.attacks import hop_skip_jump
from retroact.crafting.attack import Attack
from retroact.crafting.driver import Outcome, craft
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.crafting.noise import portions, uniform
from retroact.crafting.oracle import Oracle
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Linf, ThreatModel

BY_DECISION = [ra.RayS(queries=400), ra.HopSkipJump(queries=1500)]


@cache
def linear(classes: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear network, and 40 examples of 60 entries far from the edges of the box."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, classes)).double().requires_grad_(False)
    x = 0.5 + 0.08 * torch.randn(40, 60, dtype=torch.float64)
    net[1].bias -= net(x).mean(0)
    return net, x, net(x).argmax(1)


def distances(net: nn.Module, x: Tensor, y: Tensor, dual: float) -> Tensor:
    """min_j (f_y − f_j) / ‖w_y − w_j‖_q of each example, q dual to the norm."""
    z, w = net(x), net[1].weight
    gaps = z.gather(1, y[:, None]) - z
    far = gaps / (w[y][:, None] - w[None]).norm(p=dual, dim=2).clamp_min(1e-12)
    return far.scatter(1, y[:, None], torch.inf).amin(1)


def attacked(attack: Attack, net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Outcome:
    return craft(attack, net, x, y, torch.arange(len(x)), threat)


def robust(net: nn.Module, x: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((net(x).argmax(1) == y).sum())


class Votes(nn.Module):
    """A network that gives away its decision alone, and no graph."""

    def __init__(self, net: nn.Module, k: int = 10) -> None:
        super().__init__()
        self.net, self.k = net, k

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(self.net(x).argmax(1), self.k).float()


# --------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize(("classes", "eps"), [(2, 0.004), (5, 0.008)])
def test_rays_breaks_a_linear_network_where_theory_says(classes, eps):
    net, x, y = linear(classes)
    far = distances(net, x, y, dual=1)
    fell = net(attacked(ra.RayS(queries=1000), net, x, y, Linf(eps)).x_adv).argmax(1) != y
    assert not bool((fell & (far > eps)).any())
    clear = far < 0.97 * eps
    assert bool(fell[clear].all()) and 5 < int(clear.sum()) < 35


@pytest.mark.parametrize(("threat", "dual"), [(L2(5.0), 2), (Linf(1.0), 1)], ids=str)
def test_hop_skip_jump_finds_the_distance_of_a_linear_network(threat, dual):
    # two classes, since of several it may meet the boundary of a farther one first
    net, x, y = linear(2)
    far = distances(net, x, y, dual)
    found = attacked(ra.HopSkipJump(queries=4000), net, x, y, threat).x_adv
    ratio = threat.size(found - x) / far
    assert robust(net, found, y) == 0
    assert float(ratio.min()) >= 1.0 and float(ratio.max()) < 1.1


def test_the_estimate_of_hop_skip_jump_is_the_normal_of_the_boundary():
    net, x, y = linear()
    rows, threat = torch.arange(40), L2(5.0)
    scene = Scene.on(net, x, Aim(y), threat)
    found, left = hop_skip_jump._start(scene, 1000, 24)
    at = found.x_adv
    assert bool(found.size.isfinite().all()) and 500 < int(left.min()) <= int(left.max()) <= 600
    decided = net(at).argmax(1)
    slope = net[1].weight[decided] - net[1].weight[y]
    few, many = (
        F.cosine_similarity(hop_skip_jump._estimate(scene, at, rows, samples, 1), slope)
        for samples in (60, 3000)
    )
    # of d = 60 directions: about √(2 B / π d) of B signs for few, near 1 for many
    assert 0.45 < float(few.mean()) < 0.8 and float(many.mean()) > 0.95


@pytest.mark.parametrize(("estimator", "reach"), [("spsa", 1.0), ("nes", 0.05)])
def test_the_estimate_of_spsa_is_the_gradient(estimator, reach):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 80), nn.Tanh(), nn.Linear(80, 5)).double()
    x = 0.5 + 0.1 * torch.rand(16, 60, dtype=torch.float64)
    y, rows, attack = net(x).argmax(1), torch.arange(16), ra.SPSA
    oracle = Oracle(net, 16)
    _, slope = oracle.gradient(x, rows, lambda z: margin(z, Aim(y)))
    scene = Scene.on(net, x, Aim(y), Linf(0.01))
    few, many = (
        F.cosine_similarity(
            attack(samples=s, reach=reach, estimator=estimator)._look(scene, x, rows, 0).slope,
            slope,
        )
        for s in (32, 2000)
    )
    # E cos ≈ √(B / (B + d)) of B directions in d dimensions
    assert 0.45 < float(few.mean()) < 0.75 and float(many.mean()) > 0.95


def test_spsa_sees_over_small_stairs():
    net, x, y = linear(2)
    threat, true = Linf(0.006), int((distances(net, x, y, dual=1) > 0.006).sum())

    def stairs(z: Tensor) -> Tensor:
        return (net(z) * 100).round() / 100 + 0 * net(z)

    spsa, pgd = (
        robust(stairs, attacked(a, stairs, x, y, threat).x_adv, y)
        for a in (ra.SPSA(), ra.PGD(random_start=False))
    )
    assert 5 < true < 35 and pgd > true + 10 and spsa <= true + 5


@pytest.mark.parametrize("threat", [Linf(0.006), L2(0.04), ra.L1(0.2)], ids=str)
def test_spsa_breaks_in_every_norm_what_gradients_break(threat):
    net, x, y = linear()  # five classes
    mine, pgd = (
        robust(net, attacked(a, net, x, y, threat).x_adv, y)
        for a in (ra.SPSA(samples=128), ra.PGD(steps=60, loss="margin"))
    )
    assert 3 < pgd < 37 and mine <= pgd + 3


# --------------------------------------------------------------------- what they are there for


@cache
def digits(n: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    net, data = ra.load("digits-cnn"), ra.data(f"digits/validation[:{n}]")
    right = net(data.images).argmax(1) == data.labels
    return net, data.images[right], data.labels[right]


BEST = ra.APGD(steps=60, loss="dlr", targets=3)


@cache
def by_gradients(attack: Attack = BEST) -> int:
    net, x, y = digits()
    return robust(net, attacked(attack, net, x, y, Linf(0.1)).x_adv, y)


@cache
def fallen(attack: Attack) -> Outcome:
    return attacked(attack, *digits(), Linf(0.1, attack.needs))


@pytest.mark.parametrize("attack", [ra.RayS(queries=1000), ra.SPSA()], ids=str)
def test_digits_fall_as_they_fall_by_gradients(attack):
    net, _, y = digits()
    white, made = by_gradients(ra.PGD()), fallen(attack)
    assert 10 < white < 50 and robust(net, made.x_adv, y) <= white + 3  # of 59
    assert int(made.gradients.max()) == 0


def test_a_network_of_hard_labels_without_a_graph_is_broken_as_the_network_behind_it():
    net, x, y = digits()
    votes, threat = Votes(net), Linf(0.1)
    with pytest.raises(PermissionError, match="gives no gradient"):
        attacked(ra.PGD(steps=2), votes, x, y, threat)
    rays = attacked(ra.RayS(queries=1000), votes, x, y, threat)
    assert torch.equal(rays.x_adv, fallen(ra.RayS(queries=1000)).x_adv)
    assert robust(net, rays.x_adv, y) <= by_gradients() + 3
    # scores that are flat tell a search by scores little
    flat = attacked(ra.SPSA(), votes, x, y, threat).x_adv
    assert robust(net, flat, y) > robust(net, rays.x_adv, y) + 6


def test_hop_skip_jump_comes_near_to_the_minimum_norm_by_gradients():
    net, x, y = digits(20)
    threat = L2(8.0)
    mine, theirs = (
        L2.size(attacked(a, n, x, y, threat).x_adv - x)
        for a, n in ((ra.HopSkipJump(queries=2000), Votes(net)), (ra.DDN(steps=200), net))
    )
    assert bool((mine > 0).all()) and float((mine / theirs).median()) < 1.15
    assert float((mine / theirs).min()) > 0.9


# --------------------------------------------------------------------------- counts and noise


@pytest.mark.parametrize("attack", [*BY_DECISION, ra.SPSA(steps=5, samples=20)], ids=str)
def test_no_example_costs_more_queries_than_were_granted(attack):
    net, x, y = digits(10)
    shown = torch.zeros(len(x))

    class Counting(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            shown[0] += len(z)
            return net(z)

    made = attacked(attack, Counting(), x, y, Linf(0.02))
    assert int(made.queries.max()) <= attack.passes + 1  # and the clean look
    assert int(made.queries.sum()) == int(shown[0])


def test_rays_stops_at_an_example_as_soon_as_its_radius_is_within_eps():
    net, x, y = digits(20)
    near, far = (attacked(ra.RayS(queries=300), net, x, y, Linf(e)).queries for e in (0.02, 0.5))
    assert int(far.max()) < 60 and int(near.max()) == 301


def test_an_example_alone_finds_what_it_finds_among_others():
    net, x, y = digits(10)
    net, x = copy.deepcopy(net).double(), x.double()
    # enough for RayS to begin a round of its own order, at a turn of its own
    for attack in (ra.RayS(queries=500), ra.HopSkipJump(queries=700), ra.SPSA(steps=3)):
        threat = Linf(0.03)
        whole = attacked(attack, net, x, y, threat)
        index = torch.arange(len(x))
        for i in (0, 7):
            one = craft(attack, net, x[i : i + 1], y[i : i + 1], index[i : i + 1], threat)
            torch.testing.assert_close(one.x_adv[0], whole.x_adv[i], rtol=0, atol=1e-9)
            assert int(one.queries) == int(whole.queries[i])


def test_rays_draws_other_orders_in_its_later_rounds():
    net, x, y = digits(10)
    rest = net, x, y, torch.arange(len(x)), Linf(0.02)
    short, long = (
        [craft(ra.RayS(queries=q), *rest, seed=s).x_adv for s in (0, 1)] for q in (100, 700)
    )
    assert torch.equal(*short) and not torch.equal(*long)


def test_points_of_one_example_are_counted_and_flagged_each():
    oracle = Oracle(lambda x: torch.stack([x[:, 0], 1 / x[:, 0]], dim=1), 3)
    x = torch.tensor([[0.5], [0.0], [2.0], [4.0], [5.0]])
    oracle.logits(x, torch.tensor([0, 0, 0, 2, 0]))
    assert oracle.queries.tolist() == [4, 0, 1]
    assert oracle.nonfinite.tolist() == [True, False, False]


@pytest.mark.parametrize(("n", "s", "asked"), [(4, 10, [32, 8]), (40, 2, [40, 40])])
def test_a_scene_asks_about_32_points_at_once_or_as_many_as_it_has_examples(n, s, asked):
    sizes = []

    def net(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    x = torch.rand(n, 3)
    scene = Scene.on(net, x, Aim(torch.zeros(n, dtype=torch.int64)), Linf(0.1))
    points, rows = torch.rand(n, s, 3), torch.arange(n).flip(0)
    answers = scene.at_several(scene.oracle.logits, points, rows)
    assert torch.equal(answers, points) and sizes == asked
    assert scene.oracle.queries.tolist() == [s] * n


def test_a_stream_for_each_example_is_the_stream_itself():
    index, streams = torch.tensor([4, 9, 4]), torch.tensor([7, 1, 2])
    drawn = uniform((5,), index, 3, streams)
    for i in range(3):
        assert torch.equal(drawn[i], uniform((5,), index[i : i + 1], 3, int(streams[i]))[0])


def test_portions_add_up_and_are_small_for_large_examples():
    assert portions(100, 10) == [100] and portions(3, 150_528) == [1, 1, 1]
    assert portions(10, 20_000) == [3, 3, 3, 1] and sum(portions(1000, 784)) == 1000


def test_no_decision_is_neither_a_success_nor_a_class():
    oracle = Oracle(lambda x: x, 2)
    decisions = oracle.decisions(torch.tensor([[1.0, 1.0], [torch.nan, 0.0]]), torch.arange(2))
    assert decisions.tolist() == [-1, -1]
    assert not Aim(torch.tensor([0, 1])).met(decisions).any()
    assert not Aim(torch.tensor([0, 1]), torch.tensor([1, 0])).met(decisions).any()
