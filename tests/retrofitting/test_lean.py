"""The lean copy computes what the net computes, leaves it alone, and folds only what may be folded."""

import copy

import pytest
import torch
from torch import nn

from retroact.nets.zoo import NETWORKS
from retroact.retrofitting.activations import JumpReLU
from retroact.retrofitting.lean import lean
from retroact.retrofitting.surgery import retrofit


def worn(net):
    """The net with batch norms that have seen something."""
    torch.manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.2)
    return net.eval()


def norms(net):
    return sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules())


@torch.no_grad()
def same(net, made, x):
    torch.testing.assert_close(net(x), made(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet-mnist", "alexlike-cifar10", "resnet20-cifar10", "wideresnet-cifar10"])
@pytest.mark.parametrize("activation", [None, JumpReLU(0.3)], ids=str)
def test_the_copy_computes_the_same_function(name, activation):
    net = worn(NETWORKS[name]())
    net = net if activation is None else retrofit(net, activation)
    made = lean(net)
    same(net, made, torch.rand(2, *net.shape))


@pytest.mark.parametrize(("name", "left"), [("resnet20-cifar10", 0), ("mobilenetv2-cifar10", 0)])
def test_every_norm_after_a_layer_is_folded(name, left):
    net = worn(NETWORKS[name]())
    assert norms(net) > 15
    assert norms(lean(net)) == left
    assert norms(net) > 15


def test_the_net_is_left_as_it_was():
    net = worn(NETWORKS["resnet20-cifar10"]()).train()
    before = copy.deepcopy(net.state_dict())
    lean(net)
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) and v.stride() == before[k].stride() for k, v in net.state_dict().items())


class _Reads(nn.Module):
    """A conv whose output is read twice, a conv that is called twice, and a norm that asks the batch."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=how != "of the batch")

    def forward(self, x):
        z = self.conv(x)
        if self.how == "called twice":
            z = self.conv(z)
        normed = self.norm(z)
        out = normed + z if self.how == "read twice" else normed
        return out.flatten(2).mean(2)


@pytest.mark.parametrize("how", ["read twice", "called twice", "of the batch", "alone"])
def test_a_norm_that_is_not_alone_stays(how):
    net = _Reads(how)
    net = net.eval() if how == "of the batch" else worn(net)
    made = lean(net)
    assert norms(made) == (0 if how == "alone" else 1)
    same(net, made, torch.rand(4, 3, 8, 8))


def test_a_dropout_between_does_not_hinder_and_linear_norms_fold_too():
    net = worn(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.ReLU()))
    made = lean(net)
    assert norms(made) == 0
    same(net, made, torch.rand(5, 3, 2, 2))


def test_half_floats_are_not_rounded_again():
    net = worn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(torch.bfloat16)
    assert norms(lean(net)) == 1


def test_a_net_that_cannot_be_copied_is_returned_itself():
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    net = Stubborn()
    assert lean(net) is net
