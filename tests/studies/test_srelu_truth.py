"""The Sloped ReLU study's battery, transfer, clusters and defences: what their numbers rest on, on
tiny networks."""

import math
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.attacks.fgsm import FGSM
from retroact.auditing.numbers import AuditNumbers, Pair
from retroact.crafting.goals import Aim
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Linf
from retroact.evaluation.evaluate import decide, evaluate, evaluate_all
from retroact.evaluation.metrics import robust_accuracy, survives
from retroact.experiments.cell import Cell, Model
from retroact.nets.data import Images, data
from retroact.retrofitting.folding import fold
from retroact.retrofitting.surgery import refit, retrofit
from retroact.studies.counted import Counts, cut
from retroact.studies.published import published
from retroact.studies.srelu import (
    figure_4,
    figure_8,
    figure_9,
    question_beyond,
    question_defences,
    question_saliency,
)
from retroact.studies.srelu.battery import BATTERY, Cut, PlainDeepFool, Straight
from retroact.studies.srelu.networks import MNIST, NETS, Net


@pytest.fixture(scope="module")
def digits():
    return data("digits[:24]")


@pytest.fixture(scope="module")
def net():
    return Model("digits-cnn")().eval()


def steep(alpha=100.0):
    return Model("digits-cnn", SReLU(alpha))


# ------------------------------------------------------------------------------------- the battery


def test_the_published_list_has_25_attacks_and_21_of_them_are_distinct():
    assert len(BATTERY) == 21 and sum(e.times for e in BATTERY) == 25
    assert len({str(e.foolbox) + e.threat.norm for e in BATTERY}) == 21
    for figure in ("figure4.mnist", "figure4.cifar10_cnn1"):
        names = [
            name.split("Attack(")[0] for name, _ in published("srelu", figure)[0]["attacks"][:-1]
        ]
        assert {e.name: e.times for e in BATTERY} == {name: names.count(name) for name in names}


@pytest.mark.parametrize("entry", [e for e in BATTERY if not e.random], ids=lambda e: e.name)
def test_a_deterministic_attack_decides_as_foolbox_does(entry, net, digits):
    foolbox = pytest.importorskip("foolbox")
    digits = digits[:10]
    # blur treats the edges in its own way, which larger radii than the published ones would show
    eps = (0.1, 0.3) if entry.threat is Linf or "Blur" in entry.name else (0.3, 1.0, 2.0)
    attack = entry.foolbox._build(foolbox, entry.threat(eps[0]))
    seen = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, _, success = attack(seen, digits.images, digits.labels, epsilons=list(eps))
    ours = [
        survives(r) for r in evaluate_all(net, digits, entry.attack, [entry.threat(e) for e in eps])
    ]
    assert np.array_equal(np.array(ours), ~success.numpy())


def test_plain_deepfool_finds_the_boundary_of_a_linear_net():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(6, 1, 4, 4) * 0.2 + 0.4
    y = linear(x).argmax(1)
    found = PlainDeepFool()(Scene.on(linear, x, Aim(y), L2(9.0)))
    w, z = linear[1].weight.detach(), linear(x).detach()
    for i in range(6):
        nearest = min(
            float((z[i, y[i]] - z[i, k]) / (w[y[i]] - w[k]).norm()) for k in range(3) if k != y[i]
        )
        assert nearest < float((found[i] - x[i]).norm()) < 1.03 * nearest + 2e-4
    near = L2(1e-3)
    cut = Cut(PlainDeepFool()).sweep(Scene.on(linear, x, Aim(y), near), [near])[0]
    assert torch.allclose((cut - x).flatten(1).norm(dim=1), torch.full((6,), 1e-3), atol=1e-6)


def test_a_straight_line_stops_at_its_first_level_that_fools_and_is_cut_at_eps():
    bright = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():  # class 1 above a mean of 0.2
        bright[2].weight.copy_(torch.tensor([[0.0], [1.0]]))
        bright[2].bias.copy_(torch.tensor([0.2, 0.0]))
    x, aim = torch.zeros(1, 1, 4, 4), Aim(torch.tensor([0]))
    near, far = Straight("grey")(Scene.on(bright, x, aim, L2(0.4))), 4 * 0.2
    assert math.isclose(float(near.norm()), 0.4, rel_tol=1e-5)
    found = Straight("grey")(Scene.on(bright, x, aim, L2(2.0)))
    assert far < float(found.norm()) < far + 4 * 0.5 / 1000 + 1e-6
    inverse = Straight("negative", steps=1)(Scene.on(bright, x, aim, L2(0.1)))
    assert math.isclose(float(inverse.norm()), 0.1, rel_tol=1e-5)


