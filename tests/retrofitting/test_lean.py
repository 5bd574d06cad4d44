"""The lean copy computes what the net computes, leaves it alone, and folds only what may be
folded."""

import copy

import pytest
import torch
from torch import nn

from retroact.activations.piecewise import JumpReLU
from retroact.nets.zoo import NETWORKS
from retroact.retrofitting.lean import forms, lean
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


@pytest.mark.parametrize(
    "name", ["lenet-mnist", "alexlike-cifar10", "resnet20-cifar10", "wideresnet-cifar10"]
)
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
    assert all(
        torch.equal(v, before[k]) and v.stride() == before[k].stride()
        for k, v in net.state_dict().items()
    )


class _Reads(nn.Module):
    """A conv whose output is read twice, a conv that is called twice, and a norm that asks the
    batch."""

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
    made = lean(net, torch.rand(2, 3, 8, 8))
    assert norms(made) == (0 if how == "alone" else 1)
    same(net, made, torch.rand(4, 3, 8, 8))


def test_a_dropout_between_does_not_hinder_and_linear_norms_fold_too():
    net = worn(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.ReLU())
    )
    made = lean(net, torch.rand(2, 3, 2, 2))
    assert norms(made) == 0
    same(net, made, torch.rand(5, 3, 2, 2))


def test_half_floats_are_not_rounded_again():
    net = worn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(torch.bfloat16)
    assert norms(lean(net, torch.rand(2, 3, 8, 8))) == 1


def test_a_net_that_cannot_be_copied_has_no_form():
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    assert forms(Stubborn(), torch.rand(2, 3)) == []
    net = Stubborn()
    assert lean(net, torch.rand(2, 3)) is net


class _Norms(nn.Module):
    """A layer, a norm, and something that a fold would get wrong."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.layer, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        if how == "hook":
            self.norm.register_forward_hook(lambda m, args, out: out * 2)

    def forward(self, x):
        tokens = x.flatten(2)[:, 0].view(-1, 6, 6) if self.how == "tokens" else x.flatten(1)[:, :6]
        out = self.norm(self.layer(tokens))
        if self.how == "weight read":
            out = out + self.layer.weight.sum()
        if self.how == "statistics read":
            out = out + self.norm.running_mean
        return out.flatten(1)


@pytest.mark.parametrize("how", ["tokens", "hook", "weight read", "statistics read", "plain"])
def test_a_norm_folds_only_where_the_graph_shows_it_right(how):
    x = torch.rand(3, 1, 6, 6)
    net = worn(_Norms(how))
    assert [bool(form.folds) for form in forms(net, x)] == (
        [True, False] if how == "plain" else [False]
    )
    for form in forms(net, x):
        same(net, form(net), x)


def test_a_norm_over_the_channels_of_an_unbatched_conv_stays():
    net = worn(nn.Sequential(nn.Flatten(), nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(9)))
    assert [form.folds for form in forms(net, torch.rand(4, 1, 3, 3))] == [(), ()][:1]


@pytest.mark.parametrize("affine", [True, False])
def test_norms_fold_also_without_weights_and_beside_functional_dropout(affine):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=affine)
            self.norm.running_mean.normal_(), self.norm.running_var.uniform_(0.5, 2)

        def forward(self, x):
            return nn.functional.dropout(self.norm(self.layer(x.flatten(1))), 0.5, self.training)

    net, x = Net().eval(), torch.rand(3, 1, 2, 2)
    assert norms(lean(net, x)) == 0
    same(net, lean(net, x), x)


def test_a_form_that_fails_prints_nothing(capsys):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            x = nn.functional.relu(self.conv(x))
            return x.view(x.size(0), -1)

    x = torch.rand(3, 1, 8, 8)
    hard = retrofit(Views(), JumpReLU(0.1), example=x)
    with pytest.raises(RuntimeError, match="view"):
        forms(hard, x)[0](hard)(x)
    assert capsys.readouterr() == ("", "")


def test_forms_come_the_leanest_first_and_say_what_they_are():
    net = worn(NETWORKS["resnet20-cifar10"]())
    names = [str(form) for form in forms(net, torch.rand(2, *net.shape))]
    assert names == ["folded, channels last", "channels last", "folded", "frozen"]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert [str(form) for form in forms(flat, torch.rand(2, 1, 2, 2))] == ["frozen"]


def test_a_parameter_of_rank_five_is_left_as_it_lies():
    net = nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 2, 3), nn.Flatten(2), nn.Unflatten(2, (6, 6))
    )
    net.append(nn.Conv2d(2, 2, 1))
    x = torch.rand(2, 3, 8, 8)
    for form in forms(net, x):
        same(net, form(net), x)
