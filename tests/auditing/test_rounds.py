"""Rounds: begun anew with ever more steps until one breaks nothing; and what the climb behind them
does."""

import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact import cli
from retroact.activations.piecewise import JumpReLU
from retroact.attacks.momentum import Momentum
from retroact.auditing.attack_run import AttackRun, Conditions
from retroact.auditing.audit import audit
from retroact.auditing.battery import QUICK, THOROUGH, Battery
from retroact.auditing.subjects import Climb, Subject, prepare
from retroact.crafting.driver import craft
from retroact.crafting.threat import L2, Linf
from retroact.evaluation.proof import Proved, leave_as_is

EPS = Linf(0.12)
WEAK = Battery(steps=2, targets=1, targeted_steps=3, finish=0, trial_steps=0, queries=0)


@cache
def plain() -> nn.Module:
    return ra.load("digits-cnn")


@cache
def data(n: int = 60) -> ra.Images:
    return ra.data(f"digits/validation[:{n}]")


# ----------------------------------------------------------------------------------------- rounds


ITSELF = leave_as_is(plain())
ALONE = Climb(ITSELF)


class Told:
    """A run in which each attack breaks what it is told; notes the attacks."""

    def __init__(self, *breaks: int) -> None:
        self.breaks, self.asked = list(breaks), []

    def attack(self, title: str, role: str, attack: Momentum, climb: Climb, *, fresh: int) -> int:
        self.asked.append((title, attack.steps, attack.finish, fresh))
        return self.breaks.pop(0)


def test_rounds_go_on_with_more_steps_until_one_breaks_nothing():
    run = Told(9, 1, 0, 5)
    Battery(targeted_steps=10, finish=20, rounds=8).again(run, Climb(ITSELF, kernel="k"), 10)
    rounds = [
        ("round 1 through a k", 30, 60, 1),
        ("round 2 through a k", 40, 80, 2),
        ("round 3 through a k", 50, 100, 3),
    ]
    assert run.asked == rounds and run.breaks == [5]


def test_rounds_have_an_end_and_none_are_none():
    run = Told(9, 9, 9, 9)
    Battery(rounds=2).again(run, ALONE, 10)
    Battery(rounds=0).again(run, ALONE, 10)
    assert [title for title, *_ in run.asked] == ["round 1", "round 2"]


class Answered(Told):
    """One that knows how many are left, and what was asked for by alarms."""

    attacks: tuple[Any, ...] = ()

    def __init__(self, left: int, *breaks: int) -> None:
        super().__init__(*breaks)
        self.robust = np.ones(left, dtype=bool)

    def attack(self, title: str, role: str, attack: Any, climb: Climb, **how: Any) -> int:
        self.asked.append((title, how.get("fresh", 0)))
        broken = self.breaks.pop(0)
        self.robust[np.flatnonzero(self.robust)[:broken]] = False
        return broken


@pytest.mark.parametrize(
    ("breaks", "through", "anew"),
    [
        ((3, 0, 20, 9, 3, 3), "", 3),  # of 77, 68 and 65 left: 3 are less than a twentieth of 65
        ((3, 0, 20, 9, 9, 9, 9), "", 4),  # four times at most
        ((3, 0, 12, 1, 1), "", 2),  # one is no sign of anything
        ((3, 0, 12, 1, 9, 1, 0), "", 4),  # twice in a row
        ((3, 0, 10, 1, 0), " through a stand-in", 2),  # the first broke eleven
    ],
)
def test_a_network_that_draws_is_followed_itself_and_begun_anew(breaks, through, anew):
    net = Proved(*[ra.Expectation(plain(), draws=2)] * 2)
    chosen, next_best = Climb(net, kernel="stand-in"), Climb(net, kernel="another")
    subject = Subject(net, net, net, alarms=("falling loss", "gradient fidelity"), derives=False)
    run = Answered(100, *breaks)
    Battery(queries=0).answer(run, subject, [chosen, next_best], under(), broken=11)
    assert [title for title, _ in run.asked[:3]] == [
        *("APGD through a stand-in", "targeted through a another", "targeted"),
    ]
    assert run.asked[3:] == [
        (f"targeted anew, {turn}{through}", turn) for turn in range(1, anew + 1)
    ]
    assert not run.breaks


