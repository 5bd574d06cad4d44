"""Each indicator fires on what it is for and is silent elsewhere; known answers on networks made by
hand."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.indicators import STEPS, FirstLook, Indicator, indicators
from retroact.auditing.selftest import Louder
from retroact.crafting.threat import L2, Linf, ThreatModel
from retroact.evaluation.proof import leave_as_is

EPS = Linf(0.1)
SATURATION = [
    "zero gradient",
    "zero loss",
    "logit scale",
    "rescaled logits",
    "unbounded",
    "flat loss",
    "non-finite",
]
JUMP = ["gradient fidelity", "falling loss", "random directions"]


@cache
def plain() -> nn.Module:
    return ra.load("digits-cnn")


CHANGES = {
    "itself": lambda net: net,
    "SReLU(1)": lambda net: ra.retrofit(net, ra.SReLU(1.0)),
    "SReLU(2)": lambda net: ra.retrofit(net, ra.SReLU(2.0)),
    "SReLU(10)": lambda net: ra.retrofit(net, ra.SReLU(10.0)),
    "louder": Louder,
    "JumpReLU(0.001)": lambda net: ra.retrofit(net, ra.JumpReLU(0.001)),
    "JumpReLU(0.5)": lambda net: ra.retrofit(net, ra.JumpReLU(0.5)),
    "JumpReLU(1)": lambda net: ra.retrofit(net, ra.JumpReLU(1.0)),
}


@cache
def readings(change: str, threat: ThreatModel = EPS) -> dict[str, tuple[float, float, bool]]:
    """What each indicator shows on 60 points that the net and the changed net decide rightly."""
    net, hard, data = plain(), CHANGES[change](plain()), ra.data("digits/validation[:66]")
    with torch.no_grad():
        right = (net(data.images).argmax(1) == data.labels) & (
            hard(data.images).argmax(1) == data.labels
        )
    part = data.select(right.nonzero()[:60, 0])
    looks = [
        FirstLook(leave_as_is(n), part.images, part.labels, part.index, threat) for n in (hard, net)
    ]
    return {r.title: (r.value, r.before, r.fired) for r in (ask(*looks) for ask in indicators())}


def fired(change: str, threat: ThreatModel = EPS) -> set[str]:
    return {title for title, (*_, hit) in readings(change, threat).items() if hit}


def named(title: str) -> Indicator:
    return next(i for i in indicators() if i.title == title)


def test_the_list_is_whole_and_every_one_says_what_it_is():
    assert [i.title for i in indicators() if i.mechanism == "saturation"] == SATURATION
    assert [i.title for i in indicators() if i.mechanism == "jump"] == JUMP
    assert all(i.function.__doc__ and i.source and i.threshold >= 0 for i in indicators())


# ------------------------------------------------------------------------- on a trained net


def test_an_indicator_compares_with_what_was_before():
    """The same value fires where it was not there before, and is silent where it was."""
    high, low = readings("SReLU(10)")["zero loss"][0], readings("itself")["zero loss"][0]
    ask = named("zero loss")
    assert high > 0.9 > low > 0.0  # the net itself has some, too
    assert ask._passes(high, low) and not ask._passes(high, high) and not ask._passes(low, high)


@pytest.mark.parametrize(
    ("title", "fires", "silent"),
    [
        ("zero gradient", "SReLU(10)", "JumpReLU(0.5)"),
        ("zero loss", "SReLU(2)", "JumpReLU(0.5)"),
        ("logit scale", "SReLU(2)", "JumpReLU(1)"),
        ("rescaled logits", "SReLU(10)", "JumpReLU(0.5)"),
        ("unbounded", "SReLU(10)", "JumpReLU(0.5)"),
        ("flat loss", "SReLU(10)", "JumpReLU(0.5)"),
        ("non-finite", "louder", "SReLU(10)"),
        ("gradient fidelity", "JumpReLU(0.5)", "SReLU(10)"),
        ("falling loss", "JumpReLU(0.5)", "SReLU(10)"),
    ],
)
def test_fires_on_its_own_mechanism_and_is_silent_on_the_other(title, fires, silent):
    assert title in fired(fires) and title not in fired(silent)


@pytest.mark.parametrize(
    ("change", "threat"),
    [("itself", EPS), ("SReLU(1)", EPS), ("JumpReLU(0.001)", EPS), ("JumpReLU(0.001)", L2(1.0))],
    ids=str,
)
def test_nothing_fires_on_a_change_that_is_none(change, threat):
    assert fired(change, threat) == set()


@pytest.mark.parametrize("threat", [EPS, L2(1.0)], ids=str)
def test_each_mechanism_is_named_in_both_norms(threat):
    assert (
        {"zero gradient", "logit scale", "flat loss"}
        <= fired("SReLU(10)", threat)
        <= set(SATURATION)
    )
    assert {"gradient fidelity"} <= fired("JumpReLU(0.5)", threat) <= set(JUMP)
    assert {"gradient fidelity", "falling loss"} <= fired("JumpReLU(1)", threat) <= set(JUMP)


def test_the_net_beside_itself_shows_the_same_on_both_sides():
    assert all(value == before for value, before, _ in readings("itself").values())
    assert all(value == before for value, before, _ in readings("SReLU(1)").values())


def test_louder_logits_are_read_off_exactly():
    shown = readings("louder")
    assert shown["zero gradient"][0] == shown["zero loss"][0] == shown["flat loss"][0] == 1.0
    assert shown["logit scale"][0] == 2.0**14 * shown["logit scale"][1]
    # 11 · 2^14 is beyond float16
    assert shown["non-finite"][0] == 1.0 and shown["non-finite"][1] == 0.0
    # a factor does not bend the margin
    assert shown["gradient fidelity"][0] == shown["gradient fidelity"][1]


# --------------------------------------------------------------------- known answers by hand


class OnePixel(nn.Module):
    """Logits (f(mean pixel), 0): decides class 0 where f is positive."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        value = self.f(x.mean((1, 2, 3)))
        return torch.stack([value, torch.zeros_like(value)], 1)


