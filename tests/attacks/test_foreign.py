"""Foreign attacks through our oracle: they read back, keep the ball, count, repeat, and say what is
missing."""

import importlib.util
import os
import sys

import pytest
import torch
from torch import nn

import retroact as ra
from retroact import spec as specs
from retroact.crafting.driver import craft
from retroact.crafting.threat import Linf

needs_foolbox = pytest.mark.skipif(not importlib.util.find_spec("foolbox"), reason="no foolbox")
has_data = os.path.isdir(os.path.join(os.environ.get("RETROACT_DATA", ""), "mnist"))
needs_mnist = pytest.mark.skipif(
    not has_data, reason="no MNIST: set RETROACT_DATA to a folder that has mnist/"
)
needs_autoattack = pytest.mark.skipif(
    not importlib.util.find_spec("pyautoattack"), reason="no pyautoattack"
)


@pytest.fixture
def shorter(monkeypatch):
    """AutoAttack through all its parts, with fewer steps of the targeted ones, fewer queries of
    Square and fewer draws of each gradient."""
    theirs = pytest.importorskip("pyautoattack").AutoAttack
    published = theirs._set_version

    def set_version(self, version="standard"):
        published(self, version)
        self.apgd_targeted.n_iter, self.fab.n_iter, self.square.n_queries = 30, 30, 1000
        self.apgd.eot_iter = min(self.apgd.eot_iter, 4)

    monkeypatch.setattr(theirs, "_set_version", set_version)


FOOLBOX = [
    (ra.Foolbox("LinfDeepFoolAttack", steps=5), ra.Linf(0.05)),
    (ra.Foolbox("LinfPGD", steps=4), ra.Linf(0.02)),
    (ra.Foolbox("L2AdditiveGaussianNoiseAttack"), ra.L2(0.5)),
    (ra.Foolbox("DDNAttack", steps=5), ra.L2(0.5)),
    (ra.Foolbox("InversionAttack"), ra.L2(20.0)),
    (ra.Foolbox("GaussianBlurAttack", steps=5, distance="linf"), ra.Linf(0.5)),
]


def scene(classes: int = 10):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(6 * 9, classes)
    ).eval()
    x = torch.rand(12, 3, 16, 16)
    return net, x, net(x).argmax(1), torch.arange(12)


def test_options_are_keywords_or_pairs_and_read_back():
    attack = ra.Foolbox("LinfDeepFoolAttack", steps=50, overshoot=0.02)
    assert attack == ra.Foolbox("LinfDeepFoolAttack", (("steps", 50), ("overshoot", 0.02)))
    assert (
        str(attack)
        == "Foolbox(name='LinfDeepFoolAttack', options=(('overshoot', 0.02), ('steps', 50)))"
    )
    assert specs.parse(str(attack)) == attack and specs.key(specs.parse(str(attack))) == specs.key(
        attack
    )
    assert len({attack, specs.parse(str(attack))}) == 1 and attack.passes == 50
    # as typed in a shell
    assert specs.parse('Foolbox("LinfPGD", steps=50)') == ra.Foolbox("LinfPGD", steps=50)
    assert specs.parse(str(ra.AutoAttack())) == ra.AutoAttack()
    with pytest.raises(specs.SpecError, match="expected pairs"):
        ra.Foolbox("LinfPGD", ("steps", 50))


@needs_foolbox
@pytest.mark.parametrize(("attack", "threat"), FOOLBOX, ids=str)
def test_foolbox_keeps_the_ball_counts_repeats_and_leaves_no_trace(attack, threat):
    net, x, y, index = scene()
    state = torch.get_rng_state()
    made = craft(attack, net, x, y, index, threat, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(threat.size(made.x_adv - x).max()) <= threat.eps * (1 + 1e-5) + 1e-6
    assert made.x_adv.min() >= 0 and made.x_adv.max() <= 1
    assert int(made.queries.min()) > 1 and all(p.grad is None for p in net.parameters())
    assert torch.equal(craft(attack, net, x, y, index, threat, seed=3).x_adv, made.x_adv)


@needs_foolbox
def test_foolbox_gets_its_gradients_from_the_source():
    net, x, y, index = scene()
    torch.manual_seed(9)
    other = nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).eval()
    made = craft(ra.Foolbox("LinfFastGradientAttack"), net, x, y, index, ra.Linf(0.1), source=other)
    # the slopes of the source, weighted by the loss at the logits of the network under attack
    with torch.no_grad():
        slope = (net(x).softmax(1) - nn.functional.one_hot(y, 10)) @ other[1].weight
        expected = (x + 0.1 * slope.view_as(x).sign()).clamp(0, 1)
    # a slope near zero may round over
    assert float(((made.x_adv - expected).abs() < 1e-5).float().mean()) > 0.999
    assert set(made.gradients.tolist()) == {1}


