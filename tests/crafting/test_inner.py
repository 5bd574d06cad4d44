"""What is climbed where the size of the logits leads astray: the same decisions, another slope."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.derived import trace_forward
from retroact.crafting.inner import OverSpread, end_in_last_layer
from retroact.crafting.losses import spread


@pytest.fixture
def net() -> nn.Module:
    return ra.load("digits-cnn")


@pytest.fixture
def x() -> Tensor:
    return ra.data("digits/validation[:12]").images


class After(nn.Module):
    """A network with something done to its logits."""

    def __init__(self, net: nn.Module, change) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.net(x), x)


def cooler(z: Tensor, x: Tensor) -> Tensor:
    return z * torch.exp(-x.flatten(1).sum(1, keepdim=True))


def normalised(z: Tensor, x: Tensor) -> Tensor:
    return F.log_softmax(z / 7, 1)


def mirrored(z: Tensor, x: Tensor) -> Tensor:
    top = z.topk(2, 1).values
    return z + F.one_hot(z.argmax(1), 10).to(z) * F.relu(30 - top[:, :1] + top[:, 1:])


def test_a_positive_factor_for_each_image_is_lost(net, x):
    plain, other = OverSpread(net), OverSpread(After(net, cooler))
    torch.testing.assert_close(other(x), plain(x))
    torch.testing.assert_close(spread(plain(x)), torch.ones(len(x)))
    slopes = []
    for one in (plain, other):
        leaf = x.clone().requires_grad_()
        one(leaf)[:, 3].sum().backward()
        slopes.append(leaf.grad)
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", [cooler, normalised, mirrored])
def test_what_follows_the_last_layer_is_left_out(net, x, change):
    ended = end_in_last_layer(trace_forward(After(net, change), x))
    assert ended is not None
    torch.testing.assert_close(ended(x[:5]), net(x[:5]))


def as_it_is(z: Tensor, x: Tensor) -> Tensor:
    return z


def affine(z: Tensor, x: Tensor) -> Tensor:
    return (3 * z.view(-1, 10) - 1).clone()


@pytest.mark.parametrize("change", [as_it_is, affine])
def test_nothing_is_left_out_where_affine_calls_follow(net, x, change):
    assert end_in_last_layer(trace_forward(After(net, change), x)) is None


def test_a_mean_of_networks_has_no_last_layer(net, x):
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList([net, ra.load("digits-cnn")])

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([n(x).softmax(1) for n in self.nets]).mean(0)

    assert end_in_last_layer(trace_forward(Mean(), x)) is None


def test_a_layer_whose_weights_the_image_moves_is_none(net, x):
    def by_image(z: Tensor, x: Tensor) -> Tensor:
        return z.mm(torch.eye(10) + x.mean() * torch.ones(10, 10)).relu()

    traced = trace_forward(After(net, by_image), x)
    ended = end_in_last_layer(traced)
    assert ended is not None
    torch.testing.assert_close(ended(x), net(x))
