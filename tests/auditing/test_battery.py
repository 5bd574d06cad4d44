"""The battery: kernels from the spec, examples that are broken once, and a union that no order of
numbers changes."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, ReLU, SReLU
from retroact.activations.surrogate import Surrogate
from retroact.auditing.attack_run import AttackRun, Attempt, Conditions, Side
from retroact.auditing.battery import QUICK, Battery
from retroact.auditing.numbers import AttackResult
from retroact.auditing.subjects import KERNELS, Climb, Source, Subject, prepare
from retroact.crafting.threat import Linf
from retroact.evaluation.proof import Proved, leave_as_is
from retroact.retrofitting.installed import installed

SMALL = Battery(
    steps=10, targets=2, targeted_steps=12, finish=16, trial_steps=6, sample=16, queries=0
)
EPS = Linf(0.12)
PGD = ra.PGD(steps=10)


@cache
def plain() -> nn.Module:
    return ra.load("digits-cnn")


@cache
def data(n: int = 40) -> ra.Images:
    return ra.data(f"digits/validation[:{n}]")


def installed_in(net: nn.Module) -> list[object]:
    return [module.activation for module in installed(net).values()]


def forms(subject: Subject, which: int = 0) -> list[list[object]]:
    """What is at each site of each form of a subject's kernel."""
    return [installed_in(form) for form in subject.sources[which].make().lean.forms]


def under(part: ra.Images | None = None, threat: Linf = EPS, seed: int = 0) -> Conditions:
    return Conditions(data() if part is None else part, threat, classes=10, seed=seed)


def itself(net: nn.Module) -> Climb:
    return Climb(leave_as_is(net))


# ---------------------------------------------------------------------------- kernels from the spec


@pytest.mark.parametrize("kappa", [0.25, 0.5, 2.0])
def test_the_bandwidth_scales_with_kappa(kappa):
    smoothed = JumpReLU(kappa).smoothed(8.0, "sigmoid")
    assert smoothed == Surrogate(JumpReLU(kappa), 8.0 / kappa, "sigmoid")


def test_each_site_gets_its_own_kernel_and_a_slope_none():
    mixed = PerSite((SReLU(2.0), JumpReLU(0.5), JumpReLU(0.25)))
    there = Surrogate(JumpReLU(0.5), 8.0, "rectangle"), Surrogate(JumpReLU(0.25), 16.0, "rectangle")
    assert mixed.smoothed(4.0, "rectangle") == PerSite((SReLU(2.0), *there))
    assert ReLU().smoothed(4.0, "sigmoid") == ReLU()


def test_every_kernel_of_the_list_is_built_where_there_is_a_jump():
    before, after = prepare(plain(), ra.retrofit(plain(), JumpReLU(0.5)), data(), EPS)
    assert len(after.sources) == len(KERNELS)
    for which, (kernel, widths) in enumerate(KERNELS):
        wanted = [[Surrogate(JumpReLU(0.5), width / 0.5, kernel)] * 3 for width in widths]
        assert forms(after, which) == wanted
    # what the network before is attacked with does not depend on its partner
    (alone, _) = prepare(plain(), plain(), data(), EPS)
    assert before.sources == alone.sources == ()
    assert [s.name for s in before.derived] == [s.name for s in alone.derived] != []


def test_folding_rescales_kappa_and_its_bandwidth():
    hard = ra.retrofit(plain(), PerSite((SReLU(2.0), JumpReLU(0.5), SReLU(1.0))))
    _, subject = prepare(plain(), hard, data(), EPS, kernels=[("sigmoid", (4.0,))])
    (inner,) = forms(subject)
    assert inner[1] == Surrogate(JumpReLU(0.25), 16.0, "sigmoid")
    x = data(20).images
    with torch.no_grad():
        assert torch.equal(subject.folded.lean(x).argmax(1), hard(x).argmax(1))
        assert torch.allclose(2 * subject.sources[0].make().lean(x), hard(x), rtol=1e-4, atol=1e-4)


def test_sources_compute_what_their_network_computes():
    hard, x = ra.retrofit(plain(), JumpReLU(0.5)), data(20).images
    with torch.no_grad():
        for subject in prepare(plain(), hard, data(), EPS):
            for source in subject.sources:
                logits = source.make().lean(x)
                assert torch.allclose(logits, subject.net.network(x), rtol=1e-4, atol=1e-4)


def test_no_jump_no_kernel_and_a_surrogate_takes_its_place():
    for hard in (ra.retrofit(plain(), SReLU(3.0)), plain(), ra.retrofit(plain(), JumpReLU(0.0))):
        assert all(s.sources == () for s in prepare(plain(), hard, data(), EPS))
    _, subject = prepare(plain(), plain(), data(), EPS, surrogate=plain())
    (source,) = subject.sources
    assert source.name == "your surrogate" and source.make().network is plain()


# -------------------------------------------------------------------------------------- the attacks


def test_examples_are_broken_once_and_verified_is_the_union():
    run = AttackRun(plain(), under())
    before = run.robust.copy()
    assert np.array_equal(before, run.clean)
    for k, attack in enumerate([ra.FGSM(), ra.PGD(steps=5), ra.APGD(steps=10, loss="margin")]):
        broken = run.attack(f"run {k}", "white box", attack, itself(plain()))
        assert not (run.robust & ~before).any() and int((before & ~run.robust).sum()) == broken
        assert run.attacks[k].asked == int(before.sum()) and run.attacks[k].broken == broken
        assert ((run.broken_by == k) == (before & ~run.robust)).all()
        before = run.robust.copy()
    side = run.finish(run.robust)
    assert (side.verified == (side.clean & (side.broken_by < 0))).all()
    assert sum(a.broken for a in side.attacks) == int(side.clean.sum() - side.verified.sum()) > 10


