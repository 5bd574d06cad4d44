"""What a network keeps (counters, feature maps, generators) survives; what tracing meets leaves no
trace."""

from __future__ import annotations

import collections
import copy
import itertools
import pickle
import random
import threading
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.ground import one_trace
from retroact.nets.classifier import Classifier
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.notes import Notes
from retroact.retrofitting.sites import sites, survey
from retroact.retrofitting.surgery import retrofit
from retroact.retrofitting.tracing import trace

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)
        self.eval()

    def note(self, h: Tensor) -> Tensor | None:
        """What a subclass keeps of its features; another tensor takes their place."""

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv(x))
        other = self.note(h)
        return self.fc((h if other is None else other).flatten(1))


class Attribute(Net):
    def note(self, h):
        self.features = h


class OnAChild(Net):
    def note(self, h):
        self.conv.features = h


class InADict(Net):
    def __init__(self):
        super().__init__()
        self.kept = {"deep": [{}]}

    def note(self, h):
        self.kept["deep"][0]["h"] = h


class Shapes(Net):
    def __init__(self):
        super().__init__()
        self.shapes = []

    def note(self, h):
        self.shapes.append(h.shape)


class InADeque(Net):
    def __init__(self):
        super().__init__()
        self.last = collections.deque(maxlen=2)

    def note(self, h):
        self.last.append(h)


class Counts(Net):
    def __init__(self):
        super().__init__()
        self.names = collections.Counter()

    def note(self, h):
        self.names.update(["pass"])


class InANamespace(Net):
    def __init__(self):
        super().__init__()
        self.kept = types.SimpleNamespace(n=0)

    def note(self, h):
        self.kept.n += 1


class Slotted:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0


class InSlots(InANamespace):
    def __init__(self):
        super().__init__()
        self.kept = Slotted()


class ItsOwnGenerator(Net):
    def __init__(self):
        super().__init__()
        self.random = random.Random(0)

    def note(self, h):
        return h * self.random.random()


class NumpysGenerator(Net):
    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(0)

    def note(self, h):
        return h * float(self.random.random())


class NumpysGlobalGenerator(Net):
    def note(self, h):
        return h * float(np.random.rand())


class Iterates(Net):
    def __init__(self):
        super().__init__()
        self.steps = itertools.count()

    def note(self, h):
        next(self.steps)


class OnItsClass(Net):
    kept = None

    def note(self, h):
        type(self).kept = h


LOG: list[Tensor] = []
LAST = None


class InAGlobal(Net):
    def note(self, h):
        global LAST
        LOG.append(h)
        LAST = h


class OnlyInTraining(Net):
    def note(self, h):
        if self.training:
            self.features = h


class OnlyWithGrad(Net):
    def note(self, h):
        if torch.is_grad_enabled():
            self.features = h


