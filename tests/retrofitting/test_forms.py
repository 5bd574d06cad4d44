"""Networks as they come: compiled, wrapped, with a library's outputs; and those that are refused,
in a sentence."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import types
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.nets.classifier import Classifier
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.folding import fold
from retroact.retrofitting.sites import left_alone, sites, survey
from retroact.retrofitting.surgery import Retrofit, refit, retrofit

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)
        self.shape = (1, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).flatten(1))


def compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")


def compiled_in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


EXPECTED = retrofit(Net(), SReLU(2.0))(X)
FORMS = {
    "compiled": lambda: compiled(Net()),
    "compiled in place": lambda: compiled_in_place(Net()),
    "compiled inside": lambda: Classifier(compiled(Net()), shape=(1, 8, 8)),
    "compiled outside": lambda: compiled(Classifier(Net(), shape=(1, 8, 8))),
    "DataParallel": lambda: nn.DataParallel(Net()),
    "DataParallel, compiled": lambda: compiled(nn.DataParallel(Net())),
    "DataParallel of a compiled net": lambda: nn.DataParallel(compiled(Net())),
}


@pytest.mark.parametrize("form", FORMS)
def test_compiled_nets_and_wrappers(form: str) -> None:
    net = FORMS[form]()
    assert [s.name for s in sites(net)] == ["relu()"]
    hard = retrofit(net, SReLU(2.0))
    assert not any("_orig_mod" in key for key in hard.state_dict())
    assert torch.equal(hard(X), EXPECTED)
    assert torch.allclose(fold(hard)(X), EXPECTED, atol=1e-6)
    assert refit(compiled(hard), JumpReLU(0.1)).retrofit == Retrofit(JumpReLU(0.1))
    assert torch.equal(compiled(hard)(X), EXPECTED)


def test_a_compiled_function_inside() -> None:
    @torch.compile(backend="eager")
    def act(z: Tensor) -> Tensor:
        return F.relu(z)

    class Inside(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(act(self.conv(x)).flatten(1))

    net = Inside()
    net(X)
    assert torch.equal(retrofit(net, SReLU(2.0))(X), EXPECTED)


class Lightning(nn.Module):
    """What a LightningModule is to others: the net inside, and properties that raise until it is
    attached."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self._trainer, self._hparams = Net(), None, {"lr": 0.1}

    @property
    def trainer(self):
        raise RuntimeError("Lightning is not attached to a `Trainer`.")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch, index):
        return self(batch[0])


def test_a_lightning_module() -> None:
    lit = Lightning()
    assert torch.equal(retrofit(lit, SReLU(2.0), example=X)(X), EXPECTED)
    lit.model = retrofit(lit.model, SReLU(2.0))
    assert torch.equal(lit.training_step((X,), 0), EXPECTED)


