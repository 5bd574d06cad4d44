"""Kinds of callables as networks: the modules behind them are found, and what is sealed runs as it
is."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.oracle import (
    AccessError,
    device_of,
    dtype_of,
    evaluating,
    in_float,
    modules_of,
)
from retroact.evaluation.evaluate import decide
from retroact.nets.classifier import Classifier


def network() -> nn.Sequential:
    """Norms and dropout, so that train mode gives other numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(144, 10),
    )
    net(torch.rand(64, 1, 8, 8))
    return net.train()


NET = network()
PLAIN = copy.deepcopy(NET).eval()
X = torch.rand(33, 1, 8, 8, generator=torch.Generator().manual_seed(1))
DATA = ra.Images.of(X, PLAIN(X).argmax(1))


class Predictor:
    def __init__(self) -> None:
        self.model = NET

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)

    def predict(self, x: Tensor) -> Tensor:
        return self.model(x)


class Ensemble(nn.Module):
    """Its networks in a plain list, where `modules()` does not see them."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = [NET, NET]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.nets]).mean(0)


class Lightning(nn.Module):
    """As a LightningModule outside a trainer: asking for it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.model = NET

    @property
    def trainer(self) -> object:
        raise RuntimeError("Lightning is not attached to a Trainer")

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def by_global(x: Tensor) -> Tensor:
    return NET(x)


def decorated(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    @functools.wraps(f)
    def inner(x: Tensor) -> Tensor:
        return f(x)

    return inner


def by_closure() -> Callable[[Tensor], Tensor]:
    net = NET
    return lambda x: net(x)


def by_object() -> Callable[[Tensor], Tensor]:
    holder = Predictor()
    return lambda x: holder.model(x)


def by_default(x: Tensor, net: nn.Module = NET) -> Tensor:
    return net(x)


CALLABLES = {
    "partial": lambda: functools.partial(lambda net, x: net(x), NET),
    "partial by keyword": lambda: functools.partial(lambda x, net: net(x), net=NET),
    "bound method": lambda: NET.forward,
    "object": Predictor,
    "method of an object": lambda: Predictor().predict,
    "global": lambda: by_global,
    "closure": by_closure,
    "closure over an object": by_object,
    "default": lambda: by_default,
    "function of a function": lambda: lambda x: by_global(x),
    "decorated": lambda: decorated(by_global),
    "cached partial of a decorated function": lambda: functools.partial(decorated(by_closure())),
    "a list in a module": Ensemble,
    "a function in a module": lambda: ra.Expectation(by_global, draws=2),
    "LightningModule": Lightning,
    "DataParallel": lambda: nn.DataParallel(NET),
    "compiled": lambda: torch.compile(NET, backend="eager"),
    "compiled function": lambda: torch.compile(by_global, backend="eager"),
    "script in train mode": lambda: torch.jit.script(NET),
    "classifier": lambda: Classifier(NET, shape=(1, 8, 8)),
}


@pytest.fixture(autouse=True)
def _in_train_mode() -> Iterator[None]:
    NET.train()
    torch._dynamo.reset()
    yield
    NET.train()


@pytest.mark.parametrize("name", CALLABLES)
def test_the_modules_behind_a_callable_are_in_eval_mode_and_left_in_their_own(name: str) -> None:
    net = CALLABLES[name]()
    modes = [m.training for m in NET.modules()]
    before = {k: v.clone() for k, v in NET.state_dict().items()}
    for attack in (ra.PGD(steps=3), ra.DeepFool(steps=5), ra.Square(queries=5)):
        expected, found = (ra.evaluate(n, DATA, attack, ra.Linf(0.05)) for n in (PLAIN, net))
        assert np.array_equal(found.clean, expected.clean)
        # folded copies round differently
        assert np.mean(found.adversarial == expected.adversarial) > 0.9
    assert [m.training for m in NET.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in NET.state_dict().items())
    assert all(p.grad is None for p in NET.parameters())


@pytest.mark.parametrize("name", CALLABLES)
def test_modes_are_back_after_an_exception(name: str) -> None:
    net = CALLABLES[name]()
    NET[1].eval()  # a norm that was frozen on purpose
    modes = [m.training for m in NET.modules()]
    seen = []

    def interrupted() -> None:
        with evaluating(net, None):
            seen.extend(m.training for m in NET.modules())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert name.startswith("script") or not any(seen)
    assert [m.training for m in NET.modules()] == modes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_device_are_those_of_the_modules_behind(dtype: torch.dtype) -> None:
    net = copy.deepcopy(PLAIN).to(dtype)
    kinds: dict[str, object] = {
        "module": net,
        "function": lambda x: net(x),
        "partial": functools.partial(lambda n, x: n(x), net),
        "method": net.forward,
        "classifier": Classifier(net),
        "tuple": lambda x: (net(x), x),
        "frozen": torch.jit.freeze(torch.jit.script(net)),
        "traced": torch.jit.trace(net, X[:2].to(dtype)),
    }
    for name, kind in kinds.items():
        assert (dtype_of(kind), device_of(kind)) == (dtype, torch.device("cpu")), name
        logits = in_float(kind, X)
        assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32), name
        torch.testing.assert_close(logits.double(), PLAIN(X).double(), rtol=0.05, atol=0.05)
        for attack in (ra.PGD(steps=3), ra.Square(queries=5)):
            record = ra.evaluate(kind, ra.Images.of(X, decide(kind, X)), attack, ra.Linf(0.05))
            assert (record.clean == record.label).all() and (
                record.adversarial != record.label
            ).any(), name


