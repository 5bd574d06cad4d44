"""The float twin of a quantised network computes nearly what the network does, and its gradient is
that of the float network that was quantised."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import (
    QuantWrapper,
    convert,
    fuse_modules,
    get_default_qconfig,
    get_default_qconfig_mapping,
    prepare,
    quantize_dynamic,
)
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import retroact as ra
from retroact.crafting.float_twin import float_twin
from retroact.crafting.oracle import AccessError, Oracle, is_quantised

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
X = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()]
    rest = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 4)]
    return nn.Sequential(*first, *rest).eval()


def dynamic(dtype: torch.dtype) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(plain(), {nn.Linear}, dtype=dtype)


def static(net: nn.Module, fused: list[list[str]] | None = None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = QuantWrapper(copy.deepcopy(net)).eval()
        wrapped = fuse_modules(wrapped, fused) if fused else wrapped
        wrapped.qconfig = get_default_qconfig("x86")
        prepare(wrapped, inplace=True)(X)
        return convert(wrapped)


def fused() -> nn.Module:
    return static(plain(), [["module.0", "module.1", "module.2"], ["module.5", "module.6"]])


def rare() -> nn.Module:
    torch.manual_seed(0)
    first = [nn.Conv1d(1, 4, 3, stride=2, padding=1, padding_mode="reflect"), nn.Hardswish()]
    then = [nn.Conv1d(4, 4, 3, groups=2, dilation=2), nn.LeakyReLU(0.1), nn.ELU(), nn.Sigmoid()]
    return static(nn.Sequential(nn.Flatten(2), *first, *then, nn.Flatten(), nn.Linear(112, 4)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.last(self.norm(torch.relu(y + self.two(y))).flatten(1))


def graphed() -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watched = prepare_fx(Residual().eval(), get_default_qconfig_mapping("x86"), (X,))
        watched(X)
        return convert_fx(watched)


KINDS = {
    "linear layers of int8": (lambda: dynamic(torch.qint8), 0.05),
    "linear layers of float16": (lambda: dynamic(torch.float16), 1e-5),
    "int8 throughout": (lambda: static(plain()), 1e-5),
    "int8 throughout, fused": (fused, 1e-5),
    "one axis, groups, rare activations": (rare, 0.05),
    "a graph with a residual sum": (graphed, 0.05),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_computes_what_the_integers_do(kind):
    make, tolerance = KINDS[kind]
    net = make()
    twin = float_twin(net, X)
    assert twin is not None
    expected = net(X).detach()
    assert (twin(X) - expected).abs().max() <= tolerance * expected.std()
    assert is_quantised(net) and not is_quantised(twin)


@pytest.mark.parametrize("make", [lambda: dynamic(torch.qint8), fused])
def test_its_gradient_is_nearly_that_of_the_network_that_was_quantised(make):
    twin, leaf, given = float_twin(make(), X), X.clone().requires_grad_(), plain()
    (own,) = torch.autograd.grad(twin(leaf)[:, 0].sum(), leaf)
    (expected,) = torch.autograd.grad(given(leaf)[:, 0].sum(), leaf)
    cosine = F.cosine_similarity(own.flatten(1), expected.flatten(1))
    assert cosine.median() > 0.95


def test_what_is_not_quantised_has_no_twin():
    assert float_twin(plain(), X) is None
    assert float_twin(lambda x: torch.round(8 * x.flatten(1)), X) is None


def test_a_script_has_none_for_its_calls_are_sealed():
    assert float_twin(torch.jit.trace(fused(), X), X) is None


def test_an_oracle_climbs_the_twin_and_asks_the_network():
    net, rows = fused(), torch.arange(len(X))
    twin = float_twin(net, X)
    with pytest.raises(AccessError, match="quantised layers have no derivative"):
        Oracle(net, len(X)).gradient(X, rows, lambda z: z[:, 0])
    logits, gradient = Oracle(net, len(X), source=twin).gradient(X, rows, lambda z: z[:, 0])
    assert torch.equal(logits, net(X)) and (gradient != 0).flatten(1).any(1).all()


def test_an_audit_of_int8_is_decided_by_what_the_twin_breaks():
    net, data = ra.load("digits-cnn"), ra.data("digits/validation[:80]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        integers = quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)
    audit = ra.audit(net, integers, data, "Linf(0.1)", battery="quick")
    plain, after = audit.verdict.counts.verified
    assert abs(plain - after) <= 0.04 and audit.verdict.effect in ("NO EFFECT", "INCONCLUSIVE")
    assert not audit.verdict.doubts and audit.after.kernel == "twin in floats"
    assert "no gradient" in [alarm.title for alarm in audit.alarms]
