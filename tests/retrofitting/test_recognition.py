"""Activations as people write them: found by their values and replaced, or refused by name; pixels
are none."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU, ReLU, SReLU
from retroact.activations.ramp import RELU, Ramp
from retroact.nets.classifier import Classifier
from retroact.retrofitting.export import export
from retroact.retrofitting.folding import fold
from retroact.retrofitting.rerouting import reroutings
from retroact.retrofitting.sites import NoSitesError, left_alone, sites, survey
from retroact.retrofitting.surgery import CoverageError, retrofit

IMAGES = torch.rand(6, 1, 10, 10, generator=torch.Generator().manual_seed(1)) * 2 - 0.5


class Net(nn.Module):
    """Two convolutions of the same shape and a layer; `branches`: it does not trace."""

    def __init__(self, act, branches: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(400, 24), nn.Linear(24, 10)
        self.act, self.branches = act, branches
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.branches and x.sum() > 1e9:
            x = x * 2
        x = self.act(self.conv2(self.act(self.conv1(x))))
        return self.fc2(self.act(self.fc1(x.flatten(1))))


def assign(mask, value=0.0):
    def act(z: Tensor) -> Tensor:
        z[mask(z)] = value
        return z

    return act


def on_views(z: Tensor) -> Tensor:
    z[:, :2].relu_()
    z[:, 2:].relu_()
    return z


def by_index(z: Tensor) -> Tensor:
    out = torch.zeros_like(z)
    out[z > 0] = z[z > 0]
    return out


def times(z: Tensor) -> Tensor:
    z *= z > 0
    return z


def without_grad(z: Tensor) -> Tensor:
    with torch.no_grad():
        mask = (z > 0).float()
    return z * mask


class BesideBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.maximum(z, self.zero)


class Threshold(nn.Module):
    """As the authors of JumpReLU write it."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa

    def forward(self, z: Tensor) -> Tensor:
        z[z <= self.kappa] = 0
        return z


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kappa = nn.Parameter(torch.tensor(0.05))

    def forward(self, z: Tensor) -> Tensor:
        return z * (z > self.kappa).float()


ONE_STEP = {
    "z[z <= 0] = 0": assign(lambda z: z <= 0),
    "z[z < 0] = 0": assign(lambda z: z < 0),
    "a module's z[z <= kappa] = 0": Threshold(0.0),
    "masked_fill_": lambda z: z.masked_fill_(z < 0, 0),
    "where, zeros first": lambda z: torch.where(z <= 0, 0.0, z),
    "z.where": lambda z: z.where(z > 0, torch.zeros_like(z)),
    "float mask": lambda z: z * (z > 0).float(),
    "mask first": lambda z: (z > 0).type_as(z) * z,
    "mask without grad": without_grad,
    "z *= mask": times,
    "addcmul": lambda z: torch.addcmul(torch.zeros_like(z), z, (z > 0).float()),
    "heaviside": lambda z: z * torch.heaviside(z, torch.zeros(1)),
    "max(z, 0 z)": lambda z: torch.max(z, 0 * z),
    "beside a buffer": BesideBuffer(),
    "z - min(z, 0)": lambda z: z - torch.minimum(z, torch.zeros(1)),
    "clip": lambda z: z.clip(min=0),
    "an operation": lambda z: torch.ops.aten.relu.default(z),
}
SEVERAL_STEPS = {
    "(z + |z|) / 2": lambda z: (z + z.abs()) / 2,
    "z / 2 + |z| / 2": lambda z: 0.5 * z + 0.5 * z.abs(),
    "z (sign(z) + 1) / 2": lambda z: z * (torch.sign(z) + 1) / 2,
    "-(-z).clamp(max=0)": lambda z: -((-z).clamp(max=0)),
    "max of a stack": lambda z: torch.stack([z, 0 * z]).amax(0),
}
JUMPS = {
    "z[z <= k] = 0": Threshold(0.05),
    "masked_fill": lambda z: z.masked_fill(z <= 0.05, 0.0),
    "mask": lambda z: z * (z > 0.05),
    "where": lambda z: torch.where(z > 0.05, z, 0.0),
    "F.threshold": lambda z: F.threshold(z, 0.05, 0.0),
    "nn.Threshold": nn.Threshold(0.05, 0.0),
    "a parameter": Learned(),
}


