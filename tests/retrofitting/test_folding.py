"""A folded net is the same function, bit for bit of float64 but for rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import JumpReLU, ReLU, SReLU
from retroact.activations.shifted import write_shifts
from retroact.activations.smooth import Swish
from retroact.activations.surrogate import Surrogate
from retroact.retrofitting.folding import FoldError, fold
from retroact.retrofitting.installed import installed
from retroact.retrofitting.sites import sites
from retroact.retrofitting.surgery import Retrofit, refit, retrofit

IMAGES = torch.rand(200, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def lenet(act=nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return (
        nn.Sequential(
            nn.Conv2d(1, 10, 5),
            nn.BatchNorm2d(10),
            nn.MaxPool2d(2),
            act(),
            nn.Conv2d(10, 20, 5, bias=False),
            nn.AvgPool2d(2),
            act(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(320, 120),
            act(),
            nn.Linear(120, 10),
        )
        .double()
        .eval()
    )


def trained(net: nn.Module) -> nn.Module:
    """Running statistics and biases that are not their first values."""
    for p in net.parameters():
        if p.ndim == 1:
            p.data += 0.3 * torch.rand_like(p)
    net.train()(IMAGES[:50])
    return net.eval()


def balanced(net: nn.Module) -> nn.Module:
    """Logits of mean 0, so that every class is somebody's."""
    net[-1].bias.data -= net(IMAGES).mean(0).detach()
    return net


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


EACH = [
    SReLU(10.0),
    SReLU(100.0),
    JumpReLU(0.3),
    PerSite((SReLU(10.0), JumpReLU(2.0), SReLU(0.5))),
    PerSite((SReLU(3.0, cap=2.0), JumpReLU(1.0, cap=5.0), ReLU())),
]


class TestIdentity:
    @pytest.mark.parametrize("activation", EACH)
    @pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
    def test_the_same_logits_in_float64(self, activation, act) -> None:
        hard = balanced(retrofit(trained(lenet(act)), activation, example=IMAGES[:2]))
        folded = fold(hard)
        out, expected = folded(IMAGES), hard(IMAGES)
        assert relative(out, expected) <= 1e-12
        assert torch.equal(out.argmax(1), expected.argmax(1))
        assert all(m.activation.ramp.alpha == 1.0 for m in installed(folded).values())
        assert len(expected.argmax(1).unique()) > 1, (
            "a net that always says the same proves nothing"
        )

    def test_unscaled_logits_are_the_same_without_the_factor(self) -> None:
        hard = retrofit(trained(lenet()), SReLU(10.0), example=IMAGES[:2])
        bare = fold(hard, scaled=False)
        assert bare.logit_scale == 1000.0
        assert relative(1000.0 * bare(IMAGES), hard(IMAGES)) <= 1e-12

    def test_biases_are_divided_as_the_formula_says(self) -> None:
        net = nn.Sequential(
            nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
        ).double()
        folded = fold(retrofit(net, SReLU(10.0), example=torch.rand(2, 4).double()), scaled=False)
        for layer, power in ((0, 0), (2, 1), (4, 2)):
            assert torch.allclose(folded[layer].bias, net[layer].bias / 10.0**power, rtol=1e-15)
            assert torch.equal(folded[layer].weight, net[layer].weight)

    def test_a_jump_is_rescaled_behind_a_slope(self) -> None:
        hard = retrofit(trained(lenet()), EACH[3], example=IMAGES[:2])
        kinds = [m.activation for m in installed(fold(hard)).values()]
        assert kinds == [ReLU(), JumpReLU(0.2), ReLU()]
        assert fold(hard).retrofit == Retrofit(PerSite(tuple(kinds)))

    def test_the_net_given_is_not_changed(self) -> None:
        hard = retrofit(trained(lenet()), SReLU(10.0), example=IMAGES[:2])
        before = hard(IMAGES)
        fold(hard)
        assert torch.equal(hard(IMAGES), before)
        assert type(fold(hard)) is nn.Sequential

    @pytest.mark.parametrize("act", [torch.relu, nn.ReLU()])
    def test_a_functional_net(self, act) -> None:
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.act = act
                self.conv, self.fc = nn.Conv2d(1, 8, 5), nn.Linear(8 * 12 * 12, 10)

            def forward(self, x: Tensor) -> Tensor:
                x = torch.nn.functional.max_pool2d(self.act(self.conv(x)), 2)
                x = torch.nn.functional.dropout(x, training=self.training).reshape(x.size(0), -1)
                return self.fc(x)

        hard = retrofit(Functional().double().eval(), SReLU(50.0), example=IMAGES[:2])
        assert relative(fold(hard)(IMAGES), hard(IMAGES)) <= 1e-12

    def test_a_smoothed_backward_is_folded_with_it(self) -> None:
        hard = retrofit(trained(lenet()), EACH[3], example=IMAGES[:2])
        hard = refit(hard, EACH[3].surrogate(4.0))
        folded = fold(hard)
        assert isinstance(installed(folded)["6"].activation, Surrogate)
        x, y = IMAGES[:20].clone().requires_grad_(), IMAGES[:20].clone().requires_grad_()
        folded(x).sum().backward()
        hard(y).sum().backward()
        assert relative(x.grad, y.grad) <= 1e-12


