"""Laws that every attack keeps, one list for all of them, and known answers on a linear network."""

import copy
import dataclasses
import importlib.util
from collections.abc import Iterable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact import spec as specs
from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.crafting.attack import Attack
from retroact.crafting.driver import Outcome, craft, craft_all
from retroact.crafting.goals import Goal, LeastLikely, Untargeted
from retroact.crafting.l1 import L1
from retroact.crafting.losses import loss_of
from retroact.crafting.threat import ACCESS, L2, Linf, ThreatModel
from retroact.evaluation.evaluate import evaluate
from retroact.evaluation.metrics import success_rate
from retroact.spec import parse

# Every attack of the package, as cheap as it goes: a test below fails where one is missing.
BRIEF = [  # with few steps, as laws hold for any number of them
    ra.APGD(steps=6),
    ra.APGD(steps=4, restarts=2, loss="dlr"),
    ra.APGD(steps=4, loss="dlr", targets=2),
    ra.AdditiveGaussianNoise(repeats=2),
    ra.AdditiveUniformNoise(repeats=2),
    ra.AutoAttack(),
    ra.BIM(steps=3),
    ra.BlendedNoise(steps=10, draws=5),
    ra.CarliniWagner(steps=5, search_steps=2),
    ra.Contrast(steps=10),
    ra.DDN(steps=8),
    ra.DeepFool(steps=5),
    ra.ErichsonDeepFool(steps=3),
    ra.ErichsonPGD(steps=4, step=0.1),
    ra.ErichsonTrustRegion(steps=5),
    ra.FGM(),
    ra.FGSM(),
    ra.FGSM(loss="margin"),
    ra.FGSM(batch=100),
    ra.FMN(steps=8),
    ra.Foolbox("LinfPGD", steps=3),
    ra.Foolbox("L2PGD", steps=3),
    ra.GaussianBlur(steps=10),
    ra.HopSkipJump(queries=160, samples=10),
    ra.Inversion(),
    ra.Momentum(steps=4),
    ra.Momentum(steps=3, restarts=2, targets=2),
    ra.PGD(steps=4),
    ra.PGD(steps=3, restarts=2, loss="margin"),
    ra.PGD(steps=3, random_start=False, relative_step=0.5, loss="towards_and_away"),
    ra.PixelSearch(),
    ra.PixelSearch(pixels=3, pool=20, draws=10),
    ra.RFGSM(),
    ra.RayS(queries=60),
    ra.SPSA(steps=4, samples=8),
    ra.SPSA(steps=3, samples=8, estimator="nes"),
    ra.SaltAndPepper(steps=10),
    ra.Square(queries=15),
    ra.StepLL(steps=2),
    ra.Torchattacks13BIM(eps=0.02),
    ra.Torchattacks13DeepFool(steps=2),
    ra.Torchattacks13RFGSM(eps="16/255", steps=2),
    ra.Torchattacks13StepLL(eps=0.02),
    ra.TrustRegion(steps=10, radius=0.05),
    ra.VirtualAdversarial(steps=3),
]
# and every other attack of the package at its defaults: a new one has no line here
ATTACKS = [
    *BRIEF,
    *(
        cls()
        for cls in specs.known(Attack)
        if cls.__module__.startswith("retroact.attacks.") and cls not in {type(a) for a in BRIEF}
    ),
]
FOREIGN = (ra.Foolbox, ra.AutoAttack)
DRAW = {  # the attacks that use the seed; all others give the same whatever it is, and so do, here,
    # RayS, which draws nothing before every entry has been flipped, and PixelSearch, whose sets of
    # pixels break none that single ones have left
    *(
        "APGD",
        "AdditiveGaussianNoise",
        "AdditiveUniformNoise",
        "AutoAttack",
        "BlendedNoise",
        "Foolbox",
        "HopSkipJump",
        "Momentum",
    ),
    *("PGD", "RFGSM", "SPSA", "SaltAndPepper", "Square", "Torchattacks13RFGSM"),
    "VirtualAdversarial",
}
# some are broken, some are not
NEAR: dict[str, ThreatModel] = {"linf": Linf(0.02), "l2": L2(0.2), "l1": L1(1.0)}


