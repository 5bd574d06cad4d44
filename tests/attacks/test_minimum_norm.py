"""The attacks that look for the smallest perturbation: laws, known answers, and foolbox beside
them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from retroact import spec as specs
from retroact.attacks.carlini_wagner import CarliniWagner
from retroact.attacks.ddn import DDN
from retroact.attacks.deepfool import DeepFool
from retroact.attacks.fmn import FMN
from retroact.attacks.trust_region import TrustRegion
from retroact.crafting.domain import Domain
from retroact.crafting.driver import Outcome, craft, craft_all
from retroact.crafting.goals import Aim, LeastLikely, Targeted, Untargeted
from retroact.crafting.l1 import L1
from retroact.crafting.oracle import Oracle
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import Smallest
from retroact.crafting.threat import L2, Linf
from retroact.spec import parse

needs_mnist = pytest.mark.skipif(
    not (Path(os.environ.get("RETROACT_DATA", "")) / "mnist").is_dir(),
    reason="needs MNIST under RETROACT_DATA",
)

NORMS = {t.norm: t for t in (Linf, L2, L1)}
FAR = {"l2": L2(100.0), "linf": Linf(1.0), "l1": L1(1e4)}
ATTACKS = [
    DeepFool(steps=20),
    DeepFool(steps=20, candidates=3, probes=0),
    TrustRegion(steps=100),
    TrustRegion(steps=150, adaptive=True, classes="worst"),
    DDN(steps=20),
    FMN(steps=20),
    CarliniWagner(steps=10, search_steps=2),
]
cases = pytest.mark.parametrize(
    ("attack", "p", "goal"),
    [
        *((a, p, Untargeted()) for a in ATTACKS for p in a.norms),
        *((a, a.norms[i % len(a.norms)], LeastLikely()) for i, a in enumerate(ATTACKS)),
    ],
    ids=str,
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
    return nn.Sequential(*layers, nn.Linear(6 * 49, 10)).train()


@pytest.fixture(scope="module")
def scene():
    net = network()
    x = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    # pixels at the edge
    x = x.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) > 0.3, 0.0)
    y = net.eval()(x).argmax(1).detach()
    net.train()
    y[::9] = (y[::9] + 1) % 10  # some are misclassified clean
    return net, x, y, torch.arange(16) + 500


# ------------------------------------------------------------------------------------------- laws


@cases
def test_the_result_is_an_image_that_reaches_the_goal_or_the_clean_one(scene, attack, p, goal):
    net, x, y, index = scene
    before = {k: v.clone() for k, v in net.state_dict().items()}
    made = craft(attack, net, x, y, index, FAR[p], goal, chunk=8)
    assert made.x_adv.shape == x.shape and made.x_adv.dtype == x.dtype
    assert made.x_adv.min() >= 0 and made.x_adv.max() <= 1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(q.grad is None for q in net.parameters()) and all(m.training for m in net.modules())
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules()
    )
    net.eval()
    with torch.no_grad():
        aim, moved = goal(y, net(x), index), NORMS[p].size(made.x_adv - x) > 0
        reached = aim.reached(net(made.x_adv))
    net.train()
    assert bool(reached[moved].all())
    assert float((moved | reached).float().mean()) > 0.9
    assert int(made.gradients.max()) <= attack.passes


@cases
def test_chunks_run_in_any_order_with_the_same_bits(scene, attack, p, goal):
    net, x, y, index = scene
    whole = craft(attack, net, x, y, index, FAR[p], goal, seed=3, chunk=8)
    rows = slice(8, 16)
    part = craft(attack, net, x[rows], y[rows], index[rows], FAR[p], goal, seed=3, chunk=8)
    assert torch.equal(part.x_adv, whole.x_adv[rows])
    assert torch.equal(part.gradients, whole.gradients[rows])


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_print_reads_back(attack):
    assert parse(str(attack)) == attack and specs.key(parse(str(attack))) == specs.key(attack)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_one_run_serves_every_radius(scene, attack):
    net, x, y, index = scene
    free = L2.size(craft(attack, net, x, y, index, L2(100.0)).x_adv - x)
    threats = [L2(float(free[free > 0].quantile(q))) for q in (0.3, 0.8)]
    for made, threat in zip(craft_all(attack, net, x, y, index, threats), threats, strict=True):
        size = L2.size(made.x_adv - x)
        assert bool(((size > 0) == ((free > 0) & (free <= threat.eps * (1 + 1e-6)))).all())


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_gradients_may_come_from_another_network(scene, attack):
    net, x, y, index = scene
    # the same boundaries, steeper: folding and sloped nets look like this
    scaled = lambda z: 1e3 * net(z)  # noqa: E731
    own = L2.size(craft(attack, net, x, y, index, L2(100.0)).x_adv - x)
    other = L2.size(craft(attack, net, x, y, index, L2(100.0), source=scaled).x_adv - x)
    assert float((other > 0).float().mean()) > 0.8
    assert abs(float(other.mean() / own.mean()) - 1) < 0.05


# ---------------------------------------------------------------------------------- known answers


def linear() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    x = 0.5 + 0.1 * torch.rand(32, 3, 32, 32)
    return net, x, net(x).argmax(1).detach()


def linear_distances(net: nn.Module, x: Tensor, y: Tensor, p: str) -> Tensor:
    # Class j is (f_y − f_j) / ‖w_y − w_j‖_q away, q dual to p.
    with torch.no_grad():
        logits, weights = net(x), net[1].weight
        slopes = (weights[y][:, None] - weights[None]).norm(p=1 if p == "linf" else 2, dim=2)
        distances = (logits.gather(1, y[:, None]) - logits) / slopes
    return distances.scatter(1, y[:, None], float("inf"))


EXACT = [
    (DeepFool(probes=5), "l2"),
    (DeepFool(probes=5), "linf"),
    (TrustRegion(probes=5, overshoot=0.0), "l2"),
    (TrustRegion(probes=5, overshoot=0.0), "linf"),
]


@pytest.mark.parametrize(("attack", "p"), EXACT, ids=str)
def test_a_linear_network_gives_its_nearest_point(attack, p):
    net, x, y = linear()
    made = craft(attack, net, x, y, torch.arange(32), FAR[p])
    assert bool((net(made.x_adv).argmax(1) != y).all())
    nearest = linear_distances(net, x, y, p).amin(1)
    size = NORMS[p].size(made.x_adv - x)
    assert bool((size > nearest * (1 - 1e-5)).all())
    torch.testing.assert_close(size, nearest, rtol=1e-4, atol=1e-6)


PLANE = [
    (DeepFool(probes=5), "l2"),
    (DeepFool(probes=5), "linf"),
    (DDN(steps=300, probes=5), "l2"),
    (FMN(probes=5), "l2"),
    (FMN(steps=200, probes=5), "linf"),
    (CarliniWagner(), "l2"),
    (CarliniWagner(steps=300, learning_rate=0.01, probes=5), "l2"),
]


@pytest.mark.parametrize(("attack", "p"), PLANE, ids=str)
def test_gradual_attacks_find_the_nearest_point_of_a_plane(attack, p):
    torch.manual_seed(4)
    net, x = (
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)),
        0.3 + 0.4 * torch.rand(8, 3, 32, 32),
    )
    y = net(x).argmax(1).detach()
    size = NORMS[p].size(craft(attack, net, x, y, torch.arange(8), FAR[p]).x_adv - x)
    nearest = linear_distances(net, x, y, p).amin(1)
    torch.testing.assert_close(size, nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("attack", "p"), PLANE, ids=str)
def test_the_nearest_point_of_a_plane_in_a_box_that_cuts(attack, p):
    torch.manual_seed(5)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)), torch.rand(16, 3, 8, 8)
    x = torch.where(torch.rand(x.shape) < 0.3, x.round(), x)  # many pixels stand at an edge
    with torch.no_grad():
        net[1].bias += 1.0  # far enough for the box to matter
        net[1].bias[0] += 2.0
        z, y = net(x), net(x).argmax(1)
        w = net[1].weight[1 - y] - net[1].weight[y]
        gap, flat = (z.amax(1) - z.amin(1)).double(), x.flatten(1).double()
        way = w.double() if p == "l2" else w.double().sign()
        low, high = torch.zeros_like(gap), torch.full_like(gap, 100.0)
        # the shortest perturbation is clip(t w) or clip(t sign(w)): bisection in t
        for _ in range(60):
            t = (low + high) / 2
            short = (w * ((flat + t[:, None] * way).clamp(0, 1) - flat)).sum(1) < gap
            low, high = t.where(short, low), t.where(~short, high)
        nearest = NORMS[p].size((flat + high[:, None] * way).clamp(0, 1) - flat).float()
        cut = (
            (flat + high[:, None] * way - (flat + high[:, None] * way).clamp(0, 1))
            .abs()
            .gt(0)
            .double()
            .mean()
        )
    assert float(cut) > 0.1
    size = NORMS[p].size(craft(attack, net, x, y, torch.arange(16), FAR[p]).x_adv - x)
    torch.testing.assert_close(size, nearest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", ["l2", "linf"])
def test_deepfool_alone_oversteps_a_linear_boundary_by_its_overshoot(p):
    net, x, y = linear()
    made = craft(DeepFool(overshoot=0.02, probes=0), net, x, y, torch.arange(32), FAR[p])
    nearest = linear_distances(net, x, y, p).amin(1)
    torch.testing.assert_close(NORMS[p].size(made.x_adv - x), 1.02 * nearest, rtol=1e-3, atol=3e-6)
    assert int(made.gradients.max()) <= 9 + 1  # one step, and one look at where it led


@pytest.mark.parametrize("p", ["l2", "linf"])
def test_deepfool_goes_to_the_target(p):
    net, x, y = linear()
    made = craft(DeepFool(probes=5), net, x, y, torch.arange(32), FAR[p], Targeted(3))
    todo = y != 3
    assert bool((net(made.x_adv).argmax(1) == 3).all())
    assert bool(
        (NORMS[p].size(made.x_adv - x) >= linear_distances(net, x, y, p)[:, 3] * (1 - 1e-5))[
            todo
        ].all()
    )


def test_the_best_and_the_worst_class_of_trust_region():
    net, x, y = linear()
    distances = linear_distances(net, x, y, "l2")
    best = net(craft(TrustRegion(), net, x, y, torch.arange(32), FAR["l2"]).x_adv).argmax(1)
    worst = net(
        craft(TrustRegion(classes="worst"), net, x, y, torch.arange(32), FAR["l2"]).x_adv
    ).argmax(1)
    assert torch.equal(best, distances.argmin(1))
    assert torch.equal(worst, distances.masked_fill(distances.isinf(), -1).argmax(1))


def plane(p: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A two-layer network of two pixels, points in it, and their distances to its boundary, by
    brute force."""
    torch.manual_seed(12)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 3))
    with torch.no_grad():
        net[1].weight.mul_(3.0)
        # every unit bends inside the box
        net[1].bias.copy_(-(net[1].weight * torch.rand(24, 2)).sum(1))
    side = torch.linspace(0, 1, 601)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).view(-1, 1, 1, 2)
    x = torch.rand(40, 1, 1, 2)
    with torch.no_grad():
        y, decided = net(x).argmax(1), net(grid).argmax(1)
    nearest = torch.stack(
        [NORMS[p].size(grid[decided != c] - point).amin() for point, c in zip(x, y, strict=True)]
    )
    return net, x, y, nearest


