"""Activations that others claim something of: values by hand, limits, jumps, chances."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.activations.measured import Moments
from retroact.activations.ramp import Ramp
from retroact.activations.site import Site
from retroact.retrofitting.sites import NoSitesError
from retroact.spec import SpecError

SITE = Site("relu")
CAPPED = Site("relu", own=Ramp(cap=6.0))
GELU = Site("act", own=None, kind="gelu")


def slope(activation, z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(activation(z).sum(), z)
    return g


class TestCurvatureTuning:
    def test_values_by_hand(self) -> None:
        z = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
        half = ra.CurvatureTuning(0.5)(z)  # (z σ(z) + softplus(2 z)/2) / 2
        for got, v in zip(half.tolist(), z.tolist(), strict=True):
            gated, soft = v / (1 + math.exp(-v)), 0.5 * math.log1p(math.exp(2 * v))
            assert got == pytest.approx(0.5 * gated + 0.5 * soft, abs=1e-9)

    def test_its_ends(self) -> None:
        z = torch.linspace(-3, 3, 601)
        assert torch.equal(ra.CurvatureTuning(1.0)(z), F.relu(z))
        assert ra.CurvatureTuning(1.0).at(CAPPED) == ra.ReLU(6.0)
        assert torch.allclose(ra.CurvatureTuning(0.0, 1.0)(z), z / 2)
        assert torch.allclose(ra.CurvatureTuning(0.0, 0.0)(z), F.softplus(z))
        gaps = [float((ra.CurvatureTuning(b)(z) - F.relu(z)).abs().max()) for b in (0.8, 0.9, 0.99)]
        assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.004

    def test_it_is_smooth_where_relu_is_not(self) -> None:
        z = torch.linspace(-1, 1, 20001, dtype=torch.float64)
        made = ra.CurvatureTuning(0.9)
        between = (made(z[1:]) - made(z[:-1])) / (z[1] - z[0])
        assert torch.allclose(slope(made, (z[1:] + z[:-1]) / 2), between, atol=1e-6)


class TestLinearized:
    def test_the_site_is_gone(self) -> None:
        z = torch.randn(5)
        assert torch.equal(ra.Linearized()(z), z)
        folded = ra.Linearized().folded(4.0)
        assert torch.equal(folded.factor * folded.activation(z), ra.Linearized()(4.0 * z))

    def test_a_slope_folds_through_it(self) -> None:
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
        x = torch.randn(7, 4).double()
        each = ra.PerSite((ra.SReLU(8.0), ra.Linearized()))
        hard = ra.retrofit(net.double(), each, example=x)
        assert torch.allclose(ra.fold(hard)(x), hard(x))


class TestJump:
    def test_of_a_relu_it_is_jumprelu(self) -> None:
        z = torch.randn(500)
        assert torch.equal(ra.Jump(ra.ReLU(), 0.5)(z), ra.JumpReLU(0.5)(z))

    def test_values(self) -> None:
        z = torch.tensor([-1.0, 0.5, 0.50001, 2.0, math.nan])
        got = ra.Jump(ra.GELU(), 0.5)(z)
        assert got[:2].tolist() == [0.0, 0.0] and torch.equal(got[2:4], F.gelu(z[2:4]))
        assert got[4].isnan()

    @pytest.mark.parametrize("inner", [ra.GELU(), ra.Swish(0.5), ra.HardSwish(), ra.Softplus()])
    @pytest.mark.parametrize("kernel", ["sigmoid", "rectangle"])
    def test_its_backward_pass_holds_the_jump(self, inner, kernel) -> None:
        made = ra.Jump(inner, 0.8)
        z = torch.linspace(-9, 9, 360001, dtype=torch.float64)
        rise = torch.trapezoid(slope(made.surrogate(16.0, kernel), z), z)
        assert float(rise) == pytest.approx(float(made(z[-1:])), rel=0.01)
        plain = torch.trapezoid(slope(made, z), z)
        assert float(rise - plain) == pytest.approx(made.height, rel=0.05)
        assert torch.equal(made.surrogate(16.0, kernel)(z), made(z))

    def test_without_a_height_there_is_no_kernel(self) -> None:
        z = torch.linspace(-3, 3, 600)
        made = ra.Jump(ra.GELU(), 0.0)
        assert torch.allclose(slope(made.surrogate(8.0), z), slope(made, z), atol=1e-6)

    def test_a_jump_of_a_jump_is_refused(self) -> None:
        with pytest.raises(SpecError, match=r"without a jump such as GELU\(\), got JumpReLU"):
            ra.Jump(ra.JumpReLU(1.0), 0.5)


class TestClampedRange:
    def made(self, slack: float = 0.0) -> ra.ClampedRange:
        ends = torch.tensor([-1.0, 0.0]), torch.tensor([2.0, 4.0])
        seen = Moments(torch.zeros(2), torch.ones(2), *ends, 9)
        return ra.ClampedRange(slack).measured({"relu": seen})

    def test_values_by_hand(self) -> None:
        z = torch.tensor([[3.0, 3.0], [-5.0, 9.0], [1.0, -1.0]])
        assert self.made().at(SITE)(z).tolist() == [[2.0, 3.0], [0.0, 4.0], [1.0, 0.0]]
        assert self.made(0.5).at(SITE)(z).tolist() == [[3.0, 3.0], [0.0, 6.0], [1.0, 0.0]]
        assert self.made(9.0).at(CAPPED)(z + 9)[0].tolist() == [6.0, 6.0]

    def test_data_that_were_measured_stay_as_they_are(self) -> None:
        net, train = ra.load("digits-cnn"), ra.data("digits/train[:200]")
        hard = ra.retrofit(net, ra.calibrate(net, ra.ClampedRange, train))
        with torch.no_grad():
            assert torch.allclose(hard(train.images), net(train.images), atol=1e-5)
            far = 1.0 - train.images
            assert not torch.allclose(hard(far), net(far), atol=0.1)

    def test_without_a_file_it_is_the_network(self) -> None:
        assert ra.ClampedRange(0.3).at(CAPPED) == ra.ReLU(6.0)
        with pytest.raises(SpecError, match=r"that of 'act' \(gelu\) is no ReLU"):
            self.made().at(GELU)


class TestWhatDraws:
    def test_noise_by_its_moments(self) -> None:
        torch.manual_seed(0)
        z = torch.full((200_000,), 5.0)
        drawn = ra.NoisyReLU(0.5)(z)
        assert float(drawn.mean()) == pytest.approx(5.0, abs=0.01)
        assert float(drawn.std()) == pytest.approx(0.5, rel=0.01)
        assert not torch.equal(drawn, ra.NoisyReLU(0.5)(z))
        assert torch.equal(ra.NoisyReLU(0.0)(-z), torch.zeros_like(z))
        assert ra.NoisyReLU(0.2).at(CAPPED) == ra.NoisyReLU(0.2, 6.0)

    def test_pruning_keeps_the_mean_and_what_it_says(self) -> None:
        torch.manual_seed(0)
        row = torch.tensor([4.0, 2.0, 1.0, 1.0, -3.0, 0.0])
        drawn = ra.StochasticPruning(0.5)(row.expand(100_000, 6))  # three draws of six
        assert torch.allclose(drawn.mean(0), F.relu(row), atol=0.03)
        kept = (drawn != 0).float().mean(0)
        p = F.relu(row) / 8.0
        assert torch.allclose(kept, 1 - (1 - p) ** 3, atol=0.01)
        assert (drawn != 0).sum(1).max() <= 3

    def test_many_draws_are_the_network(self) -> None:
        z = torch.rand(20, 8) + 0.5
        assert torch.allclose(ra.StochasticPruning(50.0)(z), F.relu(z), atol=1e-4)
        assert not ra.StochasticPruning(1.0)(torch.zeros(3, 4)).any()

    def test_an_audit_notices_that_they_draw(self, brief: None) -> None:
        net = ra.load("digits-cnn")
        hard = ra.retrofit(net, ra.NoisyReLU(0.3))
        made = ra.audit(net, hard, "digits[:30]", ra.Linf(0.1), battery="quick", draws=4)
        assert tuple(made.numbers().pedigree.draws) == (0, 4) and made.verdict.effect != "GENUINE"


class TestLWTA:
    def test_the_largest_of_a_block_answers(self) -> None:
        z = torch.tensor([[1.0, 3.0, -2.0, -1.0], [2.0, 2.0, 0.0, 5.0]])
        assert ra.LWTA(2)(z).tolist() == [[0.0, 3.0, 0.0, -1.0], [2.0, 2.0, 0.0, 5.0]]
        images = z[:, :, None, None].expand(2, 4, 3, 3)
        assert torch.equal(ra.LWTA(2)(images)[..., 1, 2], ra.LWTA(2)(z))
        with pytest.raises(ValueError, match="expected a multiple of 3 channels on axis 1"):
            ra.LWTA(3)(z)

    def test_by_chance_it_wins_as_often_as_a_softmax_says(self) -> None:
        torch.manual_seed(0)
        z = torch.tensor([1.0, 2.0, 0.5]).expand(50_000, 3)
        wins = (ra.LWTA(3, draws=True)(z) != 0).float().mean(0)
        assert torch.allclose(wins, torch.softmax(z[0], 0), atol=0.01)
        assert not ra.LWTA(3, draws=True).jump and ra.LWTA(3).jump

    @pytest.mark.parametrize("kernel", ["sigmoid", "rectangle"])
    def test_its_backward_pass_sees_who_might_win(self, kernel) -> None:
        z = torch.tensor([[1.0, 1.05], [1.0, 9.0]])
        got = slope(ra.LWTA(2).surrogate(8.0, kernel), z)
        assert got[0, 0] > 0.3 and got[1, 0].abs() < 0.01
        assert float(got[1, 1]) == pytest.approx(1.0, abs=1e-3)
        assert torch.equal(ra.LWTA(2).surrogate(8.0, kernel)(z), ra.LWTA(2)(z))


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu6(self.b(F.gelu(self.a(x)))))


class TestByKind:
    def test_each_kind_gets_its_own(self) -> None:
        net, x = Both(), 20 * torch.randn(9, 4)
        made = ra.retrofit(net, "ByKind(('gelu', 'relu6'), (ReLU(), ReLU()))", example=x)
        assert torch.allclose(made(x), net.c(F.relu(net.b(F.relu(net.a(x))))), atol=1e-5)
        half = ra.retrofit(net, ra.ByKind(("gelu",), (ra.HardSwish(),)), example=x)
        assert torch.allclose(half(x), net.c(F.relu6(net.b(F.hardswish(net.a(x))))), atol=1e-5)

    def test_a_jump_in_one_of_them_has_its_kernel(self) -> None:
        made = ra.ByKind(("gelu", "silu"), (ra.Jump(ra.GELU(), 0.3), ra.ReLU()))
        assert made.jump and made.surrogate(8.0).at(GELU) == ra.Jump(ra.GELU(), 0.3).surrogate(8.0)
        assert made.at(CAPPED) == ra.ReLU(6.0), "a ReLU that none is named for stays"

    def test_a_kind_that_is_not_there_is_said(self) -> None:
        plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
        capped = nn.Sequential(nn.Linear(4, 5), nn.ReLU6(), nn.Linear(5, 3))
        with pytest.raises(NoSitesError, match="is for relu6, and no chosen site is one"):
            ra.retrofit(plain, ra.ByKind(("relu6",), (ra.ReLU(),)), example=torch.randn(2, 4))
        for kind in ("relu", "relu6"):  # a ReLU6 is both
            ra.retrofit(capped, ra.ByKind((kind,), (ra.ReLU(),)), example=torch.randn(2, 4))
        with pytest.raises(
            NoSitesError, match="is for silu, and no chosen site is one; the net calls gelu, relu"
        ):
            ra.retrofit(Both(), ra.ByKind(("silu",), (ra.ReLU(),)), example=torch.randn(2, 4))
        with pytest.raises(SpecError, match="expected one activation for each kind"):
            ra.ByKind(("gelu", "silu"), (ra.ReLU(),))
        with pytest.raises(SpecError, match="names none for 'act'"):
            ra.ByKind(("silu",), (ra.ReLU(),)).at(GELU)