def is_published(attack: object) -> bool:
    """Whether it is one of the papers' own variants."""
    return type(attack).__module__.endswith((".erichson", ".torchattacks13"))


NORMS = {t.norm: t for t in (Linf, L2, L1)}
# all are broken
FAR: dict[str, ThreatModel] = {"linf": Linf(0.3), "l2": L2(5.0), "l1": L1(40.0)}
# as good as no radius
WIDE: dict[str, ThreatModel] = {"linf": Linf(1.0), "l2": L2(17.3), "l1": L1(299.0)}


STRONG: dict[str, ThreatModel] = {"linf": Linf(0.3), "l2": L2(2.0), "l1": L1(40.0)}


def at_length(attack: Attack, p: str) -> Attack:
    """The attack with more steps in L1, where each moves few entries."""
    if p != "l1" or not hasattr(attack, "steps"):
        return attack
    return dataclasses.replace(attack, steps=12 * attack.steps)


def norms(attack: Attack) -> tuple[str, ...]:
    """The norms of an attack; one of foolbox says its own in its name."""
    return (attack.name[:-3].lower(),) if isinstance(attack, ra.Foolbox) else attack.norms


def untargeted_only(attack: Attack) -> bool:
    classless = isinstance(attack, ra.AutoAttack | ra.VirtualAdversarial)
    return is_published(attack) or classless or getattr(attack, "targets", 0)


def shows_its_try(attack: Attack) -> bool:
    """The published variants are judged by where they ended, inversion by its one image: they may
    move and fail."""
    return is_published(attack) or isinstance(attack, ra.Inversion)


def threat_of(attack: Attack, p: str) -> ThreatModel:
    """AutoAttack is asked where its first part fools all: the other three would take seconds an
    image."""
    if attack.kind == "minimum-norm":
        return WIDE[p]
    return (FAR if isinstance(attack, ra.AutoAttack) else NEAR)[p]


def case(attack: Attack, *rest: object) -> object:
    """A case, left out where the package of a foreign attack is not installed."""
    needed = {ra.Foolbox: "foolbox", ra.AutoAttack: "pyautoattack"}.get(type(attack))
    gone = needed is not None and not importlib.util.find_spec(needed)
    marks = [pytest.mark.skipif(gone, reason=f"no {needed}")]
    if isinstance(attack, ra.AutoAttack) and rest[0] == "l2":  # its images take a second each
        marks.append(pytest.mark.long)
    return pytest.param(attack, *rest, marks=marks)


EACH = [(a, p) for a in ATTACKS for p in norms(a)]
each_norm = pytest.mark.parametrize(("attack", "p"), [case(a, p) for a, p in EACH], ids=str)
OURS = [(a, p) for a, p in EACH if not isinstance(a, FOREIGN)]
each_of_ours = pytest.mark.parametrize(("attack", "p"), OURS, ids=str)


def aimed(pairs: Iterable[tuple[Attack, str]]) -> list[tuple[Attack, str, Goal]]:
    """Each attack under each of its norms, and towards a class under one of them, by turns."""
    least = {a: p for i, (a, p) in enumerate(pairs) if i % 3 == 0 or p == a.norms[0]}
    cases = [(a, p, Untargeted()) for a, p in pairs]
    return cases + [(a, p, LeastLikely()) for a, p in least.items() if not untargeted_only(a)]


CASES = aimed(EACH)
each_case = pytest.mark.parametrize(("attack", "p", "goal"), [case(*c) for c in CASES], ids=str)


# ------------------------------------------------------------------------------------- the laws