def test_one_that_draws_and_raises_no_alarm_is_begun_anew_as_well(monkeypatch):
    mean, titles = ra.Expectation(plain(), draws=2), []

    def attack(run: AttackRun, title: str, *args: Any, **how: Any) -> int:
        titles.append(title)
        return 0

    monkeypatch.setattr(AttackRun, "attack", attack)
    Battery(queries=0)(Subject(*[leave_as_is(mean)] * 3), under(), ra.PGD(2))
    Battery(queries=0)(Subject(*[ITSELF] * 3), under(), ra.PGD(2))
    always = ["claimed", "APGD, margin", "targeted"]
    assert titles == [*always, "targeted anew, 1", "targeted anew, 2", *always]


def test_one_that_does_not_draw_is_not():
    subject = Subject(ITSELF, ITSELF, ITSELF, alarms=("falling loss",), derives=False)
    run = Answered(100, 3, 5)
    chosen, next_best = Climb(ITSELF, kernel="stand-in"), Climb(ITSELF, kernel="another")
    Battery(queries=0).answer(run, subject, [chosen, next_best], under(), broken=11)
    assert len(run.asked) == 2


@pytest.mark.parametrize(("breaks", "anew"), [((3, 5, 1), 1), ((3, 5, 9, 9), 2)])
def test_a_battery_of_few_steps_begins_anew_until_one_breaks_few(breaks, anew):
    subject = Subject(ITSELF, ITSELF, ITSELF, alarms=("falling loss",), derives=False)
    run = Answered(100, *breaks)
    chosen, next_best = Climb(ITSELF, kernel="stand-in"), Climb(ITSELF, kernel="another")
    Battery(queries=0, anew=2).answer(run, subject, [chosen, next_best], under(), broken=11)
    titles = [f"targeted anew, {turn} through a stand-in" for turn in range(1, anew + 1)]
    assert [title for title, _ in run.asked[2:]] == titles and not run.breaks


def under(n: int = 60) -> Conditions:
    return Conditions(data(n), EPS, classes=10)


def test_rounds_break_more_on_both_sides():
    hard = ra.retrofit(plain(), JumpReLU(0.5))
    for subject in prepare(plain(), hard, data(), EPS):
        once, often = (
            Battery(**(vars(WEAK) | {"rounds": n}))(subject, under(), ra.FGSM()) for n in (0, 3)
        )
        assert (
            not (often.verified & ~once.verified).any()
            and often.verified.sum() < once.verified.sum()
        )
        assert not any("round" in attack.title for attack in once.attacks)
        rounds = [attack for attack in often.attacks if attack.title.startswith("round")]
        assert rounds and all(attack.role == "white box" for attack in rounds)
        assert len(rounds) == 3 or rounds[-1].broken == 0


def test_a_fresh_start_is_another_one_and_always_the_same():
    run = AttackRun(plain(), under())
    images = [
        run.attempt("try", "white box", ra.PGD(steps=5), ALONE, fresh=f).x_adv for f in (0, 1, 1)
    ]
    assert not torch.equal(images[0][:5], images[1][:5]) and torch.equal(images[1], images[2])


def test_without_a_trial_the_first_kernel_is_taken():
    _, subject = prepare(plain(), ra.retrofit(plain(), JumpReLU(0.5)), data(), EPS)
    side = WEAK(subject, under(20), ra.FGSM())
    titles, kernel = [attack.title for attack in side.attacks], subject.sources[0].name
    assert not any("trial" in title for title in titles)
    assert f"targeted through a {kernel}" in titles and side.kernel == kernel
    assert [attack.kernel for attack in side.attacks] == ["", "", kernel]


def test_doubling_doubles_all_steps_and_the_starts():
    twice = THOROUGH.doubled()
    for name in ("steps", "targeted_steps", "finish", "restarts"):
        assert getattr(twice, name) == 2 * getattr(THOROUGH, name)
    assert twice.rounds == THOROUGH.rounds > 0 == QUICK.rounds
    assert THOROUGH.longer(3).restarts == THOROUGH.restarts


def test_a_battery_has_a_name(monkeypatch):
    seen = []
    monkeypatch.setattr("retroact.auditing.audit.check", lambda *a: 10)

    def look(procedure: Any) -> None:
        seen.append(procedure.battery.points)
        raise KeyboardInterrupt

    monkeypatch.setattr("retroact.auditing.audit._Procedure._look", look)
    for name in ("quick", "thorough", None):
        with pytest.raises(KeyboardInterrupt):
            audit(plain(), plain(), data(), EPS, battery=name)
    assert (
        seen == [QUICK.points, THOROUGH.points, Battery().points] and QUICK.points < THOROUGH.points
    )
    with pytest.raises(ValueError, match='"quick" or "thorough", got \'slow\''):
        audit(plain(), plain(), data(), EPS, battery="slow")