class TestShifts:
    @pytest.mark.parametrize("slope", [1.0, 7.0])
    def test_they_join_the_bias_before(self, tmp_path, slope: float) -> None:
        net = trained(lenet())
        b = {s.name: torch.linspace(-0.5, 0.5, s.shape[0]) for s in sites(net, IMAGES[:2])}
        shifted = write_shifts(tmp_path / "b.safetensors", b)
        mixed = PerSite((SReLU(slope), shifted, shifted))
        hard = retrofit(net, mixed, example=IMAGES[:2])
        folded = fold(hard)
        assert relative(folded(IMAGES), hard(IMAGES)) <= 1e-12
        assert [m.activation for m in installed(folded).values()] == [
            ReLU() if slope > 1 else SReLU(),
            *[ReLU()] * 2,
        ]
        assert folded[4].bias is not None

    def test_where_no_bias_can_take_them_they_stay_rescaled(self, tmp_path) -> None:
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)
        )
        shifted = write_shifts(tmp_path / "b.safetensors", {"4": torch.linspace(-0.5, 0.5, 8)})
        hard = retrofit(net.double().eval(), PerSite((SReLU(10.0), shifted)), example=IMAGES[:2])
        folded = fold(hard)
        assert relative(folded(IMAGES), hard(IMAGES)) <= 1e-12
        assert folded.retrofit is None


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(784, 784), nn.Linear(784, 784)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.fc2(self.relu2(self.relu1(self.fc1(x)) + x))


class TestRefusals:
    def test_a_skip_with_slopes(self) -> None:
        hard = retrofit(Skip().double(), SReLU(10.0), example=IMAGES[:2])
        with pytest.raises(FoldError, match="different slopes behind them meet"):
            fold(hard)

    def test_a_skip_without_slopes_or_with_none_before_it(self) -> None:
        for activation in (JumpReLU(0.1), PerSite((ReLU(), SReLU(10.0)))):
            hard = retrofit(Skip().double(), activation, example=IMAGES[:2])
            assert relative(fold(hard)(IMAGES), hard(IMAGES)) <= 1e-12

    def test_an_operation_that_is_not_homogeneous(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.LayerNorm(8)).double()
        with pytest.raises(FoldError, match="cannot be moved through"):
            fold(retrofit(net, SReLU(2.0), example=IMAGES[:2]))

    def test_a_smooth_activation_behind_a_slope(self) -> None:
        hard = retrofit(
            trained(lenet()), PerSite((SReLU(2.0), Swish(), ReLU())), example=IMAGES[:2]
        )
        with pytest.raises(FoldError, match="cannot be moved through"):
            fold(hard)

    def test_a_layer_called_under_two_slopes(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.relu1, self.relu2 = nn.Linear(784, 784), nn.ReLU(), nn.ReLU()

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.relu2(self.fc(self.relu1(self.fc(x.flatten(1))))))

        with pytest.raises(FoldError, match="layer 'fc' is called under different slopes"):
            fold(retrofit(Twice().double(), SReLU(2.0), example=IMAGES[:2]))

    def test_a_net_that_branches(self) -> None:
        class Branching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(784, 10)

            def forward(self, x: Tensor) -> Tensor:
                out = torch.relu(self.fc(x.flatten(1)))
                return out if out.sum() > 0 else -out

        with pytest.raises(FoldError, match="does not trace"):
            fold(retrofit(Branching().double(), SReLU(2.0), example=IMAGES[:2]))

    def test_a_net_whose_end_takes_no_factor(self) -> None:
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU()).double()
        hard = retrofit(net, SReLU(2.0), example=IMAGES[:2])
        with pytest.raises(FoldError, match="scaled=False"):
            fold(hard)
        assert relative(2.0 * fold(hard, scaled=False)(IMAGES), hard(IMAGES)) <= 1e-12
        assert math.isclose(fold(hard, scaled=False).logit_scale, 2.0)