@pytest.mark.parametrize(
    ("attack", "p"),
    [
        (DDN(init=0.1), "l2"),
        (FMN(), "l2"),
        (FMN(), "linf"),
        (CarliniWagner(), "l2"),
        (TrustRegion(radius=0.01), "l2"),
        (DeepFool(), "l2"),
        (DeepFool(), "linf"),
    ],
    ids=str,
)
def test_a_two_layer_network_against_brute_force(attack, p):
    net, x, y, nearest = plane(p)
    size = NORMS[p].size(craft(attack, net, x, y, torch.arange(40), FAR[p]).x_adv - x)
    hit = size > 0
    assert float(hit.float().mean()) > 0.9
    # nobody is nearer than the grid can tell
    assert bool((size[hit] > nearest[hit] - 1.5 / 600).all())
    assert float((size / nearest)[hit].median()) < 1.02  # some find a local minimum elsewhere


# --------------------------------------------------------------------------------- what goes wrong


class Dead(nn.Module):
    """Steps: no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :3]
        return flat.round() + 0 * flat


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_a_dead_gradient_is_counted_and_gives_the_clean_image_at_once(attack):
    x = torch.tensor([0.9, 0.1, 0.1] * 4).view(1, 3, 2, 2).repeat(5, 1, 1, 1)
    made = craft(
        attack, Dead(), x, torch.zeros(5, dtype=torch.int64), torch.arange(5), FAR[attack.norms[0]]
    )
    assert torch.equal(made.x_adv, x)
    assert bool((made.zero_gradients == made.gradients).all()) and int(made.gradients.max()) <= 3


class Broken(nn.Module):
    """A network whose logits are NaN or infinite as soon as the image is touched."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.inner, self.value = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), value

    def forward(self, x: Tensor) -> Tensor:
        touched = (x != 0.5).flatten(1).any(1)[:, None]
        return torch.where(touched, self.inner(x) * self.value, self.inner(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_nan_is_a_flag_and_never_a_success(attack, value):
    torch.manual_seed(0)
    net, x = Broken(value), torch.full((6, 3, 2, 2), 0.5)
    made = craft(attack, net, x, net(x).argmax(1), torch.arange(6), FAR[attack.norms[0]])
    assert bool(made.nonfinite.all()) and torch.equal(made.x_adv, x)


# -------------------------------------------------------------------------------------- the tools


def test_dual_norms_and_the_box():
    g = torch.tensor([[3.0, -4.0]])
    assert L2.dual_norm(g).item() == 5.0 and Linf.dual_norm(g).item() == 7.0
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.5]])
    assert Domain((5,)).inward(torch.tensor([[-1.0, 1.0, 1.0, -1.0, 2.0]]), x).tolist() == [
        [0.0, 0.0, 1.0, -1.0, 2.0]
    ]


