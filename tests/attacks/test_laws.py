"""Laws that every attack keeps, and known answers on a linear network."""

import pytest
import torch
from torch import nn

from retroact import spec as specs
from retroact.attacks.driver import craft, craft_all
from retroact.attacks.fgsm import FGSM
from retroact.attacks.geometry import norm
from retroact.attacks.goals import LeastLikely, Untargeted
from retroact.attacks.losses import loss_of
from retroact.attacks.oracle import AccessError, Oracle
from retroact.attacks.pgd import PGD
from retroact.attacks.threat import L2, Linf
from retroact.spec import SpecError, parse

ATTACKS = [
    FGSM(),
    FGSM(loss="margin"),
    PGD(steps=7),
    PGD(steps=5, restarts=3, loss="margin"),
    PGD(steps=4, random_start=False, loss="dlr"),
    PGD(steps=3, relative_step=0.5),
]
THREATS = [Linf(0.03), L2(0.8)]
GOALS = [Untargeted(), LeastLikely()]
cases = pytest.mark.parametrize(
    ("attack", "threat", "goal"), [(a, t, g) for a in ATTACKS for t in THREATS for g in GOALS], ids=str
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(3, 6, 5),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.MaxPool2d(4),
        nn.Flatten(),
    )
    return nn.Sequential(*layers, nn.Linear(6 * 49, 10)).train()  # train mode on purpose: attacks must not mind


@pytest.fixture(scope="module")
def scene():
    net = network()
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net.eval()
    y = net(x).argmax(1).detach()
    net.train()
    y[::9] = (y[::9] + 1) % 10  # some are misclassified clean
    return net, x, y, torch.arange(40) + 500


@cases
def test_stays_in_ball_and_box_and_leaves_the_network_as_it_was(scene, attack, threat, goal):
    net, x, y, index = scene
    before = {k: v.clone() for k, v in net.state_dict().items()}
    clean = x.clone()
    made = craft(attack, net, x, y, index, threat, goal, chunk=16)
    assert made.x_adv.shape == x.shape and made.x_adv.dtype == x.dtype
    assert float(norm(made.x_adv - x, threat.norm).max()) <= threat.eps * (1 + 1e-5) + 1e-6
    assert made.x_adv.min() >= 0 and made.x_adv.max() <= 1
    assert torch.equal(x, clean)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert all(m.training for m in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())


@cases
def test_chunks_run_in_any_order_with_the_same_bits(scene, attack, threat, goal):
    net, x, y, index = scene
    whole = craft(attack, net, x, y, index, threat, goal, seed=3, chunk=10)
    for rows in (slice(30, 40), slice(0, 10), slice(10, 30)):
        part = craft(attack, net, x[rows], y[rows], index[rows], threat, goal, seed=3, chunk=10)
        assert torch.equal(part.x_adv, whole.x_adv[rows])
        assert torch.equal(part.queries, whole.queries[rows])


@cases
def test_climbs_its_own_loss(scene, attack, threat, goal):
    net, x, y, index = scene
    made = craft(attack, net, x, y, index, threat, goal)
    net.eval()
    with torch.no_grad():
        aim, loss = goal(y, net(x), index), loss_of(attack.loss)
        todo = ~aim.reached(net(x))
        climbed = loss(net(made.x_adv), aim) - loss(net(x), aim)
    net.train()
    assert float((climbed[todo] > 0).float().mean()) > 0.95


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_print_reads_back(attack):
    assert parse(str(attack)) == attack
    assert specs.key(parse(str(attack))) == specs.key(attack)


def test_examples_that_are_wrong_clean_come_back_untouched_and_cost_one_look(scene):
    net, x, y, index = scene
    made = craft(PGD(steps=5), net, x, y, index, Linf(0.01))
    net.eval()
    wrong = net(x).argmax(1) != y
    net.train()
    assert torch.equal(made.x_adv[wrong], x[wrong])
    assert set(made.queries[wrong].tolist()) == {1} and set(made.gradients[wrong].tolist()) == {0}