def same_function(hard: nn.Module, activation) -> None:
    hand = Net(activation)
    for x in (IMAGES, IMAGES.abs() + 1.0):
        one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, expected = hard(one), hand(two)
        assert torch.allclose(out, expected, atol=1e-5)
        got, wanted = (
            torch.autograd.grad(o.logsumexp(1).sum(), i)[0]
            for o, i in ((out, one), (expected, two))
        )
        assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("branches", [False, True], ids=["traces", "branches"])
class TestReLUByHand:
    @pytest.mark.parametrize("spelling", ONE_STEP)
    def test_one_step_is_a_site_and_is_replaced(self, spelling: str, branches: bool) -> None:
        net = Net(copy.deepcopy(ONE_STEP[spelling]), branches)
        assert [s.own for s in sites(net, IMAGES)] == [RELU] * 3
        hard = retrofit(net, SReLU(3.0), example=IMAGES)
        same_function(hard, SReLU(3.0))
        same_function(copy.deepcopy(hard), SReLU(3.0))
        assert torch.equal(
            retrofit(net, JumpReLU(0.0), example=IMAGES)(IMAGES), net(IMAGES.clone())
        )

    def test_views_are_written_to(self, branches: bool) -> None:
        net = Net(lambda z: on_views(z) if z.ndim == 4 else F.relu(z), branches)
        assert len(sites(net, IMAGES)) == 5
        same_function(retrofit(net, SReLU(3.0), example=IMAGES), SReLU(3.0))

    @pytest.mark.parametrize("spelling", SEVERAL_STEPS)
    def test_several_steps_are_a_site_replaced_in_a_graph_or_named(
        self, spelling: str, branches: bool
    ) -> None:
        net = Net(SEVERAL_STEPS[spelling], branches)
        assert [(s.own, s.kind) for s in sites(net, IMAGES)] == [(RELU, "composed")] * 3
        if branches:
            with pytest.raises(CoverageError, match=r"replaced 0 of 3 .* write them as F\.relu"):
                retrofit(net, SReLU(3.0), example=IMAGES)
        else:
            same_function(retrofit(net, SReLU(3.0), example=IMAGES), SReLU(3.0))

    def test_by_index_into_zeros_is_never_left_in_silence(self, branches: bool) -> None:
        with pytest.raises(CoverageError, match="missed"):
            retrofit(Net(by_index, branches), SReLU(3.0), example=IMAGES)


@pytest.mark.parametrize("branches", [False, True], ids=["traces", "branches"])
@pytest.mark.parametrize("spelling", JUMPS)
class TestJumpsOfTheNetsOwn:
    def test_are_left_alone_and_named_unless_asked_for(self, spelling: str, branches: bool) -> None:
        net = Net(copy.deepcopy(JUMPS[spelling]), branches)
        assert sites(net, IMAGES) == ()
        assert left_alone(net, IMAGES) == {"jumprelu": 3}
        assert [s.own.kappa for s in survey(net, IMAGES).left_alone] == pytest.approx([0.05] * 3)
        with pytest.raises(NoSitesError, match="jumprelu: name them in also="):
            retrofit(net, SReLU(3.0), example=IMAGES)

    def test_are_replaced_jump_and_all(self, spelling: str, branches: bool) -> None:
        net = Net(copy.deepcopy(JUMPS[spelling]), branches)
        hard = retrofit(net, SReLU(3.0), also=("jumprelu",), example=IMAGES)
        same_function(hard, SReLU(3.0))
        assert left_alone(hard) == {}