@cache
def small() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A small network in train mode on purpose (attacks must not mind), and eight images, two
    misclassified."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(4 * 16, 6)).eval().requires_grad_(False)
    x = torch.rand(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    # pixels at the edge
    x = x.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) > 0.2, 0.0)
    x = x * torch.linspace(0.2, 1.0, 8)[:, None, None, None]  # dark and bright
    net[-1].bias -= net(x).mean(0)  # or all would be of one class
    y = net(x).argmax(1)
    y[::4] = (y[::4] + 1) % 6
    return net.requires_grad_(True).train(), x, y, torch.arange(8) + 500


def run(attack: Attack, p: str, goal: Goal, **more: object) -> Outcome:
    net, x, y, index = small()
    # our own are asked about chunks below
    how = {"seed": 3, "chunk": 4 if isinstance(attack, FOREIGN) else 8} | more
    return craft(attack, net, x, y, index, threat_of(attack, p), goal, **how)


first_run = cache(run)  # the laws that ask for nothing else share one run


def logits(x: Tensor) -> Tensor:
    net = small()[0].eval()
    with torch.no_grad():
        z = net(x)
    net.train()
    return z


def test_the_list_has_every_attack_of_the_package():
    # what a study needs to stand beside another library's attack is tested with the study
    package = {cls for cls in specs.known(Attack) if cls.__module__.startswith("retroact.attacks.")}
    assert {type(attack) for attack in ATTACKS} == package
    assert {(type(a), p) for a, p in EACH} == {(cls, p) for cls in package for p in cls.norms}


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_print_reads_back(attack):
    assert parse(str(attack)) == attack and specs.key(parse(str(attack))) == specs.key(attack)


@each_case
def test_stays_in_ball_and_box_and_leaves_everything_as_it_was(attack, p, goal):
    net, x, y, _ = small()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    clean, labels, state = x.clone(), y.clone(), torch.get_rng_state()
    made, threat = run(attack, p, goal), threat_of(attack, p)
    again = first_run(attack, p, goal)
    assert torch.equal(made.x_adv, again.x_adv) and torch.equal(made.queries, again.queries)
    assert (
        made.x_adv.shape == x.shape
        and made.x_adv.dtype == x.dtype
        and bool(made.x_adv.isfinite().all())
    )
    assert float(NORMS[p].size(made.x_adv - x).max()) <= threat.eps * (1 + 1e-5) + 1e-6
    assert made.x_adv.min() >= 0 and made.x_adv.max() <= 1
    assert (
        torch.equal(x, clean)
        and torch.equal(y, labels)
        and torch.equal(torch.get_rng_state(), state)
    )
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(q.grad is None and q.requires_grad for q in net.parameters()) and all(
        m.training for m in net.modules()
    )
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules()
    )


@each_case
def test_examples_that_need_no_attack_come_back_untouched_and_cost_one_look(attack, p, goal):
    _, x, y, index = small()
    made = first_run(attack, p, goal)
    done = goal(y, logits(x), index).reached(logits(x))
    assert int(done.sum()) == (2 if goal == Untargeted() else 0)
    assert torch.equal(made.x_adv[done], x[done])
    assert set(made.queries[done].tolist()) <= {1} and set(made.gradients[done].tolist()) <= {0}
    assert int((made.queries[~done] + made.gradients[~done]).sum()) > 0


@each_case
def test_an_example_does_not_depend_on_the_others(attack, p, goal):
    net, x, y, index = small()
    one, other = (
        craft(
            attack, net, x[rows], y[rows], index[rows], threat_of(attack, p), goal, seed=3, chunk=1
        )
        for rows in ([6, 1], [1, 6])
    )
    there = [1, 0]
    assert torch.equal(one.x_adv[there], other.x_adv)
    assert torch.equal(one.queries[there], other.queries) and torch.equal(
        one.gradients[there], other.gradients
    )


