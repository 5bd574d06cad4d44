"""The published variants, step by step, on nets small enough to reckon by hand."""

import math

import pytest
import torch
from torch import nn

import retroact as ra
from retroact import spec as specs
from retroact.crafting.driver import craft
from retroact.crafting.noise import normal

ANY = ra.Linf(1.0)
ATTACKS = [
    ra.ErichsonPGD(steps=5),
    ra.ErichsonDeepFool(steps=5),
    ra.ErichsonDeepFool(steps=3, dead="white"),
    ra.ErichsonTrustRegion(steps=20),
    ra.Torchattacks13BIM(eps=0.02),
    ra.Torchattacks13StepLL(eps=0.02),
    ra.Torchattacks13RFGSM(eps="16/255"),
    ra.Torchattacks13DeepFool(),
]


class Line(nn.Module):
    """Logits (w · x, 0) of two pixels: class 0 while w · x > 0, gradient of the margin −w
    everywhere."""

    def __init__(self, *w: float) -> None:
        super().__init__()
        self.register_buffer("w", torch.tensor(w))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1) @ self.w - 0.5
        return torch.stack([z, torch.zeros_like(z)], dim=1)


def image(*pixels: float) -> torch.Tensor:
    return torch.tensor(pixels).view(1, 1, 1, -1)


def attacked(attack, net, x, threat=ANY, **more):
    y = torch.zeros(len(x), dtype=torch.int64)
    return craft(attack, net, x, y, torch.arange(len(x)), threat, **more)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_stays_in_the_box_reads_back_and_runs_in_any_order(attack):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 5))
    x = torch.rand(12, 1, 8, 8)
    y, index = net(x).argmax(1), torch.arange(12)
    assert specs.parse(str(attack)) == attack
    for threat in (ANY, ra.L2(3.0), ra.Linf(0.01)):
        if threat.norm in attack.norms:
            made = craft(attack, net, x, y, index, threat, seed=2, chunk=6).x_adv
            assert made.min() >= 0 and made.max() <= 1
            distance = (made - x).flatten(1).norm(p=math.inf if threat.norm == "linf" else 2, dim=1)
            # what lies beyond the radius does not count
            assert float(distance.max()) <= threat.eps + 1e-5
            assert torch.equal(
                craft(attack, net, x[6:], y[6:], index[6:], threat, seed=2).x_adv, made[6:]
            )
    with pytest.raises(ValueError, match="published untargeted"):
        craft(
            attack, net, x, y, index, ra.L2(1.0) if "l2" in attack.norms else ANY, ra.LeastLikely()
        )


def test_erichson_pgd_takes_normalised_steps_knows_no_ball_and_freezes():
    net = Line(1.0, 1.0)
    step = 0.1 * 0.5
    # 0.8 + 0.8 − 0.5 = 1.1 falls by 2 · 0.05 a step: 0 after 11, so it takes 12 at most, each along
    # −1 in both pixels.
    made = attacked(ra.ErichsonPGD(step=0.1, steps=3, std=(0.5,)), net, image(0.8, 0.8))
    assert torch.allclose(made.x_adv, image(0.8 - 3 * step, 0.8 - 3 * step))
    frozen = attacked(ra.ErichsonPGD(step=0.1, steps=40, std=(0.5,)), net, image(0.42, 0.42))
    # 0.34: after 4 steps −0.06, fooled; 36 more would have moved it to zero.
    assert torch.allclose(frozen.x_adv, image(0.42 - 4 * step, 0.42 - 4 * step), atol=1e-6)
    assert frozen.gradients.tolist() == [5]


def test_erichson_pgd_asks_for_one_std_per_channel():
    with pytest.raises(ValueError, match="expected 1 or 1 numbers"):
        attacked(ra.ErichsonPGD(std=(0.2, 0.3)), Line(1.0, 1.0), image(0.8, 0.8))


@pytest.mark.parametrize("threat", [ra.L2(2.0), ANY], ids=str)
def test_erichson_deepfool_oversteps_by_two_per_cent_on_the_image_itself(threat):
    net, std = Line(3.0, 4.0), 0.5
    x = image(0.3, 0.3)  # f = 1.6; normalised slopes (1.5, 2)
    made = attacked(ra.ErichsonDeepFool(steps=1, std=(std,)), net, x, threat).x_adv
    if threat.norm == "l2":
        length = (1.6 / 2.5 + 1e-4) * 1.02
        expected = [0.3 - std * length * 0.6, 0.3 - std * length * 0.8]
    else:
        length = (1.6 / 3.5 + 1e-4) * 1.02
        expected = [0.3 - std * length] * 2
    assert made.flatten().tolist() == pytest.approx(expected, abs=1e-6)


