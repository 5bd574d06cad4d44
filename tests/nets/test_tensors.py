"""Whatever a module holds comes back out of a file: bits, dtypes, ties, views, extra state, and
what is not held."""

import pytest
import torch
from torch import Tensor, nn

from retroact.checkpoint import CheckpointError, digest, load, save
from retroact.nets.classifier import Classifier

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.b(self.a(x.flatten(1)).relu())).relu())


class Tied(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.a.weight


class TiedBeside(Tied):
    """What refers to the weight by another way than its name must see it filled."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = [self.a.weight]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.beside[0].sum()


class SharedModule(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.b


class Views(Plain):
    def __init__(self) -> None:
        super().__init__()
        both = torch.randn(100, 64)
        self.a.weight, self.b.weight = nn.Parameter(both[:64]), nn.Parameter(both[36:])
        self.out.weight = nn.Parameter(both[:64].t()[:10])


class Buffers(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("expanded", torch.zeros(1).expand(10))
        self.register_buffer("spread", torch.randn(1, 10, 1).expand(4, 10, 3))
        self.register_buffer("turned", torch.randn(10, 3).t())
        self.register_buffer("strided", torch.randn(20)[::2])
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("number", torch.tensor(0.5))
        self.register_buffer("mask", torch.ones(10, dtype=torch.bool))
        self.register_buffer("narrow", torch.zeros(10, dtype=torch.bfloat16))
        self.register_buffer("hidden", torch.zeros(10), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, x: Tensor) -> Tensor:
        out = (
            super().forward(x)
            + self.expanded
            + self.spread[0, :, 0]
            + self.turned.sum(0)
            + self.strided
        )
        return (
            out
            + self.nothing.sum()
            + self.number
            + self.mask
            + self.narrow.to(out.dtype)
            + self.hidden
        )


class Extra(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.kept = 1, torch.ones(3)
        self.b.get_extra_state = lambda: self.kept  # type: ignore
        self.b.set_extra_state = lambda kept: setattr(self, "kept", kept)  # type: ignore

    def get_extra_state(self) -> dict[str, object]:
        return {"scale": self.scale, "why": ["a", None, 1.5]}

    def set_extra_state(self, state: dict[str, object]) -> None:
        self.scale = state["scale"]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale + self.kept.sum()


KINDS = [Plain, Tied, TiedBeside, SharedModule, Views, Buffers, Extra]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _trained(kind: type[nn.Module], dtype: torch.dtype) -> Classifier:
    """As after training: every number another than a fresh instance has, and finer than float32
    where it can be."""
    torch.manual_seed(7)
    module = kind().to(dtype)
    with torch.no_grad():
        for tensor in {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}.values():
            if tensor.is_floating_point() and 0 not in tensor.stride():
                tensor += 0.1 * torch.rand_like(tensor)
    if isinstance(module, Buffers):
        module.expanded = torch.tensor([0.7], dtype=dtype).expand(10)
    if isinstance(module, Extra):
        module.scale, module.kept = 3, torch.arange(3.0)
    return Classifier(module, 0.1307, 0.3081, shape=(1, 8, 8)).to(dtype)


def _same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(
        (torch.equal(v, b[k]) and v.dtype == b[k].dtype) if isinstance(v, Tensor) else v == b[k]
        for k, v in a.items()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_module_comes_back_bit_for_bit(tmp_path, kind, dtype):
    net = _trained(kind, dtype)
    torch.manual_seed(1)
    back = load(save(net, tmp_path / "net.safetensors"), into=kind())
    assert _same(back, net) and digest(back) == digest(net)
    x = X.to(dtype)
    # strides are not kept
    assert torch.equal(back(x), net(x)) or (kind is Views and torch.allclose(back(x), net(x)))
    if kind is Buffers:
        assert back.module.hidden.dtype == dtype and torch.equal(
            back.module.hidden, net.module.hidden
        )
        assert bool(net.module.hidden.any()) and back.module.expanded.stride() == (0,)


@pytest.mark.parametrize("kind", [Tied, SharedModule, Views])
def test_what_was_tied_is_tied_again_also_in_an_instance_that_ties_nothing(tmp_path, kind):
    net = _trained(kind, torch.float32)
    path = save(net, tmp_path / "net.safetensors")
    plain = Plain()
    if kind is SharedModule:
        plain.again = nn.Linear(64, 64)
    for back in (load(path, into=kind()), load(path, into=plain)):
        assert torch.equal(back(X), net(X))
        before = back.module.b.weight.clone()
        with torch.no_grad():
            (back.module.again if kind is SharedModule else back.module.a).weight.add_(1.0)
        assert not torch.equal(back.module.b.weight, before)
    if kind is Tied:
        assert back.module.a.weight is back.module.b.weight
        assert len(list(back.parameters())) == len(list(net.parameters()))


@pytest.mark.parametrize("kind", [Tied, Views])
def test_what_was_not_tied_stays_so_in_an_instance_that_ties(tmp_path, kind):
    net = _trained(Plain, torch.float32)
    back = load(save(net, tmp_path / "net.safetensors"), into=kind())
    assert torch.equal(back(X), net(X)) and not torch.equal(
        back.module.a.weight, back.module.b.weight
    )


def test_a_recurrent_net_runs_on_what_was_loaded(tmp_path):
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(x[:, 0])[0][:, -1])

    net = Classifier(Recurrent().double(), shape=(1, 8, 8)).double()
    back = load(save(net, tmp_path / "net.safetensors"), into=Recurrent())
    assert torch.equal(back(X.double()), net(X.double()))


def _normed() -> nn.Module:
    module = Plain()
    nn.utils.parametrizations.weight_norm(module.a)
    nn.utils.parametrizations.spectral_norm(module.b)
    return module


def _normed_by_hooks() -> nn.Module:
    module = Plain()
    nn.utils.weight_norm(module.a)
    nn.utils.spectral_norm(module.b)
    return module


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.norm, self.out = nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 10)
        self.scales = nn.ParameterList([torch.ones(1), torch.ones(8)])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.attend(x[:, 0] * self.scales[1]).mean(1)) * self.scales[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("build", [_normed, _normed_by_hooks, Attentive])
def test_other_ways_to_hold_a_weight(tmp_path, build):
    torch.manual_seed(2)
    net = Classifier(build().double(), shape=(1, 8, 8))
    net.train()(X.double())  # one step of spectral norm's power iteration
    net.eval()
    back = load(save(net, tmp_path / "net.safetensors"), into=build())
    assert _same(back, net) and torch.equal(back(X.double()), net(X.double()))


@pytest.mark.parametrize("where", ["net", "inner", "into", "parallel", "into parallel"])
def test_a_compiled_or_parallel_net_is_saved_as_its_own(tmp_path, where):
    net = _trained(Plain, torch.float32)
    blank, plain = Plain(), digest(net)
    expected = net(X)
    if where == "net":
        net.module = torch.compile(net.module, backend="eager")
    if where == "parallel":
        net.module = nn.DataParallel(net.module)
    if where == "inner":
        net.module.a = torch.compile(net.module.a, backend="eager")
    assert digest(net) == plain or where == "parallel"
    wrap = {
        "into": lambda m: torch.compile(m, backend="eager"),
        "into parallel": nn.DataParallel,
    }.get(where, lambda m: m)
    back = load(save(net, tmp_path / "net.safetensors"), into=wrap(blank))
    assert digest(back) == plain or where == "into parallel"
    assert torch.equal(blank((X - net.mean) / net.std), expected)


def test_an_untrained_lazy_net_and_other_things_without_numbers_are_refused_by_name(tmp_path):
    def saved(change: object) -> None:
        module = Plain()
        change(module)  # type: ignore[operator]
        save(Classifier(module), tmp_path / "net.safetensors")

    class Odd(Plain):
        def get_extra_state(self) -> object:
            return {1: (2, 3)}

        def set_extra_state(self, _: object) -> None: ...

    for change, says in (
        (lambda m: setattr(m, "a", nn.LazyLinear(64)), r"a\.weight has no shape yet"),
        (lambda m: m.to("meta"), r"a\.weight lies on the meta device"),
        (
            lambda m: m.register_buffer("s", torch.eye(3).to_sparse()),
            r"s is a Tensor of torch\.float32, sparse_coo",
        ),
        (
            lambda m: setattr(m, "odd", Odd()),
            r"odd\._extra_state is a dict that JSON does not give back",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            saved(change)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_net_says_what_differs(tmp_path):
    path = save(_trained(Tied, torch.float64), tmp_path / "net.safetensors")

    class Other(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.more = nn.Linear(64, 11), nn.Linear(2, 2)

    with pytest.raises(
        CheckpointError, match=r'Missing key.*"more\.weight"[\s\S]*size mismatch for out\.weight'
    ):
        load(path, into=Other())
