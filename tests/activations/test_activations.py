"""The formulas, their laws, and the smoothed backward."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retroact.activations.activation import Activation
from retroact.activations.kwta import KWTA
from retroact.activations.mean_sparse import MeanSparse
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import BoundedReLU, JumpReLU, ReLU, SReLU
from retroact.activations.polynomial import Polynomial
from retroact.activations.quantized import QuantizedReLU
from retroact.activations.ramp import Ramp
from retroact.activations.shifted import ShiftedReLU
from retroact.activations.site import Site
from retroact.activations.smooth import CELU, Sigmoid, Softplus, Softsign, Swish, Tanh
from retroact.activations.surrogate import Surrogate
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
jumping = st.one_of(
    st.builds(QuantizedReLU, st.integers(1, 8), positive),
    st.builds(KWTA, st.floats(0.01, 1.0)),
    st.just(MeanSparse(0.0)),
)
single = st.one_of(
    piecewise,
    smooth,
    jumping,
    st.builds(Polynomial, positive),
    st.builds(Surrogate, piecewise | jumping, positive, kernels),
)
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
        assert isinstance(activation, Activation)

    @given(piecewise | st.just(MeanSparse(0.2)), caps)
    def test_the_neutral_value_is_the_sites_own_activation_bit_for_bit(
        self, activation, cap: float
    ) -> None:
        site = Site("relu", own=Ramp(cap=cap))
        assert same_bits(activation.neutral.at(site)(Z), ReLU(cap)(Z))

    @given(single.filter(lambda a: a.neutral is not None))
    def test_the_neutral_value_is_its_own_neutral_value(self, activation) -> None:
        assert activation.neutral.neutral == activation.neutral
        assert not activation.neutral.jump

    @given(piecewise | jumping, positive, kernels)
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

    @given(single, st.floats(1e-3, 1e3))
    def test_a_factor_is_moved_behind_it_or_not_at_all(self, activation, s: float) -> None:
        z = torch.linspace(-5, 5, 101, dtype=torch.float64)
        folded = activation.folded(s)
        inner = activation.activation if isinstance(activation, Surrogate) else activation
        assert (folded is None) == (s != 1.0 and inner.ramp is None)
        if folded is not None:
            assert folded.shift is None
            out = folded.factor * folded.activation(z)
            assert torch.allclose(out, activation(s * z), rtol=1e-6, atol=1e-9)


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
        site = Site("relu6", own=Ramp(cap=6.0))
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