def test_pull_finds_the_boundary_on_the_line_and_never_leaves_the_goal():
    net, x, y = linear()
    aim, rows = Aim(y), torch.arange(32)
    d = craft(DeepFool(probes=0), net, x, y, rows, FAR["l2"]).x_adv - x
    found = Smallest(Scene.on(net, x, aim, L2(100.0)))
    far = x + 1.5 * d
    assert bool(found.keep(far, net(far).detach(), rows).all())
    pulled = found.pull(probes=4)
    assert bool((net(pulled).argmax(1) != y).all())
    torch.testing.assert_close(L2.size(pulled - x) * 1.02, L2.size(d), rtol=2e-3, atol=1e-5)


def test_a_kept_graph_gives_the_gradients_of_fresh_passes_for_one_query(scene):
    net, x, _, _ = scene
    net.eval()
    kept, fresh, rows, some = (
        Oracle(net, 16),
        Oracle(net, 16),
        torch.arange(16),
        torch.arange(0, 16, 2),
    )
    graph = kept.graph(x, rows)
    small = graph.narrowed(some)
    for c in (1, 4):
        wanted = fresh.gradient(x[some], some, lambda z, c=c: z[:, c])[1]
        torch.testing.assert_close(graph.gradient(some, lambda z, c=c: z[:, c]), wanted)
        torch.testing.assert_close(small.gradient(torch.arange(8), lambda z, c=c: z[:, c]), wanted)
    net.train()
    assert kept.gradients.tolist() == [4, 0] * 8 and kept.queries.tolist() == [1, 1] * 8
    assert fresh.gradients.tolist() == [2, 0] * 8


