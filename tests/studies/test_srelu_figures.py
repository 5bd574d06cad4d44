"""The SReLU figures: published variants and the scaling protocol on nets with known answers; the
algebra."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from retroact.activations.piecewise import SReLU
from retroact.attacks.fgsm import FGSM
from retroact.attacks.torchattacks13 import Torchattacks13BIM, Torchattacks13DeepFool
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import decide
from retroact.evaluation.metrics import robust_accuracy, survives
from retroact.experiments.cell import Cell, Model
from retroact.experiments.store import Store
from retroact.nets.data import data
from retroact.retrofitting.surgery import retrofit
from retroact.studies.counted import Counts, counts
from retroact.studies.desk import Desk
from retroact.studies.srelu import (
    figure_2,
    figure_3,
    figure_5,
    figure_7,
    question_averaging,
    question_scaling,
)
from retroact.studies.srelu.attacks import accuracies, as_published, attack_counts, columns
from retroact.studies.srelu.figure_5 import TargetedRates
from retroact.studies.srelu.networks import ABOVE_1, CNN2, MNIST, NETS, SLOPES, Net
from retroact.studies.srelu.panels import Curve, table
from retroact.studies.srelu.question_scaling import (
    CleanGradients,
    SlopeAlgebra,
    apart,
    without_biases,
)
from retroact.studies.srelu.scaled_pixels import ScaledPixels

DIGITS = Net("digits", "digits", "digits-cnn", "*", (0.0, 0.05, 0.1), "digits", 20)
PLAIN = Model("digits-cnn")


def tiny() -> nn.Sequential:
    """Three activations in a row, weights of both signs, float64."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 8),
        nn.ReLU(),
    )
    return nn.Sequential(*layers, nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).double()


def pictures() -> torch.Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()


# ------------------------------------------------------------------------------------------ algebra


def with_slope(net: nn.Module, alpha: float) -> nn.Module:
    return retrofit(net, SReLU(alpha), example=pictures()) if alpha != 1 else net


@pytest.mark.parametrize("alpha", [0.5, 10.0, 100.0])
def test_logits_are_those_of_a_relu_net_with_smaller_biases_times_the_slopes(alpha):
    folded = copy.deepcopy(tiny())
    with torch.no_grad():
        for k, layer in enumerate(m for m in folded if isinstance(m, nn.Conv2d | nn.Linear)):
            layer.bias /= alpha**k
    x, sloped = pictures(), with_slope(tiny(), alpha)
    assert apart(sloped(x), alpha**3 * folded(x)) < 1e-13
    assert apart(sloped(x), alpha**3 * tiny()(x)) > 1e-2  # the biases do matter


@pytest.mark.parametrize("alpha", [2.0, 100.0])
def test_without_biases_slope_and_scale_are_the_same_whatever_the_signs_of_weights(alpha):
    net, x = tiny(), pictures()
    assert all((p < 0).any() and (p > 0).any() for p in net.parameters() if p.dim() > 1)
    sloped = with_slope(net, alpha)
    assert apart(without_biases(sloped)(x), without_biases(net)(alpha**3 * x)) < 1e-13
    assert apart(without_biases(sloped)(x), without_biases(net)(alpha**2 * x)) > 0.1
    assert apart(sloped(x), net(alpha**3 * x)) > 1e-2


def test_the_measured_algebra_says_the_same_of_a_trained_net():
    found = SlopeAlgebra(DIGITS.sloped(10.0), "digits[:30]")()
    assert found["sites"] == 3 and 0.2 < found["negative"] < 0.8
    assert found["folded"] < 1e-12 and found["bias_free"] < 1e-12 < 1e-3 < found["scaled"]


def test_gradients_of_right_images_vanish_and_those_of_wrong_ones_grow():
    plain, steep = (CleanGradients(DIGITS.sloped(s), "digits")() for s in (1.0, 100.0))
    assert plain["right"] + plain["wrong"] == 359 and plain["zero32"] < 0.2 * plain["right"]
    assert steep["zero32"] > 0.9 * steep["right"] and steep["zero64"] <= steep["zero32"]
    assert (
        steep["size_right"] < plain["size_right"]
        and steep["size_wrong"] > 1e3 * plain["size_wrong"]
    )


# -------------------------------------------------------------------------------- published attacks