def test_a_classifier_normalises_in_the_dtype_of_its_module() -> None:
    net = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), 0.1307, 0.3081)
    x = X.double()
    assert torch.equal(net(x), net.module((x - 0.1307) / 0.3081))


def test_a_function_may_give_wider_logits_than_its_weights() -> None:
    wide = lambda x: PLAIN(x).double() + 1e6  # noqa: E731
    for attack in (ra.PGD(steps=5, loss="margin"), ra.DeepFool(), ra.Square(queries=5)):
        expected, found = (
            ra.evaluate(n, DATA, attack, ra.Linf(0.05)) for n in (lambda x: PLAIN(x).double(), wide)
        )
        assert np.array_equal(found.clean, expected.clean) and not found.nonfinite.any()


def test_data_that_a_network_keeps_is_no_network() -> None:
    net = copy.deepcopy(PLAIN)
    net.seen = [("image.png", 3)] * 1000 + [PLAIN]
    net.table = {"a": 1, "b": functools.partial(by_global)}
    assert list(modules_of(net)) == [net, PLAIN, NET]
    assert list(modules_of(torch.nn.functional.relu)) == []
    assert list(modules_of(lambda x: x)) == []
    assert dtype_of(lambda x: x) is None


# ---------------------------------------------------------------------------------- sealed networks


def exported(net: nn.Module, n: int = 0) -> nn.Module:
    """For batches of `n`, or of any size."""
    shapes = None if n else ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(net, (X[: n or 4],), dynamic_shapes=shapes).module()


SEALED = {
    "script": lambda: torch.jit.script(PLAIN),
    "trace": lambda: torch.jit.trace(PLAIN, X[:4]),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(PLAIN)),
    "a traced function": lambda: torch.jit.trace(lambda x: FIXED(x), X[:4]),
    "exported": lambda: exported(PLAIN),
    "exported for 4": lambda: exported(PLAIN, 4),
    "exported for 1": lambda: exported(PLAIN, 1),
    "a function of an exported one": lambda: (lambda net: lambda x: (net(x), 0))(
        exported(PLAIN, 4)
    ),
}
FIXED = copy.deepcopy(PLAIN).requires_grad_(False)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "classifier"])
@pytest.mark.parametrize("name", SEALED)
@pytest.mark.filterwarnings("ignore")
def test_sealed_networks_run_under_scores_and_gradients(name: str, wrapped: bool) -> None:
    net = SEALED[name]()
    if wrapped and not isinstance(net, nn.Module):
        net = ra.Expectation(net, draws=1)
    elif wrapped:
        net = Classifier(net, shape=(1, 8, 8))
    for attack in (ra.Square(queries=10), ra.PGD(steps=3), ra.DeepFool(steps=5), ra.FGSM()):
        expected, found = (ra.evaluate(n, DATA, attack, ra.Linf(0.05)) for n in (PLAIN, net))
        assert np.array_equal(found.clean, expected.clean)
        assert np.mean(found.adversarial == expected.adversarial) > 0.9
        if attack.needs == "gradient":
            assert found.gradients.sum() > 0


