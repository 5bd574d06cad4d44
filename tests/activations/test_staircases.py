"""QuantizedReLU and KWTA: jumps, how they are smoothed, and what else has one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import retroact as ra
from retroact.activations.kwta import KWTA
from retroact.activations.piecewise import JumpReLU
from retroact.activations.quantized import QuantizedReLU
from retroact.activations.ramp import Ramp
from retroact.activations.site import Site
from retroact.activations.surrogate import Surrogate

KERNELS = [
    (kernel, beta)
    for kernel, betas in (("sigmoid", (2.0, 8.0, 30.0)), ("rectangle", (0.5, 1.0, 2.0)))
    for beta in betas
]


def slope(activation, z: Tensor) -> Tensor:
    """What the backward pass gives at z, each entry alone."""
    z = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(activation(z).sum(), z)
    return g


class TestQuantizedReLU:
    def test_values_by_hand(self) -> None:
        # two bits up to 3: the whole numbers 0 to 3
        z = torch.tensor([-9.0, 0.49, 0.51, 1.2, 1.8, 2.49, 2.51, 3.0, 99.0])
        out = QuantizedReLU(2, 3.0)(z)
        assert out.tolist() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0]
        assert QuantizedReLU(1, 0.5)(z).tolist() == [0.0, *[0.5] * 8]

    def test_it_has_so_many_values(self) -> None:
        z = torch.linspace(-1, 3, 10001)
        for bits in (1, 3, 5):
            assert len(QuantizedReLU(bits, 2.0)(z).unique()) == 2**bits

    def test_many_bits_are_a_bounded_relu(self) -> None:
        z, cap = torch.linspace(-1, 3, 1001), 2.0
        gap = (QuantizedReLU(12, cap)(z) - ra.BoundedReLU(cap)(z)).abs().max()
        assert 0 < gap <= 0.5 * cap / 4095 + 1e-6

    def test_its_own_derivative_is_zero(self) -> None:
        assert not slope(QuantizedReLU(3, 2.0), torch.linspace(-1, 3, 1001)).any()

    def test_at_a_capped_site_the_smaller_cap_holds(self) -> None:
        site = Site("relu6", own=Ramp(cap=6.0))
        assert QuantizedReLU(3, 9.0).at(site) == QuantizedReLU(3, 6.0)
        assert QuantizedReLU(3, 2.0).surrogate(4.0).at(site) == QuantizedReLU(3, 2.0).surrogate(4.0)

    @pytest.mark.parametrize(("kernel", "beta"), KERNELS)
    def test_each_jump_holds_its_height(self, kernel, beta: float) -> None:
        staircase = QuantizedReLU(2, 1.5)  # jumps of 0.5 at 0.25, 0.75, 1.25
        z = torch.linspace(-8, 8, 640001, dtype=torch.float64)
        rise = slope(staircase.surrogate(beta, kernel), z)
        assert torch.trapezoid(rise, z).item() == pytest.approx(1.5, abs=2e-4)
        if beta >= 8.0:  # narrow enough to be told apart
            for i in range(3):
                near = (z >= 0.5 * i) & (z <= 0.5 * (i + 1))
                mass = torch.trapezoid(rise[near], z[near]).item()
                assert mass == pytest.approx(0.5, abs=0.02), i

    def test_the_kernel_stands_at_each_jump(self) -> None:
        staircase = QuantizedReLU(2, 3.0)
        z = torch.tensor([0.0, 0.2, 0.3, 0.5, 0.7, 0.8, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])
        expected = [0, 0, 2, 2, 2, 0, 0, 2, 0, 2, 0, 0]
        assert slope(staircase.surrogate(2.0, "rectangle"), z).tolist() == expected

    def test_kernels_that_touch_are_straight_through(self) -> None:
        z = torch.linspace(-1.003, 3.003, 1001)
        through = ((z > 0) & (z < 2)).float()
        for bits in (1, 3, 8):
            got = slope(QuantizedReLU(bits, 2.0).surrogate(1.0, "rectangle"), z)
            # a boundary between two steps may belong to either
            assert (got != through).float().mean() < 0.01
        wide = slope(QuantizedReLU(5, 2.0).surrogate(2.0), z[(z > 0.4) & (z < 1.6)])
        assert torch.allclose(wide, torch.ones_like(wide), atol=3e-3)

    def test_the_sums_of_many_kernels_leave_out_none_that_counts(self) -> None:
        staircase, z = QuantizedReLU(6, 2.0), torch.linspace(-1, 3, 501, dtype=torch.float64)
        for beta in (0.7, 3.0, 20.0):
            s = torch.sigmoid(beta * (z[:, None] / staircase.step - torch.arange(63) - 0.5))
            every = (beta * s * (1 - s)).sum(1)
            assert torch.allclose(staircase.slope(z, beta, "sigmoid"), every, atol=2e-6)

    def test_its_bandwidth_is_that_of_its_jumps(self) -> None:
        staircase = QuantizedReLU(2, 3.0)
        assert staircase.smoothed(8.0) == Surrogate(staircase, 8.0)
        assert staircase.jump and staircase.neutral is None

    @pytest.mark.parametrize("bits", [0, 17, 2.5, "x"])
    def test_bits(self, bits) -> None:
        with pytest.raises(ra.spec.SpecError, match=r"QuantizedReLU\.bits: expected"):
            QuantizedReLU(bits)


class TestKWTA:
    def test_the_largest_stay(self) -> None:
        z = torch.tensor([[3.0, -1.0, 2.0, 0.5, -9.0], [-5.0, -4.0, -3.0, -2.0, -1.0]])
        expected = [[3.0, 0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0, -1.0]]
        assert KWTA(0.4)(z).tolist() == expected
        assert KWTA(0.01)(z).tolist() == [[3.0, 0, 0, 0, 0], [0, 0, 0, 0, -1.0]], "at least one"
        assert torch.equal(KWTA(1.0)(z), z)

    @pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
    def test_it_keeps_k_of_each_example(self, share: float) -> None:
        z = torch.randn(7, 4, 5, 5, generator=torch.Generator().manual_seed(0))
        out = KWTA(share)(z)
        assert (out != 0).flatten(1).sum(1).tolist() == [int(share * 100)] * 7
        assert torch.equal(out[out != 0], z[out != 0])
        kept, dropped = (
            z.masked_fill((out != 0) == side, fill) for side, fill in ((False, 99.0), (True, -99.0))
        )
        assert (kept.flatten(1).amin(1) > dropped.flatten(1).amax(1)).all()

    def test_an_example_does_not_depend_on_those_beside_it(self) -> None:
        z = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        assert torch.equal(KWTA(0.2)(z)[2:3], KWTA(0.2)(z[2:3]))

    @pytest.mark.parametrize("kernel", ["sigmoid", "rectangle"])
    def test_it_is_smoothed_as_a_jump_at_the_last_winner(self, kernel) -> None:
        z = torch.randn(2, 100, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        smooth = slope(KWTA(0.2).surrogate(6.0, kernel), z)
        for row, example in zip(smooth, z, strict=True):
            v = float(example.sort(descending=True).values[19])
            jump = JumpReLU(v).surrogate(6.0 / v, kernel)
            same = slope(jump, example)
            apart = example != v  # the winner itself stays, a JumpReLU is 0 at kappa
            assert v > 0 and torch.allclose(row[apart], same[apart])
        assert torch.equal(KWTA(0.2).surrogate(6.0, kernel)(z), KWTA(0.2)(z))
        losers = KWTA(0.2)(z) == 0
        assert (slope(KWTA(0.2), z)[losers] == 0).all()
        assert (smooth[losers] != 0).any(), "a loser near the threshold is seen"

    def test_it_is_smoothed_where_the_last_winner_is_none(self) -> None:
        z = torch.zeros(2, 10)
        assert slope(KWTA(0.3).surrogate(8.0), z).isfinite().all()


@pytest.mark.parametrize("text", ["QuantizedReLU(bits=2, cap=4.0)", "KWTA(share=0.2)"])
def test_an_audit_tries_their_kernels(text: str, brief: None) -> None:
    digits = ra.data("digits/validation[:60]")
    made = ra.audit("digits-cnn", text, digits, "Linf(0.1)", battery="quick")
    assert any(a.kernel.startswith("sigmoid kernel") for a in made.after.attacks)
    assert made.after.kernel and made.before.kernel == ""
    assert made.after.verified.sum() <= made.after.claimed.sum()