def published_pgd(net: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """Forty steps of 2/255 from the image itself, clamped to the ball and to the box; nothing
    freezes."""
    moved = x
    for _ in range(40):
        moved = moved.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(moved), y), moved)
        moved = (x + (moved + 2 / 255 * g.sign() - x).clamp(-eps, eps)).clamp(0, 1)
    return moved.detach()


def test_our_pgd_fells_what_the_published_one_fells():
    part, net = data("digits[:60]"), PLAIN()
    for cell in attack_counts(DIGITS, "PGD", PLAIN, 60).cells():
        assert cell.attack.relative_step * cell.threat.eps == pytest.approx(2 / 255)
        theirs = (
            decide(net, published_pgd(net, part.images, part.labels, cell.threat.eps))
            == part.labels
        )
        ours = torch.from_numpy(survives(cell()))
        # one may have come back in their loop
        assert (ours & ~theirs).sum() == 0 and (theirs & ~ours).sum() <= 1
    assert 0 < ours.double().mean() < 0.9


def test_deepfools_columns_from_one_run_are_those_of_separate_runs():
    asked = attack_counts(DIGITS, "DeepFool", DIGITS.sloped(10.0), 60)
    (cell,) = asked.cells()
    alone = [
        Cell(cell.model, cell.data, Torchattacks13DeepFool(k), cell.threat)() for k in (1, 2, 3)
    ]
    assert cell.attack.steps == 5 and columns(DIGITS, "DeepFool") == ["1", "2", "3"]
    made = accuracies("DeepFool", Counts.of([cell()], beyond=asked.beyond))
    assert made == pytest.approx([100 * robust_accuracy(r) for r in alone]) and made[0] > made[2]


def test_every_attack_has_a_number_for_every_column(tmp_path):
    names = ("FGSM", "BIM", "StepLL", "RFGSM", "PGD", "DeepFool")
    asked = {name: attack_counts(DIGITS, name, PLAIN, 20) for name in names}
    with Store(tmp_path / "s.sqlite") as store:
        found = counts(Desk(store), asked)
    for name in names:
        assert len(accuracies(name, found[name])) == len(columns(DIGITS, name)) == 3
    bim = asked["BIM"].cells()[-1]
    # it leaves the ball of its name
    assert bim.attack == Torchattacks13BIM(0.1) and bim.threat == Linf(1.0)


def test_published_deepfool_is_filed_by_its_steps():
    assert (
        as_published(MNIST, "DeepFool", 0.5)["1"] == 88.67
        and as_published(MNIST, "DeepFool", 0.5)["2"] == 2.98
    )
    assert as_published(MNIST, "FGSM", 1.0)["0.3"] == 8.69
    assert len(as_published(CNN2, "FGSM", 1.0)) == 3  # cut short in the paper's notebook