@needs_mnist
@pytest.mark.parametrize(("attack", "p"), [(FMN(), "l2"), (FMN(), "linf"), (DDN(), "l2")], ids=str)
def test_a_dead_place_behind_jumps_is_left_again(attack, p):
    import retroact as ra

    net, data = (
        ra.retrofit(ra.load("lenet-mnist"), ra.JumpReLU(1.0)).eval(),
        ra.data("mnist/validation[:12]"),
    )
    made = craft(attack, net, data.images, data.labels, data.index, FAR[p])
    assert bool(sizes(net, made, data.images, data.labels, p).isfinite().all())


def test_only_points_with_the_confidence_asked_for_count(scene):
    net, x, y, index = scene
    attack = CarliniWagner(confidence=0.5)
    made = craft(attack, net, x, y, index, FAR["l2"])
    net.eval()
    with torch.no_grad():
        z, moved = net(made.x_adv), L2.size(made.x_adv - x) > 0
    net.train()
    own = z.gather(1, y[:, None])[:, 0]
    assert int(moved.sum()) > 10
    assert bool((z.amax(1) - own >= 0.5 - 1e-5)[moved].all())


# ---------------------------------------------------------------------------------------- foolbox


def retrofits() -> dict[str, Callable[[], nn.Module]]:
    import retroact as ra

    return {
        "base": lambda: ra.load("lenet-mnist"),
        "robust": lambda: ra.load("lenet-mnist-robust"),
        "jump": lambda: ra.retrofit(ra.load("lenet-mnist"), ra.JumpReLU(1.0)),
        "sloped": lambda: ra.retrofit(ra.load("lenet-mnist"), ra.SReLU(10.0)),
        "resnet": lambda: ra.load("resnet20-cifar10"),
    }