class TestOtherKindsByHand:
    @pytest.mark.parametrize(
        ("act", "kind"),
        [
            (lambda z: torch.where(z > 0, z, 0.1 * z), "leaky_relu"),
            (lambda z: torch.max(z, 0.1 * z), "leaky_relu"),
            (lambda z: torch.where(z > 0, z, z.exp() - 1), "piecewise"),
            (lambda z: z * (z.abs() > 0.05), "mask"),
            (
                lambda z: (
                    z * (z >= z.flatten(1).topk(5, 1).values[:, -1].view(-1, *[1] * (z.ndim - 1)))
                ),
                "mask",
            ),
            (lambda z: z * (z > -0.05), "threshold"),
            (lambda z: F.threshold(z, 0.05, 0.1), "threshold"),
            (lambda z: 0.5 * z * (1 + torch.erf(z / 2**0.5)), "erf"),
            (lambda z: z * torch.sigmoid(z), "sigmoid"),
        ],
    )
    def test_are_named(self, act, kind: str) -> None:
        assert left_alone(Net(act), IMAGES) == {kind: 3}
        with pytest.raises(NoSitesError, match=kind):
            retrofit(Net(act), SReLU(3.0), example=IMAGES)

    def test_a_mask_that_does_not_depend_on_the_input_is_no_activation(self) -> None:
        kept = torch.arange(24) % 2
        net = Net(lambda z: F.relu(z) * (kept if z.ndim == 2 else 1))
        assert left_alone(net, IMAGES) == {}
        assert len(sites(net, IMAGES)) == 3


class TestNoFalseSites:
    def test_the_larger_of_two_features_though_one_is_zero_here(self) -> None:
        class Maxout(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.a, self.b = nn.Linear(100, 10), nn.Linear(100, 10)
                nn.init.zeros_(self.b.weight)
                nn.init.zeros_(self.b.bias)

            def forward(self, x: Tensor) -> Tensor:
                x = x.flatten(1)
                return torch.maximum(self.a(x), self.b(x))

        assert sites(Maxout(), IMAGES) == ()

    def test_what_computes_with_a_relu_is_no_second_one(self) -> None:
        assert [s.name for s in sites(Net(lambda z: z + F.relu(-z)), IMAGES)] == [
            "relu()",
            "relu()#2",
            "relu()#3",
        ]

    def test_but_another_head_on_the_same_tensor_is(self) -> None:
        assert len(sites(Net(lambda z: F.relu(z) + z * (z > 0)), IMAGES)) == 6

    def test_moved_and_padded_tensors(self) -> None:
        def act(z: Tensor) -> Tensor:
            z = F.relu(z).transpose(0, 1).contiguous().transpose(0, 1)
            return torch.cat([z.clone(), z[:0]]) * 1.0

        assert len(sites(Net(act), IMAGES)) == 3


@pytest.mark.parametrize(
    "spelling", ["float mask", "z.where", "(z + |z|) / 2", "-(-z).clamp(max=0)", "max of a stack"]
)
def test_nothing_of_the_old_spelling_stays_in_the_way_of_folding(spelling: str) -> None:
    hard = retrofit(Net((ONE_STEP | SEVERAL_STEPS)[spelling]), SReLU(3.0), example=IMAGES)
    assert torch.allclose(fold(hard)(IMAGES), hard(IMAGES), atol=1e-5)


class TestRunTime:
    def test_a_call_that_is_another_one_now_is_an_error(self) -> None:
        class Fickle(Net):
            def forward(self, x: Tensor) -> Tensor:
                if x.mean() > 5:
                    (x * 3).mul(2.0)  # one more multiplication before the one that was the site
                return super().forward(x)

        hard = retrofit(Fickle(lambda z: z * (z > 0)), SReLU(3.0), example=IMAGES)
        same_function(hard, SReLU(3.0))
        with pytest.raises(RuntimeError, match="and is none now"):
            hard(IMAGES + 10.0)

    def test_the_jumprelu_authors_lenet_pickles_compiles_and_exports(self, tmp_path) -> None:
        class LeNet(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)
                self.fc, self.jump = nn.Linear(32, 10), Threshold(0.0)

            def forward(self, x: Tensor) -> Tensor:
                x = self.jump(F.max_pool2d(self.conv1(x), 2))
                x = self.jump(self.conv2(x))
                return self.fc(x.view(x.size(0), -1))

        hard = retrofit(Classifier(LeNet(), shape=(1, 10, 10)), JumpReLU(0.1))
        assert len(reroutings(hard)) == 1
        expected = hard(IMAGES)
        compiled = torch.compile(hard, backend="eager")
        assert torch.equal(compiled(IMAGES), expected)
        assert export(hard, tmp_path / "hard.pt2", images=IMAGES).max_difference <= 1e-6
        net = retrofit(Net(Threshold(0.0)), JumpReLU(0.1), example=IMAGES)
        assert torch.equal(pickle.loads(pickle.dumps(net))(IMAGES), net(IMAGES))


class First(nn.Module):
    """`before` sees the pixels."""

    def __init__(self, before) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.conv, self.fc = before, nn.Conv2d(1, 4, 3), nn.Linear(256, 10)
        self.register_buffer("mean", torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(self.before(self, x))).flatten(1))