def test_the_original_images_are_counted_by_themselves_where_there_are_others(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        asked = {n: DIGITS.counted(PLAIN, FGSM(), n) for n in (20, 30)}
        found = counts(Desk(store), asked)
    assert found[20].first is None and found[30].n == 30
    alone = found[30].first
    assert (alone.n, alone.right, alone.left) == (20, found[20].right, found[20].left)
    assert DIGITS.mixed(30) and not DIGITS.mixed(20)


# ------------------------------------------------------------------------------------------ scaling


class Threshold(nn.Module):
    """Class 0 where the pixel is above `at`; `steep` logits saturate the softmax."""

    def __init__(self, at: float, steep: float = 1.0) -> None:
        super().__init__()
        self.at, self.steep = at, steep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.steep * (x.flatten(1) - self.at)
        return torch.cat([z, -z], 1)


def counted(net: nn.Module, pixel: float, label: int, **how: object) -> list[int]:
    """right, zero, left at each eps, of one image of one pixel."""
    what = ScaledPixels(PLAIN, "digits", **how)  # type: ignore[arg-type]
    return what.counts(net, torch.full((1, 1, 1, 1), pixel), torch.tensor([label]))


def test_the_step_starts_at_the_scaled_image():
    eps = (0.0, 0.2, 0.31)
    # 0.8 - 0.31 is below 0.5
    assert counted(Threshold(0.5), 0.4, 0, scale=2.0, eps=eps) == [1, 0, 1, 1, 0]
    assert counted(Threshold(0.5), 0.2, 0, scale=2.0, eps=eps) == [0, 0, 0, 0, 0]  # wrong: dropped
    # 0.4 + 0.2 is above
    assert counted(Threshold(0.5), 0.2, 1, scale=2.0, eps=eps) == [1, 0, 1, 0, 0]


def test_clipping_before_the_step_and_after_it():
    eps = (0.0, 0.6)
    # 1 - 0.6
    assert counted(Threshold(0.5), 0.9, 0, scale=2.0, eps=eps, clipped=True) == [1, 0, 1, 0]
    # 1.8 - 0.6, clipped to 1
    assert counted(Threshold(0.5), 0.9, 0, scale=2.0, eps=eps) == [1, 0, 1, 1]
    # right at 1.8, and wrong at eps 0 already, since the last clip puts it to 1
    assert counted(Threshold(1.5), 0.9, 0, scale=2.0, eps=eps) == [1, 0, 0, 0]
    # wrong at 1.8, and dropped, although the last clip would put it right
    assert counted(Threshold(1.5), 0.9, 1, scale=2.0, eps=eps) == [0, 0, 0, 0]


def test_a_gradient_that_is_zero_is_counted_and_moves_nothing():
    eps = (0.9,)
    assert counted(Threshold(0.5, 1e4), 0.9, 0, scale=1.0, eps=eps) == [1, 1, 1]
    assert counted(Threshold(0.5, 1e4), 0.9, 0, scale=1.0, eps=eps, loss="margin") == [1, 0, 0]
    # seen a thousandth as large, the image is decided wrongly there and shows its gradient
    assert counted(Threshold(0.5, 1e4), 0.9, 0, scale=1e-3, eps=eps, step_on="original") == [
        1,
        0,
        0,
    ]


def test_scale_1_is_fgsm():
    found = ScaledPixels(PLAIN, "digits[:50]", 1.0, (0.0, 0.05, 0.1))()
    asked = attack_counts(DIGITS, "FGSM", PLAIN, 50)
    ours = accuracies("FGSM", Counts.of([cell() for cell in asked.cells()]))
    assert [100 * v / 50 for v in found["left"]] == pytest.approx(ours)


# ----------------------------------------------------------------------------------------- targeted


@pytest.mark.parametrize("loss", ["cross_entropy", "logit"])
def test_targeted_successes_are_counted_as_published(loss):
    part, net, eps = data("digits[:50]"), PLAIN(), 0.2
    found = TargetedRates(PLAIN, "digits[:50]", (0.1, eps), loss)()
    clean = decide(net, part.images)
    for t in (0, 7):
        x = part.images.clone().requires_grad_()
        z = net(x)
        # nll_loss of raw logits: the published slip
        towards = F.log_softmax(z, 1) if loss == "cross_entropy" else z
        (g,) = torch.autograd.grad(F.nll_loss(towards, torch.full((50,), t), reduction="sum"), x)
        made = decide(net, (part.images - eps * g.sign()).clamp(0, 1))
        assert found["led"][t][1] == ((made == t) & (clean != t)).sum()
        assert found["asked"][t] == (clean != t).sum()
    assert sum(map(sum, found["led"])) > 0 and found["n"] == 50


# ----------------------------------------------------------------------------- numbers and verdicts


def test_recovery_is_0_at_slope_1_and_100_where_all_is_back():
    means = {("x", "FGSM", 1.0): 40.0, ("x", "FGSM", 10.0): 90.0, ("x", "FGSM", 0.5): 20.0}
    recovered = [figure_2._recover(90.0, means, ("x", "FGSM", s)) for s in (1.0, 10.0, 0.5)]
    assert recovered == [0.0, 100.0, -40.0]


def test_a_table_names_its_curves_and_shows_original_images_and_differences():
    curve = Curve("2", [90.0, 50.0], {"0.1": 47.0}, [91.0, 52.0], "slope")
    made = table("T", "slope", "eps", ["0", "0.1"], [curve], 1017)
    assert made.head[3] == "first 1017, original"
    assert made.texts() == [
        ["2", "0", "90.0", "91.0", "–", "–"],
        ["2", "0.1", "50.0", "52.0", "47.0", "+3.0"],
    ]


@pytest.mark.parametrize(
    ("harm", "on", "answer"),
    [
        (4.0, NETS, "holds"),
        (6.0, NETS, "does not hold"),
        (-6.0, NETS, "does not hold"),
        (6.0, (CNN2,), "differs by network"),
    ],
)
def test_neither_helped_nor_harmed_follows_from_the_curves(harm, on, answer):
    made = {
        (net.key, a, s): Curve("", [50.0])
        for net in NETS
        for a in ("StepLL", "DeepFool")
        for s in SLOPES
    }
    made |= {(net.key, "StepLL", 5.0): Curve("", [50.0 - harm]) for net in on}
    assert figure_3._stepll_deepfool(made).answer == answer


PROTOCOL = "holds under the paper's protocol only"


def means(**changed: float) -> tuple[figure_2.Clean, figure_2.Means]:
    """98 % clean everywhere, 50 under every attack at slope 1, 40 at 0.5, 60, 70 and 95 at 2, 5 and
    above."""
    left = {0.5: 40.0, 1.0: 50.0, 2.0: 60.0, 5.0: 70.0, 10.0: 95.0, 100.0: 95.0}
    keys = [(net.key, a, s) for net in NETS for a in figure_2.ATTACKS for s in SLOPES]
    clean = {k: 98.0 - (k[2] == 0.5) for k in keys}
    return clean, {k: changed.get(f"{k[1]}_{k[2]:g}", left[k[2]]) for k in keys}


def on_margin(seen: figure_2.Means, **changed: float) -> figure_2.Means:
    return {k: changed.get(f"at_{k[2]:g}", v) for k, v in seen.items() if k[1] == "FGSM"}


def test_claims_on_slopes_follow_from_the_means():
    clean, seen = means()
    for judge in (figure_2._starts_to_recover, figure_2._four_attacks, figure_2._hindered):
        assert judge(clean, seen, on_margin(seen)).answer == "holds"
    blind = on_margin(seen, at_2=50.0, at_100=51.0) | {}
    assert figure_2._starts_to_recover(clean, seen, blind).answer == PROTOCOL
    assert figure_2._four_attacks(clean, seen, blind).answer == PROTOCOL
    better = on_margin(seen) | {(NETS[0].key, "FGSM", 0.5): 51.0}
    assert figure_2._hindered(clean, seen, better).answer == PROTOCOL
    # two attacks of six that slope 0.5 helps are more than "almost always" leaves
    clean, seen = means(RFGSM_100=80.0, FGSM_5=59.0, **{"BIM_0.5": 51.0, "PGD_0.5": 51.0})
    for judge in (figure_2._starts_to_recover, figure_2._four_attacks, figure_2._hindered):
        assert judge(clean, seen, on_margin(seen)).answer == "does not hold"


@pytest.mark.parametrize(
    ("clean", "left", "answer"),
    [(98.0, 30.0, "holds"), (50.0, 30.0, PROTOCOL), (98.0, 60.0, "does not hold")],
)
def test_a_swap_that_costs_before_the_attack_makes_the_attack_no_stronger(clean, left, answer):
    """With ReLU 98 % and 50 under attack."""
    curves = {(net, name): [clean, left, left] for net in NETS for name in figure_2.OTHERS}
    curves |= {(net, "relu"): [98.0, 50.0, 50.0] for net in NETS}
    claim = figure_2._more_damaging(curves)
    assert claim.answer == answer and "of 15 pairs" in claim.because


@pytest.mark.parametrize(("won", "answer"), [(1.0, "holds"), (3.0, "does not hold")])
def test_clipped_pixels_do_not_help_where_no_scale_wins(won, answer):
    made = {(MNIST.key, "clipped", s): Curve("", [98.0, 50.0, 50.0]) for s in (1.0, *ABOVE_1)}
    made[MNIST.key, "clipped", 5.0] = Curve("", [98.0, 50.0, 50.0 + 2 * won])
    assert figure_7._mnist_clipped(made).answer == answer


def rates(**by_net: list[float]) -> figure_5.Rates:
    """Rates with, per network, ten successes at slopes above 1; all are 10 at slope 1."""
    made = {}
    for net in NETS:
        for s in SLOPES:
            values = by_net[net.key] if s in ABOVE_1 else [10.0] * 10
            made[net.key, s] = [[0.0, v, v] for v in values]
    return made


def helping(k: int) -> list[float]:
    return [9.0] * k + [11.0] * (10 - k)


def test_targeted_claims_follow_from_the_rates():
    good = rates(mnist=helping(6), cifar10_cnn1=helping(7), cifar10_cnn2=helping(3))
    assert figure_5._classes_helped(good).answer == "holds"
    bad = rates(mnist=helping(6), cifar10_cnn1=helping(6), cifar10_cnn2=helping(7))
    claim = figure_5._classes_helped(bad)
    assert claim.answer == "differs by network" and "7 (CIFAR10-CNN2" in claim.because
    none = rates(mnist=helping(0), cifar10_cnn1=helping(0), cifar10_cnn2=helping(0))
    assert figure_5._classes_helped(none).answer == "does not hold"
    assert figure_5._slopes_above_1(good).answer == "holds"
    good["mnist", 2.0] = [[0.0, 30.0, 30.0]] * 10
    assert figure_5._slopes_above_1(good).answer == "differs by network"


def flat(steep: float, gentle: float = 10.0) -> figure_5.Rates:
    """Successes of 10 at slope 1, `steep` above it and `gentle` below, in every class."""
    value = {s: steep if s > 1 else gentle if s < 1 else 10.0 for s in SLOPES}
    return {(net.key, s): [[0.0, v, v]] * 10 for net in NETS for s, v in value.items()}


def test_targeted_claims_ask_for_a_point_and_for_the_loss_without_a_softmax():
    assert figure_5._slope_lowers(flat(8.0), flat(8.0)).answer == "holds"
    assert figure_5._slope_lowers(flat(8.0), flat(9.5)).answer == PROTOCOL
    assert figure_5._slope_lowers(flat(9.5), flat(8.0)).answer == "does not hold"
    assert figure_5._slopes_under_1(flat(8.0, 8.0), flat(8.0, 8.0)).answer == "holds"
    assert figure_5._slopes_under_1(flat(8.0, 8.0), flat(8.0, 11.0)).answer == PROTOCOL
    assert figure_5._slopes_under_1(flat(8.0, 11.0), flat(8.0, 8.0)).answer == "does not hold"
    kept = figure_5._not_stopped(flat(6.0), [0.0, 0.0, 1.25])
    assert kept.answer == "holds" and "CIFAR10-CNN2 60 %, 1.2 %" in kept.because
    assert figure_5._not_stopped(flat(4.0), [0.0] * 3).answer == "does not hold"


def test_what_averaging_explains_is_said_beside_what_was_published():
    gone = question_averaging.Row(MNIST, 5.0, 97.0, 97.25, 94.3, 90.0, 92.0)
    other = question_averaging.Row(CNN2, 5.0, 20.0, 20.0, None, 0.0, 0.0)
    told = question_averaging._describe([gone, other])
    assert "MNIST CNN +0.25 of the -2.70 points" in told and "+0.00 points (nothing" in told
    assert "The most that it changes anywhere is +0.25 points (MNIST CNN, slope 5)" in told


def test_averaging_makes_gradients_zero_where_they_are_smallest():
    """At slope 2 a digit's cross-entropy is about to vanish in float32."""
    own, mean = (
        Cell(DIGITS.sloped(2.0), "digits[:200]", attack, Linf(0.1))()
        for attack in (question_averaging.ALONE, question_averaging.AVERAGED)
    )
    row = question_averaging._row(DIGITS, 2.0, Counts.of([own]), Counts.of([mean]))
    assert 0 < row.zero_alone < row.zero_averaged < 100 and row.explained >= 0
    assert row.published is None


def test_the_mechanism_is_neither_where_gradients_vanish_and_nothing_is_won():
    def label(**changed: float) -> str:
        gradients = {
            (n, s): {"right": 9, "zero32": 9, "zero64": 9, "size_right": 1 / s, "size_wrong": s}
            for n in NETS
            for s in SLOPES
        }
        seen = {
            (n, name, s): 50.0 + changed.get(name, 0.0) * (s == 100)
            for n in NETS
            for name in ("noise", "margin step")
            for s in SLOPES
        }
        if "exploded" in changed:
            gradients[NETS[0], 100.0]["size_right"] = 9.0
        return question_scaling._mechanism_claim(gradients, seen).answer

    assert label() == "does not hold" and label(noise=4.0) == "does not hold"
    assert label(noise=6.0) == "holds" and label(exploded=1.0) == "differs by network"