def test_the_command_takes_one_of_both(monkeypatch, capsys):
    words = [
        "retroact",
        "audit",
        "digits-cnn",
        "JumpReLU(0.5)",
        "--threat",
        "Linf(0.1)",
        "--data",
        "digits[:30]",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--quick", "--thorough"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code and "--quick or --thorough, got both" in capsys.readouterr().err
    batteries = []
    monkeypatch.setattr(
        "retroact.auditing.audit.audit", lambda *a, battery, **k: batteries.append(battery) or 1 / 0
    )
    for flags in (["--thorough"], ["--quick"], []):
        monkeypatch.setattr(sys, "argv", [*words, *flags])
        with pytest.raises((SystemExit, ZeroDivisionError)):
            cli.main()
    assert batteries == ["thorough", "quick", None]


# -------------------------------------------------------------------------------- finish and noise


class Watching(nn.Module):
    """A linear net of three classes on two pixels that nothing near 0.5 fools; notes where
    gradients are taken."""

    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])

    def __init__(self) -> None:
        super().__init__()
        self.climbed: list[Tensor] = []
        self.judged: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.climbed if torch.is_grad_enabled() else self.judged).append(x.detach().clone())
        return x.flatten(1) @ self.weights.T + torch.tensor([9.0, 0.1, 0.0])

    def __deepcopy__(self, memo: object) -> "Watching":
        return self  # a lean copy would note elsewhere


def climb(
    attack: Momentum, threat: object = Linf(0.25), n: int = 1
) -> tuple[Watching, Tensor, Tensor]:
    net, x = Watching(), torch.full((n, 1, 1, 2), 0.5)
    made = craft(attack, net, x, torch.zeros(n, dtype=torch.long), torch.arange(n), threat)
    return net, made.x_adv, made.gradients


def test_an_example_that_stands_costs_what_the_attack_says():
    for attack in (
        Momentum(7, 2, targets=2, finish=5),
        Momentum(7, 2, finish=5),
        Momentum(7, noise=0.5, finish=3),
    ):
        _, _, gradients = climb(attack)
        assert int(gradients) == attack.passes


def test_the_finish_climbs_to_the_class_that_is_nearest_at_the_end():
    # clean, class 2 (1.0) is nearer than class 1 (0.6); the one target of the main run is class 2
    _, far, _ = climb(Momentum(12, targets=1, finish=12))
    assert torch.allclose(far[0, 0, 0, 1], torch.tensor(0.75), atol=1e-2)
    # towards class 1 alone (a goal of its own), the finish stays with it
    net, x = Watching(), torch.full((1, 1, 1, 2), 0.5)
    goal = ra.Targeted(1)
    made = craft(
        Momentum(12, finish=12),
        net,
        x,
        torch.zeros(1, dtype=torch.long),
        torch.arange(1),
        Linf(0.25),
        goal,
    )
    assert torch.allclose(made.x_adv[0, 0, 0, 0], torch.tensor(0.75), atol=1e-2)


@pytest.mark.parametrize("threat", [Linf(0.25), L2(0.25)], ids=str)
def test_noise_moves_where_gradients_are_taken_and_not_what_is_judged(threat):
    net, x_adv, _ = climb(Momentum(40, noise=0.5), threat)
    inside = torch.cat(net.judged)
    assert bool(threat(inside, torch.full_like(inside, 0.5)).all())
    assert bool(threat(x_adv, torch.full_like(x_adv, 0.5)).all())
    first, last = (
        (a - b).abs().max() for a, b in zip(net.climbed[:-1:38], net.climbed[1::38], strict=False)
    )
    assert first > 0.05 > last  # steps and noise shrink together
    assert len(net.climbed) == 40 and len(net.judged) <= 12
    still, _, _ = climb(Momentum(40), threat)
    assert not torch.equal(torch.cat(net.climbed), torch.cat(still.climbed))


def test_noise_is_an_examples_own_in_any_batch():
    part, attack = data(24), Momentum(steps=12, targets=2, finish=6, noise=0.7)
    how = (plain(), part.images, part.labels, part.index, EPS)
    whole, parts = (craft(attack, *how, chunk=size).x_adv for size in (24, 5))
    assert np.allclose(whole, parts, atol=1e-5)
    assert not torch.equal(whole, craft(attack, *how, seed=1).x_adv)