PIXELS = IMAGES.clamp(0, 1)


class TestPixels:
    @pytest.mark.parametrize(
        "before",
        [
            lambda net, x: x.clamp(0, 1),
            lambda net, x: x.clamp_(0, 1),
            lambda net, x: F.hardtanh(x, 0.0, 1.0),
            lambda net, x: ((x - net.mean) / 0.2).clamp(0, 1),
            lambda net, x: (x.clamp(0, 1) - net.mean) / 0.2,
            lambda net, x: (x * 255).round().clamp(0, 255) / 255,
            lambda net, x: (x + 0.1 * torch.randn_like(x)).clamp(0, 1),
            lambda net, x: F.interpolate(x, scale_factor=1.0, mode="bilinear").clamp(0, 1),
        ],
    )
    @pytest.mark.parametrize("classifier", [True, False])
    def test_a_clamp_of_the_pixels_is_no_site_and_stays(self, before, classifier: bool) -> None:
        net: nn.Module = First(before)
        if classifier:
            net = Classifier(net, mean=0.5, std=0.25, shape=(1, 10, 10))
        assert [s.shape for s in sites(net, PIXELS)] == [(4, 8, 8)]
        hard = retrofit(net, ReLU(), example=PIXELS)
        for x in (PIXELS, IMAGES):
            torch.manual_seed(3)
            expected = net(x.clone())
            torch.manual_seed(3)
            assert torch.equal(hard(x.clone()), expected)

    def test_rerouting_leaves_them_too(self) -> None:
        def before(net: nn.Module, x: Tensor) -> Tensor:
            return x.clamp(0, 1) if x.sum() > -1e9 else x

        hard = retrofit(First(before), SReLU(3.0), example=PIXELS)
        assert len(reroutings(hard)) == 1
        x = hard.conv(PIXELS)
        assert torch.allclose(hard(IMAGES), hard.fc(3.0 * F.relu(x).flatten(1)), atol=1e-6)

    def test_a_relu_that_changes_the_pixels_is_a_site(self) -> None:
        assert len(sites(First(lambda net, x: F.relu(x)), IMAGES)) == 2
        assert len(sites(First(lambda net, x: F.relu(x)), PIXELS)) == 1, "the identity there"

    def test_a_clamp_behind_a_layer_is_a_site(self) -> None:
        net = First(lambda net, x: F.pad(net.conv(x)[:, :1], (1, 1, 1, 1)).clamp(0, 1))
        assert [s.own for s in sites(net, PIXELS)] == [Ramp(cap=1.0), RELU]

    def test_a_gate_of_relu6_is_a_call_of_relu6(self) -> None:
        net = Net(lambda z: F.relu(z) * (F.relu6(z.mean() + 3) / 6))
        assert [s.own for s in sites(net, IMAGES)] == [RELU, Ramp(cap=6.0)] * 3