def test_every_image_that_fell_is_kept_and_adversarial():
    run = AttackRun(plain(), under())
    run.attack("PGD", "claimed", PGD, itself(plain()))
    broken = np.flatnonzero(run.clean & ~run.robust)
    assert sorted(one.row for one in run.examples) == broken.tolist() and len(broken) > 10
    for one in run.examples:
        x_adv = torch.from_numpy(one.x_adv)
        assert (
            np.abs(one.x_adv - one.image).max() <= EPS.eps + 1e-6
            and x_adv.min() >= 0
            and x_adv.max() <= 1
        )
        assert (
            int(plain()(x_adv[None]).argmax())
            == one.decided
            != one.label
            == int(data().labels[one.row])
        )


def test_an_attempt_files_nothing():
    run = AttackRun(plain(), under())
    robust = run.robust.copy()
    tried = run.attempt("trial", "white box", PGD, itself(plain()), among=20)
    assert tried.result.asked == 20 and tried.result.broken == len(tried.rows) > 0
    assert np.array_equal(run.robust, robust) and run.attacks == [] and run.examples == []
    # an example is broken once
    assert run.file(tried) == len(tried.rows) and run.file(tried) == 0


class Broke(AttackRun):
    """A run in which trials break so many, by their kernel."""

    def __init__(self, **broken: int) -> None:
        self.broken = broken

    def attempt(self, title: str, role, attack, climb: Climb, **how) -> Attempt:
        kernel = climb.kernel or "itself"
        result = AttackResult(title, "", role, 64, self.broken[kernel], 0, 0, 0, 0.0, climb.kernel)
        return Attempt(result, torch.arange(0), torch.arange(0), None)

    def file(self, attempt: Attempt) -> int:
        return 0


@pytest.mark.parametrize(
    ("itself", "quotients", "alarms", "first"),
    [
        (0, 1, (), ""),
        (3, 4, (), ""),
        (0, 2, (), "quotients"),
        (0, 1, ("random directions",), "quotients"),
        (1, 1, ("random directions",), ""),
    ],
)
def test_differences_lead_where_they_are_not_asked_for(itself, quotients, alarms, first):
    form = leave_as_is(plain())
    derived = (Source("quotients", lambda: form),)
    subject = Subject(form, form, form, derived=derived, alarms=alarms)
    ranked = SMALL.rank(Broke(itself=itself, quotients=quotients), subject)
    assert next(climb.kernel for climb in ranked) == first and len(ranked) == 2


def test_an_attack_on_nobody_is_a_run_of_nothing():
    run = AttackRun(plain(), under())
    run.robust[:] = False
    assert run.attack("late", "control", PGD, itself(plain())) == 0
    assert (run.attacks[0].asked, run.attacks[0].gradients) == (0, 0)


class Fragile(nn.Module):
    """The net, whose logits are NaN wherever the images differ from those that it knows."""

    def __init__(self, net: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.net, self.known = net, known

    def forward(self, x: Tensor) -> Tensor:
        same = (x[:, None] - self.known[None]).flatten(2).abs().amax(2).amin(1) < 1e-7
        return torch.where(same[:, None], self.net(x), torch.nan)


def test_an_overflow_is_never_a_success():
    part = data(20)
    fragile = Fragile(plain(), part.images)
    run = AttackRun(fragile, under(part, Linf(0.3)))
    assert run.clean.sum() > 15
    # every image that fools the plain net makes the logits of this one NaN
    assert run.attack("PGD", "claimed", PGD, Climb(Proved(fragile, plain()))) == 0
    assert np.array_equal(run.robust, run.clean)
    plainly = AttackRun(plain(), under(part, Linf(0.3)))
    assert plainly.attack("PGD", "claimed", PGD, itself(plain())) > 15


# ------------------------------------------------------------------------------------- the battery


def sides(hard: nn.Module, seed: int = 0, **how: object) -> list[Side]:
    both = prepare(plain(), hard, data(), EPS, **how)
    return [SMALL(subject, under(seed=seed), PGD) for subject in both]


@cache
def jumped() -> list[Side]:
    return sides(ra.retrofit(plain(), JumpReLU(0.5)))


def test_the_kernels_break_what_is_robust_without_them():
    alone = sides(ra.retrofit(plain(), JumpReLU(0.5)), kernels=())[1]
    assert jumped()[1].verified.sum() < alone.verified.sum()
    assert any(attack.kernel for attack in jumped()[1].attacks) and jumped()[1].kernel
    assert not any(attack.kernel for attack in alone.attacks) and alone.kernel == ""


def test_both_sides_meet_the_same_attacks():
    before, after = jumped()
    roles = [
        [(a.role, a.attack) for a in side.attacks if "trial" not in a.title]
        for side in (before, after)
    ]
    assert roles[0] == roles[1] and roles[0][0][0] == "claimed"
    for side in (before, after):
        assert not (side.verified & ~side.claimed).any() and not (side.claimed & ~side.clean).any()


def test_the_seed_fixes_all():
    again = sides(ra.retrofit(plain(), JumpReLU(0.5)))
    for one, other in zip(jumped(), again, strict=True):
        assert np.array_equal(one.broken_by, other.broken_by) and np.array_equal(
            one.claimed, other.claimed
        )
        assert [(a.title, a.broken, a.gradients) for a in one.attacks] == [
            (a.title, a.broken, a.gradients) for a in other.attacks
        ]


def test_twice_the_battery_is_twice_the_steps_and_starts():
    twice = QUICK.doubled()
    assert (twice.steps, twice.targeted_steps, twice.restarts) == (
        2 * QUICK.steps,
        2 * QUICK.targeted_steps,
        2,
    )
    assert twice.targeted(3).targets == 2  # no more than there are other classes
