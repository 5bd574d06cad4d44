"""The JumpReLU study: the protocol's arithmetic on nets whose answer is known, and items rebuilt
from the store."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from retroact.activations.piecewise import JumpReLU
from retroact.attacks.erichson import ErichsonDeepFool, ErichsonPGD
from retroact.crafting.driver import craft
from retroact.crafting.threat import L2, Linf
from retroact.evaluation.evaluate import decide, evaluate
from retroact.evaluation.metrics import robust_accuracy
from retroact.experiments.cell import Cell, Model
from retroact.experiments.store import Store
from retroact.nets import zoo
from retroact.nets.classifier import Classifier
from retroact.nets.data import Images, data
from retroact.nets.sources import DataError
from retroact.reports.studied import Claim, Figure, Table
from retroact.studies.desk import Desk
from retroact.studies.jumprelu import (
    agreement,
    figure_3,
    figure_4,
    figure_7,
    figure_9,
    fooled,
    gray_box,
    minimum_norms,
    networks,
    reencoded,
    table_1,
    table_2,
    table_3,
    truth,
    tuned,
    white_box,
)
from retroact.studies.jumprelu import crafted as crafting
from retroact.studies.jumprelu.audited import audit_of, true_audit
from retroact.studies.jumprelu.crafted import Crafted, relative
from retroact.studies.jumprelu.networks import (
    ATTACKS,
    LENET,
    LENET_ROBUST,
    LENET_ROBUST_STEPS,
    LENET_STEPS,
    MOBILE,
    NETS,
    PAPERS,
    WIDE,
    Net,
)
from retroact.studies.jumprelu.sizes import Sizes
from retroact.studies.published import claims
from retroact.studies.told import Outcomes
from retroact.training.recipes import RECIPES

MEAN, STD = 0.5, 0.25
STEP = ErichsonPGD(0.01, 40, (STD,))  # 0.0025 in pixels
DIGITS = Net("Digits", "digits-cnn", "lenet_mnist", 0.3, (0.0, 0.3), "digits", (1.0,), 10, 0.1)


class Above(nn.Module):
    """Class 1 above `edge` pixels, class 0 below, for images of one pixel."""

    def __init__(self, edge):
        super().__init__()
        self.edge = (edge - MEAN) / STD

    def forward(self, x):
        z = x.flatten(1) - self.edge
        return torch.cat([torch.zeros_like(z), 5 * z], 1)


class Mortal(nn.Module):
    """Class 0 wherever it lives and where it is dead; DeepFool's linear model sends 0.8 to 0.05,
    where it is dead."""

    def forward(self, x):
        z, jump = x.flatten(1), JumpReLU(0.7)
        return torch.cat([torch.full_like(z, 0.3), jump(z + 0.1) - 2 * jump(z) + 0.25], 1)


@pytest.fixture
def one_pixel(monkeypatch):
    """Nets by name in the place of models; as data a right and a wrong image, 0.3 and 0.9, both of
    class 0."""
    nets = {f"above {e}": Classifier(Above(e), MEAN, STD) for e in (0.3201, 0.325, 0.35)}
    nets["mortal"] = Classifier(Mortal())
    monkeypatch.setattr(crafting, "_net", lambda model: nets[model.net])
    images = {"pair": [0.3, 0.9], "alive": [0.8]}

    def slices(name):
        pixels = torch.tensor(images[name]).view(-1, 1, 1, 1)
        return Images.of(pixels, torch.zeros(len(pixels), dtype=torch.int64))

    monkeypatch.setattr(crafting, "data", slices)
    return nets


def above(edge):
    return Model(f"above {edge}")


def pair(**others):
    targets = (above(0.325), above(0.35))
    return Crafted(above(0.3201), targets, "pair", STEP, Linf(1.0), **others)()


def test_images_freeze_at_the_step_that_fools_the_source_and_no_ball_holds_them(one_pixel):
    found = pair()
    # nine steps of 0.01, normalised, are 0.0225 pixels
    assert found["largest"] == pytest.approx(9 * 0.0025, abs=1e-6)
    # the source falls, both targets stand; a quarter farther the nearer one falls; the wrong image
    # is always wrong
    assert found["accuracy"] == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 0.0, 0.5]]
    assert found["clean"] == [0.5, 0.5, 0.5]


def test_without_freezing_every_step_is_taken_and_wrong_images_stay_untouched(one_pixel):
    found = pair(frozen=False)
    assert found["largest"] == pytest.approx(40 * 0.0025, abs=1e-6)
    assert found["accuracy"][0] == [0.0, 0.0, 0.0]
    # the mean over both, the wrong one with 0
    assert found["noise"] == pytest.approx((0.4 / 0.8) / 2, abs=1e-5)


def test_the_driver_alone_would_go_on_until_the_target_falls(one_pixel):
    nets, images = one_pixel, crafting.data("pair")
    source, target = nets["above 0.3201"], nets["above 0.35"]
    assert robust_accuracy(evaluate(target, images, STEP, Linf(1.0), source=source)) == 0.0
    assert pair()["accuracy"][0][2] == 0.5


def test_noise_is_measured_in_normalised_space_over_all_images(one_pixel):
    assert pair()["noise"] == pytest.approx((9 * 0.01 / 0.8) / 2, abs=1e-5)
    assert pair()["noise_pixels"] == pytest.approx((0.0225 / 0.3) / 2, abs=1e-5)
    net = Classifier(nn.Flatten(), (0.4, 0.5, 0.6), (0.2, 0.1, 0.4), shape=(3, 2, 2))
    x, moved = torch.rand(5, 3, 2, 2), torch.rand(5, 3, 2, 2)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.1, 0.4)))
    a, b = ((v.numpy() - mean) / std for v in (x, moved))
    for threat, p in ((Linf, np.inf), (L2, 2)):
        known = [
            np.linalg.norm((q - r).ravel(), p) / np.linalg.norm(r.ravel(), p)
            for q, r in zip(b, a, strict=True)
        ]
        assert relative(net, moved, x, threat).numpy() == pytest.approx(known, rel=1e-5)


def test_a_dead_image_is_counted_and_never_called_fooled(one_pixel):
    attack = ErichsonDeepFool(7, std=(1.0,))
    found = Crafted(Model("mortal"), (), "alive", attack, L2(1000.0))()
    assert (found["standing"], found["dead"], found["accuracy"][0]) == (1, 1, [1.0])
    assert found["noise"] == pytest.approx((0.75 + 1e-4) * 1.02 / 0.8, abs=1e-3)
    assert np.isfinite(found["white"]["noise"]) and found["white"]["noise"] != found["noise"]


def test_two_goes_find_what_one_finds():
    images, model = data("digits[:12]"), Model("digits-cnn", JumpReLU(0.3))
    attack = ErichsonDeepFool(12, std=(1.0,))
    found = Crafted(model, (), "digits[:12]", attack, L2(1000.0))()
    made = craft(attack, model(), images.images, images.labels, images.index, L2(1000.0))
    assert found["accuracy"][0][0] == float(
        (decide(model(), made.x_adv) == images.labels).double().mean()
    )
    assert found["noise"] == pytest.approx(
        float(relative(model(), made.x_adv, images.images, L2).mean()), rel=1e-4
    )


def test_one_run_gives_the_curve_of_all_budgets():
    images, net, last = data("digits[:40]"), Model("digits-cnn")(), 10
    long = evaluate(net, images, ErichsonPGD(0.03, last + 2, (1.0,)), Linf(1.0))
    curve = figure_9.accuracies(figure_9.broken_after(Outcomes.of(long)), last)
    for budget in (1, 4, last - 1, last):
        short = evaluate(net, images, ErichsonPGD(0.03, budget, (1.0,)), Linf(1.0))
        assert curve[budget] == pytest.approx(100 * robust_accuracy(short)), budget
    assert curve[0] > curve[last]


def test_the_same_fool_rate_is_one_that_all_reach():
    rate, counts = figure_9.same_rate(
        [np.array([1.0, 2, 3, 4]), np.array([2.0, 9, np.inf, np.inf])], 5
    )
    assert (rate, counts) == (0.25, [1, 2])


def test_the_smallest_norm_is_taken_image_by_image():
    cells = [
        Cell(Model("digits-cnn"), "digits[:12]", a, L2(100.0))
        for a in (ErichsonDeepFool(3, std=(1.0,)),)
    ]
    record = cells[0]()
    # nearer, but fools nobody
    half = replace(record, distance=record.distance / 2, adversarial=record.label)
    both = minimum_norms.smallest([Outcomes.of(record), Outcomes.of(half)])
    fooled = (record.clean == record.label) & (record.adversarial != record.label)
    assert fooled.any() and both[fooled] == pytest.approx(record.distance[fooled, 2])
    alone = minimum_norms.smallest([Outcomes.of(half)])
    assert np.isinf(alone[record.clean == record.label]).all()


def test_both_ways_of_a_matrix():
    values = np.array([[0.0, 20, 30], [80, 0, 10], [90, 70, 0]])
    assert figure_7.both_ways(values) == (20.0, 80.0, True)
    assert figure_7.both_ways(values.T) == (80.0, 20.0, False)


def test_the_curves_of_figure_3_are_those_of_the_formulas():
    z = np.array([-1.0, 0.5, 1.0, 1.5])
    assert figure_3.values(JumpReLU(1.0), z).tolist() == [0, 0, 0, 1.5]
    assert figure_3.slopes(JumpReLU(1.0), z).tolist() == [0, 0, 0, 1]
    assert figure_3.values(figure_3.Swish(0.5), z) == pytest.approx(z / (1 + np.exp(-z)))


def test_attacks_are_the_papers():
    attack, threat = WIDE.attack("pgd", gray=True)
    assert (attack.step, attack.steps, attack.std, threat.eps) == (
        0.031,
        7,
        networks.CIFAR_STD,
        1.0,
    )
    assert WIDE.attack("pgd")[0].step == LENET.attack("pgd", gray=True)[0].step == 0.01
    region = LENET.attack("trust_region")[0]
    assert (region.radius, region.steps) == (0.5, 1000)
    for net in NETS:
        assert net.std == zoo.NETWORKS[net.name].std and net.name in zoo.NETWORKS
        assert (net.published("2", "clean", net.kappa) is not None) == (
            net in (*PAPERS, LENET_STEPS, LENET_ROBUST_STEPS)
        )
    own = replace(LENET.schedule, channels_last=True)
    assert RECIPES[LENET_STEPS.name] == own and not LENET_STEPS.robust
    ours = RECIPES[LENET_ROBUST.name]
    assert RECIPES[LENET_ROBUST_STEPS.name] == replace(ours, standard=own)
    assert LENET_ROBUST_STEPS.robust and LENET_ROBUST_STEPS.schedule == LENET.schedule


def test_audits_are_in_pixels_and_a_full_one_is_the_whole_battery(tmp_path):
    with Store(tmp_path / "s.sqlite") as store:
        quick, full = Desk(store, quick=True), Desk(store)
    asked = [true_audit(desk, net) for net in (LENET, WIDE) for desk in (quick, full)]
    assert [(a.data, a.battery) for a in asked] == [
        ("mnist[:200]", "quick"),
        ("mnist[:300]", "whole"),
        ("cifar10[:200]", "quick"),
        ("cifar10[:100]", "whole"),
    ]
    wide = audit_of(WIDE)
    assert wide.data == "cifar10[:200]" and wide.threat == Linf(2 / 255)
    assert wide.twin == WIDE.model(0) and wide.defended == WIDE.model(0.07)


def test_the_papers_own_ratios_are_not_what_its_text_says():
    deepfool, region = table_2._span("CIFAR-10")
    assert deepfool == pytest.approx((3.36, 13.3), abs=0.05) and region == pytest.approx(
        (1.19, 1.46), abs=0.05
    )


def test_a_quick_desk_leaves_the_large_networks_out_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Net, "here", property(lambda net: net != WIDE))
    with Store(tmp_path / "s.sqlite") as store:
        quick, large, full = (
            Desk(store, quick=True),
            Desk(store, quick=True, large=True),
            Desk(store),
        )
    small = [net for net in NETS if not net.large]
    assert networks.available(quick) == small and len(small) == len(NETS) - 4
    assert (
        networks.available(large)
        == networks.available(full)
        == [net for net in NETS if net != WIDE]
    )
    assert (
        networks.untested(quick, (LENET, WIDE, MOBILE))
        == "; no weights yet: WideResNet; left out (`--large`): MobileNetV2"
    )
    assert networks.untested(large, (LENET, WIDE, MOBILE)) == "; no weights yet: WideResNet"
    assert networks.untested(quick, (LENET, LENET_ROBUST)) == ""
    assert (
        "--large" in MOBILE.absent(quick)
        and MOBILE.absent(large) == ""
        and "train" in WIDE.absent(large)
    )


@pytest.fixture
def few(monkeypatch):
    """All sizes are of 24 images."""

    def of(sizes, net):
        return (("quick", 24),) * 2 if isinstance(sizes.mnist[0], tuple) else (24, 24)

    monkeypatch.setattr(Sizes, "of", of)


def test_table_1_is_rebuilt_from_its_store(tmp_path, monkeypatch, few, brief):
    monkeypatch.setattr(table_1, "NETS", (DIGITS, WIDE))
    for module in (table_1, gray_box, tuned):
        monkeypatch.setattr(
            module,
            "available",
            lambda desk, among=(): [DIGITS] if DIGITS in (among or [DIGITS]) else [],
        )
    monkeypatch.setattr(Net, "here", property(lambda net: net is DIGITS))
    with Store(tmp_path / "s.sqlite") as store:
        first = list(table_1.make(Desk(store, quick=True)))
        monkeypatch.setattr(Crafted, "__call__", lambda self: pytest.fail("computed again"))
        assert list(table_1.make(Desk(store, quick=True))) == first
    rows = next(part for part in first if isinstance(part, Table)).rows
    assert [row[0] for row in rows] == ["Digits", "Digits", f"{WIDE.title}, {WIDE.missing}"]
    assert "retroact train wideresnet-cifar10" in rows[2][0] and rows[2][5:] == (None,) * 8
    assert {c.about: c.answer for c in first if isinstance(c, Claim)} == {
        "accuracy_cost": "cannot be told",
        "residual": "cannot be told",
    }
    (audit,) = (
        part
        for part in first
        if isinstance(part, Table) and part.title.startswith("Beside it, audits")
    )
    assert [(row[0], row[1], row[2]) for row in audit.rows] == [
        ("Digits", "`Linf(eps=0.1)`", "200")
    ]
    clean, source = rows[0][2], rows[0][5]
    assert source < clean and rows[1][5] >= source
    chosen = next(p for p in first if isinstance(p, Table) and "validation" in p.title)
    assert [row[:2] for row in chosen.rows] == [("Digits", rule) for rule in tuned.RULES]
    assert all(float(row[2]) in DIGITS.kappas and row[3] == 24 for row in chosen.rows)


def spoken(parts):
    """All but the figures, whose SVG has ids of its own each time."""
    return [
        part.texts() if isinstance(part, Table) else part
        for part in parts
        if not isinstance(part, Figure)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "item",
    [
        figure_9,
        *(pytest.param(item, marks=pytest.mark.long) for item in (table_2, figure_4, truth)),
    ],
    ids=lambda m: m.__name__.rsplit(".", 1)[1],
)
def test_items_say_what_they_found_and_say_it_again_from_the_store(
    item, tmp_path, monkeypatch, few
):
    robust = replace(DIGITS, title="robust digits", key="resnet")
    monkeypatch.setattr(Net, "here", property(lambda net: net.name == "digits-cnn"))
    monkeypatch.setattr(Net, "robust", property(lambda net: net == robust))
    for module in {item, gray_box, tuned, fooled}:
        if hasattr(module, "available"):
            monkeypatch.setattr(module, "available", lambda desk, among=(): [robust])
    if item is not table_2:  # which quotes the paper's own table for all of its networks
        monkeypatch.setattr(item, "PAPERS", (robust,))
    with Store(tmp_path / "s.sqlite") as store:
        first = list(item.make(Desk(store, quick=True)))
        before = store.runs()
        again = list(item.make(Desk(store, quick=True)))
        assert spoken(again) == spoken(first) and store.runs() == before
    known = claims("jumprelu")
    given = [part for part in first if isinstance(part, Claim)]
    assert given and all(c.about in known and c.because for c in given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "gain"),
    [
        (LENET, 10),
        (LENET_ROBUST, 2),
        pytest.param(LENET_STEPS, 10, marks=pytest.mark.long),
        pytest.param(LENET_ROBUST_STEPS, 2, marks=pytest.mark.long),
    ],
)
def test_the_published_pattern_appears_on_lenet(net, gain, tmp_path, monkeypatch):
    try:
        data(net.slice(1))
    except DataError:
        pytest.skip("MNIST is not here")
    monkeypatch.setattr(Sizes, "of", lambda sizes, net: (80,))
    with Store(tmp_path / "s.sqlite") as store:
        desk = Desk(store, quick=True)
        gray, found = gray_box.sets(desk, net), white_box.runs(desk, net)
    before, after = (100 * found[k]["pgd"]["accuracy"][0][0] for k in (0.0, net.kappa))
    assert all(100 * gray[a]["accuracy"][0][1] > 30 for a in ATTACKS)
    assert after - before >= gain
    ratios = white_box.ratios(found)
    assert all(1.35 < ratios[a] < 2.2 for a in ("deepfool_linf", "deepfool_l2"))
    assert 1.15 < ratios["trust_region"] < 1.45


def test_the_training_images_are_the_originals_of_four_batches_as_they_are_or_as_jpeg():
    try:
        plain, again = reencoded.originals(20, 0), reencoded.originals(20, 75)
    except DataError:
        pytest.skip("CIFAR-10 is not here")
    assert plain.index.tolist() == [b * 10_000 + i for b in range(4) for i in range(20)]
    assert torch.equal(plain.labels, again.labels) and torch.equal(plain.index, again.index)
    moved = 255 * (plain.images - again.images).abs().mean(dim=(1, 2, 3))
    assert float(moved.min()) > 0.5 and 4 < float(moved.mean()) < 8
    worse = reencoded.originals(20, 30).images
    assert 255 * float((plain.images - worse).abs().mean()) > float(moved.mean())


def test_networks_on_the_two_kinds_of_pixels_differ_by_the_pixels_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(reencoded, "fit", lambda net, *given, **how: seen.append((net, given, how)))
    monkeypatch.setattr(reencoded, "clean_accuracy_of", lambda net, held: len(held) / 1e4)
    try:
        said = [reencoded.OnOriginals(q, first=8, epochs=2, seed=3)() for q in (0, 75)]
    except DataError:
        pytest.skip("CIFAR-10 is not here")
    assert said == [{"accuracy": [0.1017, 0.1017]}] * 2
    (net, (images, plan), how), (other, (jpeg, same), alike) = seen
    assert plan == same and plan.epochs == 2 and how == alike == {"seed": 3}
    assert not torch.equal(images.images, jpeg.images)
    pairs = zip(net.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_every_network_stands_beside_the_papers_accuracy_and_schedule():
    rows = {row[0]: row for row in table_1._networks().rows}
    assert list(rows) == [net.title for net in NETS]
    _, n, accuracy, known, gap, recipe, schedule = rows["LeNet-like"]
    assert (n, known) == (10_000, 99.55) and accuracy == 100 * zoo.entry("lenet-mnist").accuracy
    assert (
        gap == pytest.approx(accuracy - 99.55)
        and recipe == zoo.entry("lenet-mnist").recipe != schedule
    )
    assert (
        rows["robust AlexLike"][6].startswith("Standard(epochs=120")
        and rows["ResNet-20"][3] is None
    )
    assert rows["WideResNet"][3] == 94.31


def compared(measured, published, **how):
    return agreement.Compared(LENET, 1.0, "pgd", measured, published, **how)


def test_cells_agree_within_five_points_and_noise_within_a_fifth():
    assert compared(55.0, 50.0).agrees(noise=False) and not compared(55.1, 50.0).agrees(noise=False)
    assert compared(12.0, 10.0).agrees(noise=True) and not compared(12.1, 10.0).agrees(noise=True)
    gray = [compared(1.0, 1.0), compared(0.0, 0.0, trivial=True), compared(3.0, None)]
    noise = replace(compared(10.0, 14.0), name="trust_region")
    assert agreement.count_agreeing(gray, [compared(10.0, 14.0), noise]) == (2, 3)


def test_the_papers_tables_have_118_cells_that_count():
    count = 0
    for net in PAPERS:
        facts = {"n": 1, "accuracy": [[0.0, 0.0]], "noise": 0.0, "noise_error": 0.0}
        sets = dict.fromkeys(ATTACKS, facts)
        clean = {net.name: (1, {0.0: 1.0, net.kappa: 1.0})}
        gray = list(agreement.gray_cells(net, sets, clean))
        white = list(agreement.white_cells(net, {0.0: sets, net.kappa: sets}, clean))
        count += agreement.count_agreeing(gray, white)[1]
    assert count == 118


def test_kappa_is_chosen_by_what_the_rules_say():
    shares = {0.0: (0.9, 0.1), 0.5: (0.89, 0.4), 1.0: (0.88, 0.4), 1.5: (0.87, 0.9)}
    assert tuned.choose_by_rule(shares) == 0.5  # 1.5 costs three points, and 1 gains nothing
    assert tuned.choose_by_audit({0.5: -0.1, 1.0: 0.0}) == 0.0
    assert tuned.choose_by_audit({0.5: 0.02, 1.0: 0.04}) == 1.0
    assert tuned.tuned_kappas(WIDE) == (0.03, 0.06, 0.07, 0.09)
    assert WIDE.held(8) == "cifar10/validation[:8]"


def row(relu, jumprelu, error):
    return table_3.Row(table_3.SETTINGS[0], "deepfool_linf", "lr", 100, relu, jumprelu, error)


def test_a_row_of_table_3_says_no_more_than_its_interval():
    """Published: 73.4 and 78.2."""
    rows = [row(70.0, 75.0, 1.0), row(70.0, 71.0, 5.0), row(70.0, 70.5, 1.0), row(70.0, 60.0, 1.0)]
    says = [one.said for one in rows]
    assert says == ["rises", "cannot be told", "rises less than published", "falls"]

    def answer(*some):
        return next(p for p in table_3._judge(list(some)) if isinstance(p, Claim)).answer

    assert answer(rows[0]) == "holds" and answer(rows[2], rows[3]) == "does not hold"
    assert answer(rows[0], rows[2]) == "differs by network"
    assert answer(rows[0], rows[1]) == answer() == "cannot be told"


def test_lids_of_blocks_are_joined_in_the_order_of_the_images():
    whole = table_3.Detected(
        Model("lenet-mnist"), Model("lenet-mnist"), STEP, Linf(1.0), (), "mnist[:2500]"
    )
    assert whole.parts == ["mnist[:1000]", "mnist[1000:2000]", "mnist[2000:2500]"]
