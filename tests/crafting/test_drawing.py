"""Random generators, lent for a block: what is drawn there repeats, and all go on as they were."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retroact.crafting.drawing import drawing
from retroact.crafting.expectation import Expectation

HELD = {
    "Python's": None,
    "a torch.Generator": torch.Generator().manual_seed(1),
    "a numpy Generator": np.random.default_rng(1),
    "a RandomState": np.random.RandomState(1),
    "a Random": random.Random(1),
}


class Noisy(nn.Module):
    """Two logits with noise from the generator that it holds, or from Python's."""

    def __init__(self, own: object) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.inner.own = own  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        own, out = self.inner.own, self.inner(x)
        if isinstance(own, torch.Generator):
            return out + torch.randn(out.shape, generator=own)
        if isinstance(own, np.random.Generator | np.random.RandomState):
            return out + torch.from_numpy(own.normal(size=out.shape)).float()
        drawn = [(own or random).gauss(0, 1) for _ in range(out.numel())]
        return out + torch.tensor(drawn).view_as(out)


@pytest.mark.parametrize("own", HELD.values(), ids=HELD)
def test_a_mean_repeats_and_leaves_the_generator_as_it_was(own):
    net = Noisy(own)
    mean, x = Expectation(net, 3), torch.ones(4, 2)
    with torch.no_grad():
        expected = [net(x) for _ in range(2)]
        with drawing(5, x.device, net):
            first = [net(x) for _ in range(2)]
        assert not torch.equal(*expected) and not torch.equal(*first)
        assert torch.equal(mean(x), mean(x))
        with drawing(5, x.device, net):
            assert torch.equal(net(x), first[0])
            drawn = net(x)  # and goes on within the block
        assert torch.equal(drawn, first[1])


@pytest.mark.parametrize("own", HELD.values(), ids=HELD)
def test_after_a_block_the_generator_goes_on_where_it_was(own):
    net, x = Noisy(own), torch.ones(4, 2)
    other = copy.deepcopy(net)
    with torch.no_grad():
        random.seed(0)
        expected = other(x)
        random.seed(0)
        with drawing(5, x.device, net):
            net(x)
        assert torch.equal(net(x), expected)
