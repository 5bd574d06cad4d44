"""MeanSparse and Polynomial: what they compute, and the numbers that are measured for them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.activations.mean_sparse import ChannelSparse, MeanSparse
from retroact.activations.measured import Moments
from retroact.activations.piecewise import ReLU
from retroact.activations.polynomial import PHI_0, Polynomial
from retroact.activations.ramp import RELU, Ramp
from retroact.activations.site import Site
from retroact.spec import SpecError, parse, show

SITE = Site("relu")


def slope(activation, z: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(activation(z).sum(), z)
    return g


def moments(mean: Tensor, variance: Tensor, count: int) -> Moments:
    """Of channels whose range nobody asks for."""
    return Moments(mean, variance, mean, mean, count)


def sparse(mean: float, std: float, alpha: float, own: Ramp = RELU) -> ChannelSparse:
    numbers = (torch.tensor([v], dtype=torch.float64) for v in (mean, std))
    return ChannelSparse(*numbers, alpha, own)


@pytest.fixture(scope="module")
def train() -> ra.Images:
    return ra.data("digits/train[:300]")


class TestMeanSparse:
    def test_values_by_hand(self) -> None:
        seen = moments(torch.tensor([1.0, -1.0]), torch.tensor([4.0, 0.25]), 10)
        made = MeanSparse(0.5).measured({"relu": seen}).at(SITE)  # within 1 of 1, 0.25 of -1
        z = torch.tensor([[0.0, -1.2], [0.1, -0.9], [1.9, -0.75], [2.0, 0.5], [-3.0, 2.0]])
        expected = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.5], [0.0, 2.0]]
        assert made(z).tolist() == expected
        assert made(z.view(5, 2, 1, 1)).flatten(1).tolist() == expected
        assert made(z.view(5, 1, 1, 2)).flatten(1).tolist() == expected
        with pytest.raises(ValueError, match="2 means, but the activation's input has shape"):
            made(torch.zeros(2, 3))

    def test_it_keeps_what_the_site_computes(self) -> None:
        made = MeanSparse(0.5).measured({"relu": moments(torch.ones(1) * 5, torch.ones(1) * 4, 9)})
        capped = made.at(Site("relu", own=Ramp(cap=6.0)))
        assert capped(torch.tensor([[4.5], [5.9], [6.5], [-1.0]])).flatten().tolist() == [
            5.0,
            5.0,
            6.0,
            0.0,
        ]
        with pytest.raises(SpecError, match=r"that of 'gelu' \(gelu\) is no ReLU"):
            made.at(Site("gelu", own=None, kind="gelu"))

    def test_at_alpha_zero_nothing_changes(self) -> None:
        z = torch.randn(50, 3)
        made = MeanSparse(0.0).measured({"relu": moments(torch.zeros(3), torch.ones(3), 9)})
        assert torch.equal(made.at(SITE)(z), F.relu(z))
        assert MeanSparse(0.0).at(SITE) == ReLU() and not MeanSparse(0.0).jump

    @pytest.mark.parametrize("kernel", ["sigmoid", "rectangle"])
    # the window above the kink, around it, across it from below, and beneath it
    @pytest.mark.parametrize("mean", [3.0, 0.3, -0.3, -3.0])
    def test_either_jump_holds_its_height(self, kernel, mean: float) -> None:
        made, half = sparse(mean, 2.0, 0.5), 1.0
        z = torch.linspace(-9, 9, 360001, dtype=torch.float64)[:, None]
        rise = slope(made.surrogate(16.0, kernel), z).flatten()
        z = z.flatten()
        # all told it rises as the function does, from 0 to 9
        assert torch.trapezoid(rise, z).item() == pytest.approx(9.0, abs=0.02)
        for end, above, below in (
            (mean - half, mean, mean - half),
            (mean + half, mean + half, mean),
        ):
            near = (z - end).abs() < 0.45
            beside = slope(sparse(99.0, 2.0, 0.5), z[near][:, None]).flatten()
            outside = (z[near] - mean).abs() >= half
            ramp = torch.trapezoid(beside * outside, z[near]).item()
            height = max(above, 0.0) - max(below, 0.0)
            mass = torch.trapezoid(rise[near], z[near]).item() - ramp
            assert mass == pytest.approx(height, abs=0.03), end

    def test_autograd_alone_sees_neither(self) -> None:
        z = torch.tensor([[1.5], [2.5], [3.0], [3.5], [4.5]], dtype=torch.float64)
        assert slope(sparse(3.0, 2.0, 0.5), z).flatten().tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
        narrow = slope(sparse(3.0, 2.0, 0.5).surrogate(4.0, "rectangle"), z + 0.5).flatten()
        assert narrow.tolist() == [5.0, 0.0, 0.0, 5.0, 1.0], "1 beside them, 4 at each end"

    def test_each_channel_has_the_bandwidth_of_its_own_jump(self) -> None:
        two = ChannelSparse(torch.tensor([5.0, 5.0]), torch.tensor([1.0, 4.0]), 0.5, RELU)
        z = torch.tensor([[4.51, 3.04], [4.45, 2.8]])  # as near to the window's end, in σ
        got = slope(two.surrogate(8.0), z)
        assert torch.allclose(got[:, 0], got[:, 1], atol=1e-3) and got[0, 0] > 1.5

    def test_a_channel_that_never_moved(self) -> None:
        z = torch.tensor([[0.7], [0.0], [-0.7]], dtype=torch.float64)
        still = sparse(0.7, 0.0, 0.2).surrogate(8.0)
        assert torch.equal(still(z), F.relu(z)) and slope(still, z).isfinite().all()

    @pytest.mark.parametrize("kernel", ["sigmoid", "rectangle"])
    def test_a_surrogate_has_the_same_bits(self, kernel) -> None:
        z = torch.randn(500, 1, dtype=torch.float64)
        made = sparse(0.1, 1.0, 0.3)
        assert torch.equal(made.surrogate(3.0, kernel)(z), made(z))

    def test_without_numbers_it_says_how_to_measure_them(self) -> None:
        with pytest.raises(ValueError, match=r"MeanSparse\(alpha=0.2\) has no means yet: ra.calib"):
            ra.retrofit("digits-cnn", MeanSparse)
        with pytest.raises(TypeError, match="differs from site to site"):
            MeanSparse(0.2)(torch.zeros(2, 2))


class TestPolynomial:
    @pytest.mark.parametrize("s", [0.5, 1.0, 3.0])
    def test_no_parabola_is_nearer_to_relu(self, s: float) -> None:
        z = torch.linspace(-9 * s, 9 * s, 40001, dtype=torch.float64)
        weight = torch.exp(-0.5 * (z / s) ** 2)
        powers = torch.stack([z**2, z, torch.ones_like(z)], 1)
        w = weight.sqrt()[:, None]
        best = torch.linalg.lstsq(powers * w, F.relu(z)[:, None] * w).solution.flatten()
        expected = [PHI_0 / (2 * s), 0.5, PHI_0 * s / 2]
        assert best.tolist() == pytest.approx(expected, abs=1e-6)
        assert torch.allclose(Polynomial(s)(z), powers @ best, rtol=1e-5, atol=1e-5)

        def error(parabola: Tensor) -> float:
            return float((weight * (powers @ parabola - F.relu(z)) ** 2).sum())

        for i in range(3):
            for change in (-0.01, 0.01):
                other = best.clone()
                other[i] += change
                assert error(other) > error(best)

    def test_at_zero_it_is_half_the_density_times_s(self) -> None:
        assert Polynomial(2.0)(torch.tensor(0.0)).item() == pytest.approx(
            1 / math.sqrt(2 * math.pi)
        )
        assert Polynomial(1.0).neutral is None and not Polynomial(1.0).jump

    def test_it_has_one_width_or_a_file(self) -> None:
        with pytest.raises(SpecError, match="give it or a file, not both"):
            Polynomial(1.0, "p.safetensors", "0" * 64)
        with pytest.raises(TypeError, match="differs from site to site"):
            Polynomial()(torch.zeros(3))
        with pytest.raises(ValueError, match=r"Polynomial\(\) has no width yet"):
            Polynomial().at(SITE)

    def test_its_width_is_the_root_mean_square(self) -> None:
        seen = moments(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 16.0]), 9)
        made = Polynomial().measured({"relu": seen}).at(SITE)
        assert isinstance(made, Polynomial) and made.s == pytest.approx(math.sqrt(12.5))


class Toy(nn.Module):
    """Two channels, 2 x and x - 1; then three of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 1), nn.Linear(2, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([2.0, 1.0]).view(2, 1, 1, 1))
            self.conv.bias.copy_(torch.tensor([0.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x)).mean((2, 3))
        return self.fc(F.relu(h))


class TestCalibrate:
    @pytest.mark.parametrize("chunk", [1, 3, 7, None])
    def test_means_and_pooled_variances_of_a_toy(self, chunk) -> None:
        x = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        # batches that differ, so that a mean of their variances would be another number
        x[10:] *= 0.1
        net = ra.Classifier(Toy(), 0.0, 1.0, shape=(1, 4, 4)).eval()
        data = ra.Images.of(x, torch.zeros(20, dtype=torch.int64))
        made = ra.calibrate(net, MeanSparse(0.3), data, chunk=chunk)
        first, second = (made.kept.tensor(site) for site in ("relu()", "relu()#2"))
        flat = x.double().flatten()
        expected = [[2 * flat.mean(), flat.mean() - 1], [2 * flat.std(correction=0)]]
        assert first[0].tolist() == pytest.approx([float(v) for v in expected[0]], rel=1e-6)
        assert first[1, 0].item() == pytest.approx(float(expected[1][0]), rel=1e-6)
        assert first[1, 1].item() == pytest.approx(0.5 * float(expected[1][0]), rel=1e-5)
        assert second.shape == (2, 2) and second[0, 1] == 0.0, "relu(x - 1) is 0"
        assert made.alpha == 0.3 and parse(show(made)) == made

    def test_the_net_stays_as_it_is_and_training_goes_on(self, train) -> None:
        net = ra.load("digits-cnn").train()
        before = net(train.images[:3].clone()), dict(net.state_dict())
        ra.calibrate(net, "MeanSparse(0.1)", train)
        assert net.training and torch.equal(
            net.state_dict()["module.conv1.weight"], before[1]["module.conv1.weight"]
        )
        assert ra.sites(net), "nothing is installed in it"

    def test_the_file_is_named_by_its_hash_and_travels_with_the_network(
        self, train, tmp_path, monkeypatch
    ) -> None:
        file = tmp_path / "means.safetensors"
        made = ra.calibrate("digits-cnn", MeanSparse, train, file=file)
        assert made == MeanSparse(0.2, str(file), made.sha256) and len(made.sha256) == 64
        assert made == MeanSparse(0.2, str(file)), "the hash is settled"
        again = ra.calibrate("digits-cnn", MeanSparse, train)
        assert again.file == "measured" and again.sha256 == made.sha256, "the same numbers"
        hard = ra.retrofit("digits-cnn", made)
        saved, expected = ra.save(hard, tmp_path / "hard.safetensors"), hard(train.images[:20])
        file.unlink()
        monkeypatch.setattr("retroact.activations.files._EMBEDDED", {})
        with pytest.raises(FileNotFoundError, match="put it back"):
            made.at(SITE)
        assert torch.equal(ra.load(saved)(train.images[:20]), expected)
        file.write_bytes(b"other")
        monkeypatch.setattr("retroact.activations.files._EMBEDDED", {})
        with pytest.raises(SpecError, match="these are other means"):
            made.at(SITE)

    def test_it_changes_what_the_network_computes(self, train) -> None:
        net, x = ra.load("digits-cnn"), train.images[:50]
        for spec in ("MeanSparse(0.2)", "Polynomial"):
            made = ra.retrofit(net, ra.calibrate(net, spec, train))
            assert not torch.allclose(made(x), net(x), atol=1e-3)
            agree = (made(x).argmax(1) == net(x).argmax(1)).float().mean()
            assert agree > 0.8, f"{spec} is near to the network"

    def test_a_net_that_does_not_trace(self) -> None:
        class Modal(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(16, 3)

            def forward(self, x: Tensor) -> Tensor:
                h = self.fc(x.flatten(1))
                return torch.relu(h) if float(h.detach().sum()) < 1e9 else h

        x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        module = Modal().eval()
        data = ra.Images.of(x, torch.zeros(30, dtype=torch.int64))
        made = ra.calibrate(module, MeanSparse(0.3), data)
        z = module.fc(x.flatten(1)).detach().double()
        mean, std = made.numbers_at("relu()")
        assert torch.allclose(mean, z.mean(0).float(), atol=1e-6)
        assert torch.allclose(std, z.std(0, correction=0).float(), atol=1e-6)
        near = (z.float() - mean).abs() < 0.3 * std
        expected = torch.where(near, mean, z.float()).relu()
        hard = ra.retrofit(module, made, example=x[:2])
        assert near.any() and torch.allclose(hard(x), expected, atol=1e-6)

    def test_of_one_site_alone(self, train) -> None:
        net = ra.load("digits-cnn")
        made = ra.calibrate(net, MeanSparse(0.2), train)
        assert len(ra.left_alone(ra.retrofit(net, made, sites="0"))) == 1

    def test_what_it_refuses(self, train) -> None:
        with pytest.raises(ValueError, match=r"is test data, on which nothing is measured"):
            ra.calibrate("digits-cnn", MeanSparse, "digits[:20]")
        with pytest.raises(
            SpecError, match=r"JumpReLU\(kappa=1.0\) needs no numbers.*MeanSparse, Po"
        ):
            ra.calibrate("digits-cnn", "JumpReLU(1.0)", train)
        hard = ra.retrofit("digits-cnn", "JumpReLU(1.0)")
        with pytest.raises(ValueError, match="the net already carries"):
            ra.calibrate(hard, MeanSparse, train)
        other = ra.calibrate("digits-cnn", MeanSparse, train)
        with pytest.raises(
            KeyError, match=r"has no means for site 'fc2_relu', only for conv1_relu"
        ):
            ra.retrofit("lenet-mnist", other)

    def test_an_audit_tries_its_kernels(self, train) -> None:
        made = ra.calibrate("digits-cnn", MeanSparse(0.3), train)
        digits = ra.data("digits/validation[:60]")
        audit = ra.audit("digits-cnn", made, digits, "Linf(0.1)", battery="quick")
        assert any(a.kernel.startswith("sigmoid kernel") for a in audit.after.attacks)
        assert audit.after.kernel and audit.before.kernel == ""


def test_an_activation_of_ones_own_is_measured(train) -> None:
    from retroact.activations.measured import Measured
    from retroact.spec import spec

    @spec
    class Centred(Measured):
        """max(0, z - μ), one μ per site."""

        file: str = ""
        sha256: str = ""
        what = "centre"

        def numbers(self, seen: Moments) -> Tensor:
            return seen.mean.mean()[None]

        def at(self, site: Site) -> nn.Module:
            return _Minus(self.numbers_at(site.name))

        def __call__(self, z: Tensor) -> Tensor:
            raise TypeError("differs from site to site")

    made = ra.calibrate("digits-cnn", Centred, train)
    hard = ra.retrofit("digits-cnn", made)
    assert not torch.allclose(hard(train.images[:9]), ra.load("digits-cnn")(train.images[:9]))


class _Minus(nn.Module):
    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, z: Tensor) -> Tensor:
        return F.relu(z - self.mean.to(z))
