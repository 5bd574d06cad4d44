"""A number per channel is one of features, not of tokens."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.activations.mean_sparse import MeanSparse
from retroact.activations.piecewise import ReLU
from retroact.retrofitting.installed import installed
from retroact.retrofitting.surgery import retrofit
from retroact.training.channels import channels_of
from retroact.training.hardening import Hardening


class Tokens(nn.Module):
    """Patches of 2 x 2 as 16 tokens of 6 features; `how` they are multiplied with a matrix."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.norm = how, nn.LayerNorm(6)
        self.patches, self.up, self.down = nn.Conv2d(1, 6, 2, 2), nn.Linear(6, 9), nn.Linear(9, 5)
        self.act, self.first = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(self.first(self.patches(x)).flatten(2).mT)
        if self.how == "a module":
            z = self.up(z)
        elif self.how == "a function":
            z = F.linear(z, self.up.weight, self.up.bias)
        else:
            z = z @ self.up.weight.mT + self.up.bias
        return self.down(self.act(z).mean(1))


@pytest.mark.parametrize("how", ["a module", "a function", "an operator"])
def test_the_axis_is_that_of_the_layer_before(how):
    torch.manual_seed(3)
    net, x = Tokens(how).eval(), torch.rand(4, 1, 8, 8)
    found = channels_of(retrofit(net, ReLU(), example=x), x)
    assert found == {"first": (1, 6), "act": (-1, 9)}


def test_what_is_learned_is_a_bias_of_the_layer_before():
    torch.manual_seed(4)
    net, x = Tokens("a module").eval(), torch.rand(40, 1, 8, 8)
    data = ra.Images.of(x, torch.arange(40) % 5)
    made = ra.harden(net, data, ra.Linf(0.1), Hardening(steps=3, batch=20, attack_steps=1)).net
    moved = Tokens("a module").eval()
    moved.load_state_dict(made.state_dict())
    with torch.no_grad():
        for site, layer in (("first", moved.patches), ("act", moved.up)):
            shift = installed(made)[site].activation.shift
            assert shift.any()
            layer.bias += shift
    torch.testing.assert_close(moved(x), made(x))


def test_moments_are_those_of_features():
    torch.manual_seed(5)
    net, x = Tokens("a module").eval(), torch.rand(30, 1, 8, 8)
    seen = []
    net.up.register_forward_hook(lambda m, args, out: seen.append(out))
    net(x)
    sparse = ra.calibrate(net, MeanSparse, ra.Images.of(x, torch.arange(30) % 5))
    there = installed(retrofit(net, sparse, example=x))["act"].activation
    torch.testing.assert_close(there.mean, seen[0].flatten(0, 1).mean(0))