class InABuffer(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("features", None)

    def note(self, h):
        self.features = h.detach()


KEEPERS = [
    *(
        Attribute,
        OnAChild,
        InADict,
        Shapes,
        InADeque,
        Counts,
        InANamespace,
        InSlots,
        ItsOwnGenerator,
    ),
    *(
        NumpysGenerator,
        NumpysGlobalGenerator,
        Iterates,
        OnItsClass,
        InAGlobal,
        OnlyInTraining,
        OnlyWithGrad,
    ),
    InABuffer,
]


def proxies(net: nn.Module) -> list[str]:
    """Where a torch.fx proxy lies in anything that the net's attributes, class or module globals
    hold."""
    everything = [
        *vars(net).values(),
        *vars(type(net)).values(),
        *LOG,
        LAST,
        *vars(net.conv).values(),
    ]
    inside = [v for held in everything if isinstance(held, list | collections.deque) for v in held]
    return [type(v).__name__ for v in (*everything, *inside) if isinstance(v, torch.fx.Proxy)]


@pytest.mark.parametrize("keeper", KEEPERS)
class TestKeepers:
    def test_no_graph_is_taken_and_nothing_is_left(self, keeper) -> None:
        net = keeper()
        logged = len(LOG)
        assert trace(net) is None
        assert proxies(net) == []
        assert len(LOG) == logged

    def test_the_copy_notes_its_own_tensors_pickles_and_copies(self, keeper) -> None:
        net = Classifier(keeper(), shape=(1, 8, 8))
        hard = retrofit(net, SReLU(2.0))
        assert type(hard.module) is keeper
        for again in (hard, pickle.loads(pickle.dumps(hard)), deep_copy(hard)):
            again(X)
            assert proxies(again.module) == []
        net(X)  # what it noted now belongs to a graph
        again = retrofit(net, JumpReLU(0.1))
        assert torch.equal(again.module.conv.weight, net.module.conv.weight)
        assert again(X).isfinite().all()

    def test_the_callers_random_numbers_stay_as_they_were(self, keeper) -> None:
        net = keeper()
        python, numpy = random.getstate(), np.random.get_state()[1].copy()
        retrofit(net, SReLU(2.0), example=X)
        assert random.getstate() == python
        assert np.array_equal(np.random.get_state()[1], numpy)
        assert proxies(net) == []


def test_a_noted_tensor_is_the_copys_own() -> None:
    hard = retrofit(Classifier(Attribute(), shape=(1, 8, 8)), SReLU(2.0))
    hard(X)
    assert torch.equal(hard.module.features, 2.0 * F.relu(hard.module.conv(X)))


def test_a_hook_that_keeps_outputs_in_a_closure() -> None:
    net, kept = Net(), []
    net.conv.register_forward_hook(lambda m, i, out: kept.append(out))
    hard = retrofit(net, SReLU(2.0), example=X)
    kept.clear()
    hard(X)
    assert [type(k) for k in kept] == [Tensor]


def test_notes_see_and_restore() -> None:
    net = InADict()
    notes = Notes(net)
    assert not notes.changed()
    net.kept["deep"][0]["h"] = X
    net.calls = 1
    assert notes.changed()
    notes.restore()
    assert net.kept == {"deep": [{}]}
    assert not hasattr(net, "calls")
    assert not notes.changed()


class TestTracingForgetsNothing:
    def test_a_block_without_gradients(self) -> None:
        class Frozen(Net):
            def forward(self, x):
                with torch.no_grad():
                    h = F.relu(self.conv(x))
                return self.fc(h.flatten(1)) + x.mean()

        net, x = Frozen(), X.clone().requires_grad_()
        assert trace(net) is None
        hard = retrofit(net, JumpReLU(0.0), example=X)
        (got,), (wanted,) = (torch.autograd.grad(n(x).sum(), x) for n in (hard, net))
        assert torch.equal(got, wanted)

    def test_a_backward_of_ones_own(self) -> None:
        class Straight(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                return (z > 0) * 1.0

            @staticmethod
            def backward(ctx, upstream):
                return upstream

        class Binary(Net):
            def note(self, h):
                return Straight.apply(h)

        net, x = Binary(), X.clone().requires_grad_()
        hard = retrofit(net, JumpReLU(0.0), example=X)
        (got,), (wanted,) = (torch.autograd.grad(n(x).sum(), x) for n in (hard, net))
        assert torch.equal(got, wanted)
        assert wanted.abs().max() > 0

    def test_parameters_and_buffers_that_no_call_reads(self) -> None:
        class TwoHeads(Net):
            def __init__(self):
                super().__init__()
                self.other = nn.Sequential(nn.Linear(144, 3), nn.BatchNorm1d(3))
                self.scale = nn.Parameter(torch.ones(2))
                self.register_buffer("ids", torch.arange(3))

        net = TwoHeads()
        hard = retrofit(net, SReLU(2.0), example=X)
        assert isinstance(hard, torch.fx.GraphModule)
        for again in (hard, copy.deepcopy(hard), pickle.loads(pickle.dumps(hard))):
            assert again.state_dict().keys() == net.state_dict().keys()

    def test_the_net_and_the_process_are_as_before(self) -> None:
        class Fails(Net):
            def note(self, h):
                raise ArithmeticError

        before = nn.Module.__call__, nn.Module.__getattr__
        for net in (Net(), Fails(), Attribute()):
            attributes = set(vars(net))
            trace(net.train())
            assert net.training
            assert set(vars(net)) == attributes
            assert (nn.Module.__call__, nn.Module.__getattr__) == before

    @pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
    def test_the_callers_modes_make_no_difference(self, grad) -> None:
        with grad():
            hard = retrofit(Net(), SReLU(2.0), example=X)
        assert isinstance(hard, torch.fx.GraphModule)
        assert not hard.get_parameter("conv.weight").is_inference()
        hard(X).sum().backward()
        assert trace(OnlyWithGrad()) is None
        with grad():
            assert trace(OnlyWithGrad()) is None

    def test_networks_run_in_other_threads_meanwhile(self) -> None:
        net, other, stop, wrong = Net(), Net(), threading.Event(), []
        expected = other(X).detach()

        def run() -> None:
            while not stop.is_set():
                try:
                    with torch.no_grad():
                        if not torch.equal(other(X), expected):
                            wrong.append("another result")
                except Exception as e:
                    wrong.append(repr(e))

        thread = threading.Thread(target=run)
        thread.start()
        graphs = [trace(net) for _ in range(20)]
        stop.set()
        thread.join()
        assert wrong == []
        assert all(g is not None for g in graphs)

    def test_one_trace_at_a_time(self) -> None:
        before = nn.Module.__call__
        graphs = []
        threads = [threading.Thread(target=lambda: graphs.append(trace(Net()))) for _ in range(4)]
        with one_trace():
            for thread in threads:
                thread.start()
            assert graphs == []
            assert nn.Module.__call__ is before
        for thread in threads:
            thread.join()
        assert len(graphs) == 4
        assert None not in graphs
        assert nn.Module.__call__ is before


class TestCopies:
    @pytest.mark.parametrize("where", ["attribute", "list", "nested", "object", "child"])
    def test_tensors_of_an_earlier_pass_are_detached_wherever_they_lie(self, where: str) -> None:
        net = Net()
        h = net.conv(X)
        held = {
            "attribute": h,
            "list": [h],
            "nested": {"a": [(h, 1)]},
            "object": types.SimpleNamespace(h=h),
            "child": h,
        }
        (net.fc if where == "child" else net).kept = held[where]
        made = deep_copy(net)
        kept = (made.fc if where == "child" else made).kept
        of = {
            "list": lambda k: k[0],
            "nested": lambda k: k["a"][0][0],
            "object": lambda k: k.h,
        }.get(where, lambda k: k)
        assert torch.equal(of(kept), h)
        assert of(kept).grad_fn is None
        assert of(kept) is not h
        assert h.grad_fn is not None

    @pytest.mark.parametrize(
        "norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm]
    )
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
    def test_weight_norm(self, norm) -> None:
        net = Net()
        net.fc = norm(net.fc)
        net(X)
        hard = retrofit(net, JumpReLU(0.0), example=X)
        assert torch.equal(hard(X), net(X))
        assert hard.state_dict().keys() == net.state_dict().keys()

    @pytest.mark.parametrize(
        ("held", "kind"),
        [
            (threading.Lock(), "lock"),
            ((i for i in range(3)), "generator"),
            ({"a": [threading]}, "dict"),
        ],
    )
    def test_what_cannot_be_copied_is_named(self, held, kind: str) -> None:
        net = Net()
        net.fc.held = held
        with pytest.raises(
            ValueError,
            match=rf"Net cannot be copied: .*attribute 'fc\.held', a {kind}\); set it to None",
        ):
            retrofit(net, SReLU(2.0), example=X)

    def test_in_inference_mode_a_copy_can_still_learn(self) -> None:
        with torch.inference_mode():
            net = Net()
            net.kept = net(X)
            made = deep_copy(net)
        assert not made.kept.is_inference()
        made(X).sum().backward()


class TestTheCallersWorld:
    def test_an_example_is_not_written_to(self) -> None:
        class InPlace(Net):
            def forward(self, x):
                return super().forward(x.sub_(0.5).div_(0.25))

        given, before = X.clone(), X.clone()
        hard = retrofit(InPlace(), SReLU(2.0), example=given)
        survey(hard, given)
        assert torch.equal(given, before)
        assert torch.equal(
            hard(X.clone()), retrofit(Net(), SReLU(2.0), example=X)((X - 0.5) / 0.25)
        )

    def test_an_example_that_requires_grad(self) -> None:
        given = X.clone().requires_grad_()
        retrofit(Net(), SReLU(2.0), example=given)
        assert given.grad is None
        assert given.requires_grad

    def test_default_dtype_device_and_autocast(self) -> None:
        net = Classifier(Net(), shape=(1, 8, 8))
        expected = sites(net)
        torch.set_default_dtype(torch.float64)
        try:
            assert sites(net) == expected
        finally:
            torch.set_default_dtype(torch.float32)
        with torch.device("meta"):
            assert sites(net) == expected
        with torch.autocast("cpu", torch.bfloat16):
            assert sites(net) == expected
            hard = retrofit(net, SReLU(2.0))
        assert isinstance(hard.module, torch.fx.GraphModule)
        assert hard(X).dtype == torch.float32

    def test_the_callers_random_numbers(self) -> None:
        states = torch.random.get_rng_state(), random.getstate()
        retrofit(Net(), SReLU(2.0), example=X)
        assert torch.equal(torch.random.get_rng_state(), states[0])
        assert random.getstate() == states[1]