# foreign attacks draw from generators with a state: their results depend on the chunk's make-up
@each_of_ours
def test_chunks_change_nothing_but_rounding(attack, p):
    net, x, y, index = small()
    # a probe lands on the boundary to the last bit: rounding says on which side
    if hasattr(attack, "probes"):
        attack = dataclasses.replace(attack, probes=0)
    # in float32 a rounding may tip a comparison of losses
    net, x = copy.deepcopy(net).double(), x.double()
    one, other = (
        craft(attack, net, x, y, index, threat_of(attack, p), seed=3, chunk=c) for c in (8, 3)
    )
    assert float((one.x_adv - other.x_adv).abs().max()) < 1e-5
    assert torch.equal(one.queries, other.queries) and torch.equal(one.gradients, other.gradients)


DTYPES = (torch.float64, torch.bfloat16)
# one for each norm, by turns, and both where an attack has one norm only
DTYPED_BY = [
    (a, p, dtype)
    for i, (a, p) in enumerate(OURS)
    for dtype in (DTYPES if len(a.norms) == 1 else [DTYPES[i % 2]])
]


@pytest.mark.parametrize(("attack", "p", "dtype"), DTYPED_BY, ids=str)
def test_serves_a_network_of_another_dtype(attack, p, dtype):
    net, x, y, index = small()
    made = craft(attack, copy.deepcopy(net).to(dtype), x, y, index, threat_of(attack, p), seed=3)
    assert made.x_adv.dtype == x.dtype and float((made.x_adv - x).abs().max()) > 0
    assert not bool(made.nonfinite.any())


@each_norm
def test_the_seed_moves_those_that_draw_and_no_others(attack, p):
    if attack not in BRIEF:
        return  # it is not known whether it draws
    same = torch.equal(
        run(attack, p, Untargeted(), seed=4).x_adv, first_run(attack, p, Untargeted()).x_adv
    )
    assert same == (
        type(attack).__name__ not in DRAW or getattr(attack, "random_start", True) is False
    )


@each_case
def test_costs_no_more_than_it_says_and_needs_no_more_than_it_says(attack, p, goal):
    made, threat = first_run(attack, p, goal), threat_of(attack, p)
    assert int(made.gradients.max()) <= attack.passes
    for access in ACCESS:
        scoped = type(threat)(threat.eps, access=access)
        net, *rest = small()
        if ACCESS.index(access) < ACCESS.index(attack.needs):
            with pytest.raises(ValueError, match=f"needs {attack.needs} access"):
                craft(attack, net, *rest, scoped, goal)
        elif access == attack.needs and access != "gradient":
            assert torch.equal(
                craft(attack, net, *rest, scoped, goal, seed=3, chunk=8).x_adv, made.x_adv
            )
            assert int(made.gradients.max()) == 0


@pytest.mark.parametrize(
    ("attack", "p", "goal"), [c for c in CASES if c[0].kind == "minimum-norm"], ids=str
)
def test_a_minimum_norm_attack_moves_only_what_reaches_the_goal_within_the_radius(attack, p, goal):
    net, x, y, index = small()
    found = first_run(attack, p, goal).x_adv
    size, aim = NORMS[p].size(found - x), goal(y, logits(x), index)
    if not shows_its_try(attack):
        assert bool(aim.reached(logits(found))[size > 0].all())
    radius = float(size[size > 0].median()) if bool((size > 0).any()) else 0.1
    near = type(WIDE[p])(min(radius * (1 + 1e-4), WIDE[p].eps))
    made = craft_all(attack, net, x, y, index, [WIDE[p], near], goal, seed=3, chunk=8)
    assert torch.equal(made[0].x_adv, found)
    assert torch.equal(made[1].x_adv, found.where((size <= near.eps)[:, None, None, None], x))


@pytest.mark.parametrize("attack", [a for a in ATTACKS if untargeted_only(a)], ids=str)
def test_an_attack_that_serves_no_target_refuses_one(attack):
    with pytest.raises(ValueError, match=r"Untargeted\(\)"):
        run(attack, norms(attack)[0], LeastLikely())