def test_an_image_that_foolbox_turned_into_nan_never_counts_as_fooled(digits):
    pytest.importorskip("foolbox")
    what = figure_4.RuinedImages(steep(), "digits[:24]", (0.0, 0.5))
    found = what()
    clean = 100 * float((decide(what.model(), digits.images) == digits.labels).float().mean())
    assert found["nan"] >= 20 and found["as_class_0"] == found["nan"]
    assert found["counted"][0] < clean - 50  # at eps 0!
    assert found["kept_out"][0] == pytest.approx(clean)
    record = evaluate(what.model(), digits, figure_4.VAT.attack, L2(0.5))
    # ours keeps the direction that was drawn, and has no NaN
    assert not record.nonfinite.any() and record.zero_gradients.sum() >= 200
    assert 100 * robust_accuracy(record) > found["counted"][1]


@pytest.mark.parametrize(
    ("counted", "kept", "answer"),
    [
        (10.0, 95.0, "holds under the paper's protocol only"),
        (10.0, 60.0, "holds"),
        (95.0, 95.0, "does not hold"),
    ],
)
def test_much_worse_asks_what_is_left_without_the_nan_images(counted, kept, answer):
    plain = {"counted": [98.0, 90.0], "kept_out": [98.0, 90.0], "nan": 0, "n": 10}
    steep = {"counted": [10.0, counted], "kept_out": [98.0, kept], "nan": 9, "n": 10}
    claim = figure_4._much_worse({("mnist", 1.0): plain, ("mnist", 100.0): steep})
    assert claim.answer == answer and "9 of 10" in claim.because


def test_the_published_pixels_are_the_first_of_the_batterys_images():
    """A recovery of the first images alone, beside that of all."""
    r = object.__new__(figure_4.Results)
    r.net = Net("digits", "cifar10_cnn2", "digits-cnn", "*", (0.0, 0.1), "digits", 20)
    r.n, r.slopes, r.eps = 30, (1.0, 100.0), (0.1,)
    records = {s: Cell(steep(s), "digits[:30]", FGSM(), Linf(0.1))() for s in r.slopes}
    counted = {
        k: {s: Counts.of([cut(record, k)] * len(BATTERY)) for s, record in records.items()}
        for k in (30, 20)
    }
    r.found = {s: replace(counted[30][s], first=counted[20][s]) for s in r.slopes}
    ruined = {
        (r.net.key, s): {"counted": [0.0, 50.0], "kept_out": [0.0, 50.0]} for s in (1.0, 100.0)
    }
    all_rows = list(figure_4._recovery_rows(r, ruined, 1.0))
    assert [row[0] for row in all_rows] == ["digits", "digits, first 20, original"]
    left = [100 * survives(records[s])[:20].mean() for s in r.slopes]
    assert all_rows[1][1] == pytest.approx(left[1] - left[0]) and all_rows[1][-1] is None


def test_around_is_judged_by_its_span_and_by_the_truth():
    span, net = (15.0, 15.0), figure_4.MNIST
    assert figure_4._around("a", span, [(net, 16.0, 14.0)]).answer == "holds"
    assert (
        figure_4._around("a", span, [(net, 16.0, 1.0)]).answer
        == "holds under the paper's protocol only"
    )
    assert figure_4._around("a", span, [(net, 20.0, 14.0)]).answer == "does not hold"


# ------------------------------------------------------------------------------ transfer, clusters


@pytest.mark.parametrize("size", [8.0, 1e6])
def test_a_surrogate_learns_its_targets_outputs_whatever_their_size(size):
    torch.manual_seed(0)
    x = torch.rand(256, 1, 2, 2)
    # labels that say nothing: only outputs can teach
    train = Images.of(x, torch.zeros(256, dtype=torch.int64))
    target, pupil = (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for _ in range(2))
    with torch.no_grad():
        target[1].weight.mul_(size)
        target[1].bias.mul_(size)
    lesson = figure_8.Lesson(60, rate=0.02, moved=False)
    before = float((pupil(x).argmax(1) == target(x).argmax(1)).float().mean())
    figure_8.distil(target, pupil, train, lesson)
    after = float((pupil(x).argmax(1) == target(x).argmax(1)).float().mean())
    assert before < 0.8 and after > 0.95 and not pupil.training
    assert all(p.grad is None for p in target.parameters())