class Dead(nn.Module):
    """Logits that decide class 0 everywhere and whose gradient is zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("threat", [ra.L2(2.0), ANY], ids=str)
def test_a_dead_image_is_left_alone_or_painted_white_and_counted(threat):
    x = image(0.3, 0.6)
    left = attacked(ra.ErichsonDeepFool(steps=2), Dead(), x, threat)
    assert torch.equal(left.x_adv, x) and int(left.zero_gradients) == int(left.gradients) > 0
    assert torch.equal(
        attacked(ra.ErichsonDeepFool(steps=2, dead="white"), Dead(), x, threat).x_adv,
        torch.ones_like(x),
    )
    if threat.norm == "l2":
        assert torch.equal(attacked(ra.ErichsonTrustRegion(steps=2), Dead(), x, threat).x_adv, x)


def test_erichson_trust_region_is_bounded_by_its_radius_then_by_the_boundary():
    # f = 5.1, 1.02 away in pixels, 2.04 normalised at std 0.5
    net, x = Line(3.0, 4.0), image(0.8, 0.8)
    one = attacked(
        ra.ErichsonTrustRegion(radius=0.5, steps=1, std=(0.5,)), net, x, ra.L2(2.0)
    ).x_adv
    length = 0.5 * (0.5 + 1e-4) * 1.02
    assert one.flatten().tolist() == pytest.approx(
        [0.8 - 0.6 * length, 0.8 - 0.8 * length], abs=1e-6
    )
    near = attacked(
        ra.ErichsonTrustRegion(radius=9.0, steps=1, std=(0.5,)), net, x, ra.L2(2.0)
    ).x_adv
    length = 0.5 * (5.1 / 2.5 + 1e-4) * 1.02
    assert near.flatten().tolist() == pytest.approx(
        [0.8 - 0.6 * length, max(0.0, 0.8 - 0.8 * length)], abs=1e-5
    )


def test_torchattacks_step_counts_are_those_of_the_paper():
    counts = [ra.Torchattacks13BIM(eps=e).passes for e in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)]
    assert counts == [15, 29, 42, 55, 67, 80]
    assert [ra.Torchattacks13BIM(eps=e).passes for e in (0, 0.003, 0.007, 0.01, 0.05, 0.1)] == [
        0,
        0,
        2,
        3,
        15,
        29,
    ]


def test_torchattacks_bim_walks_out_of_its_own_box():
    x, net = image(0.9, 0.9), Line(1.0, 1.0)
    made = attacked(ra.Torchattacks13BIM(eps=0.05), net, x).x_adv
    assert torch.allclose(made, x - 15 / 255, atol=1e-6)  # 0.0588, beyond eps
    judged = attacked(ra.Torchattacks13BIM(eps=0.05), net, x, ra.Linf(0.05)).x_adv
    assert torch.equal(judged, x)
    # The box does bind where eps < alpha: 2 steps of eps each.
    tight = attacked(ra.Torchattacks13BIM(eps=0.007, alpha=0.1), net, x).x_adv
    assert torch.allclose(tight, x - 0.014, atol=1e-6)


def test_torchattacks_bim_does_not_freeze():
    # Fooled after 3 of 29 steps and carried on to the end.
    x = image(0.255, 0.255)
    made = attacked(ra.Torchattacks13BIM(eps=0.1), Line(1.0, 1.0), x)
    assert torch.allclose(made.x_adv, x - 29 / 255, atol=1e-6) and made.gradients.tolist() == [29]


def test_torchattacks_step_ll_descends_towards_the_least_likely_class():
    class Three(nn.Module):
        """The least likely class, 2, has logit −2 + 3 · x_1: its loss falls as x_1 grows."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = x.flatten(1).T
            return torch.stack([1 + 0 * a, 0 * b, 3 * b - 2], dim=1)

    made = attacked(ra.Torchattacks13StepLL(eps=0.05), Three(), image(0.5, 0.2)).x_adv
    assert made.flatten().tolist() == pytest.approx([0.5, 0.2 + 15 / 255], abs=1e-6)


def test_torchattacks_rfgsm_knows_no_ball_and_walks_back_below_its_start():
    x, net = image(0.7, 0.7), Line(1.0, 1.0)
    start = x + 8 / 255 * normal((1, 1, 2), torch.tensor([0]), 0).sign()
    far = attacked(ra.Torchattacks13RFGSM(eps=0.1), net, x).x_adv
    assert torch.allclose(far, start - 5 * (0.1 - 8 / 255), atol=1e-6)  # 0.343 from the start
    back = attacked(ra.Torchattacks13RFGSM(eps=0.01), net, x).x_adv
    # up the logit of the true class
    assert torch.allclose(back, start + 5 * (8 / 255 - 0.01), atol=1e-6)
    assert float(net(back)[0, 0]) > float(net(x)[0, 0])


def test_torchattacks_deepfool_compares_with_the_clean_image():
    class Curved(nn.Module):
        """f = (x², 0.25): nearest point ½ from 0.9, slope 1.8 there."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = x.flatten(1)[:, 0]
            return torch.stack([z**2, 0.25 + 0 * z], dim=1)

    x = image(0.9)
    first = 0.9 - (0.81 - 0.25) / 1.8
    one = attacked(ra.Torchattacks13DeepFool(steps=1), Curved(), x).x_adv
    assert one.item() == pytest.approx(first, abs=1e-6)
    # A fresh f_0 would step by (0.3459 − 0.25)/1.1778; the stale one repeats 0.3111.
    two = attacked(ra.Torchattacks13DeepFool(steps=2), Curved(), x).x_adv
    assert two.item() == pytest.approx(first - (0.81 - 0.25) / 1.8, abs=1e-6)


def test_the_sloped_relu_score_keeps_all_images_in_the_denominator():
    labels = torch.tensor([0, 1, 2, 3])
    clean, adversarial = torch.tensor([0, 1, 0, 3]), torch.tensor([0, 2, 2, 3])
    # the third was wrong clean: never counts
    assert ra.sloped_relu_accuracy(labels, clean, adversarial) == 0.5
    with pytest.raises(ValueError, match="at least one image"):
        ra.sloped_relu_accuracy(labels[:0], clean[:0], adversarial[:0])
