"""Noise belongs to the example: the same in any batch, order or stream of work, and truly
random."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retroact.crafting.noise import normal, uniform


@settings(max_examples=30)
@given(st.permutations(range(20)), st.integers(0, 2**31), st.integers(0, 9))
def test_an_example_keeps_its_noise_in_any_order_and_batch(order, seed, stream):
    index = torch.arange(20) * 37
    for draw in (uniform, normal):
        whole = draw((3, 4), index, seed, stream)
        shuffled = draw((3, 4), index[list(order)], seed, stream)
        assert torch.equal(shuffled, whole[list(order)])
        assert torch.equal(torch.cat([draw((3, 4), i[None], seed, stream) for i in index]), whole)


def test_seeds_streams_examples_and_entries_differ():
    index = torch.arange(50)
    draws = torch.cat([uniform((50,), index, s, t).flatten() for s in range(3) for t in range(3)])
    assert len(draws.unique()) > 0.999 * len(draws)


def test_uniform_fills_its_interval_evenly():
    u = uniform((28, 28), torch.arange(500), seed=5).flatten().double()
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, bins=64, min=0, max=1)
    expected = len(u) / 64
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    # 63 degrees of freedom: the 1e-5 and 1 - 1e-5 quantiles are 25.7 and 116
    assert 25 < chi2 < 115
    lagged = torch.stack([u[:-1], u[1:]])
    assert abs(float(torch.corrcoef(lagged)[0, 1])) < 0.01


def test_neighbouring_examples_are_uncorrelated():
    u = uniform((2000,), torch.arange(100), seed=0) - 0.5
    correlations = torch.corrcoef(u) - torch.eye(100)
    assert float(correlations.abs().max()) < 6 / 2000**0.5


def test_normal_has_its_moments():
    z = normal((28, 28), torch.arange(500), seed=1).double()
    n = z.numel()
    assert abs(float(z.mean())) < 5 / n**0.5
    assert abs(float(z.var()) - 1) < 0.02
    assert abs(float((z**4).mean()) - 3) < 0.1
    assert bool(z.isfinite().all())
