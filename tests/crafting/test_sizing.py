"""The size of a chunk depends on the network and the shape of its images, and on nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.driver import craft
from retroact.crafting.sizing import chunk_for, stream_for

IMAGES = torch.rand(600, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Asked(nn.Module):
    """Counts the images that it is shown."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, width, 3, padding=1), nn.Linear(width, 3)
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        out: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3)))
        return out


def test_small_networks_are_asked_about_more_at_once_than_large_ones():
    sizes = [chunk_for(Asked(width), IMAGES, 64) for width in (8, 500, 4000)]
    assert sizes[0] == 256 and sizes[0] > sizes[1] > sizes[2] == 64, sizes


def test_functions_are_measured_like_modules():
    net = Asked(8)
    assert chunk_for(lambda x: net(x), IMAGES, 64) == 256


def test_a_network_is_looked_at_once_and_only_where_it_matters():
    net = Asked(8)
    chunk_for(net, IMAGES[:64], 64)
    assert net.asked == 0
    for _ in range(3):
        chunk_for(net, IMAGES, 64)
    assert 0 < net.asked < 10


def test_a_network_that_cannot_be_looked_at_keeps_the_attacks_own_size():
    def refuses(x: Tensor) -> Tensor:
        if len(x) < 5:
            raise ValueError("I take five")
        return x.flatten(1)[:, :2]

    assert chunk_for(refuses, IMAGES, 64) == 64
    traced = torch.jit.trace(Asked(8).eval(), IMAGES[:2])
    assert chunk_for(traced, IMAGES, 128) == 128


def test_looking_draws_nothing_and_leaves_the_mode():
    class Noisy(Asked):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(len(x), 3)

    net = Noisy(8).train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    chunk_for(net, IMAGES, 64)
    assert net.training and torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("attack", ["PGD(steps=5)", "FGSM()", "DeepFool(steps=5)", "Square(50)"])
def test_chunks_of_any_size_find_the_same(attack):
    net, data = ra.load("digits-cnn"), ra.data("digits[:300]")
    by_size = [ra.evaluate(net, data, attack, "Linf(0.1)", chunk=size) for size in (None, 64, 256)]
    assert chunk_for(net, data.images, 64) == 256
    for other in by_size[1:]:
        same = other.adversarial == by_size[0].adversarial
        assert same.mean() > 0.99  # an image at the boundary may fall by a rounding
        assert abs(other.distance - by_size[0].distance)[same].max() < 1e-4


class Batches(nn.Module):
    """Notes the sizes of the batches that it is asked about."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.sizes = net, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        out: Tensor = self.net(x)
        return out


@pytest.mark.parametrize(
    "attack", ["PGD(steps=8)", "APGD(steps=8)", "Momentum(steps=6, targets=2)", "Square(60)"]
)
def test_batches_stay_full_while_examples_leave(attack, monkeypatch):
    """As many gradients and queries as alone, and the same bits of noise."""
    data, threat = ra.data("digits[:200]"), ra.Linf(0.15)  # at which most leave
    monkeypatch.setattr("retroact.crafting.driver.chunk_for", lambda *about: 16)
    monkeypatch.setattr("retroact.crafting.driver.stream_for", lambda *about: 64)
    run = (data.images, data.labels, data.index, threat)
    attacked = ra.parse(attack)
    full = Batches(ra.load("digits-cnn"))
    together = craft(attacked, full, *run)
    small = Batches(ra.load("digits-cnn"))
    alone = craft(attacked, small, *run, chunk=16)
    assert max(full.sizes) == 16 and len(full.sizes) < 0.8 * len(small.sizes)
    for counter in ("queries", "gradients"):
        same = getattr(together, counter) == getattr(alone, counter)
        assert same.float().mean() > 0.98, counter  # rounding may break an image a step later
    assert (together.x_adv - alone.x_adv).flatten(1).abs().amax(1).le(1e-5).float().mean() > 0.95


def test_a_large_network_is_not_streamed():
    assert [stream_for(Asked(width), IMAGES, 64) for width in (8, 40_000)] == [256, 64]
