"""Balls, boxes, steps: bounds hold for every tensor, and the steps are the steepest there are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retroact.crafting.domain import Domain
from retroact.crafting.l1 import L1
from retroact.crafting.threat import L2, Linf, ThreatModel

NORMS = {t.norm: t for t in (Linf, L2, L1)}
BOX = Domain((3, 8, 8))
threats = st.one_of(
    st.builds(Linf, st.floats(1e-4, 1.0)),
    st.builds(L2, st.floats(1e-3, 20.0)),
    st.builds(L1, st.floats(1e-3, 150.0)),
)


def images(n: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def _rounding_of(threat: ThreatModel, x: torch.Tensor) -> float:
    """Each entry is rounded to a float32 in the box, at most half of 2^-24 away."""
    return float(threat.size(torch.full_like(x[:1], 2.0**-25)))


@settings(max_examples=60, deadline=None)
@given(threats, st.integers(0, 99), st.floats(0.0, 30.0))
def test_a_projection_lies_in_ball_and_box_and_stays_put(threat, seed, far):
    centre = images(seed=seed).round(decimals=1)  # with pixels at 0 and at 1
    x = centre + far * torch.randn(centre.shape, generator=torch.Generator().manual_seed(seed))
    pulled = threat.project(x, centre, BOX)
    most = threat.eps * (1 + 1e-5) + _rounding_of(threat, centre)
    assert float(threat.size(pulled - centre).max()) <= most
    assert pulled.min() >= 0 and pulled.max() <= 1
    torch.testing.assert_close(threat.project(pulled, centre, BOX), pulled, rtol=0, atol=1e-6)
    assert torch.equal(threat.project(centre, centre, BOX), centre)


@pytest.mark.parametrize("p", ["linf", "l2", "l1"])
def test_the_steepest_step_beats_every_other_of_unit_length(p):
    g = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    best = (g * NORMS[p].steepest(g)).flatten(1).sum(1)
    for seed in range(20):
        d = torch.randn(g.shape, generator=torch.Generator().manual_seed(seed))
        d = d / NORMS[p].size(d).view(-1, 1, 1, 1)
        assert bool(((g * d).flatten(1).sum(1) <= best + 1e-5).all())
    torch.testing.assert_close(NORMS[p].size(NORMS[p].steepest(g)), torch.ones(8))


@pytest.mark.parametrize("p", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1.0, 1e20, 1e36])
def test_the_step_does_not_depend_on_the_gradients_scale(p, scale):
    g = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        NORMS[p].steepest(g * scale), NORMS[p].steepest(g), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("p", ["linf", "l2", "l1"])
@pytest.mark.parametrize("power", [-100, -63, 0, 63, 100])
def test_the_dual_norm_scales_with_the_gradient(p, power):
    g = torch.randn(4, 1, 50, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(NORMS[p].dual_norm(g * 2.0**power), NORMS[p].dual_norm(g) * 2.0**power)
    exact = g.double().flatten(1).norm(p={"linf": 1, "l2": 2, "l1": float("inf")}[p], dim=1)
    torch.testing.assert_close(NORMS[p].dual_norm(g), exact.float())


@pytest.mark.parametrize("p", ["linf", "l2", "l1"])
def test_a_zero_gradient_gives_a_zero_step(p):
    assert torch.equal(NORMS[p].steepest(torch.zeros(2, 1, 3, 3)), torch.zeros(2, 1, 3, 3))


@settings(max_examples=40, deadline=None)
@given(threats, st.integers(0, 2**31))
def test_a_random_start_is_in_the_ball_and_the_examples_own(threat, seed):
    x, index = images(), torch.arange(16) + 1000
    start = threat.start(x, BOX, index, seed)
    assert float(threat.size(start - x).max()) <= threat.eps * (1 + 1e-5) + _rounding_of(threat, x)
    assert start.min() >= 0 and start.max() <= 1
    assert torch.equal(threat.start(x[5:9], BOX, index[5:9], seed), start[5:9])


def test_a_start_in_a_round_ball_is_the_same_at_the_end_of_any_batch():
    x, index = images(), torch.arange(16) + 1000
    for seed in range(300):  # a power of float32 is another in some three of them
        start = L2(1.0).start(x, BOX, index, seed)
        assert torch.equal(L2(1.0).start(x[5:9], BOX, index[5:9], seed), start[5:9])


def test_random_starts_fill_the_ball():
    x = torch.full((4000, 1, 1, 2), 0.5)
    index, box = torch.arange(4000), Domain((1, 1, 2))
    square = (Linf(0.25).start(x, box, index, seed=3) - 0.5).flatten(1)
    assert abs(float(square.var()) - 0.5**2 / 12) < 1e-3
    disc = L2.size(L2(0.25).start(x, box, index, seed=3) - x)
    # half the area lies within r/√2
    assert abs(float((disc < 0.25 / 2**0.5).float().mean()) - 0.5) < 0.03
