"""The smoothed backward, beside the formulas and the jump that it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.activations.ramp import Ramp
from retroact.activations.surrogate import smoothed_slope


class TestSurrogate:
    z = torch.linspace(-3, 3, 121, dtype=torch.float64)

    def slope(self, activation) -> Tensor:
        z = self.z.clone().requires_grad_()
        (g,) = torch.autograd.grad(activation(z).sum(), z)
        return g

    def test_the_sigmoid_kernel_is_the_derivative_of_the_smooth_step(self) -> None:
        z = self.z.clone().requires_grad_()
        (expected,) = torch.autograd.grad((2.0 * z * torch.sigmoid(8.0 * (z - 0.0))).sum(), z)
        assert torch.allclose(self.slope(SReLU(2.0).surrogate(8.0)), expected, rtol=1e-12)
        z = self.z.clone().requires_grad_()
        (expected,) = torch.autograd.grad((z * torch.sigmoid(8.0 * (z - 1.0))).sum(), z)
        assert torch.allclose(self.slope(JumpReLU(1.0).surrogate(8.0)), expected, rtol=1e-12)

    @pytest.mark.parametrize("kernel", ["sigmoid", "rectangle"])
    @pytest.mark.parametrize("kappa", [0.5, 1.0, 1.5])
    def test_the_spike_holds_the_mass_of_the_jump(self, kernel, kappa: float) -> None:
        z = torch.linspace(-6, 6, 240001, dtype=torch.float64)
        rise = torch.trapezoid(smoothed_slope(z, Ramp(kappa=kappa), 8.0, kernel), z).item()
        # from -6 to 6 the jump itself rises from 0 to 6
        assert rise == pytest.approx(6.0, abs=2e-4)
        blind = torch.trapezoid((z > kappa).double(), z).item()
        assert blind == pytest.approx(6.0 - kappa, abs=2e-4), "autograd's derivative misses kappa"

    def test_the_rectangle_stands_around_kappa(self) -> None:
        z = torch.tensor([0.0, 0.8, 0.95, 1.05, 1.2])
        assert smoothed_slope(z, Ramp(kappa=1.0), 5.0, "rectangle").tolist() == [
            0.0,
            0.0,
            5.0,
            6.0,
            1.0,
        ]

    def test_nothing_beyond_the_cap(self) -> None:
        slope = self.slope(SReLU(4.0, cap=6.0).surrogate(8.0))
        assert (slope[self.z >= 1.5] == 0).all()
        assert (slope[(self.z > 0.5) & (self.z < 1.5)] > 3.5).all()

    def test_a_second_derivative_and_a_batched_one_exist(self) -> None:
        surrogate = JumpReLU(1.0).surrogate(8.0)
        assert torch.autograd.gradcheck(
            lambda z: smoothed_slope(z, Ramp(kappa=1.0), 8.0, "sigmoid"),
            self.z.clone().requires_grad_(),
        )
        jacobian = torch.func.jacrev(surrogate)(self.z)
        assert torch.allclose(jacobian.diagonal(), self.slope(surrogate))
