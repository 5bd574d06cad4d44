"""The formulas, their laws, and the smoothed backward."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retroact.retrofitting.activations import (
    CELU,
    BoundedReLU,
    ChannelShift,
    JumpReLU,
    PerSite,
    Ramp,
    ReLU,
    ShiftedReLU,
    Sigmoid,
    Softplus,
    Softsign,
    SReLU,
    Surrogate,
    Swish,
    Tanh,
    is_activation,
    smoothed_slope,
    write_shifts,
)
from retroact.retrofitting.sites import Site
from retroact.spec import SpecError, key, parse, show

Z = torch.tensor(
    [-math.inf, -3.0, -0.5, -0.0, 0.0, 0.25, 0.5, 0.75, 5.0, 6.0, 7.0, math.inf, math.nan]
)

numbers = st.floats(0.0, 1e6)
positive = st.floats(1e-6, 1e6)
caps = st.one_of(st.just(math.inf), positive)
piecewise = st.one_of(
    st.builds(ReLU, caps),
    st.builds(JumpReLU, numbers, caps),
    st.builds(SReLU, positive, caps),
    st.builds(BoundedReLU, caps),
    st.just(ShiftedReLU()),
)
smooth = st.one_of(
    st.builds(Swish, positive),
    st.builds(CELU, positive),
    st.sampled_from([Sigmoid(), Tanh(), Softsign(), Softplus()]),
)
kernels = st.sampled_from(["sigmoid", "rectangle"])
single = st.one_of(piecewise, smooth, st.builds(Surrogate, piecewise, positive, kernels))
activations = st.one_of(
    single, st.lists(single, min_size=1, max_size=4).map(lambda a: PerSite(tuple(a)))
)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


class TestLaws:
    @given(activations)
    def test_reads_back_from_its_print_with_the_same_key(self, activation) -> None:
        again = parse(show(activation))
        assert again == activation
        assert key(again) == key(activation)
        assert pickle.loads(pickle.dumps(activation)) == activation
        assert is_activation(activation)

    @given(piecewise, caps)
    def test_the_neutral_value_is_the_sites_own_activation_bit_for_bit(
        self, activation, cap: float
    ) -> None:
        site = Site("relu", own=ReLU(cap))
        assert same_bits(activation.neutral.at(site)(Z), ReLU(cap)(Z))

    @given(single.filter(lambda a: a.neutral is not None))
    def test_the_neutral_value_is_its_own_neutral_value(self, activation) -> None:
        assert activation.neutral.neutral == activation.neutral
        assert not activation.neutral.jump

    @given(piecewise, positive, kernels)
    def test_a_surrogate_has_the_same_bits(self, activation, beta: float, kernel: str) -> None:
        assert same_bits(activation.surrogate(beta, kernel)(Z), activation(Z))

    @given(single)
    def test_a_nan_is_never_hidden(self, activation) -> None:
        assert activation(torch.tensor(math.nan)).isnan()

    @given(piecewise)
    def test_the_ramp_is_the_function(self, activation) -> None:
        alpha, kappa, cap = activation.ramp
        z = torch.linspace(-5, 5, 101, dtype=torch.float64)
        expected = (alpha * z * (z > kappa) * (z > 0)).clamp(max=cap)
        assert torch.allclose(activation(z), expected, rtol=1e-6, atol=0)


class TestFormulas:
    def test_at_kappa_the_jump_gives_zero(self) -> None:
        assert JumpReLU(0.5)(Z).tolist()[1:10] == [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75, 5.0, 6.0]

    def test_a_slope_is_capped_after_it_is_applied(self) -> None:
        assert SReLU(10.0, cap=6.0)(torch.tensor([0.1, 0.5, 1.0])).tolist() == [1.0, 5.0, 6.0]

    def test_swish_at_one_half_is_silu(self) -> None:
        z = torch.linspace(-4, 4, 33)
        assert torch.allclose(Swish(0.5)(z), torch.nn.functional.silu(z))

    @pytest.mark.parametrize(
        ("activation", "at_one"),
        [
            (Sigmoid(), 1 / (1 + math.exp(-1))),
            (Tanh(), math.tanh(1)),
            (Softsign(), 0.5),
            (Softplus(), math.log1p(math.e)),
            (CELU(2.0), 1.0),
            (Swish(2.0), 1 / (1 + math.exp(-4))),
        ],
    )
    def test_smooth_ones(self, activation, at_one: float) -> None:
        assert activation(torch.tensor(1.0)).item() == pytest.approx(at_one)
        assert activation.neutral is None
        assert activation.surrogate(3.0) is activation

    def test_at_a_capped_site_the_smaller_cap_holds(self) -> None:
        site = Site("relu6", own=ReLU(6.0))
        assert JumpReLU(1.0).at(site) == JumpReLU(1.0, cap=6.0)
        assert SReLU(2.0, cap=3.0).at(site) == SReLU(2.0, cap=3.0)
        assert BoundedReLU(9.0).at(site) == BoundedReLU(6.0)
        assert JumpReLU(1.0).surrogate(4.0).at(site) == Surrogate(JumpReLU(1.0, cap=6.0), 4.0)


class TestRefusals:
    @pytest.mark.parametrize("kappa", [-0.1, math.nan, math.inf, "x", True, 1e39])
    def test_kappa(self, kappa) -> None:
        with pytest.raises(SpecError, match=r"JumpReLU\.kappa: expected"):
            JumpReLU(kappa)

    @pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
    def test_alpha(self, alpha) -> None:
        with pytest.raises(SpecError, match=r"SReLU\.alpha: expected"):
            SReLU(alpha)

    def test_a_surrogate_of_a_smooth_one(self) -> None:
        with pytest.raises(SpecError, match="expected a piecewise activation"):
            Surrogate(Tanh(), 2.0)

    @pytest.mark.parametrize("given", [(), (3,), (JumpReLU(1.0), "PGD")])
    def test_per_site_of_something_else(self, given) -> None:
        with pytest.raises(SpecError, match=r"PerSite.activations.*expected (one|an) activation"):
            PerSite(given)

    def test_per_site_is_no_function(self) -> None:
        with pytest.raises(TypeError, match="differs from site to site"):
            PerSite((ReLU(),))(Z)


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


class TestShifts:
    def test_the_file_is_named_by_its_hash(self, tmp_path) -> None:
        made = write_shifts(tmp_path / "b.safetensors", {"relu": torch.tensor([1.0, -1.0])})
        assert len(made.sha256) == 64
        assert parse(show(made)) == made
        shift = made.at(Site("relu", own=ReLU(6.0)))
        assert isinstance(shift, ChannelShift)
        z = torch.tensor([[0.5, 0.5], [8.0, 8.0]])
        assert shift(z).tolist() == [[1.5, 0.0], [6.0, 6.0]]
        assert shift(z.view(2, 2, 1, 1)).flatten().tolist() == [1.5, 0.0, 6.0, 6.0]
        assert shift(z.view(2, 1, 1, 2)).flatten().tolist() == [1.5, 0.0, 6.0, 6.0]
        with pytest.raises(ValueError, match="2 shifts, but the activation's input has shape"):
            shift(torch.zeros(2, 3))

    def test_another_file_of_the_same_name_is_refused(self, tmp_path) -> None:
        file = tmp_path / "b.safetensors"
        made = write_shifts(file, {"relu": torch.tensor([1.0])})
        write_shifts(file, {"relu": torch.tensor([2.0])})
        with pytest.raises(SpecError, match="these are other shifts"):
            made.at(Site("relu"))
        with pytest.raises(SpecError, match="these are other shifts"):
            ShiftedReLU(str(file), made.sha256)

    def test_a_file_that_is_not_there(self, tmp_path) -> None:
        with pytest.raises(SpecError, match="no file"):
            ShiftedReLU(str(tmp_path / "none.safetensors"))
        later = ShiftedReLU(str(tmp_path / "none.safetensors"), "0" * 64)
        with pytest.raises(FileNotFoundError, match="put it back"):
            later.at(Site("relu"))

    def test_shifts_that_are_no_numbers(self, tmp_path) -> None:
        with pytest.raises(ValueError, match="expected finite shifts"):
            write_shifts(tmp_path / "b.safetensors", {"relu": torch.tensor([math.nan])})
        assert not (tmp_path / "b.safetensors").exists()