class Broken(nn.Module):
    """A network whose logits are NaN, infinite or all alike as soon as a pixel is none of the clean
    ones, ¼ and ⅝, so on plain gray, too."""

    def __init__(self, value: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.value = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), value

    def forward(self, x: Tensor) -> Tensor:
        touched = ((x != 0.25) & (x != 0.625)).flatten(1).any(1)[:, None]
        return torch.where(touched, self.inner(x) * self.value, self.inner(x))


VALUES = (float("nan"), float("inf"), 0.0)  # 0: all logits alike
# one for each norm, by turns, and the next one too where an attack has one norm only
BROKEN_BY = [
    case(a, p, value)
    for i, (a, p) in enumerate(EACH)
    for value in (VALUES[i % 3], *([VALUES[(i + 1) % 3]] if len(norms(a)) == 1 else ()))
]


@pytest.mark.parametrize(("attack", "p", "value"), BROKEN_BY, ids=str)
def test_nan_is_a_flag_and_never_a_success_nor_in_an_image(attack, p, value):
    net, x = (
        Broken(value),
        torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5)).round() * 0.375 + 0.25,
    )
    y, index = net(x).argmax(1), torch.arange(2)
    threat = WIDE[p] if attack.kind == "minimum-norm" else FAR[p]
    record = evaluate(net, ra.Images(x, y, index), attack, threat, keep=2)
    assert success_rate(record) == 0.0 and bool(record.nonfinite.all())
    assert not record.distance.any() and (record.examples == x.numpy()).all()


class Dead(nn.Module):
    """Steps: no gradient anywhere."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :5]
        return flat.round() + 0 * flat


# AutoAttack is left out: on images that stand its four parts take minutes.
GRADIENT = [(a, p) for a, p in EACH if a.needs == "gradient" and not isinstance(a, ra.AutoAttack)]


@pytest.mark.parametrize(("attack", "p"), [case(a, p) for a, p in GRADIENT], ids=str)
def test_dead_gradients_are_counted(attack, p):
    x = torch.tensor([0.9, 0.1, 0.1, 0.1, 0.1] * 15).view(1, 3, 5, 5).repeat(3, 1, 1, 1)
    made = craft(attack, Dead(), x, torch.zeros(3, dtype=torch.int64), torch.arange(3), NEAR[p])
    assert torch.equal(made.zero_gradients, made.gradients) and int(made.gradients.min()) > 0
    assert bool((Dead()(made.x_adv).argmax(1) == 0).all())


# ---------------------------------------------------- the size of logits, and what is added to them


class Affine(nn.Module):
    """by · net + plus: the same decisions."""

    def __init__(self, net: nn.Module, by: float = 1.0, plus: float = 0.0) -> None:
        super().__init__()
        self.net, self.by, self.plus = net, by, plus

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * self.by + self.plus


def facts(
    attack: Attack,
    p: str,
    net: nn.Module,
    goal: Goal | None = None,
    threat: ThreatModel | None = None,
):
    _, x, y, index = small()
    data = ra.Images(x, y, index)
    return evaluate(
        net, data, attack, threat or threat_of(attack, p), goal=goal, seed=3, chunk=8, keep=8
    )


@cache
def in_double() -> nn.Module:
    return copy.deepcopy(small()[0]).double()


class OnGrid(nn.Module):
    """Logits in double that are multiples of 2^-20, with the gradient of those that are not: 2^20
    more of them is exact. A minimum-norm attack steps to where a linear net has its boundary, and
    there the least rounding would decide on which side an image lies."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return logits + (logits.mul(2**20).round().div(2**20) - logits).detach()