def look_at(
    net: nn.Module, level: float | Tensor, n: int = 12, threat: ThreatModel = EPS
) -> FirstLook:
    """A look at n grey images of 3 x 3 pixels."""
    x = torch.ones(n, 1, 3, 3) * torch.as_tensor(level).view(-1, 1, 1, 1)
    return FirstLook(
        leave_as_is(net), x, torch.zeros(n, dtype=torch.int64), torch.arange(n), threat
    )


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)], ids=str)
def test_a_linear_net_is_predicted_exactly(threat):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    x = 0.2 + 0.6 * torch.rand(50, 1, 8, 8)
    look = FirstLook(leave_as_is(net), x, net(x).argmax(1), torch.arange(50), threat)
    assert (look.prediction_errors - 1).abs().max() < 1e-2
    assert named("gradient fidelity")(look, look).value == 0.0
    # a straight climb: no step of PGD makes the loss fall before the ball stops it, then none moves
    # it
    assert named("falling loss")(look, look).value == 0.0


def test_a_step_over_a_jump_is_seen():
    jump = OnePixel(lambda z: F.threshold(z, 0.5, 0.0))
    just_above, far_above = look_at(jump, 0.501), look_at(jump, 0.8)
    assert named("gradient fidelity")(just_above, far_above).value == 1.0
    assert named("gradient fidelity")(far_above, far_above).value == 0.0
    assert named("gradient fidelity")(just_above, far_above).fired


def test_a_prediction_of_nothing_is_left_to_zero_gradient():
    dead = look_at(OnePixel(lambda z: torch.ones_like(z) + 0.0 * z), 0.5)
    alive = look_at(OnePixel(lambda z: z), 0.5)
    assert dead.prediction_errors.isnan().all()
    assert not named("gradient fidelity")(dead, alive).fired
    assert (
        named("zero gradient")(dead, alive).value == 1.0
        and named("flat loss")(dead, alive).value == 1.0
    )


def test_a_loss_that_falls_along_its_gradient_is_seen():
    wrong_way = OnePixel(lambda z: 1.0 + z - 2 * z.detach())  # the gradient points down the loss
    honest = OnePixel(lambda z: 1.0 + z)
    assert named("falling loss")(look_at(wrong_way, 0.5), look_at(honest, 0.5)).fired
    assert named("falling loss")(look_at(honest, 0.5), look_at(honest, 0.5)).value == 0.0


def test_the_median_margin_is_the_scale():
    levels = torch.linspace(0.1, 0.9, 9)
    small, large = (look_at(OnePixel(lambda z, s=s: s * z), levels, 9) for s in (1.0, 6.0))
    reading = named("logit scale")(large, small)
    assert (reading.value, reading.before) == pytest.approx((3.0, 0.5)) and reading.fired
    assert not named("logit scale")(small, large).fired
    # the threshold is 3
    assert not named("logit scale")(look_at(OnePixel(lambda z: 2.5 * z), levels, 9), small).fired


def test_robust_without_a_bound_is_measured_on_both_losses():
    linear = look_at(OnePixel(lambda z: z - 0.3), 0.6)
    assert linear.robust_far == (0.0, 0.0)
    # softmax is 1, the cross-entropy is deaf
    loud = look_at(OnePixel(lambda z: 1000 * (z - 0.1)), 0.6)
    assert loud.robust_far[0] > 0.5 and loud.robust_far[1] == 0.0
    assert named("unbounded")(loud, linear).fired
    # nothing fools it: no difference between the losses
    safe = look_at(OnePixel(lambda z: z + 1.0), 0.6)
    assert safe.robust_far == (1.0, 1.0) and not named("unbounded")(safe, linear).fired


def test_nan_and_infinity_are_seen_in_any_precision():
    fine = look_at(OnePixel(lambda z: z), 0.5)
    for broken in (lambda z: z / 0.0, lambda z: z * float("nan")):
        look = look_at(OnePixel(broken), 0.5)
        assert look.nonfinite == 1.0 and named("non-finite")(look, fine).fired
    # finite logits, an infinite slope
    root = look_at(OnePixel(lambda z: 1 + (z - z.detach()).sqrt()), 0.5)
    assert root.nonfinite == 1.0 and root.cross_entropy.gradient.isfinite().all()
    assert fine.nonfinite == 0.0


