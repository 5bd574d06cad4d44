"""The battery: kernels from the spec, examples that only ever fall, and a union that no order of
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
from retroact.auditing.battery import KERNELS, QUICK, Battery, Party, Side, Siege, parties
from retroact.crafting.threat import Linf
from retroact.evaluation.proof import Proved, unproved
from retroact.retrofitting.installed import installed

SMALL = Battery(steps=10, targets=2, targeted_steps=12, trial_steps=6, sample=16, queries=0)
EPS = Linf(0.12)
PGD = ra.PGD(steps=10)


@cache
def plain() -> nn.Module:
    return ra.load("digits-cnn")


@cache
def data(n: int = 60) -> ra.Images:
    return ra.data(f"digits/validation[:{n}]")


def installed_in(net: nn.Module) -> list[object]:
    return [module.activation for module in installed(net).values()]


def forms(party: Party, which: int = 0) -> list[list[object]]:
    """What stands at each site of each form of a party's kernel."""
    return [installed_in(form) for form in party.guides[which][1]().lean.forms]


# ---------------------------------------------------------------------------- kernels from the spec


@pytest.mark.parametrize("kappa", [0.25, 0.5, 2.0])
def test_the_bandwidth_scales_with_kappa(kappa):
    made = JumpReLU(kappa).smoothed(8.0, "sigmoid")
    assert made == Surrogate(JumpReLU(kappa), 8.0 / kappa, "sigmoid")
    neutral = JumpReLU(kappa).smoothed(8.0, "sigmoid", plain=True)
    # the same bandwidth without the jump
    assert neutral == Surrogate(JumpReLU(0.0), 8.0 / kappa, "sigmoid")


def test_each_site_gets_its_own_kernel_and_a_slope_none():
    mixed = PerSite((SReLU(2.0), JumpReLU(0.5), JumpReLU(0.25)))
    there = Surrogate(JumpReLU(0.5), 8.0, "rectangle"), Surrogate(JumpReLU(0.25), 16.0, "rectangle")
    assert mixed.smoothed(4.0, "rectangle") == PerSite((SReLU(2.0), *there))
    assert ReLU().smoothed(4.0, "sigmoid") == ReLU()


def test_every_kernel_of_the_list_is_built_for_both_sides():
    hard = ra.retrofit(plain(), JumpReLU(0.5))
    for party, activation in zip(
        parties(plain(), hard, data(), EPS), (JumpReLU(0.0), JumpReLU(0.5)), strict=True
    ):
        assert len(party.guides) == len(KERNELS)
        for which, (kernel, widths) in enumerate(KERNELS):
            wanted = [[Surrogate(activation, width / 0.5, kernel)] * 3 for width in widths]
            assert forms(party, which) == wanted


def test_folding_rescales_kappa_and_its_bandwidth():
    hard = ra.retrofit(plain(), PerSite((SReLU(2.0), JumpReLU(0.5), SReLU(1.0))))
    _, party = parties(plain(), hard, data(), EPS, kernels=[("sigmoid", (4.0,))])
    (inner,) = forms(party)
    assert inner[1] == Surrogate(JumpReLU(0.25), 16.0, "sigmoid")
    x = data(20).images
    with torch.no_grad():
        assert torch.equal(party.folded.lean(x).argmax(1), hard(x).argmax(1))
        assert torch.allclose(2 * party.guides[0][1]().lean(x), hard(x), rtol=1e-4, atol=1e-4)


def test_guides_compute_what_their_network_computes():
    hard, x = ra.retrofit(plain(), JumpReLU(0.5)), data(20).images
    with torch.no_grad():
        for party in parties(plain(), hard, data(), EPS):
            for _, make in party.guides:
                assert torch.allclose(make().lean(x), party.net.network(x), rtol=1e-4, atol=1e-4)


def test_no_jump_no_kernel_and_a_surrogate_takes_its_place():
    for hard in (ra.retrofit(plain(), SReLU(3.0)), plain(), ra.retrofit(plain(), JumpReLU(0.0))):
        assert all(party.guides == () for party in parties(plain(), hard, data(), EPS))
    _, party = parties(plain(), plain(), data(), EPS, surrogate=plain())
    assert [name for name, _ in party.guides] == ["your surrogate"] and party.guides[0][
        1
    ]().network is plain()


# -------------------------------------------------------------------------------------- the siege