@needs_foolbox
def test_foolbox_says_what_it_does_not_have():
    net, x, y, index = scene()
    with pytest.raises(
        ValueError, match=r"has no attack 'LinfDeepFool'; it has .*LinfDeepFoolAttack"
    ):
        craft(ra.Foolbox("LinfDeepFool"), net, x, y, index, ra.Linf(0.1))
    with pytest.raises(ValueError, match="choose a threat of its norm"):
        craft(ra.Foolbox("LinfDeepFoolAttack"), net, x, y, index, ra.L2(0.1))
    two = craft(ra.Foolbox("LinfPGD", steps=3), net, x, y, index, ra.Linf(0.3), ra.Targeted(2))
    hit = net(two.x_adv).argmax(1) == 2
    assert int(hit.sum()) >= 6


@needs_autoattack
@pytest.mark.slow
@pytest.mark.usefixtures("shorter")
def test_autoattack_is_not_weaker_than_a_plain_attack_and_serves_few_classes():
    net, *rest = scene(classes=4)
    x, y, index = (part[:3] for part in rest)
    ours = craft(ra.PGD(steps=10), net, x, y, index, ra.Linf(0.01)).x_adv
    made = craft(ra.AutoAttack(version="rand"), net, x, y, index, ra.Linf(0.01))
    assert int((net(made.x_adv).argmax(1) == y).sum()) <= int((net(ours).argmax(1) == y).sum())
    assert float(Linf.size(made.x_adv - x).max()) <= 0.01 + 1e-6 and int(made.gradients.max()) > 0
    # again where all fall at once: each image that stands takes thousands of passes
    again = [craft(ra.AutoAttack(version="rand"), net, x, y, index, ra.Linf(0.3)) for _ in range(2)]
    assert torch.equal(again[0].x_adv, again[1].x_adv) and not torch.equal(again[0].x_adv, x)
    with pytest.raises(ValueError, match="serves Untargeted"):
        craft(ra.AutoAttack(), net, x, y, index, ra.Linf(0.1), ra.LeastLikely())


@needs_autoattack
@needs_mnist
@pytest.mark.parametrize(
    ("data", "eps", "right", "looks"),
    [
        ("mnist[:8]", 0.3, 0.0, 500),  # all fall to APGD-CE, the first of four parts
        # one stands through all, Square's 1000 too
        pytest.param("mnist[2:4]", 0.1, 0.5, 3200, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("shorter")
def test_the_standard_autoattack_goes_through_evaluate(data, eps, right, looks):
    record = ra.evaluate(
        ra.load("lenet-mnist"), ra.data(data), ra.AutoAttack(version="standard"), ra.Linf(eps)
    )
    assert ra.clean_accuracy(record) == 1.0 and ra.robust_accuracy(record) == right
    fallen = record.adversarial != record.label
    assert float(record.distance[:, 3].max()) <= eps * (1 + 1e-6) and bool(
        (record.distance[fallen, 3] > 0).all()
    )
    assert looks / 3 < int(record.queries.max()) < 2 * looks and int(record.gradients.min()) > 100
    assert not record.nonfinite.any()


@needs_autoattack
def test_autoattack_is_given_images_that_it_can_view_as_rows(monkeypatch):
    """It calls `grad.view(n, -1)`, which fails where the channels of its images lie next to each
    other."""
    import pyautoattack

    seen = []

    def run(self, x, labels, batch_size):
        seen.append(x.is_contiguous())
        return x, labels

    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", run)
    net, x, y, index = scene()
    craft(
        ra.AutoAttack(),
        net,
        x.contiguous(memory_format=torch.channels_last),
        y,
        index,
        ra.Linf(0.1),
    )
    assert seen == [True]


@needs_autoattack
@pytest.mark.parametrize(("version", "classes"), [("standard", 3), ("plus", 3), ("rand", 2)])
def test_autoattack_refuses_too_few_classes_for_its_dlr(version, classes):
    net, x, y, index = scene(classes)
    with pytest.raises(
        ValueError, match=rf"needs at least {classes + 1} classes, got {classes}; use APGD"
    ):
        craft(ra.AutoAttack(version=version), net, x, y, index, ra.Linf(0.1))


@pytest.mark.parametrize(
    ("attack", "module", "cure"),
    [
        (ra.Foolbox("LinfPGD"), "foolbox", r'pip install "retroact\[foolbox\]"'),
        (ra.AutoAttack(), "pyautoattack", r'pip install "retroact\[autoattack\]"'),
    ],
    ids=str,
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, attack, module, cure):
    monkeypatch.setitem(sys.modules, module, None)
    net, x, y, index = scene()
    with pytest.raises(ModuleNotFoundError, match=cure):
        craft(attack, net, x, y, index, ra.Linf(0.1))