@each_of_ours
def test_an_offset_of_all_logits_changes_nothing(attack, p):
    net = OnGrid(in_double())
    one, other = (facts(attack, p, each) for each in (net, Affine(net, plus=2.0**20)))
    assert (one.clean == other.clean).all() and (one.adversarial == other.adversarial).all()
    assert not one.nonfinite.any() and not other.nonfinite.any()
    # a radius that fells all says little: where it is sought, the same is found
    if attack.kind == "minimum-norm":
        assert (one.distance == other.distance).all() and one.distance.max() > 0


def on_margins(attack: Attack) -> Attack:
    """The attack with the margin in the place of a loss with a softmax."""
    softmax = getattr(attack, "loss", None) in ("cross_entropy", "towards_and_away")
    return dataclasses.replace(attack, loss="margin") if softmax else attack


def has_softmax(attack: Attack) -> bool:
    """Whether it cannot do without one, whatever its loss."""
    return is_published(attack) or isinstance(attack, ra.VirtualAdversarial)


MARGINS = dict.fromkeys((on_margins(a), p) for a, p in OURS if not has_softmax(a))
# a power for each, small and large ones by turns: over its norms and goals an attack has several
SCALES = [(*c, (14, -100, 40, -14)[i % 4]) for i, c in enumerate(aimed(MARGINS))]


@pytest.mark.parametrize(("attack", "p", "goal", "power"), SCALES, ids=str)
def test_a_power_of_two_on_all_logits_changes_not_a_bit_without_a_softmax(attack, p, goal, power):
    plain = facts(attack, p, small()[0], goal)
    other = facts(attack, p, Affine(small()[0], by=2.0**power), goal)
    assert (other.examples == plain.examples).all() and other == plain


@pytest.mark.parametrize("batch", [4, 100, 256])
@pytest.mark.parametrize(("by", "rounds"), [(1.0, False), (1800.0, True), (8000.0, False)])
def test_averaging_the_loss_over_a_batch_changes_signs_only_where_gradients_round_to_zero(
    batch, by, rounds
):
    """Gradients are far above 1e-45 at first, about there, and zero before they are divided."""
    net, x, y, index = small()
    net, eps = Affine(net, by=by), 2.0**-6
    # away from the ends of the box every entry shows its sign
    x = x.clamp(2 * eps, 1 - 2 * eps)
    one, mean = (
        (craft(FGSM(batch=b), net, x, y, index, Linf(eps)).x_adv - x).sign() for b in (1, batch)
    )
    assert bool((mean == 0)[one != mean].all())
    assert bool((one != mean).any()) == rounds and bool((one != 0).any())


CROSS_ENTROPY = [
    ra.PGD(random_start=False),
    ra.FGSM(),
    ra.APGD(),
    ra.BIM(),
    ra.ErichsonPGD(step=0.1),
    ra.Torchattacks13BIM(eps=0.02),
]


@pytest.mark.parametrize("attack", CROSS_ENTROPY, ids=str)
def test_the_cross_entropy_goes_blind_on_large_logits_and_the_record_says_so(attack):
    threat = Linf(1.0) if attack.kind == "minimum-norm" else Linf(0.03)
    plain, large = (
        facts(attack, "linf", net, threat=threat)
        for net in (small()[0], Affine(small()[0], by=2.0**20))
    )
    newly = (
        (large.adversarial == large.label)
        & (plain.adversarial != plain.label)
        & (plain.clean == plain.label)
    )
    assert newly.any() and (large.zero_gradients[newly] > 0).all()