class ModelOutput(OrderedDict):
    """As the library's: attributes over keys, and no update."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def update(self, *args, **kwargs):
        raise RuntimeError("You cannot use ``update`` on a ModelOutput instance.")


@dataclasses.dataclass
class Plain:
    logits: Tensor
    note: str = "kept"


@pytest.mark.parametrize("kind", [lambda logits: ModelOutput({"logits": logits}), Plain])
@pytest.mark.parametrize("branches", [True, False])
def test_what_a_library_returns(kind, branches: bool) -> None:
    class ForImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Net()

        def forward(self, pixel_values=None, labels=None, **kwargs):
            if branches and pixel_values.sum() > 1e9:
                pixel_values = -pixel_values
            return kind(self.model(pixel_values))

    hard = retrofit(ForImages(), SReLU(2.0), example=X)
    assert torch.equal(hard(X).logits, EXPECTED)
    hard = retrofit(Classifier(ForImages(), output="logits", shape=(1, 8, 8)), SReLU(2.0))
    assert torch.equal(hard(X), EXPECTED)


@pytest.mark.filterwarnings("ignore:.*(torch.jit|quantization).*:DeprecationWarning")
class TestRefusals:
    @pytest.mark.parametrize(
        "net", [lambda x: x, functools.partial(F.relu, inplace=False), torch.relu]
    )
    def test_functions(self, net) -> None:
        with pytest.raises(
            TypeError, match=r"expected an nn\.Module, got .*; wrap the function in a module"
        ):
            retrofit(net, SReLU(2.0), example=X)

    def test_exported(self) -> None:
        program = torch.export.export(Net().eval(), (X,))
        with pytest.raises(TypeError, match="the net is exported"):
            retrofit(program, SReLU(2.0), example=X)
        with pytest.raises(ValueError, match="the net is exported"):
            retrofit(program.module(), SReLU(2.0), example=X)

    def test_quantised(self) -> None:
        net = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
        net.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
        prepared = torch.ao.quantization.prepare(net)
        prepared(X)
        with pytest.raises(ValueError, match="the net is quantised"):
            retrofit(torch.ao.quantization.convert(prepared), SReLU(2.0), example=X)

    def test_dynamic_quantisation_leaves_the_activations_floats(self) -> None:
        net = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})
        hard = retrofit(net, SReLU(2.0), example=X)
        assert torch.equal(retrofit(net, JumpReLU(0.0), example=X)(X), net(X))
        assert (hard(X) - EXPECTED).abs().max() < 0.1


class Mixed(Net):
    """One ReLU, three GELUs and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(*(nn.GELU() for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        h = self.more(F.relu(self.conv(x)))
        return self.fc((h * torch.sigmoid(h.mean((2, 3), keepdim=True))).flatten(1))


class TestLeftAlone:
    def test_kinds_are_counted(self) -> None:
        assert left_alone(Mixed()) == {"gelu": 3, "sigmoid": 1}
        assert left_alone(Net()) == {}

    def test_a_retrofit_says_what_it_left_and_keeps_saying_it(self) -> None:
        hard = retrofit(Classifier(Mixed(), shape=(1, 8, 8)), SReLU(2.0))
        assert hard.left_alone == {"gelu": 3, "sigmoid": 1}
        for again in (
            copy.deepcopy(hard),
            pickle.loads(pickle.dumps(hard)),
            refit(hard, JumpReLU(1.0)),
            compiled(hard),
        ):
            assert left_alone(again) == hard.left_alone
        assert left_alone(fold(retrofit(Net(), SReLU(2.0)))) == {}
        assert left_alone(retrofit(Mixed(), SReLU(2.0), also=("gelu",))) == {"sigmoid": 1}

    def test_sites_that_were_not_chosen_count(self) -> None:
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        assert left_alone(retrofit(net, SReLU(2.0), sites=[0], example=torch.randn(4, 8))) == {
            "relu": 1
        }

    def test_a_survey_of_a_retrofitted_net_finds_the_same(self) -> None:
        after = survey(retrofit(Mixed(), SReLU(2.0)))
        assert [s.kind for s in after.left_alone] == ["gelu", "gelu", "gelu", "sigmoid"]


class TestReplacedForward:
    """An instance may have a forward of its own, which torch.fx does not read and a copy may not
    own."""

    def net(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4)).eval()

    def test_a_method_of_the_instance_is_retrofitted(self) -> None:
        net, x = self.net(), torch.randn(5, 1, 3, 3)
        net.forward = types.MethodType(lambda self, x: nn.Sequential.forward(self, x) ** 2, net)
        for hard in (
            retrofit(net, SReLU(3.0), example=x),
            deep_copy(retrofit(net, SReLU(3.0), example=x)),
        ):
            assert torch.equal(hard(x), net[3](3.0 * net[2](net[1](net[0](x)))) ** 2)

    def test_a_function_around_the_old_one_is_refused_since_a_copy_would_run_the_net(self) -> None:
        net = self.net()
        old = net.forward
        net.forward = lambda x: old(x) * 2
        with pytest.raises(
            ValueError,
            match=r"forward of the net was replaced.*types\.MethodType\(forward, module\)",
        ):
            retrofit(net, SReLU(3.0), example=torch.randn(2, 1, 3, 3))


def test_a_script_is_copied() -> None:
    net, x = (
        torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()),
        torch.randn(2, 3),
    )
    made = deep_copy(net)
    expected = net(x)
    assert torch.equal(made(x), expected)
    with torch.no_grad():
        next(made.parameters()).zero_()
    assert torch.equal(net(x), expected)