def test_examples_only_fall_and_verified_is_the_union():
    siege = Siege(plain(), data(), EPS, seed=0)
    before = siege.stands.copy()
    assert np.array_equal(before, siege.clean)
    for k, attack in enumerate([ra.FGSM(), ra.PGD(steps=5), ra.APGD(steps=10, loss="margin")]):
        felled = siege.attack(f"run {k}", "white box", attack, unproved(plain()))
        assert not (siege.stands & ~before).any() and int((before & ~siege.stands).sum()) == felled
        assert siege.runs[k].asked == int(before.sum()) and siege.runs[k].felled == felled
        assert ((siege.felled_by == k) == (before & ~siege.stands)).all()
        before = siege.stands.copy()
    side = siege.ended(siege.stands)
    assert (side.verified == (side.clean & (side.felled_by < 0))).all()
    assert sum(run.felled for run in side.runs) == int(side.clean.sum() - side.verified.sum()) > 10


def test_what_is_kept_is_adversarial():
    siege = Siege(plain(), data(), EPS, seed=0)
    siege.attack("PGD", "claimed", PGD, unproved(plain()))
    assert 0 < len(siege.fallen) <= 6
    for one in siege.fallen:
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
    siege = Siege(plain(), data(), EPS, seed=0)
    stands = siege.stands.copy()
    tried = siege.attempt("trial", "white box", PGD, unproved(plain()), among=20)
    assert tried.run.asked == 20 and tried.run.felled == len(tried.rows) > 0
    assert np.array_equal(siege.stands, stands) and siege.runs == [] and siege.fallen == []
    # what has fallen falls once
    assert siege.file(tried) == len(tried.rows) and siege.file(tried) == 0


def test_an_attack_on_nobody_is_a_run_of_nothing():
    siege = Siege(plain(), data(), EPS, seed=0)
    siege.stands[:] = False
    assert siege.attack("late", "control", PGD, unproved(plain())) == 0
    assert (siege.runs[0].asked, siege.runs[0].gradients) == (0, 0)


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
    siege = Siege(fragile, part, Linf(0.3), seed=0)
    assert siege.clean.sum() > 15
    assert (
        siege.attack("PGD", "claimed", PGD, Proved(fragile, plain())) == 0
    )  # every image that fools the plain net breaks this one
    assert np.array_equal(siege.stands, siege.clean)
    assert (
        Siege(plain(), part, Linf(0.3), seed=0).attack("PGD", "claimed", PGD, unproved(plain()))
        > 15
    )


# ------------------------------------------------------------------------------------- the battery


def sides(hard: nn.Module, seed: int = 0, **how: object) -> list[Side]:
    both = parties(plain(), hard, data(), EPS, **how)
    return [SMALL(party, data(), EPS, PGD, classes=10, seed=seed) for party in both]


@cache
def jumped() -> list[Side]:
    return sides(ra.retrofit(plain(), JumpReLU(0.5)))


def test_the_kernels_fell_what_stands_without_them():
    alone = sides(ra.retrofit(plain(), JumpReLU(0.5)), kernels=())[1]
    assert jumped()[1].verified.sum() < alone.verified.sum()
    assert any("kernel" in run.title for run in jumped()[1].runs)
    assert not any("kernel" in run.title for run in alone.runs)


def test_both_sides_meet_the_same_attacks():
    twin, hard = jumped()
    roles = [[(run.role, run.attack) for run in side.runs] for side in (twin, hard)]
    assert roles[0] == roles[1] and roles[0][0][0] == "claimed"
    for side in (twin, hard):
        assert not (side.verified & ~side.claimed).any() and not (side.claimed & ~side.clean).any()


def test_the_seed_fixes_all():
    again = sides(ra.retrofit(plain(), JumpReLU(0.5)))
    for one, other in zip(jumped(), again, strict=True):
        assert np.array_equal(one.felled_by, other.felled_by) and np.array_equal(
            one.claimed, other.claimed
        )
        assert [(r.title, r.felled, r.gradients) for r in one.runs] == [
            (r.title, r.felled, r.gradients) for r in other.runs
        ]


def test_twice_the_battery_is_twice_the_steps_and_starts():
    twice = QUICK.doubled()
    assert (twice.steps, twice.targeted_steps, twice.restarts) == (
        2 * QUICK.steps,
        2 * QUICK.targeted_steps,
        2,
    )
    assert twice.targeted(3).targets == 2  # no more than there are other classes