@cache
def steep(slope: float, scale: float = 1.0) -> tuple[nn.Module, ra.Images]:
    """Ten SReLUs deep: logits near slope ** 9.5, times `scale`."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()]
    for _ in range(9):
        layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    for layer in layers[::2]:
        nn.init.kaiming_normal_(layer.weight), nn.init.zeros_(layer.bias)
    body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    net = Affine(ra.retrofit(ra.Classifier(body, shape=(1, 8, 8)), ra.SReLU(slope)), by=scale)
    x = torch.rand(8, 1, 8, 8)
    return net, ra.Images.of(x, net(x).argmax(1))


# With steps enough to fell all at any scale.
STEEP = [
    *((a, p) for a in (ra.DeepFool(), ra.FMN(steps=20), ra.TrustRegion()) for p in a.norms),
    *(
        (a, "l2")
        for a in (ra.CarliniWagner(steps=20), ra.DDN(steps=20), ra.Torchattacks13DeepFool())
    ),
    *(
        (a, p)
        for a in (ra.PGD(steps=10, loss="margin"), ra.APGD(steps=10, loss="dlr"))
        for p in a.norms
    ),
    *((a, p) for a in (ra.Momentum(steps=10), ra.Square()) for p in a.norms),
    (ra.ErichsonTrustRegion(), "l2"),
]


@pytest.mark.parametrize(("attack", "p"), STEEP, ids=str)
def test_norms_do_not_overflow(attack, p):
    for slope in (100.0, 1000.0):
        net, data = steep(slope)
        assert float(net(data.images).detach().abs().max()) > slope**9
        record = evaluate(net, data, attack, STRONG[p])
        assert success_rate(record) == 1.0 and not record.nonfinite.any()


@pytest.mark.parametrize(("attack", "p"), [c for c in STEEP if not is_published(c[0])], ids=str)
def test_norms_do_not_underflow(attack, p):
    net, data = steep(1.0, 2.0**-83)  # 1e-25
    record = evaluate(net, data, attack, STRONG[p])
    assert success_rate(record) == 1.0 and not record.nonfinite.any()


LOST = {
    "an offset of 1e8": lambda net: Affine(net, plus=1e8),
    "an offset of -1e5": lambda net: Affine(net, plus=-1e5),
    "all the same": lambda net: Affine(net, by=0.0, plus=1.0),
    "all zero": lambda net: Affine(net, by=0.0),
    "next to the largest number": lambda net: Affine(net, by=2.0**122),
    "next to the smallest": lambda net: Affine(net, by=2.0**-122),
}


# two kinds for each attack and norm: over its three norms, and the attacks beside it, each has all
LOST_BY = [
    case(a, p, lost)
    for i, (a, p) in enumerate(EACH)
    for lost in (list(LOST)[i % 6], list(LOST)[(i + 1 + i // 6 % 5) % 6])
]


@pytest.mark.parametrize(("attack", "p", "lost"), LOST_BY, ids=str)
def test_logits_that_float32_cannot_carry_are_a_flag_and_never_robust(attack, p, lost):
    record = facts(attack, p, LOST[lost](small()[0]))
    assert (record.clean == -1).all() and record.nonfinite.all() and not record.distance.any()
    assert ra.robust_accuracy(record) == ra.clean_accuracy(record) == 0.0


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize(
    ("attack", "p"),
    [c for c in OURS if c[0].needs == "gradient" and c[0].kind == "minimum-norm"],
    ids=str,
)
def test_two_classes_next_to_their_boundary_are_not_broken(attack, p, offset):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(300, 24), nn.Tanh(), nn.Linear(24, 2))
    x = torch.rand(16, 3, 10, 10)
    with torch.no_grad():
        net[3].bias += offset - net(x).mean(0)
    data = ra.Images.of(x, net(x).argmax(1))
    record = evaluate(net, data, at_length(attack, p), WIDE[p])
    assert (record.clean >= 0).all() and not record.nonfinite.any()
    if hasattr(attack, "probes"):  # the published variants are given too few steps here
        assert success_rate(record) == 1.0


# -------------------------------------------------------------------- whatever torch's defaults are


@each_of_ours
def test_the_default_dtype_and_device_of_torch_do_not_matter(attack, p):
    plain = first_run(attack, p, Untargeted())
    from retroact.crafting import windows

    for kept in (windows._pair, windows._spots):
        kept.cache_clear()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")  # whatever is made there by mistake has no values
        made = run(attack, p, Untargeted())
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for field in dataclasses.fields(Outcome):
        one, other = getattr(plain, field.name), getattr(made, field.name)
        assert other.dtype == one.dtype and torch.equal(one, other)


# ------------------------------------------------------------- known answers and single attacks


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
    # train mode on purpose: attacks must not mind
    return nn.Sequential(*layers, nn.Linear(6 * 49, 10)).train()


@pytest.fixture(scope="module")
def scene():
    net = network()
    x = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    net.eval()
    y = net(x).argmax(1).detach()
    net.train()
    y[::9] = (y[::9] + 1) % 10  # some are misclassified clean
    return net, x, y, torch.arange(40) + 500


def test_batch_norms_and_modes_stay_as_they_were(scene):
    # in train mode, where a forward pass would move the running statistics
    net, x, y, index = scene
    before = {k: v.clone() for k, v in net.state_dict().items()}
    craft(PGD(steps=2), net, x, y, index, Linf(0.03))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())


CLIMBERS = [
    a for a in ATTACKS if hasattr(a, "loss") and a.kind == "budget" and a.needs == "gradient"
]
CLIMBS = [c for c in CASES if c[0] in CLIMBERS and not untargeted_only(c[0])]


@pytest.mark.parametrize(("attack", "p", "goal"), CLIMBS, ids=str)
def test_climbs_its_own_loss(scene, attack, p, goal):
    net, x, y, index = scene
    x, y, index = x[:20], y[:20], index[:20]
    made = craft(at_length(attack, p), net, x, y, index, NEAR[p], goal)
    net.eval()
    with torch.no_grad():
        # that one has a class of its own to go to, whatever the goal
        own = LeastLikely() if isinstance(attack, ra.StepLL) else goal
        todo = ~goal(y, net(x), index).reached(net(x))
        aim, loss = own(y, net(x), index), loss_of(attack.loss)
        climbed = loss(net(made.x_adv), aim) - loss(net(x), aim)
    net.train()
    assert float((climbed[todo] > 0).float().mean()) > 0.95


def linear(
    classes: int = 10, pixels: int = 3 * 32 * 32
) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    x = 0.5 + 0.1 * torch.rand(64, 3, 32, 32)
    return net, x, net(x).argmax(1).detach()


@pytest.mark.parametrize("threat", [Linf(0.0041), L2(0.19)], ids=str)
@pytest.mark.parametrize(
    "attack", [PGD(steps=20, loss="margin"), PGD(steps=20), FGSM(loss="margin")], ids=str
)
def test_a_linear_network_falls_exactly_where_theory_says(attack, threat):
    # Example i can be fooled within eps iff min_j (f_y − f_j) / ‖w_y − w_j‖_q < eps, q dual to the
    # norm.
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
        return set(
            (net(craft(attack, net, x, y, index, Linf(eps)).x_adv).argmax(1) != y)
            .nonzero()[:, 0]
            .tolist()
        )

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
    made = craft(PGD(steps=5), net, x, y, index, Linf(0.02), source=other)
    own = craft(PGD(steps=5), net, x, y, index, Linf(0.02))
    assert not torch.equal(made.x_adv, own.x_adv)
    same = craft(PGD(steps=5), net, x, y, index, Linf(0.02), source=net)
    assert torch.equal(same.x_adv, own.x_adv)


def test_the_clean_looks_graph_gives_the_same_gradient(scene):
    net, x, y, index = scene
    by_look = craft(FGSM(), net, x, y, index, Linf(0.02)).x_adv
    by_hand = craft(FGSM(), net, x, y, index, Linf(0.02), source=lambda z: net(z)).x_adv
    assert (
        float((by_look - by_hand).abs().max()) < 1e-6
        or float((by_look != by_hand).float().mean()) < 1e-3
    )


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
