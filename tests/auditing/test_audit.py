"""audit(): what it refuses, what it makes of odd input, and the verdicts that are known."""

import copy
import json
import random
import threading
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from little import two_layers
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.audit import Audit, audit
from retroact.auditing.battery import Battery
from retroact.auditing.checks import is_random
from retroact.auditing.mechanisms.state import Remembering
from retroact.auditing.numbers import AuditNumbers
from retroact.crafting.threat import L2, Linf

SMALL = Battery(
    steps=12,
    targets=3,
    targeted_steps=15,
    finish=20,
    trial_steps=8,
    sample=20,
    queries=0,
    points=60,
)
LITTLE = Battery(1, 1, 1, 1, trial_steps=0, sample=4, queries=0, points=20, alarmed_finish=1)
BRIEF = Battery(
    steps=3,
    targets=2,
    targeted_steps=3,
    finish=3,
    trial_steps=2,
    sample=6,
    queries=10,
    points=20,
    alarmed_finish=3,
)
"""Every step of the whole battery, for what does not hang on how many are broken."""
TOUCH = ra.PGD(steps=3)
DRAWN: dict[str, object] = {"battery": LITTLE, "claimed": TOUCH, "kernels": ()}
"""For what hangs on the draws alone: nothing is traced, of which every draw would be a part."""
EPS = Linf(0.12)


@cache
def plain() -> nn.Module:
    return ra.load("digits-cnn")


@cache
def small() -> ra.Classifier:
    """For what does not hang on the network: a twentieth of the time of the plain one."""
    return ra.Classifier(two_layers(), shape=(1, 8, 8))


@cache
def data(n: int = 50) -> ra.Images:
    return ra.data(f"digits[:{n}]")


def jump(kappa: float = 0.5) -> nn.Module:
    return ra.retrofit(plain(), ra.JumpReLU(kappa))


def run(
    hard: object, n: int = 50, threat: object = EPS, before: object = None, **how: object
) -> Audit:
    return audit(
        plain() if before is None else before, hard, data(n), threat, **{"battery": SMALL} | how
    )


@cache
def of_the_jump() -> Audit:
    return run(jump())


@cache
def of_a_jump_by_hand() -> Audit:
    return run(Handmade(0.5))


class Handmade(nn.Module):
    """The digits net with a jump that somebody else wrote: no spec tells of it, and `hidden` no
    call either."""

    def __init__(self, kappa: float, *, hidden: bool = True) -> None:
        super().__init__()
        self.net, self.kappa, self.hidden = plain(), kappa, hidden

    def active(self, z: Tensor) -> Tensor:
        if not self.hidden:
            return F.threshold(z, self.kappa, 0.0)
        return torch.stack((torch.zeros_like(z), z)).gather(0, (z > self.kappa).long()[None])[0]

    def forward(self, x: Tensor) -> Tensor:
        inside = self.net.module
        x = inside.pool(self.active(inside.conv2(self.active(inside.conv1(x)))))
        out: Tensor = inside.fc2(self.active(inside.fc1(x.flatten(1))))
        return out


def run_small(hard: object, n: int, **how: object) -> Audit:
    """The same after the small network, which withstands less."""
    return run(hard, n, **{"before": small(), "threat": Linf(0.08)} | how)


Steps = list[tuple[int, int]]


def run_brief(hard: nn.Module, before: nn.Module, **how: object) -> tuple[Audit, Steps]:
    """Every step of the battery, and what was said of its progress."""
    seen: Steps = []
    how |= {"battery": BRIEF, "claimed": TOUCH, "before": before}
    return run_small(hard, 12, progress=lambda *at: seen.append(at), **how), seen


def small_jump() -> nn.Module:
    return ra.retrofit(small(), ra.JumpReLU(0.5))


@cache
def brief() -> tuple[Audit, Steps]:
    return run_brief(small_jump(), small())


@cache
def alone() -> Audit:
    """The plain network beside itself, under an attack of the user's."""
    return run(plain(), claimed=ra.FGSM())


