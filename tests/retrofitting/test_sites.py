"""Finding activation calls at run time, without a trace of it in the net."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.ramp import RELU, Ramp
from retroact.activations.site import Site
from retroact.retrofitting.recognition import recognise
from retroact.retrofitting.selection import select
from retroact.retrofitting.sites import sites, survey

X = torch.linspace(-2.0, 8.0, 64).view(4, 16)


class Calls(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.run = forward
        self.norm = nn.BatchNorm1d(16)
        self.shape = (16,)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.norm(x))


class TestWhatIsASite:
    @pytest.mark.parametrize(
        ("call", "own"),
        [
            (lambda z: F.hardtanh(z, 0.0, 1.5), Ramp(cap=1.5)),
            (lambda z: z.clamp(torch.tensor(0.0)), RELU),
            (lambda z: torch.fmax(z, torch.zeros(16)), RELU),
            (lambda z: torch.where(z < 0, torch.zeros_like(z), z), RELU),
            (lambda z: z.masked_fill(z < 0, 0.0), RELU),
            (lambda z: z.masked_fill_(z < 0, 0.0), RELU),
            (lambda z: z - z.clamp(max=0), RELU),
            (lambda z: F.relu(z).clamp(max=6), RELU),
        ],
    )
    def test_these_are(self, call, own: Ramp) -> None:
        assert [s.own for s in sites(Calls(call), X)] == [own]

    @pytest.mark.parametrize(
        "call",
        [
            lambda z: z.clamp(-1, 1),
            lambda z: z.clamp(max=0),
            lambda z: z.clamp(min=1e-6),
            lambda z: torch.maximum(z, torch.ones(16)),
            lambda z: z.max(1).values,
            lambda z: z.long().clamp(min=0).float(),
            lambda z: F.threshold(z, 0.5, 0.0),
            lambda z: F.dropout(z, 0.5, training=True),
            lambda z: z * torch.sigmoid(z),
        ],
    )
    def test_these_are_not(self, call) -> None:
        assert sites(Calls(call), X) == ()

    @pytest.mark.parametrize(
        ("call", "kind"),
        [
            (F.gelu, "gelu"),
            (F.silu, "silu"),
            (F.elu, "elu"),
            (F.selu, "elu"),
            (F.celu, "celu"),
            (F.leaky_relu, "leaky_relu"),
            (F.hardswish, "hardswish"),
            (F.hardtanh, "hardtanh"),
            (F.softplus, "softplus"),
            (F.logsigmoid, "logsigmoid"),
            (torch.tanh, "tanh"),
            (nn.PReLU(), "prelu"),
            (nn.Mish(), "mish"),
        ],
    )
    def test_other_kinds_are_listed_and_left_alone(self, call, kind: str) -> None:
        found = survey(Calls(call))
        assert found.sites == ()
        assert [s.kind for s in found.left_alone] == [kind]
        assert [s.kind for s in sites(Calls(call), also=(kind,))] == [kind]

    @pytest.mark.parametrize("name", ["relu", "relu_", "clamp", "max", "size", ""])
    def test_calls_without_a_tensor_are_none(self, name: str) -> None:
        assert recognise(name, (), {}) is None
        assert recognise(name, (3,), {}) is None


class TestNames:
    def test_the_nth_call_of_a_loop(self) -> None:
        def loop(z: Tensor) -> Tensor:
            for _ in range(3):
                z = F.relu(z - 0.1)
            return z

        found = sites(Calls(loop))
        assert [(s.name, s.order, s.shape) for s in found] == [
            ("relu()", 0, (16,)),
            ("relu()#2", 1, (16,)),
            ("relu()#3", 2, (16,)),
        ]

    def test_a_module_of_the_users_own_is_part_of_the_name(self) -> None:
        class Mine(nn.Module):
            def forward(self, z: Tensor) -> Tensor:
                return torch.relu(z)

        net = nn.Sequential(nn.Linear(16, 16), Mine(), nn.ReLU())
        found = sites(net, X)
        assert [(s.name, s.module) for s in found] == [("1.relu()", ""), ("2", "2")]

    def test_selection_keeps_the_order_of_the_forward_pass(self) -> None:
        found = tuple(Site(f"fc{i}", i) for i in range(5))
        assert [s.name for s in select(found, "fc4, 0, 1:3")] == ["fc0", "fc1", "fc2", "fc4"]
        assert select(found, "-2:") == found[3:]
        assert select(found, "*") == found


class TestNoTrace:
    def test_nothing_of_the_net_changes(self) -> None:
        net = Calls(F.relu).train()
        net.register_forward_hook(lambda *_: None)
        net(X).sum().backward()
        before, grad = copy.deepcopy(net.state_dict()), net.norm.weight.grad.clone()
        torch.manual_seed(7)
        expected = torch.rand(3)
        torch.manual_seed(7)
        sites(net, X)
        assert torch.equal(torch.rand(3), expected), "the caller's random numbers"
        assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
        assert torch.equal(net.norm.weight.grad, grad)
        assert net.training
        assert net.norm.training
        assert len(net._forward_hooks) == 1
        assert not net._forward_pre_hooks

    def test_a_forward_pass_that_fails_leaves_no_mode_on(self) -> None:
        def fail(z: Tensor) -> Tensor:
            raise ArithmeticError(z.shape)

        fast = torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(ArithmeticError):
            sites(Calls(fail))
        assert torch.is_grad_enabled()
        assert torch.backends.mha.get_fastpath_enabled() == fast


class TestExample:
    def test_noise_has_the_shape_and_dtype_of_the_net(self) -> None:
        seen = []
        net = nn.DataParallel(
            Calls(lambda z: seen.append((z.shape, z.dtype)) or F.relu(z)).double()
        )
        sites(net)
        assert seen == [((2, 16), torch.float64)]

    def test_several_inputs(self) -> None:
        class Two(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return F.relu(x) + y

        assert len(sites(Two(), (X, X))) == 1

    def test_no_shape(self) -> None:
        with pytest.raises(
            ValueError, match=r"does not say the shape of its input; say it, .* or pass example="
        ):
            sites(nn.ReLU())

    def test_no_net(self) -> None:
        with pytest.raises(TypeError, match=r"expected an nn\.Module, got function"):
            sites(lambda x: x)  # type: ignore[arg-type]


def test_a_site_says_its_cap() -> None:
    assert Site("relu").cap == math.inf and Site("gelu", own=None).cap == math.inf
    assert Site("relu6", own=Ramp(cap=6.0)).cap == 6.0