def linear(classes: int = 10, pixels: int = 3 * 32 * 32) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    x = 0.5 + 0.1 * torch.rand(64, 3, 32, 32)
    return net, x, net(x).argmax(1).detach()


@pytest.mark.parametrize("threat", [Linf(0.0041), L2(0.19)], ids=str)
@pytest.mark.parametrize("attack", [PGD(steps=20, loss="margin"), PGD(steps=20), FGSM(loss="margin")], ids=str)
def test_a_linear_network_falls_exactly_where_theory_says(attack, threat):
    # Example i can be fooled within eps iff min_j (f_y − f_j) / ‖w_y − w_j‖_q < eps, q dual to the norm.
    net, x, y = linear()
    with torch.no_grad():
        logits, weights = net(x), net[1].weight
        q = 1 if threat.norm == "linf" else 2
        gaps = logits.gather(1, y[:, None]) - logits
        distance = gaps / (weights[y][:, None] - weights[None]).norm(p=q, dim=2).clamp_min(1e-12)
        distance[torch.arange(64), y] = float("inf")
        nearest = distance.amin(1)
        made = craft(attack, net, x, y, torch.arange(64), threat)
        fooled = net(made.x_adv).argmax(1) != y
    clear = (nearest - threat.eps).abs() > 0.02 * threat.eps
    assert 5 < int((nearest < threat.eps).sum()) < 59
    assert not bool((fooled & (nearest > threat.eps) & clear).any())
    if attack == PGD(steps=20, loss="margin"):  # the others climb towards one class, or all at once
        assert torch.equal(fooled[clear], (nearest < threat.eps)[clear])


def test_more_steps_restarts_and_eps_never_hurt_the_attacker(scene):
    net, x, y, index = scene

    def beaten(attack, eps):
        net.eval()
        return set((net(craft(attack, net, x, y, index, Linf(eps)).x_adv).argmax(1) != y).nonzero()[:, 0].tolist())

    assert beaten(PGD(steps=6), 0.005) <= beaten(PGD(steps=6, restarts=4), 0.005)
    assert len(beaten(PGD(steps=10), 0.004)) <= len(beaten(PGD(steps=10), 0.02))


def test_finished_examples_are_dropped(scene):
    net, x, y, index = scene
    made = craft(PGD(steps=40), net, x, y, index, Linf(0.05))
    assert int(made.gradients.max()) < 40  # all fall within a few steps at this radius
    hard = craft(PGD(steps=40), net, x, y, index, Linf(1e-6))
    assert int(hard.gradients.max()) == 40


def test_gradients_may_come_from_another_network(scene):
    net, x, y, index = scene
    other = network(seed=9)
    made = craft(PGD(steps=5), net, x, y, index, Linf(0.02), gradients=other)
    own = craft(PGD(steps=5), net, x, y, index, Linf(0.02))
    assert not torch.equal(made.x_adv, own.x_adv)
    same = craft(PGD(steps=5), net, x, y, index, Linf(0.02), gradients=net)
    assert torch.equal(same.x_adv, own.x_adv)