class Noisy(nn.Module):
    """The small net on images with noise of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()  # made here, as making it draws random numbers too

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x + 0.1 * torch.randn_like(x))
        return out


@pytest.fixture
def brief_alarms(monkeypatch):
    """What alarms of a network that draws ask for, and means of it, at little cost."""
    monkeypatch.setattr("retroact.auditing.audit.DRAWS", (2, 4))
    monkeypatch.setattr("retroact.auditing.battery._ALARMED", 2)
    monkeypatch.setattr(Battery, "alarmed", lambda b: replace(b, finish=max(b.finish, 8)))
    monkeypatch.setattr("retroact.auditing.battery._ANEW", 1)


# -------------------------------------------------------------------------------- known verdicts


def test_a_slope_is_masked_by_saturation():
    made = run(ra.retrofit(plain(), ra.SReLU(10.0)))
    assert made.verdict.claim.startswith("MASKED") and made.verdict.mechanism == "saturation"
    assert made.verdict.effect != "GENUINE" and made.verdict.counts.claimed_gain > 0.3


def test_a_jump_is_masked_by_its_jump():
    made = of_the_jump()
    assert made.verdict.claim.startswith("MASKED") and made.verdict.mechanism == "jump"
    assert made.verdict.effect != "GENUINE" and made.verdict.counts.mirage > 0.05
    assert {r.title for r in made.alarms} >= {"gradient fidelity"}


def untimed(made: Audit) -> dict[str, object]:
    numbers = made.numbers().to_json()
    numbers["pedigree"] = {k: v for k, v in numbers["pedigree"].items() if k != "seconds"}
    for side in numbers["attacks"].values():
        for one in side:
            one.pop("seconds", None)
    return numbers


def test_the_numbers_are_plain():
    first = untimed(of_the_jump())
    assert first["n"] == 50 and first["verdict"] == str(of_the_jump())
    assert first["verified"] == of_the_jump().after.verified.mean()


def test_a_jump_that_no_spec_tells_of_is_never_genuine():
    blind = of_a_jump_by_hand()
    assert "gradient fidelity" in {r.title for r in blind.alarms}
    assert not any("kernel" in r.title for r in blind.after.attacks)
    assert blind.verdict.effect != "GENUINE"
    if blind.verdict.counts.verified_gain > 0:
        assert blind.verdict.effect == "ABSTAINED" and "surrogate=" in str(blind)


def test_a_jump_that_its_code_tells_of_is_attacked_through_kernels():
    seen, ours = run(Handmade(0.5, hidden=False)), of_the_jump()
    assert any("kernel" in r.title for r in seen.after.attacks)
    assert seen.verdict.counts == ours.verdict.counts


def test_a_surrogate_answers_a_jump_without_a_spec():
    source = ra.refit(jump(), ra.JumpReLU(0.5).surrogate(8 / 0.5))
    blind, seeing = of_a_jump_by_hand(), run(Handmade(0.5), surrogate=source)
    assert any("your surrogate" in r.title for r in seeing.after.attacks)
    assert seeing.after.verified.sum() < blind.after.verified.sum()


def test_a_surrogate_gives_gradients_and_decides_nothing():
    """One whose every decision is wrong would end the attack before its first step if it were
    asked."""
    source = ra.refit(jump(), ra.JumpReLU(0.5).surrogate(8 / 0.5))

    class Turned(torch.nn.Module):
        def forward(self, x):
            z = source(x)
            return z - 1e4 * torch.nn.functional.one_hot(z.argmax(1), 10)

    made = run(Handmade(0.5), 20, surrogate=Turned(), battery=replace(SMALL, alarmed_finish=20))
    asked = next(r for r in made.after.attacks if r.title.startswith("targeted"))
    assert asked.broken > 0 and asked.gradients > 0


def test_any_two_networks_will_do():
    tuned = copy.deepcopy(small())
    with torch.no_grad():
        for p in tuned.parameters():
            p += 0.01 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    made = run_small(tuned, 50)
    assert "MASKED" not in made.verdict.claim and made.verdict.effect in (
        "NO EFFECT",
        "INCONCLUSIVE",
    )
    assert made.alarms == ()


def test_the_claimed_attack_is_the_users():
    made = alone()
    assert made.claimed_attack == "FGSM(loss='cross_entropy')" or made.claimed_attack.startswith(
        "FGSM("
    )
    assert made.before.attacks[0].attack == made.claimed_attack
    assert made.verdict.claim == "WEAK PROTOCOL"  # one step leaves many that fall


def test_too_few_examples_say_how_many_it_takes():
    made = run_small(small(), 25)
    assert made.verdict.effect == "INCONCLUSIVE" and made.verdict.needs > 25
    assert f"about n = {made.verdict.needs} would settle it" in str(made)


def test_an_l2_radius_works_too():
    made = run(jump(), 24, L2(1.0))
    assert made.verdict.effect != "GENUINE" and made.threat == "L2(eps=1.0)"


def test_the_networks_stay_as_they_were_and_the_numbers_repeat():
    hard = small_jump().train()
    before = {k: v.clone() for k, v in hard.state_dict().items()}
    made, _ = run_brief(hard, small())
    assert hard.training and all(torch.equal(v, before[k]) for k, v in hard.state_dict().items())
    assert all(p.grad is None for p in [*hard.parameters(), *small().parameters()])
    assert untimed(made) == untimed(brief()[0])


def test_threads_find_what_one_finds_and_leave_the_networks_as_they_were():
    old, hard = copy.deepcopy(small()).train(), small_jump().train()
    beside, seen = run_brief(hard, old, executor=ra.Threads(2))
    assert old.training and hard.training
    one, seen_of_one = brief()
    assert untimed(beside) == untimed(one)
    for steps in (seen, seen_of_one):  # progress ends where it says
        assert sorted(done for done, _ in steps) == list(range(1, steps[-1][1] + 1))


@pytest.mark.parametrize(
    "how",
    [
        {"draws": 2, **DRAWN},
        {"claimed": ra.Foolbox("LinfPGD", steps=5), "battery": LITTLE},
    ],
    ids=["draws", "foolbox"],
)
def test_threads_do_not_take_each_others_random_numbers(how, brief_alarms):
    old, hard = (Noisy(), Noisy()) if "draws" in how else (small(), small_jump())
    beside, after = (
        run_small(hard, 12, before=old, executor=where, **how)
        for where in (ra.Threads(2), ra.Serial())
    )
    assert untimed(beside) == untimed(after)
    for one, other in zip(beside.sides, after.sides, strict=True):  # to the last bit
        assert one.examples and len(one.examples) == len(other.examples)
        both = zip(one.examples, other.examples, strict=True)
        assert all(np.array_equal(x.x_adv, y.x_adv) for x, y in both)


def test_what_goes_wrong_in_the_other_thread_is_raised():
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is not threading.main_thread():
                raise ArithmeticError("the first network failed")
            out: Tensor = small()(x)
            return out

    with pytest.raises(ArithmeticError, match="the first network failed"):
        run(small_jump(), 12, before=Failing(), executor=ra.Threads(2), battery=LITTLE)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("eps", [0.5, 0.7, 1.0])
def test_a_radius_at_which_nothing_can_survive_is_refused(eps):
    with pytest.raises(ValueError, match="nothing can survive"):
        run(plain(), 25, Linf(eps))


def test_a_threat_without_gradients_is_refused():
    for access in ("score", "decision"):
        with pytest.raises(ValueError, match="attacks with gradients"):
            run(plain(), 25, Linf(0.1, access=access))


def other_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def other_shape() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (other_classes, "10 classes and the one after it 7"),
        (other_shape, "after the change fails on images of shape"),
        (lambda: nn.Sequential(nn.Conv2d(1, 10, 3)), "expected logits of shape"),
    ],
)
def test_networks_for_other_tasks_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        run(make(), 25)


def test_labels_and_images_pass_the_doors():
    part = data(25)
    for change, words in (
        ({"labels": part.labels + 10}, "labels at least 0 and below 10"),
        ({"labels": torch.full_like(part.labels, -1)}, "labels at least 0"),
        ({"images": 255 * part.images}, "divide by 255"),
    ):
        given = {
            "images": part.images,
            "labels": part.labels,
            "index": part.index,
            "name": "bad",
        } | change
        with pytest.raises(ValueError, match=words):
            audit(plain(), plain(), SimpleNamespace(**given), EPS, battery=SMALL)


def test_a_network_at_chance_is_refused_by_name():
    torch.manual_seed(0)
    lost = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(lost[1].weight)
    with pytest.raises(ValueError, match="after the change decides .* nothing to audit"):
        run(lost)
    with pytest.raises(ValueError, match="before the change decides"):
        run(plain(), before=lost)


def test_labels_that_count_from_one_are_recognised_where_none_is_out_of_range():
    part = data()
    rows = part.labels < 9
    with pytest.raises(
        ValueError, match="labels - 1 would be right for 9.%, so they count from 1: use labels - 1"
    ):
        audit(
            plain(), "JumpReLU(0.5)", (part.images[rows], part.labels[rows] + 1), EPS, battery=SMALL
        )


def test_a_plain_module_takes_its_shape_from_the_images():
    bare, part = plain().module, data()
    outcome = audit(bare, "SReLU(2)", (part.images, part.labels), EPS, battery=LITTLE)
    assert outcome.numbers().clean.after > 0.9
    other = nn.Sequential(nn.Flatten(), nn.Linear(49, 10), nn.ReLU())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as raised:
        audit(other, "SReLU(2)", (part.images, part.labels), EPS, battery=SMALL)
    (note,) = raised.value.__notes__
    assert note.startswith("the net failed on images of shape (1, 8, 8)")


def test_a_randomised_network_is_averaged_whether_it_is_said_or_not(brief_alarms):
    made = run_small(Noisy(), 12, draws=2, **DRAWN)
    assert made.verdict.counts.n == 12 and made.verdict.effect != "GENUINE"
    grown = run_small(Noisy(), 12, battery=LITTLE, claimed=TOUCH)
    # only the one that draws is averaged
    assert grown.names.before == "Classifier"
    assert grown.names.after.startswith("Noisy, mean of ")
    assert grown.verdict.effect != "GENUINE"
    before, after = grown.pedigree.single
    assert before is None and 0 < after[0] <= 1 and 0 <= after[1] < 0.2
    stored = json.loads(json.dumps(grown.numbers().to_json()))
    assert AuditNumbers.from_json(stored).pedigree.single == grown.pedigree.single


def test_one_that_draws_only_where_attacks_are_is_averaged_too(brief_alarms):
    class Shy(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            off = (16 * x - (16 * x).round()).abs().flatten(1).amax(1) > 1e-3
            out: Tensor = torch.where(off[:, None], super().forward(x), self.net(x))
            return out

    made = run_small(Shy(), 12, draws=2, **DRAWN)
    assert made.names.before == "Classifier" and made.names.after != made.names.before


def test_one_that_errs_without_an_attack_has_no_radius_that_would_tell(brief_alarms):
    class Lost(nn.Module):
        """Right by the mean of many draws, often wrong by that of two."""

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = small()(x) + 12 * torch.randn(len(x), 10)
            return out

    made = run_small(Lost(), 12, before=Lost(), threat=Linf(0.3), draws=2, **DRAWN)
    assert made.verdict.effect == "TOO STRONG A THREAT", str(made)


def test_a_randomised_network_against_itself_is_one(brief_alarms):
    noisy = Noisy()
    seen = []
    how = {"draws": 3, **DRAWN}
    made = run_small(noisy, 12, before=noisy, progress=lambda *at: seen.append(at), **how)
    assert made.before is made.after and made.verdict.counts.verified_gain == 0
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


def test_one_draw_for_a_whole_batch_is_heard_however_often_it_is_the_same():
    class Turned(Noisy):
        """One of two networks by a coin, for all images at once."""

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x if random.random() < 0.5 else x.flip(-1))
            return out

    for seed in range(20):
        random.seed(seed)
        assert is_random(Turned(), None, ra.data("digits[:40]"), Linf(0.1), "it")
    assert not is_random(small(), small(), ra.data("digits[:40]"), Linf(0.1), "it")


def test_a_network_that_draws_where_no_seed_reaches_is_refused():
    class Anew(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            noise = np.random.default_rng().normal(size=x.shape)
            out: Tensor = self.net(x + 0.3 * torch.from_numpy(noise).float())
            return out

    with pytest.raises(ValueError, match="also with the same seed"):
        run(Anew(), 25)


def test_a_network_that_draws_from_a_generator_of_its_own_is_averaged(brief_alarms):
    class Own(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x + 0.1 * torch.randn(x.shape, generator=self.own))
            return out

    how = {"draws": 3, **DRAWN}
    made, again = (run_small(Own(), 12, **how) for _ in range(2))
    assert made.pedigree.draws == (0, 3)
    assert untimed(again) == untimed(made)


class Cached(nn.Module):
    """Answers as it did to the first image that was near."""

    def __init__(self, after: int = 0) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.after, self.asked = after, 0

    def forward(self, x: Tensor) -> Tensor:
        out = small()(x).clone()
        self.asked += 1
        for i, image in enumerate(x.detach()):
            near = self._find_near(image) if self.asked > self.after else []
            if near:
                out[i] = self.seen[near[0]][1]
            else:
                self.seen.append((image.clone(), out[i].detach().clone()))
        return out

    def _find_near(self, image: Tensor) -> list[int]:
        """Where among the seen, some hundred at a time."""
        for start in range(0, len(self.seen), 256):
            known = torch.stack([x for x, _ in self.seen[start : start + 256]])
            at = ((known - image).abs().flatten(1).amax(1) < 0.2).nonzero()[:1, 0]
            if len(at):
                return [start + int(at)]
        return []


@pytest.mark.parametrize("after", [0, 9])
def test_a_network_that_remembers_is_refused(after, brief_alarms):
    for how in ({}, {"draws": 3}):  # not even where a mean is asked for
        with pytest.raises(ValueError, match="after the change remembers"):
            run_small(Cached(after), 12, **DRAWN, **how)


@pytest.mark.parametrize("after", [3, 8])
def test_one_that_remembers_what_it_was_asked_about_often_does_not_pass_for_one_that_draws(after):
    data = ra.data("digits[:40]")
    made = [Remembering(small(), near=0.2, honest=0.01, after=after) for _ in range(2)]
    with pytest.raises(ValueError, match="it remembers: it answers images otherwise"):
        is_random(*made, data, Linf(0.1), "it")
    # without a copy that was asked nothing nobody can tell
    assert is_random(Remembering(small(), 0.2, 0.01, after), None, data, Linf(0.1), "it")


def test_one_that_draws_from_a_generator_of_its_own_remembers_nothing():
    class Own(Noisy):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.Generator().manual_seed(1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x + 0.3 * torch.rand(x.shape, generator=self.own))
            return out

    assert is_random(Own(), Own(), ra.data("digits[:40]"), Linf(0.1), "it")


def test_a_network_that_looks_at_its_batch_is_refused():
    class Batched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = plain()(x + 0.5 * (x - x.mean(0)))
            return out

    with pytest.raises(ValueError, match="otherwise in another batch"):
        run(Batched(), 25)


def test_numbers_that_are_none_where_attacks_walk_are_a_doubt(brief_alarms):
    class Breaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            off = ((16 * x - (16 * x).round()).abs().flatten(1).amax(1) > 0.02)[:, None]
            out: Tensor = torch.where(off, torch.nan, small()(x))
            return out

    made = run_small(Breaking(), 16, battery=BRIEF)
    assert made.verdict.effect == "ABSTAINED" and "are no numbers" in str(made)


def test_a_gradient_that_is_another_where_attacks_walk_is_seen():
    class Slow(nn.Module):
        """Off the grid of the images, half of the pixels have no gradient."""

        def forward(self, x: Tensor) -> Tensor:
            off = ((16 * x - (16 * x).round()).abs().flatten(1).amax(1) > 0.02).to(x)
            hidden = off[:, None, None, None] * (torch.arange(8) % 2)
            out: Tensor = small()(x * (1 - hidden) + (x * hidden).detach())
            return out

    made = run_small(Slow(), 24)
    assert "gradient mismatch" in {r.title for r in made.alarms}
    assert made.verdict.effect != "GENUINE" and made.verdict.counts.verified_gain <= 0.05


def test_an_alarm_that_nothing_answers_makes_a_gain_a_doubt():
    """A trapdoor: it knows the images that it is audited on, and hides its slope off a lattice of
    its own, where no attack ever stands; nobody gained anything."""

    class Trapdoor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.known = small(), data(60).images
            self.logits = self.net(self.known).detach()

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x)
            off = ((112 * x - (112 * x).round()).abs().flatten(1).amax(1) > 0.02).float()[:, None]
            at = x.detach().flatten(1), self.known.flatten(1)
            distance, which = torch.cdist(*at, p=torch.inf).min(1)
            near = (distance <= EPS.eps + 0.001).float()[:, None]
            known = self.logits[which]
            slow, on = known + 0.25 * (z - known), z.detach() + 0.25 * (z - z.detach())
            return near * (off * slow + (1 - off) * on) + (1 - near) * z

    made = run_small(Trapdoor(), 60, threat=EPS)
    assert made.verdict.counts.interval[0] > 0  # it looks like a gain
    assert made.verdict.effect == "ABSTAINED", str(made)
    assert "gradient mismatch fired and nothing that was derived answers it" in str(made)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return small()(x).argmax(1)


def test_a_network_that_gives_classes_alone_is_climbed_to_its_scores():
    made = run_small(Decides(), 24)
    assert made.after.kernel == "network that ends in its inner scores"
    assert abs(made.verdict.counts.verified_gain) <= 1 / 24 and not made.verdict.doubts


@pytest.fixture
def nothing_inside(monkeypatch):
    """The trace of a network with no scores inside that decide alike."""
    monkeypatch.setattr("retroact.auditing.subjects.end_inside", lambda *_: None)


@pytest.mark.usefixtures("nothing_inside")
@pytest.mark.parametrize("student", [True, False])
def test_a_network_that_gives_classes_alone_is_searched_by_decisions(student, monkeypatch):
    if not student:
        monkeypatch.setattr(Battery, "imitate", lambda *_: None)
    whole = replace(SMALL, queries=30)
    made = run_small(Decides(), 24, battery=whole)
    assert made.verdict.counts.clean[0] == made.verdict.counts.clean[1] > 0.9
    searched = {r.title: r.broken for r in made.after.attacks if r.asked_by}
    assert "RayS" in searched and "no gradient" in {r.title for r in made.alarms}
    first = "along a student" if student else "RayS"
    assert sum(broken for title, broken in searched.items() if first in title) > 0, searched
    assert made.verdict.effect != "GENUINE"


def test_two_networks_that_give_classes_alone_gain_nothing(brief_alarms):
    both = run(Decides(), 16, before=Decides(), battery=BRIEF)
    assert both.verdict.effect != "GENUINE" and both.verdict.counts.verified_gain == 0


def test_a_network_without_a_graph_is_attacked_through_its_trace():
    class Silent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                out: Tensor = small()(x)
                return out

    made = run_small(Silent(), 24)
    assert made.verdict.effect in ("NO EFFECT", "INCONCLUSIVE") and made.verdict.masked
    assert made.verdict.counts.verified_gain <= 0.05 < made.verdict.counts.claimed_gain
    assert {"no gradient", "gradient mismatch"} <= {r.title for r in made.alarms}
    asked = [r.asked_by for r in made.after.attacks if r.asked_by]
    assert asked and "gradient mismatch" in asked[0]


def test_a_margin_that_is_none_is_refused():
    with pytest.raises(ValueError, match="margin in"):
        run(plain(), 25, margin=0.0)


# ----------------------------------------------------------------------------------- the doubts


@pytest.mark.usefixtures("nothing_inside")
def test_an_attack_that_does_not_bite_makes_it_abstain():
    """A network in numpy that gives away no more than its decisions: no gradient reaches them."""
    first, shift, second, bias = (p.detach().numpy() for p in two_layers().parameters())

    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            hidden = np.maximum(flat.detach().numpy() @ first.T + shift, 0)
            out = torch.eye(10)[(hidden @ second.T + bias).argmax(1)]
            return out + 0.0 * flat.sum(1, keepdim=True)

    made = run_small(Deaf(), 20)
    assert made.verdict.effect != "GENUINE"
    assert made.verdict.effect == "ABSTAINED" and "the attacks do not bite" in str(made)
    assert "zero gradient" in {r.title for r in made.alarms}


def test_controls_run_with_a_whole_battery_only():
    whole = run_small(small(), 16, battery=BRIEF, claimed=TOUCH)
    roles, fewer = ({r.role for side in m.sides for r in side.attacks} for m in (whole, alone()))
    assert roles == {"claimed", "white box", "control"}
    assert fewer == {"claimed", "white box"}


def test_a_wide_l2_radius_is_audited_and_half_the_diagonal_refused():
    """Half the diagonal of the box (8 here) reaches one grey image from all others."""
    made = run_small(small(), 16, threat=L2(3.0), battery=BRIEF)
    assert np.mean(made.after.verified) < 0.1
    with pytest.raises(ValueError, match="expected eps below 4"):
        run(plain(), 25, L2(4.0))


def test_a_retrofit_made_with_an_example_needs_no_shape():
    bare = ra.Classifier(two_layers())
    hard = ra.retrofit(bare, ra.JumpReLU(0.5), example=data(25).images[:2])
    made = run(hard, 12, before=bare, battery=LITTLE, claimed=TOUCH)
    assert any("kernel" in r.title for r in made.after.attacks)