def test_a_lesson_that_moves_its_images_asks_the_target_about_these():
    x = torch.arange(2 * 3 * 16.0).view(2, 3, 4, 4)
    seen = [figure_8._move(x, torch.Generator().manual_seed(s)) for s in range(12)]
    assert all(torch.equal(m.flatten(1).sort(1)[0], x.flatten(1)) for m in seen)
    assert len({m[0].sum(0).argmax().item() for m in seen}) > 4
    gray = figure_8._move(x[:, :1], torch.Generator().manual_seed(1))
    shifts = [x[:, :1].roll((a, b), (2, 3)) for a in range(-2, 3) for b in range(-2, 3)]
    assert any(torch.equal(gray, shifted) for shifted in shifts)  # and never mirrored


def test_the_agreement_is_of_decisions_on_the_images_that_are_asked():
    what = figure_8.Transferred(
        steep(10.0),
        figure_8.Lesson(20, batch=16),
        *("digits[:200]", "digits[:20]", "digits[200:]"),
        (0.1,),
    )
    found = what()
    assert 20 < found["agree"] < 100 and len(found["FGSM"]) == len(found["PGD"]) == 1
    assert what() == found


def test_figure_8_asks_for_a_hindered_net_that_stands_above_the_direct_attack():
    def curves(surrogate, plain):
        ways = {
            "direct, slope 1": [98, 10],
            "direct, this slope": [98, 98],
            "direct, margin loss": [98, 10],
        }
        ways |= {"surrogate": [98, surrogate], "from slope 1": [98, plain]}
        return {"mnist": {("PGD", 100.0, way): v for way, v in ways.items()}}

    def answer(surrogate, plain, agree=91.0):
        learned = {net.key: {100.0: {"agree": agree}} for net in NETS}
        return figure_8._claim(curves(surrogate, plain), (100.0,), learned).answer

    assert answer(40, 30) == "holds"
    assert answer(40, 10.5) == "holds under the paper's protocol only"
    assert answer(90, 30) == "does not hold"
    assert (
        answer(40, 30, agree=89.0) == "cannot be told"
    )  # MNIST's surrogate does not know its target


def test_the_ratio_between_to_within_knows_no_scale_and_falls_as_clusters_spread():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    centres, noise = random.normal(size=(4, 6))[labels] * 9, random.normal(size=(120, 6))

    def ratio(points):
        between, within = figure_9.spread(points, labels)
        return between / within

    assert ratio(1e6 * (centres + noise)) == pytest.approx(ratio(centres + noise))
    assert ratio(centres + 3 * noise) < 0.5 * ratio(centres + noise)
    assert figure_9.spread(2 * centres, labels)[0] == pytest.approx(
        2 * figure_9.spread(centres, labels)[0]
    )


def test_the_last_layers_are_those_of_the_sloped_net(digits):
    made = steep(3.0)()
    hidden, logits = figure_9.last_layers(made, digits.images)
    assert hidden.min() >= 0 and hidden.shape[0] == 24 and hidden.ndim == 2
    assert np.allclose(logits, made(digits.images).detach().double().numpy())


# -------------------------------------------------------------------------------- other defences


def test_a_sloped_jump_is_a_jump_times_a_slope_and_folds_to_a_jump(net, digits):
    both = retrofit(net, question_defences.SlopedJump(4.0, 0.3))
    with torch.no_grad():
        sites = len(fold(retrofit(net, SReLU(4.0)), scaled=False).retrofit.activation.ramp)
        assert sites == 3
        folded = fold(both)
        assert torch.allclose(folded(digits.images), both(digits.images), rtol=1e-4, atol=1e-2)
        one = question_defences.SlopedJump(1.0, 0.3)
        assert torch.equal(
            refit(both, one)(digits.images), retrofit(net, JumpReLU(0.3))(digits.images)
        )


@pytest.mark.parametrize(
    ("claimed", "low", "answer"),
    [
        (0.7, 0.01, "holds"),
        (0.7, -0.1, "holds under the paper's protocol only"),
        (0.5, 0.1, "does not hold"),
    ],
)
def test_in_conjunction_asks_every_other_defence_for_claimed_and_verified_gains(
    claimed, low, answer
):
    def outcome(after, least):
        words = {"effect": "GENUINE", "claim": "HONEST", "mechanism": ""}
        pairs = {"clean": Pair(0.9, 0.9), "verified": Pair(0.4, 0.45)}
        return AuditNumbers(
            100, **words, claimed=Pair(0.6, after), p=0.01, interval=(least, 0.2), **pairs
        )

    claim = question_defences._in_conjunction(
        {"shifts": outcome(0.8, 0.02), "JumpReLU": outcome(claimed, low)}
    )
    assert claim.answer == answer and "shifts +20.0, verified +5.0" in claim.because