def test_a_network_that_is_no_module_can_be_looked_at():
    net = plain()
    data = ra.data("digits/validation[:20]")
    looks = [
        FirstLook(leave_as_is(n), data.images, data.labels, data.index, EPS)
        for n in (lambda x: net(x), net)
    ]
    shown = [[ask(look, look).value for ask in indicators()] for look in looks]
    # the module is looked at through its lean copy
    assert shown[0] == pytest.approx(shown[1], rel=1e-4, abs=1e-6)


# ----------------------------------------------------------------------------- book-keeping


def test_a_look_leaves_the_net_as_it_was_and_repeats():
    net = CHANGES["JumpReLU(0.5)"](plain()).train()
    data = ra.data("digits/validation[:30]")
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in net.state_dict().items()}
    shown = []
    for _ in range(2):
        look = FirstLook(leave_as_is(net), data.images, data.labels, data.index, EPS)
        shown.append([ask(look, look).value for ask in indicators()])
    assert shown[0] == shown[1] and torch.equal(torch.get_rng_state(), state)
    assert net.training and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())


def test_the_cost_is_a_few_dozen_passes_each_counted():
    data = ra.data("digits/validation[:10]")
    look = FirstLook(leave_as_is(plain()), data.images, data.labels, data.index, EPS)
    for ask in indicators():
        ask(look, look)
    # six climbs, two of them of the margin and of what the size of the logits cannot mislead
    assert 2 + STEPS < look.gradients <= 2 + 6 * STEPS


def test_no_points_show_nothing():
    look = FirstLook(
        leave_as_is(plain()),
        torch.zeros(0, 1, 8, 8),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0).long(),
        EPS,
    )
    assert not any(ask(look, look).fired for ask in indicators())


def test_a_reading_says_what_it_shows():
    look, before = look_at(Louder(OnePixel(lambda z: z)), 0.5), look_at(OnePixel(lambda z: z), 0.5)
    assert (
        str(named("logit scale")(look, before))
        == "logit scale (saturation): 8.19e+03, before 0.5: FIRED"
    )
    assert str(named("logit scale")(before, before)).endswith(": silent")


# ------------------------------------------------------------------------------ single entries


class Detached(nn.Module):
    """No gradient through a share of the pixels."""

    def __init__(self, net: nn.Module, share: float) -> None:
        super().__init__()
        self.net, self.share = net, share

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0))
        hidden = (drawn < self.share).to(x)
        return self.net(x * (1 - hidden) + (x * hidden).detach())


def missing(net: nn.Module, threat: ThreatModel = EPS) -> float:
    part = ra.data("digits/validation[:40]")
    look = FirstLook(leave_as_is(net), part.images, part.labels, part.index, threat)
    assert look.entries[0].shape == (6, 64)
    return look.missing


def test_a_gradient_that_is_no_number_in_places_is_none():
    class Rooted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return plain()(x.sqrt().square())  # whose slope at a black pixel is ∞ · 0

    part = ra.data("digits/validation[:40]")
    rooted, itself = (
        FirstLook(leave_as_is(net), part.images, part.labels, part.index, EPS)
        for net in (Rooted(), plain())
    )
    assert rooted.lost == 1.0 and rooted.dead == 0.0 and itself.lost == 0.0
    assert named("no gradient")(rooted, itself).fired


def test_where_a_gradient_is_missing_is_said_where_it_is_at_many_entries():
    class Lower(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return plain()(torch.cat([x[..., :4, :], x[..., 4:, :].detach()], -2))

    part = ra.data("digits/validation[:40]")
    looks = [
        FirstLook(leave_as_is(net), part.images, part.labels, part.index, EPS)
        for net in (Lower(), Detached(plain(), 0.05), plain())
    ]
    where = looks[0].curves().entries
    assert where is not None and where.shape == (1, 8, 8)
    assert set(where.missing) > set(range(33, 39)) and min(where.missing) >= 32
    assert len(where.found) > 20 and max(where.found) < 32
    assert [look.curves().entries for look in looks[1:]] == [None, None]


@pytest.mark.parametrize("threat", [EPS, L2(1.0)], ids=str)
def test_entries_without_a_gradient_are_counted(threat):
    threshold = named("single entries").threshold
    assert missing(plain(), threat) < 0.02 < threshold
    few, many = (missing(Detached(plain(), share), threat) for share in (0.3, 0.6))
    assert threshold < few < 0.5 < many < 0.8


@pytest.mark.parametrize(
    "change", ["itself", "SReLU(10)", "louder", "JumpReLU(0.5)", "JumpReLU(1)"]
)
def test_entries_are_not_missing_where_the_gradient_is_only_flat_or_wrong(change):
    assert "single entries" not in fired(change)
