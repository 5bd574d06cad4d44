"""Networks that reject: what an audit breaks is what a grid of every point within eps finds."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.attacks.square import Square
from retroact.auditing.audit import Audit
from retroact.auditing.battery import Battery
from retroact.cli.codes import FOUND, NOT_SETTLED, worst
from retroact.crafting.goals import PastRejection
from retroact.evaluation.evaluate import decided
from retroact.evaluation.proof import craft_on, leave_as_is
from retroact.spec import CallError

EPS, GRID = 0.12, 49
CENTRES = torch.tensor([[0.3, 0.3], [0.7, 0.35], [0.45, 0.7]])


def draw(n: int, seed: int) -> ra.Images:
    drawn = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = (CENTRES[y] + 0.09 * torch.randn(n, 2, generator=drawn)).clamp(0, 1)
    return ra.Images(x, y, torch.arange(n))


@cache
def trained(outputs: int) -> nn.Module:
    """On the points, and on noise as the class after them where there is one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU())
    net.append(nn.Linear(32, outputs))
    data, adam = draw(600, 1), torch.optim.Adam(net.parameters(), 1e-2)
    noise = torch.rand(150 if outputs == 4 else 0, 2)
    x = torch.cat([data.images, noise])
    y = torch.cat([data.labels, torch.full((len(noise),), 3)])
    for _ in range(300):
        adam.zero_grad()
        F.cross_entropy(net(x), y).backward()
        adam.step()
    return net.eval()


class Confident(nn.Module):
    """Flags what it is not sure of."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.net, self.least = copy.deepcopy(trained(3)), least

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.net(x)
        return z, z.softmax(1).amax(1) < self.least


class OffData(nn.Module):
    """One more logit, huge where no point of the training data is near."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.net, self.radius = copy.deepcopy(trained(3)), radius
        self.register_buffer("known", draw(60, 1).images)

    def forward(self, x: Tensor) -> Tensor:
        far = (x[:, None] - self.known).square().sum(2).amin(1).sqrt() - self.radius
        return torch.cat([self.net(x), 1e4 * far[:, None]], 1)


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "a flag below a confidence": lambda: Confident(0.9),
    "noise as the last class": lambda: trained(4),
    "a huge logit off the data": lambda: OffData(0.04),
}


def broken_on_a_grid(net: nn.Module, data: ra.Images, counted: str) -> Tensor:
    """Bool (n,): wrong clean, or some point of a grid over the ball is."""
    steps = torch.linspace(-EPS, EPS, GRID)
    ball = torch.cartesian_prod(steps, steps)
    points = (data.images[:, None] + ball).clamp(0, 1)
    decisions = decide(net, points.flatten(0, 1)).view(len(points), -1)
    wrong = decisions != data.labels[:, None]
    wrong &= (decisions != 3) | torch.tensor(counted == "wrong")
    return wrong.any(1) | (decide(net, data.images) != data.labels)


@torch.no_grad()
def decide(net: nn.Module, x: Tensor) -> Tensor:
    out = net(x)
    if isinstance(out, tuple):
        return torch.where(out[1], 3, out[0].argmax(1))
    return out.argmax(1)


@cache
def points() -> ra.Images:
    return draw(60, 2)


@cache
def audited(name: str, counted: str) -> Audit:
    few = name == "a flag below a confidence"  # quick leaves some elsewhere
    how = {"rejected": counted, "battery": "quick" if few else None}
    return ra.audit(trained(3), DETECTORS[name](), points(), ra.Linf(EPS), **how)


COUNTED = [(name, ("robust", "wrong")[i % 2]) for i, name in enumerate(DETECTORS)]


@pytest.mark.parametrize(("name", "counted"), COUNTED)
def test_what_is_broken_is_what_a_grid_finds(name, counted):
    net, data = DETECTORS[name](), points()
    broken = broken_on_a_grid(net, data, counted).numpy()
    made = audited(name, counted)
    assert (made.after.verified & broken).mean() <= 0.02  # what the attacks missed
    assert (~made.after.verified & ~broken).mean() <= 0.02  # between the points of the grid
    share = float((decide(net, data.images) == 3).double().mean())
    assert made.rejection.clean.after == pytest.approx(share)
    assert made.rejection.clean.before == 0 and f"Rejected counts as {counted}" in str(made)
    assert "Rejected counts" in made.numbers().plainly


def test_rejecting_is_worth_something_only_by_the_users_word():
    data, net = draw(90, 2), DETECTORS["noise as the last class"]()
    wrong, robust = (
        ra.audit(trained(3), net, data, ra.Linf(EPS), rejected=word, battery="quick")
        for word in ("wrong", "robust")
    )
    assert robust.after.verified.sum() > wrong.after.verified.sum() + 10
    assert not (wrong.after.verified & ~robust.after.verified).any()


