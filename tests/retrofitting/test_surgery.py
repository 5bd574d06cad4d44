"""Every spelling of ReLU is found and replaced; the net given is never touched."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.kwta import KWTA
from retroact.activations.mean_sparse import MeanSparse
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import BoundedReLU, JumpReLU, ReLU, SReLU
from retroact.activations.polynomial import Polynomial
from retroact.activations.quantized import QuantizedReLU
from retroact.activations.ramp import Ramp
from retroact.activations.shifted import ShiftedReLU, write_shifts
from retroact.activations.smooth import Swish
from retroact.retrofitting.installed import installed
from retroact.retrofitting.sites import NoSitesError, sites, survey
from retroact.retrofitting.surgery import CoverageError, Retrofit, refit, retrofit
from retroact.spec import SpecError, parse, show

IMAGES = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(3)) * 2 - 0.5


class Conv(nn.Module):
    """Two convs and two fcs around any activation `act`, which the subclass of a spelling writes
    out."""

    def __init__(self, act) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(128, 32)
        self.fc2 = nn.Linear(32, 10)
        self.act = act
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv1(x)))
        x = F.max_pool2d(self.act(self.conv2(x)), 2)
        x = self.dropout(x.flatten(1))
        return self.fc2(self.act(self.fc1(x)))


def relu_statement(z: Tensor) -> Tensor:
    F.relu_(z)
    return z


def zeros_first(z: Tensor) -> Tensor:
    return torch.max(torch.zeros_like(z), z)


UNCAPPED = {
    "nn.ReLU shared": nn.ReLU(),
    "nn.ReLU inplace": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu inplace": lambda z: F.relu(z, inplace=True),
    "F.relu_ as a statement": relu_statement,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "z.relu()": lambda z: z.relu(),
    "z.relu_()": lambda z: z.relu_(),
    "clamp(min=0)": lambda z: z.clamp(min=0),
    "torch.clamp": lambda z: torch.clamp(z, 0.0),
    "clamp_min_": lambda z: z.clamp_min_(0),
    "clip": lambda z: z.clip(min=0.0),
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "maximum with a constant": lambda z: torch.maximum(z, torch.tensor(0.0)),
    "max, zeros first": zeros_first,
    "F.threshold": lambda z: F.threshold(z, 0.0, 0.0),
    "nn.Threshold": nn.Threshold(0.0, 0.0),
    "where": lambda z: torch.where(z > 0, z, 0.0),
    "mask": lambda z: z * (z > 0),
}
CAPPED = {
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 inplace": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "hardtanh": lambda z: F.hardtanh(z, 0.0, 6.0),
    "nn.Hardtanh": nn.Hardtanh(0.0, 6.0),
    "hardtanh_": lambda z: F.hardtanh_(z, 0.0, 6.0),
    "clamp(0, 6)": lambda z: z.clamp(0, 6),
    "clamp_(min, max)": lambda z: z.clamp_(min=0.0, max=6.0),
}
SPELLINGS = UNCAPPED | CAPPED


def net_of(spelling: str) -> Conv:
    # modules are shared by the three sites of one net, never between nets
    return Conv(copy.deepcopy(SPELLINGS[spelling]))


def by_hand(activation, spelling: str) -> Conv:
    capped = spelling in CAPPED and not isinstance(
        activation, Swish | Polynomial | KWTA
    )  # a swap has no cap
    cap = 6.0 if capped else float("inf")

    def act(z: Tensor) -> Tensor:
        return activation(z).clamp(max=cap)

    return Conv(act)


NEUTRAL = (ReLU(), JumpReLU(0.0), SReLU(1.0), BoundedReLU(), ShiftedReLU(), MeanSparse(0.0))
ACTIVATIONS = (
    *(JumpReLU(0.3), SReLU(4.0), BoundedReLU(0.5), Swish(2.0), Polynomial(1.0)),
    *(KWTA(0.3), QuantizedReLU(3, 2.0), QuantizedReLU(3, 2.0).surrogate(2.0)),
)


def by_turns(activations: tuple) -> pytest.MarkDecorator:
    """Each spelling with one of the activations, so that each of these meets several spellings."""
    pairs = list(zip(SPELLINGS, itertools.cycle(activations), strict=False))
    return pytest.mark.parametrize(("spelling", "activation"), pairs, ids=str)


@by_turns(NEUTRAL)
def test_the_neutral_value_gives_the_same_bits(spelling: str, activation) -> None:
    net = net_of(spelling)
    assert torch.equal(retrofit(net, activation, example=IMAGES)(IMAGES), net(IMAGES))


@by_turns(ACTIVATIONS)
def test_logits_and_gradients_are_those_of_a_net_written_by_hand(spelling, activation) -> None:
    hard, hand = (
        retrofit(net_of(spelling), activation, example=IMAGES),
        by_hand(activation, spelling),
    )
    x, x_hand = IMAGES.clone().requires_grad_(), IMAGES.clone().requires_grad_()
    out, expected = hard(x), hand(x_hand)
    out.logsumexp(1).sum().backward()
    expected.logsumexp(1).sum().backward()
    assert torch.equal(out, expected)
    assert torch.equal(x.grad, x_hand.grad)
    assert torch.equal(hard.get_parameter("conv1.weight").grad, hand.conv1.weight.grad)
    assert not torch.equal(out, net_of(spelling)(IMAGES))


@pytest.mark.parametrize("spelling", SPELLINGS)
class TestSpellings:
    def test_all_three_calls_are_found_with_their_cap(self, spelling: str) -> None:
        found = sites(net_of(spelling), IMAGES)
        assert [s.own for s in found] == [Ramp(cap=6.0 if spelling in CAPPED else float("inf"))] * 3
        assert [s.shape for s in found] == [(8, 10, 10), (8, 8, 8), (32,)]

    def test_the_net_stays_as_it_was(self, spelling: str) -> None:
        net = net_of(spelling).train()
        before, hooks = copy.deepcopy(net.state_dict()), len(net._forward_hooks)
        hard = retrofit(net, JumpReLU(0.5), example=IMAGES)
        assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
        assert net.training
        assert len(net._forward_hooks) == hooks
        assert all(p.grad is None for p in net.parameters())
        assert not hasattr(net, "retrofit")
        assert hard.state_dict().keys() == before.keys()
        assert hard.training

    def test_survives_pickle_deepcopy_and_state_dict(self, spelling: str) -> None:
        hard = retrofit(net_of(spelling), JumpReLU(0.5), example=IMAGES)
        expected = hard(IMAGES)
        again = copy.deepcopy(hard)
        again.load_state_dict(hard.state_dict())
        assert torch.equal(again(IMAGES), expected)
        assert again.retrofit == hard.retrofit == Retrofit(JumpReLU(0.5))
        if "lambda" not in repr(getattr(hard, "act", "")):
            stored = io.BytesIO()
            pickle.dump(hard, stored)
            stored.seek(0)
            assert torch.equal(pickle.load(stored)(IMAGES), expected)


class Block(nn.Module):
    """A residual block: two calls of one module, or two calls of a function."""

    def __init__(self, planes: int, functional: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(planes, planes, 3, padding=1, bias=False) for _ in range(2)
        )
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.relu = F.relu if functional else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


class ResNet(nn.Module):
    def __init__(self, functional: bool, blocks: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.layers = nn.Sequential(*(Block(8, functional) for _ in range(blocks)))
        self.head = nn.Linear(8, 10)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Wrapper(nn.Module):
    """As a classifier: normalisation outside, the net as `.module`, the shape of its images."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.shape = (1, 12, 12)
        self.note = "kept"
        self.register_buffer("mean", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.module((x - self.mean) / 0.25)


class Branching(nn.Module):
    """Takes another way for dark images than for bright ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dark, self.bright = nn.Linear(144, 10), nn.Linear(144, 10)
        self.relu = nn.ReLU()
        self.shape = (1, 12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return F.relu(self.dark(x)) if x.mean() < 0.1 else self.relu(self.bright(x))


class WithFunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(144, 64), nn.Linear(64, 10)
        self.shape = (1, 12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.fc1(x.flatten(1))), training=self.training)
        return self.fc2(x)


class InNumbers(nn.Module):
    """What a tracer would fix for ever, one thing each."""

    def __init__(self, trap: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(144, 10)
        self.trap = trap
        self.calls = 0
        self.shape = (1, 12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1))
        if self.trap == "noise":
            x = x + torch.randn(10)
        if self.trap == "count":
            self.calls += 1
        if self.trap == "mode":
            x = x * (2.0 if self.training else 1.0)
        if self.trap == "type":
            x = x if isinstance(x, Tensor) else x * 3.0
        return F.relu(x)


SEQUENTIAL = nn.Sequential(
    nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10), nn.ReLU()
)


class TestWholeNets:
    @pytest.mark.parametrize("functional", [True, False])
    def test_a_resnet_is_covered_completely(self, functional: bool) -> None:
        net = ResNet(functional)
        hard = retrofit(net, SReLU(2.0), example=IMAGES)
        after = survey(hard, IMAGES)
        assert len(sites(net, IMAGES)) == len(after.installed) == 9
        assert after.sites == ()
        assert isinstance(hard, torch.fx.GraphModule)

    def test_names_say_where_and_which_call(self) -> None:
        names = [s.name for s in sites(ResNet(False, blocks=1), IMAGES)]
        assert names == ["relu()", "layers.0.relu", "layers.0.relu#2"]
        names = [s.name for s in sites(ResNet(True, blocks=1), IMAGES)]
        assert names == ["relu()", "layers.0.relu()", "layers.0.relu()#2"]

    def test_modules_of_their_own_are_swapped_and_the_type_is_kept(self) -> None:
        hard = retrofit(SEQUENTIAL, JumpReLU(0.4), example=IMAGES)
        assert type(hard) is nn.Sequential
        assert list(installed(hard)) == ["2", "4"]
        assert hard[2].activation == JumpReLU(0.4)
        assert type(SEQUENTIAL[2]) is nn.ReLU

    def test_a_wrapper_keeps_its_type_and_attributes(self) -> None:
        net = nn.DataParallel(Wrapper(ResNet(False)))
        hard = retrofit(net, JumpReLU(0.4))
        assert type(hard) is nn.DataParallel
        assert type(hard.module) is Wrapper
        assert (hard.module.note, hard.module.shape) == ("kept", (1, 12, 12))
        assert hard.state_dict().keys() == net.state_dict().keys()
        assert hard.retrofit == Retrofit(JumpReLU(0.4))
        assert [s.name for s in sites(net)] == list(installed(hard))

    def test_train_mode_is_the_nets_own(self) -> None:
        net = WithFunctionalDropout()
        hard = retrofit(net, JumpReLU(0.0))
        for training in (True, False):
            torch.manual_seed(1)
            expected = net.train(training)(IMAGES)
            torch.manual_seed(1)
            assert torch.equal(hard.train(training)(IMAGES), expected)
        assert isinstance(hard, torch.fx.GraphModule)

    def test_batch_norm_learns_in_train_mode_and_the_activation_does_not_change(self) -> None:
        net = net_of("F.relu").train()
        hard = retrofit(net, JumpReLU(0.5), example=IMAGES)
        torch.manual_seed(1)
        hard(IMAGES)
        torch.manual_seed(1)
        hand = by_hand(JumpReLU(0.5), "F.relu").train()
        hand(IMAGES)
        for name, value in hand.state_dict().items():
            assert torch.equal(hard.state_dict()[name], value)

    @pytest.mark.parametrize("trap", ["noise", "count", "mode", "type"])
    def test_nothing_is_fixed_by_tracing(self, trap: str) -> None:
        net = InNumbers(trap)
        hard = retrofit(net, SReLU(3.0))
        assert type(hard) is InNumbers
        for training in (True, False):
            torch.manual_seed(5)
            expected = 3.0 * net.train(training)(IMAGES)
            torch.manual_seed(5)
            assert torch.equal(hard.train(training)(IMAGES), expected)
        assert net.calls == hard.calls == (2 if trap == "count" else 0)

    def test_hooks_of_the_user_fire_on_the_copy(self) -> None:
        net, shapes = net_of("F.relu"), []
        net.conv1.register_forward_hook(lambda m, x, out: shapes.append(tuple(out.shape)))
        hard = retrofit(net, SReLU(2.0), example=IMAGES)
        shapes.clear()
        assert torch.equal(hard(IMAGES), by_hand(SReLU(2.0), "F.relu")(IMAGES))
        assert shapes == [(8, 8, 10, 10)]

    def test_both_branches_are_covered_also_the_one_the_example_did_not_take(self) -> None:
        hard, net = retrofit(Branching(), SReLU(5.0)), Branching()
        assert len(sites(net)) == 1
        for x in (IMAGES, IMAGES - 1.0):
            assert torch.equal(hard(x), 5.0 * net(x))
            assert torch.equal(pickle.loads(pickle.dumps(hard))(x), 5.0 * net(x))

    def test_a_branch_without_an_activation_of_its_own_says_so(self) -> None:
        hard = retrofit(Branching(), PerSite((SReLU(5.0),)))
        hard(IMAGES)
        with pytest.raises(RuntimeError, match="not seen when the net was retrofitted"):
            hard(IMAGES - 1.0)
        assert hard(IMAGES).isfinite().all(), "a failed pass leaves no mode behind"
        assert torch.equal(F.relu(torch.tensor(-1.0)), torch.tensor(0.0))

    def test_a_fused_transformer_layer(self) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)
        ).eval()
        x = torch.rand(4, 5, 8)
        assert [s.name for s in sites(net, x)] == ["0.relu()"]
        assert torch.backends.mha.get_fastpath_enabled()
        hard = retrofit(net, SReLU(4.0), example=x)
        twin = copy.deepcopy(net)
        twin[0].linear2.weight.data *= 4.0  # SReLU's slope, moved into the next layer
        with torch.no_grad():
            assert torch.allclose(hard(x), twin(x), atol=1e-5)
            assert not torch.allclose(hard(x), net(x), atol=1e-2)

    def test_inplace_on_a_tensor_that_is_read_again(self) -> None:
        class PreActivation(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.fc, self.relu = nn.Linear(144, 144), nn.ReLU(inplace=True)

            def forward(self, x: Tensor) -> Tensor:
                x = self.fc(x.flatten(1))
                return self.fc(self.relu(x)) + x  # x has been overwritten

        hard = retrofit(PreActivation(), SReLU(3.0), example=IMAGES)
        x = IMAGES.clone().requires_grad_()
        h = 3.0 * F.relu(hard.fc(x.flatten(1)))
        assert torch.equal(hard(x), hard.fc(h) + h)
        (wanted,) = torch.autograd.grad((hard.fc(h) + h).sum(), x)
        (got,) = torch.autograd.grad(hard(x).sum(), x)
        assert torch.allclose(got, wanted)


class WithOptions(Conv):
    """What nobody passes is no mask, though a graph would hold one in its place."""

    def __init__(self, way: str) -> None:
        super().__init__(F.relu)
        self.way = way

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, flips: bool = False, scale: float = 3.0
    ) -> Tensor:
        if self.way == "crashes" and mask is not None:
            x = x * mask
        if self.way == "is another net" and flips is not False:
            x = x.flip(-1)
        return super().forward(x) * (scale if self.way == "scales" else 1.0)


@pytest.mark.parametrize("way", ["crashes", "is another net", "scales", "unread"])
def test_optional_arguments_are_left_out_and_stay_optional(way):
    net = WithOptions(way)
    hard = retrofit(net, SReLU(2.0), example=IMAGES)
    net.act = lambda z: 2 * F.relu(z)
    assert torch.equal(hard(IMAGES), net(IMAGES))
    given = {"mask": IMAGES > 0, "flips": True, "scale": 0.5}
    assert torch.equal(hard(IMAGES, **given), net(IMAGES, **given))


class TestSelection:
    NET = Wrapper(ResNet(True, blocks=2))

    @pytest.mark.parametrize(
        ("sites", "names"),
        [
            ("relu()", ["relu()"]),
            ("layers.0.*", ["layers.0.relu()", "layers.0.relu()#2"]),
            (0, ["relu()"]),
            (-1, ["layers.1.relu()#2"]),
            ([0, "*#2"], ["relu()", "layers.0.relu()#2", "layers.1.relu()#2"]),
            ("1:3", ["layers.0.relu()", "layers.0.relu()#2"]),
            ("0, 2", ["relu()", "layers.0.relu()#2"]),
        ],
    )
    def test_by_name_glob_and_order(self, sites, names: list[str]) -> None:
        hard = retrofit(self.NET, JumpReLU(0.4), sites=sites)
        assert list(installed(hard)) == names
        assert list(installed(parse(show(hard.retrofit))(self.NET))) == names

    def test_the_name_of_a_module_comes_before_an_order(self) -> None:
        assert list(installed(retrofit(SEQUENTIAL, ReLU(), sites="2", example=IMAGES))) == ["2"]
        assert list(installed(retrofit(SEQUENTIAL, ReLU(), sites=[1], example=IMAGES))) == ["4"]

    def test_what_selects_nothing_is_named(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"'layer9.\*' selects none of the 5 sites; there are relu\(\), layers.0.relu\(\)",
        ):
            retrofit(self.NET, JumpReLU(0.4), sites="relu(),layer9.*")

    def test_values_per_site(self) -> None:
        each = PerSite((JumpReLU(0.1), SReLU(2.0)))
        hard = retrofit(self.NET, each, sites="layers.1.*")
        assert [m.activation for m in installed(hard).values()] == [JumpReLU(0.1), SReLU(2.0)]
        with pytest.raises(ValueError, match="2 activations for 5 chosen sites"):
            retrofit(self.NET, each)

    def test_other_kinds_are_left_alone_unless_named(self) -> None:
        net = Wrapper(Conv(F.gelu))
        with pytest.raises(NoSitesError, match=r"calls gelu: name them in also="):
            retrofit(net, JumpReLU(0.4))
        hard = retrofit(net, JumpReLU(0.4), also=("gelu",))
        assert len(installed(hard)) == 3
        assert torch.equal(hard(IMAGES), Wrapper(by_hand(JumpReLU(0.4), "F.relu"))(IMAGES))

    def test_refit_is_the_retrofit_of_the_original(self) -> None:
        for net in (self.NET, Branching()):
            hard = retrofit(net, JumpReLU(0.4))
            again = refit(hard, SReLU(2.0))
            assert torch.equal(again(IMAGES), retrofit(net, SReLU(2.0))(IMAGES))
            assert again.retrofit == Retrofit(SReLU(2.0))
            assert torch.equal(hard(IMAGES), retrofit(net, JumpReLU(0.4))(IMAGES))


class TestRefusals:
    def test_a_call_that_python_cannot_reach(self) -> None:
        class Sealed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.rnn, self.fc = (
                    nn.RNN(12, 16, nonlinearity="relu", batch_first=True),
                    nn.Linear(16, 10),
                )

            def forward(self, x: Tensor) -> Tensor:
                return F.relu(self.fc(self.rnn(x.flatten(1, 2))[0][:, -1]))

        with pytest.raises(
            CoverageError,
            match=r"replaced 1 of 13 activation calls; missed rnn.relu\(\), rnn.relu\(\)#2",
        ) as e:
            retrofit(Sealed(), JumpReLU(0.4), example=IMAGES)
        assert pickle.loads(pickle.dumps(e.value)).missed == e.value.missed
        hard = retrofit(Sealed(), JumpReLU(0.4), example=IMAGES, allow=("rnn.*",))
        assert len(survey(hard, IMAGES).installed) == 1

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_a_scripted_function_inside(self) -> None:
        scripted = torch.jit.script(lambda_free_relu)
        with pytest.raises(ValueError, match="cannot be copied: ScriptFunction"):
            retrofit(Conv(scripted), JumpReLU(0.4), example=IMAGES)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
    def test_torchscript(self) -> None:
        with pytest.raises(ValueError, match="TorchScript"):
            retrofit(torch.jit.trace(net_of("F.relu"), IMAGES), JumpReLU(0.4), example=IMAGES)

    def test_no_activation(self) -> None:
        with pytest.raises(NoSitesError, match="nothing to replace"):
            retrofit(nn.Linear(3, 2), JumpReLU(0.4), example=torch.rand(2, 3))

    def test_twice(self) -> None:
        hard = retrofit(SEQUENTIAL, JumpReLU(0.4), example=IMAGES)
        with pytest.raises(ValueError, match=r"already carries Retrofit\(activation=JumpReLU"):
            retrofit(hard, JumpReLU(0.5), example=IMAGES)

    def test_no_example(self) -> None:
        with pytest.raises(ValueError, match="pass example="):
            retrofit(SEQUENTIAL, JumpReLU(0.4))

    def test_no_activation_spec(self) -> None:
        said = "an activation: `retroact list activations` names .* which inherits Activation"
        with pytest.raises(SpecError, match=said):
            retrofit(SEQUENTIAL, F.relu, example=IMAGES)

    def test_an_unknown_kind(self) -> None:
        with pytest.raises(ValueError, match="got 'glue'"):
            retrofit(SEQUENTIAL, ReLU(), also=("glue",), example=IMAGES)


def lambda_free_relu(z: Tensor) -> Tensor:
    return torch.relu(z)


class TestShifts:
    def test_each_channel_gets_its_own_and_the_cap_stays(self, tmp_path) -> None:
        net = net_of("nn.ReLU6")
        names = [s.name for s in sites(net, IMAGES)]
        assert names == ["act", "act#2", "act#3"]
        b = {n: torch.linspace(-1.0, 4.0, 32 if n == "act#3" else 8) for n in names}
        hard = retrofit(net, write_shifts(tmp_path / "b.safetensors", b), example=IMAGES)
        x = (net.bn(net.conv1(IMAGES)) + b["act"].view(1, -1, 1, 1)).clamp(0, 6)
        x = F.max_pool2d((net.conv2(x) + b["act#2"].view(1, -1, 1, 1)).clamp(0, 6), 2)
        expected = net.fc2((net.fc1(x.flatten(1)) + b["act#3"]).clamp(0, 6))
        assert torch.equal(hard(IMAGES), expected)
        assert hard.state_dict().keys() == net.state_dict().keys()

    def test_refit_goes_from_shifts_to_a_jump_and_back(self, tmp_path) -> None:
        net = net_of("nn.ReLU shared")
        shifts = write_shifts(
            tmp_path / "b.safetensors", {s.name: torch.ones(s.shape[0]) for s in sites(net, IMAGES)}
        )
        shifted, jumped = (
            retrofit(net, shifts, example=IMAGES),
            retrofit(net, JumpReLU(0.2), example=IMAGES),
        )
        assert torch.equal(refit(shifted, JumpReLU(0.2))(IMAGES), jumped(IMAGES))
        assert torch.equal(refit(jumped, shifts)(IMAGES), shifted(IMAGES))

    def test_a_site_without_shifts_is_named(self, tmp_path) -> None:
        shifts = write_shifts(tmp_path / "b.safetensors", {"act": torch.zeros(8)})
        with pytest.raises(KeyError, match="no shifts for site 'act#2', only for act"):
            retrofit(net_of("nn.ReLU shared"), shifts, example=IMAGES)


def test_a_retrofit_does_not_wait_for_torchs_compiler():
    """Surveying sites enters dispatch modes, which by default import torch._dynamo: over a second
    of a CPU."""
    made = "import sys, retroact as ra; ra.retrofit(ra.load('digits-cnn'), ra.JumpReLU(1.0))"
    asked = f"{made}; print('torch._dynamo' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