def test_a_scripted_network_has_its_mode_back() -> None:
    script = torch.jit.script(network())
    expected = copy.deepcopy(script).eval()(X)
    modes = [m.training for m in script.modules()]
    assert any(modes)
    assert torch.equal(decide(script, X), expected.argmax(1))
    assert [m.training for m in script.modules()] == modes


@pytest.mark.filterwarnings("ignore")
def test_what_was_exported_in_train_mode_is_refused() -> None:
    for net in (torch.jit.trace(network(), X, check_trace=False), exported(network())):
        for given in (net, lambda x, net=net: net(x)):
            with pytest.raises(
                ValueError, match=r"in train mode, which eval\(\) cannot change.*export it again"
            ):
                ra.evaluate(given, DATA, ra.Square(queries=5), ra.Linf(0.1))


def _quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(PLAIN), {nn.Linear}, dtype=torch.qint8
        )


class Residual(nn.Module):
    """A quantised layer beside a float one: torch gives half a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.quantised = copy.deepcopy(PLAIN), _quantised()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.quantised(x)


BLIND = {
    "dynamically quantised": _quantised,
    "half quantised": Residual,
    "under no_grad": lambda: torch.no_grad()(lambda x: PLAIN(x)),
    "in inference mode": lambda: torch.inference_mode()(lambda x: PLAIN(x)),
    "detaches its input": lambda: lambda x: PLAIN(x.detach()),
    "a session of numpy": lambda: lambda x: PLAIN(torch.from_numpy(x.numpy())).detach().numpy(),
    "a session that answers in a list": lambda: (
        lambda x: [PLAIN(torch.from_numpy(x.numpy())).detach().numpy()]
    ),
}


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.filterwarnings("ignore")
def test_networks_without_gradients_serve_scores_and_say_what_is_missing(name: str) -> None:
    net = BLIND[name]()
    data = ra.Images.of(X, decide(net, X))
    record = ra.evaluate(net, data, ra.Square(queries=30), ra.Linf(0.1))
    assert (record.clean == record.label).all() and ra.robust_accuracy(record) < 1
    for attack in (ra.PGD(steps=2), ra.DeepFool(), ra.FGSM(), ra.TrustRegion()):
        with pytest.raises(
            AccessError, match=r"gives no gradient .* scores or decisions, or pass .* source="
        ):
            ra.evaluate(net, data, attack, ra.Linf(0.1))
    # the cure that the error names
    helped = ra.evaluate(net, data, ra.PGD(steps=5), ra.Linf(0.1), source=PLAIN)
    assert ra.robust_accuracy(helped) < 0.5


class Once(torch.autograd.Function):
    """The identity, whose graph serves one gradient, as that of compiled code may."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.buffer = torch.ones(())
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        if ctx.buffer is None:
            raise RuntimeError("the buffers of this graph are gone")
        buffer, ctx.buffer = ctx.buffer, None
        return gradient * buffer


def test_a_graph_that_serves_once_is_made_anew() -> None:
    once = lambda x: PLAIN(Once.apply(x))  # noqa: E731
    for attack in (ra.DeepFool(), ra.TrustRegion(steps=5), ra.FMN(steps=5)):
        expected, found = (
            ra.evaluate(n, DATA, attack, ra.Linf(0.1)) for n in (lambda x: PLAIN(x), once)
        )
        assert np.array_equal(found.distance, expected.distance)
        assert np.array_equal(found.gradients, expected.gradients)
        assert np.array_equal(found.queries, expected.queries)


class TrainsItself(nn.Module):
    """As tutorials write it: train and eval are loops over a loader."""

    def __init__(self) -> None:
        super().__init__()
        self.net = NET

    def train(self, loader: object, epochs: int) -> None:
        raise AssertionError("nobody asked for training")

    def eval(self, loader: object) -> float:
        raise AssertionError("nobody asked for an accuracy")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("wrap", [lambda net: net, Classifier], ids=["bare", "classifier"])
def test_train_and_eval_may_be_methods_of_the_networks_own(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    net = wrap(TrainsItself())
    for attack in (ra.PGD(steps=2), ra.Square(queries=5)):
        record = ra.evaluate(net, DATA, attack, ra.Linf(0.05))
        assert (record.clean == record.label).all()


def test_a_fault_of_the_network_itself_stays_what_it_is() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        ra.evaluate(broken, DATA, ra.FGSM(), ra.Linf(0.1))