def sizes(net: nn.Module, made: Outcome | Tensor, x: Tensor, y: Tensor, p: str) -> Tensor:
    """The norm of each example's perturbation, judged afresh; infinite where it does not fool the
    network."""
    x_adv = made.x_adv if isinstance(made, Outcome) else made
    with torch.no_grad():
        z = net.eval()(x_adv)
    fooled = (z.argmax(1) != y) & z.isfinite().all(1)
    return NORMS[p].size(x_adv - x).where(fooled, torch.inf)


PEERS = [
    (DeepFool(), "l2", "L2DeepFoolAttack", {}),
    (DeepFool(), "linf", "LinfDeepFoolAttack", {}),
    (DDN(), "l2", "DDNAttack", {"steps": 100}),
    (FMN(), "l2", "L2FMNAttack", {"steps": 100}),
    (FMN(), "linf", "LInfFMNAttack", {"steps": 100}),
    (
        CarliniWagner(),
        "l2",
        "L2CarliniWagnerAttack",
        {"binary_search_steps": 3, "steps": 50, "stepsize": 0.1, "initial_const": 1.0},
    ),
]


NETS = ("base", "robust", "jump", "sloped", "resnet")


@pytest.mark.parametrize(
    ("which", "attack", "p", "peer", "options"),
    [  # each beside its peer on one of the five networks, and on another one with `make long`
        pytest.param(NETS[(j - i) % 5], *row, marks=marks)
        for j, marks in ((0, ()), (2, pytest.mark.long))
        for i, row in enumerate(PEERS)
    ],
    ids=lambda v: str(v) if not isinstance(v, dict) else "",
)
@needs_mnist
@pytest.mark.slow
def test_no_weaker_than_foolbox(which, attack, p, peer, options):
    foolbox = pytest.importorskip("foolbox")
    import retroact as ra

    net, data = (
        retrofits()[which]().eval(),
        ra.data("cifar10[:4]" if which == "resnet" else "mnist[:16]"),
    )
    torch.manual_seed(0)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    theirs, _, _ = getattr(foolbox.attacks, peer)(**options)(
        model, data.images, data.labels, epsilons=None
    )
    ours = craft(attack, net, data.images, data.labels, data.index, FAR[p])
    a, b = (sizes(net, made, data.images, data.labels, p) for made in (ours, theirs))
    assert int(a.isfinite().sum()) >= int(b.isfinite().sum())
    both = a.isfinite() & b.isfinite()
    assert float(a[both].mean()) <= 1.001 * float(b[both].mean())


@needs_mnist
def test_the_stronger_attacks_find_smaller_norms():
    import retroact as ra

    net, data = ra.load("lenet-mnist"), ra.data("mnist[:16]")
    mean = {}
    for attack, p in (
        (DeepFool(), "l2"),
        (DDN(), "l2"),
        (FMN(), "l2"),
        (CarliniWagner(), "l2"),
        (TrustRegion(), "l2"),
    ):
        made = craft(attack, net, data.images, data.labels, data.index, FAR[p])
        size = sizes(net, made, data.images, data.labels, p)
        assert bool(size.isfinite().all())
        mean[type(attack)] = float(size.mean())
        if attack == CarliniWagner():
            assert attack.passes <= 151 and float(size.median()) <= 1.70
    assert max(mean[DDN], mean[FMN], mean[TrustRegion]) < mean[DeepFool]
    x, y, index = data.images, data.labels, data.index
    made = (craft(a, net, x, y, index, FAR["linf"]).x_adv for a in (FMN(), DeepFool()))
    linf = [Linf.size(x_adv - x).mean() for x_adv in made]
    assert linf[0] < linf[1]