def test_a_raised_bias_is_a_bias_raised(net, digits):
    with torch.no_grad():
        assert torch.equal(
            question_defences.raise_biases(net, 0.0)(digits.images), net(digits.images)
        )
        up = fold(question_defences.raise_biases(net, 0.25))
    before, after = (dict(n.named_parameters()) for n in (net, up))
    moved = {
        name: float((after[name] - p).detach().mean())
        for name, p in before.items()
        if name.endswith("bias")
    }
    assert sum(abs(v - 0.25) < 1e-5 for v in moved.values()) >= 2  # all but the logits' own
    assert sum(abs(v) < 1e-6 for v in moved.values()) == 1


def test_saliency_counts_exact_zeros_alone(digits):
    blind, seeing = (
        question_saliency.Saliency(steep(a), steep(1.0), "digits[:24]")() for a in (100.0, 1.0)
    )
    assert blind["zero"]["cross_entropy"] > 90 > 10 > seeing["zero"]["cross_entropy"]
    assert blind["zero"]["margin"] == seeing["zero"]["margin"] == 0
    assert len(blind["rows"]) == 4 and set(blind["maps"]) == {"cross_entropy", "margin"}
    maps = question_saliency._unpack(blind["maps"]["margin"]).view(4, -1)
    assert maps.abs().amax(1).tolist() == [1] * 4 and (maps[0] == 0).sum() < 40
    assert seeing["alike"] == pytest.approx(1) and 0 < blind["alike"] < 0.999


def test_grad_cam_is_what_is_reckoned_by_hand():
    """One convolution of size 1 with weights 1 and −1 on x − ½: maps max(0, x − ½) and max(0, ½ −
    x), and a linear layer whose weights are their derivatives."""
    conv, linear = nn.Conv2d(1, 2, 1), nn.Linear(8, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        conv.bias.copy_(torch.tensor([-0.5, 0.5]))
        linear.weight[0] = torch.tensor([4.0, 0.0, 0.0, 0.0, 1.0, 1.0, -1.0, -5.0])
        linear.weight[1] = -linear.weight[0]
    x = torch.tensor([[0.9, 0.5], [0.1, 0.0]]).view(1, 1, 2, 2)
    layers = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)
    net = retrofit(layers, SReLU(1.0), example=torch.cat([x, x]))
    # α = (4 / 4, −4 / 4): 1 · (0.4, 0, 0, 0) − 1 · (0, 0, 0.4, 0.5), and nothing below zero
    up = question_saliency.grad_cam(net, x, torch.tensor([0]))
    assert torch.allclose(up, torch.tensor([[[0.4, 0.0], [0.0, 0.0]]]), atol=1e-6)
    down = question_saliency.grad_cam(net, x, torch.tensor([1]))
    assert torch.allclose(down, torch.tensor([[[0.0, 0.0], [0.4, 0.5]]]), atol=1e-6)
    # a slope of 2: maps twice as high, the same derivatives
    steeper = question_saliency.grad_cam(refit(net, SReLU(2.0)), x, torch.tensor([1]))
    assert torch.allclose(steeper, 2 * down)


def test_grad_cam_of_two_nets_is_compared_where_both_are_right():
    found = question_saliency.GradCam(steep(1.0), steep(10.0), "digits[:24]")()
    assert 12 <= found["n"] <= 24 and 0.3 < found["alike"] < 1 and 0 <= found["dead"] < 50
    assert len(found["shown"]) == 4 and np.max(found["shown"]) == 1


def test_the_battery_serves_its_threats():
    assert all(e.threat.norm in e.attack.norms for e in BATTERY)
    assert {type(e.threat(0.1)) for e in BATTERY} == {Linf, L2}


def test_scores_and_the_network_at_slope_1_are_attacked_with_the_same_radius_as_the_gradient():
    direct, scores, gray = (
        c for what in question_beyond._ways(MNIST, 10.0, 20) for c in what.cells()
    )
    assert direct.attack.needs == "gradient" and scores.attack.needs == "score"
    assert {cell.threat for cell in (direct, scores, gray)} == {Linf(0.1)}
    assert (
        direct.source is None and gray.source == MNIST.sloped(1.0) and gray.attack == direct.attack
    )


@pytest.mark.skipif(not os.environ.get("RETROACT_DATA"), reason="no MNIST under RETROACT_DATA")
def test_the_published_inputs_change_what_a_slope_below_1_costs():
    images = data("mnist[:200]")
    kept = {}
    for net in (MNIST, question_beyond.SHIFTED):
        kept[net.net] = [
            float((decide(net.sloped(s)(), images.images) == images.labels).float().mean())
            for s in (0.5, 1)
        ]
    assert min(kept["mnist-cnn"][0], *(k[1] for k in kept.values())) > 0.9
    assert kept["mnist-cnn-shifted"][0] < 0.6