class Noisy(nn.Module):
    """A network whose mean over draws is the network itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return z + 3 * torch.randn_like(z)


def test_one_that_draws_as_well_falls_beyond_chance_alone():
    data, net = draw(45, 2), DETECTORS["noise as the last class"]()
    spent = {"steps": 8, "targets": 2, "targeted_steps": 8, "finish": 8, "alarmed_finish": 20}
    few = Battery(**spent, trial_steps=0, queries=0)
    how = {"rejected": "robust", "battery": few, "kernels": ()}
    calm = ra.audit(trained(3), net, data, ra.Linf(EPS), **how).after
    noisy = ra.audit(trained(3), Noisy(net), data, ra.Linf(EPS), draws=6, **how).after
    assert 0.2 < calm.verified.mean() < 0.8 * calm.clean.mean()
    assert abs(noisy.verified.mean() - calm.verified.mean()) < 0.08
    assert not {3} & {fell.decided for fell in noisy.examples}


def test_every_image_that_fell_is_decided_for_a_wrong_class():
    name = "a huge logit off the data"
    net, made = DETECTORS[name](), audited(name, "robust")
    assert made.after.examples
    for fell in made.after.examples:
        (own,) = decide(net, torch.from_numpy(fell.x_adv)[None]).tolist()
        assert own == fell.decided and own not in (fell.label, 3)


def test_an_attack_without_gradients_sees_past_rejection_too():
    net, data = trained(4), draw(60, 3)
    run = leave_as_is(net), Square(300), data.images, data.labels, data.index, [ra.Linf(EPS)]
    (crafted,) = craft_on(*run, PastRejection())
    fooled = decided(crafted.logits, attacked=True) != data.labels
    own = decide(net, crafted.outcome.x_adv)
    assert fooled.any() and torch.equal(fooled, (own != data.labels) & (own != 3))


def test_a_flag_is_seen_through_a_classifier(brief):
    net, data = ra.Classifier(Confident(0.9), shape=(2,)), draw(30, 2)
    how = {"rejected": "robust", "battery": "quick"}
    wrapped, bare = (
        ra.audit(trained(3), after, data, ra.Linf(EPS), **how) for after in (net, net.module)
    )
    assert wrapped.verdict.counts == bare.verdict.counts and wrapped.rejection == bare.rejection
    with pytest.raises(CallError, match="a network flags what it rejects"):
        ra.audit(trained(3), net, data, ra.Linf(EPS))


def test_check_takes_the_word_as_well(brief):
    net, data = Confident(0.9), draw(60, 2)
    made = ra.check(net, data, ra.Linf(EPS), reported=99.0, rejected="robust", battery="quick")
    assert made.statement == "TOO HIGH" and "Rejected counts as robust" in str(made)


@pytest.mark.parametrize("name", DETECTORS)
def test_without_the_users_word_it_is_an_error(name):
    with pytest.raises(CallError, match='say what that counts as: rejected="wrong"'):
        ra.audit(trained(3), DETECTORS[name](), draw(60, 2), ra.Linf(EPS))


def test_nothing_to_reject_is_an_error_too():
    with pytest.raises(CallError, match="expected networks of 3 classes and one more"):
        ra.audit(trained(3), trained(3), draw(60, 2), ra.Linf(EPS), rejected="robust")
    with pytest.raises(CallError, match='expected "wrong", "robust" or "both", got \'rihgt\''):
        ra.audit(trained(3), trained(4), draw(60, 2), ra.Linf(EPS), rejected="rihgt")


def test_no_evidence_is_kept_that_cannot_be_verified(tmp_path):
    made = audited("noise as the last class", "wrong")
    with pytest.raises(ValueError, match="not kept of networks that reject"):
        ra.write_evidence(made, tmp_path)


def test_both_is_one_audit_after_the_other(tmp_path, brief):
    data, net = draw(40, 2), DETECTORS["noise as the last class"]()
    how = {"battery": "quick", "baseline": tmp_path / "before.json"}
    heard = []
    both = ra.audit(
        trained(3),
        net,
        data,
        ra.Linf(EPS),
        rejected="both",
        **how,
        progress=lambda done, all: heard.append(done / all),
    )
    for word, made in (("wrong", both), ("robust", both.also)):
        one = ra.audit(trained(3), net, data, ra.Linf(EPS), rejected=word, **how)
        assert made.verdict == one.verdict and made.rejection == one.rejection
        assert made.before.verified.tolist() == one.before.verified.tolist()
    assert heard == sorted(heard) and heard[-1] == 1
    assert str(both.also) in str(both)
    numbers = both.numbers()
    assert numbers.also == both.also.numbers() and numbers.also.also is None
    assert type(numbers).from_json(numbers.to_json()).also.verified == numbers.also.verified


def test_a_check_of_both_holds_where_both_hold(brief):
    data, net = draw(40, 2), DETECTORS["noise as the last class"]()
    robust = ra.check(net, data, ra.Linf(EPS), rejected="robust", battery="quick")
    made = ra.check(
        net, data, ra.Linf(EPS), 100 * robust.verified, rejected="both", battery="quick"
    )
    assert made.also.verified == robust.verified and made.also.statement != "TOO HIGH"
    assert made.statement == "TOO HIGH" and made.to_json()["also"] == made.also.to_json()


def test_of_two_answers_what_was_found_is_the_exit_code():
    assert worst([0, 0]) == 0
    assert worst([0, NOT_SETTLED]) == NOT_SETTLED
    assert worst([NOT_SETTLED, FOUND]) == worst([FOUND, 0]) == FOUND