class Broken(nn.Module):
    """A network whose logits are NaN as soon as the image is touched."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner, self.value = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        touched = (x != 0.5).flatten(1).any(1)[:, None]
        return torch.where(touched, self.inner(x) * self.value, self.inner(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_a_flag_and_never_a_success_nor_in_an_image(value):
    torch.manual_seed(0)
    net, x = Broken(value), torch.full((6, 3, 2, 2), 0.5)
    y = net(x).argmax(1)
    made = craft(PGD(steps=3), net, x, y, torch.arange(6), Linf(0.1))
    assert bool(made.nonfinite.all())
    assert bool(made.x_adv.isfinite().all())
    assert not bool((net(made.x_adv).isfinite().all(1) & (net(made.x_adv).argmax(1) != y)).any())


def test_dead_gradients_are_counted():
    class Steps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)[:, :3]
            return flat.round() + 0 * flat

    x = torch.tensor([0.9, 0.1, 0.1] * 4).view(1, 3, 2, 2).repeat(5, 1, 1, 1)
    net = Steps()
    made = craft(PGD(steps=4), net, x, torch.zeros(5, dtype=torch.int64), torch.arange(5), Linf(0.05))
    assert made.zero_gradients.tolist() == made.gradients.tolist() == [4] * 5


def test_access_is_refused_and_the_cure_named(scene):
    net, x, y, index = scene
    with pytest.raises(ValueError, match='needs gradient access.*access="gradient"'):
        craft(PGD(), net, x, y, index, Linf(0.1, access="score"))
    oracle = Oracle(net, 2, access="decision")
    rows = torch.arange(2)
    with pytest.raises(AccessError, match="needs score access, the threat model grants decision"):
        oracle.logits(x[:2], rows)
    assert oracle.decisions(x[:2], rows).shape == (2,)
    assert oracle.queries.tolist() == [1, 1]


def test_the_clean_looks_graph_gives_the_same_gradient(scene):
    net, x, y, index = scene
    by_look = craft(FGSM(), net, x, y, index, Linf(0.02)).x_adv
    by_hand = craft(FGSM(), net, x, y, index, Linf(0.02), gradients=lambda z: net(z)).x_adv
    assert float((by_look - by_hand).abs().max()) < 1e-6 or float((by_look != by_hand).float().mean()) < 1e-3


def test_a_network_without_gradients_is_told_apart(scene):
    net, x, y, index = scene
    with pytest.raises(AccessError, match="gives no gradient"):
        craft(PGD(), lambda x: net(x).detach(), x, y, index, Linf(0.1))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Linf(0)", "greater than 0"),
        ("Linf(-0.1)", "greater than 0"),
        ("Linf(2)", "at most 1"),
        ("Linf(eps='8/0')", "a fraction"),
        ("PGD(steps=0)", "at least 1"),
        ("PGD(restarts=0)", "at least 1"),
        ("PGD(relative_step=0)", "greater than 0"),
        ("PGD(loss='hinge')", "unknown choice"),
        ("Linf(0.1, access='oracle')", "unknown choice"),
        ("PDG(steps=3)", "did you mean PGD?"),
    ],
)
def test_bad_specs_are_refused(text, says):
    with pytest.raises(SpecError) as error:
        parse(text)
    assert says in str(error.value)


def test_an_empty_batch_and_a_foreign_norm_are_refused(scene):
    net, x, y, index = scene
    with pytest.raises(ValueError, match="at least one example"):
        craft(PGD(), net, x[:0], y[:0], index[:0], Linf(0.1))
    strange = type("L7", (), {"norm": "l7", "eps": 1.0, "access": "gradient"})()
    with pytest.raises(ValueError, match="serves the norms linf, l2"):
        craft(PGD(), net, x, y, index, strange)


def test_one_gradient_of_fgsm_serves_every_eps(scene):
    net, x, y, index = scene
    threats = [Linf(0.01), Linf(0.05), Linf(0.1)]
    together = craft_all(FGSM(), net, x, y, index, threats)
    for made, threat in zip(together, threats, strict=True):
        assert torch.equal(made.x_adv, craft(FGSM(), net, x, y, index, threat).x_adv)
        assert int(made.gradients.max()) == 1
        assert int(made.queries.max()) == 1  # the clean look's graph gives the gradient
    apart = craft_all(PGD(steps=3), net, x, y, index, threats)
    assert torch.equal(apart[2].x_adv, craft(PGD(steps=3), net, x, y, index, threats[2]).x_adv)
    with pytest.raises(ValueError, match="threats of one norm"):
        craft_all(FGSM(), net, x, y, index, [Linf(0.1), L2(0.1)])
