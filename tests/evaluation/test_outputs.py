"""What networks return, as they come: the same numbers as from logits alone, or a sentence."""

import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.oracle import in_float, place_of
from retroact.doors import SeveralPlacesError, logits_in
from retroact.evaluation.evaluate import decide
from retroact.nets.classifier import Classifier
from retroact.retrofitting.lean import lean


class ModelOutput(OrderedDict):
    """As Hugging Face's: a mapping whose keys are attributes, without those that are None."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


@dataclass
class Answer:
    logits: Tensor
    depth: int


Pair = namedtuple("Pair", "logits aux")


def network(classes: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes)).eval()


NET = network()
X = torch.rand(65, 1, 8, 8, generator=torch.Generator().manual_seed(1))
DATA = ra.Images.of(X, NET(X).argmax(1))
HEADS = torch.rand(10, 7)  # as many rows as a chunk may have

LARGER = {
    "tuple": (lambda x: (NET(x), 0), "0"),
    "list": (lambda x: [None, NET(x)], "1"),
    "dict": (lambda x: {"loss": None, "logits": NET(x)}, "'logits'"),
    "nested": (lambda x: ({"heads": [NET(x)]}, x), "(0, 'heads', 0)"),
    "model output": (lambda x: ModelOutput(logits=NET(x), hidden_states=(x, x[:, 0])), "'logits'"),
    "dataclass": (lambda x: Answer(NET(x), 3), "'logits'"),
    "object": (lambda x: SimpleNamespace(logits=NET(x), name="a"), "'logits'"),
    "named tuple": (lambda x: Pair(NET(x), None), "'logits'"),
    "twice the same": (lambda x: (lambda z: (z, {"logits": z}))(NET(x)), "0"),
    "with a map that is 1 by 1": (lambda x: (NET(x), x.mean((2, 3), keepdim=True)), "0"),
    "with a constant of ten rows": (lambda x: (HEADS, NET(x)), "1"),
    "with a constant of one row": (lambda x: (NET(x), HEADS[:1]), "0"),
    "squeezed, with a constant of one row": (lambda x: (NET(x).squeeze(), HEADS[:1]), "0"),
}

ALIKE = {
    "squeezed": lambda x: NET(x).squeeze(),
    "fully convolutional": lambda x: NET(x)[:, :, None, None],
    "of numpy": lambda x: NET(x).detach().numpy() if not x.requires_grad else NET(x),
}


@pytest.mark.parametrize("name", [*LARGER, *ALIKE])
@pytest.mark.filterwarnings("ignore:the net returns more")
def test_logits_are_found_and_the_record_is_that_of_logits_alone(name: str) -> None:
    net = LARGER[name][0] if name in LARGER else ALIKE[name]
    for attack in (ra.PGD(steps=3), ra.DeepFool(steps=5), ra.Square(queries=5)):
        expected = ra.evaluate(NET, DATA, attack, ra.Linf(0.05))
        assert 0 < ra.robust_accuracy(expected) < 1 or attack.kind == "minimum-norm"
        for chunk in (64, 10, 13):  # last chunks of 1, 5 and 0
            found = ra.evaluate(net, DATA, attack, ra.Linf(0.05), chunk=chunk)
            assert np.array_equal(found.clean, expected.clean)
            # folded copies round differently
            assert np.mean(found.adversarial == expected.adversarial) > 0.95


@pytest.mark.parametrize("name", LARGER)
def test_the_place_is_said_once_a_run(name: str) -> None:
    net, place = LARGER[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ra.evaluate(net, DATA, ra.PGD(steps=2), ra.Linf(0.05), chunk=20)
    (message,) = (str(w.message) for w in said)
    assert f"found at {place}; Classifier(net, output={place})" in message
    assert place_of(net, X[:3]) == place


@pytest.mark.parametrize("net", [NET, *ALIKE.values(), Classifier(NET)])
def test_nothing_is_said_where_there_is_nothing_else(net: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ra.evaluate(net, DATA, ra.PGD(steps=2), ra.Linf(0.05))
    assert place_of(net, X[:3]) == ""


def test_of_two_heads_an_error_lists_the_places_and_output_chooses() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = network(), network(4)

        def forward(self, x: Tensor) -> object:
            return {"fine": self.one(x), "coarse": [self.two(x)], "map": x}

    net = Heads()
    with pytest.raises(
        SeveralPlacesError,
        match=r"2 tensors .* 65 images: 'fine' \(65, 10\), \('coarse', 0\) \(65, 4\)",
    ):
        in_float(net, X)
    with pytest.raises(SeveralPlacesError, match=r"output='fine'"):
        ra.evaluate(net, DATA, ra.PGD(steps=2), ra.Linf(0.05))
    assert torch.equal(Classifier(net, output="fine")(X), net.one(X))
    assert torch.equal(Classifier(net, output=("coarse", 0))(X), net.two(X))
    assert torch.equal(Classifier(net, output="coarse")(X), net.two(X))
    assert torch.equal(Classifier(net, output=lambda out: out["coarse"][0])(X), net.two(X))


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (
            lambda z: z[:, :1],
            ValueError,
            r'shape \(65, 1\) for 65 images.*output="sigmoid".*two classes',
        ),
        (lambda z: z[:, 0], ValueError, r'shape \(65,\) .*output="sigmoid"'),
        (lambda z: {"logits": z[:, :1]}, ValueError, r"dict with 'logits' .*output=\"sigmoid\""),
        (lambda z: z[:, :1, None, None], ValueError, 'output="sigmoid"'),
        (lambda z: z.argmax(1), ValueError, r"int64 of shape \(65,\).*decisions.*one_hot"),
        (
            lambda z: z[:, :, None, None].expand(-1, -1, 3, 3),
            ValueError,
            r"\(65, 10, 3, 3\).*a map or a sequence",
        ),
        (
            lambda z: (z[:, :, None].expand(-1, -1, 4), 1),
            ValueError,
            r"tuple with 0 .*a map or a sequence",
        ),
        (lambda z: z[:, :0], ValueError, r"shape \(65, 0\).*k at least 2"),
        (lambda z: z[:60], ValueError, r"shape \(60, 10\) for 65 images"),
        (lambda z: None, TypeError, "returned NoneType for 65 images"),
        (lambda z: ("a", 3), TypeError, "returned tuple for 65 images"),
        (lambda z: z.sum(), ValueError, r"shape \(\) for 65 images"),
    ],
)
def test_what_holds_no_logits_is_refused_in_a_sentence(
    made: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        logits_in(made(NET(X)), 65)
    with pytest.raises(error, match=r"the net returned .* images"):
        ra.evaluate(lambda x: made(NET(x)), DATA, ra.Square(queries=2), ra.Linf(0.1))


def test_one_hot_decisions_serve_attacks_that_need_no_gradient() -> None:
    decided = lambda x: nn.functional.one_hot(NET(x).argmax(1), 10)  # noqa: E731
    record = ra.evaluate(
        decided, DATA, ra.AdditiveUniformNoise(repeats=3), ra.Linf(0.3, access="decision")
    )
    assert (record.clean == record.label).all() and (record.adversarial != record.label).any()


def test_numbers_of_classes_that_change_with_the_batch_are_refused() -> None:
    ragged = lambda x: NET(x)[:, : 10 if len(x) > 20 else 7]  # noqa: E731
    with pytest.raises(
        ValueError, match="expected the same classes for every image, got 7 and then 10"
    ):
        decide(ragged, X, chunk=30)


# -------------------------------------------------------------------------------- one sigmoid logit


class One(nn.Module):
    """A binary network, its logit z in the form that `how` names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = network(1), how
        self.net[3].bias.data -= self.net(X).median()

    def forward(self, x: Tensor) -> object:
        z = self.net(x)
        match self.how:
            case "(n,)":
                return z[:, 0]
            case "squeezed":
                return z.squeeze()
            case "in a mapping":
                return ModelOutput(loss=z.mean(), logits=z, hidden_states=(x,))
            case "of a convolution":
                return z[:, :, None, None]
            case _:
                return z


@pytest.mark.parametrize("how", ["(n, 1)", "(n,)", "squeezed", "in a mapping", "of a convolution"])
def test_one_sigmoid_logit_becomes_two_classes(how: str) -> None:
    net = Classifier(One(how), output="sigmoid", shape=(1, 8, 8))
    z = net.module.net(X)[:, 0]
    torch.testing.assert_close(net(X).softmax(1)[:, 1], z.sigmoid())
    assert torch.equal(decide(net, X, chunk=64), (z > 0).long())
    data = ra.Images.of(X, (z > 0).long())
    for attack in (
        ra.PGD(steps=3),
        ra.DeepFool(steps=5),
        ra.TrustRegion(steps=5),
        ra.Square(queries=5),
    ):
        record = ra.evaluate(net, data, attack, ra.Linf(0.02))
        assert 0 < ra.robust_accuracy(record) < 1
        assert (record.clean == record.label).all()


def test_sigmoid_is_refused_where_there_are_several_classes_or_several_logits() -> None:
    with pytest.raises(
        ValueError, match=r"one float logit per image, .* got torch.float32 of shape \(65, 10\)"
    ):
        Classifier(NET, output="sigmoid")(X)
    with pytest.raises(SeveralPlacesError, match=r"0 \(65, 1\), 1 \(65, 1\)"):
        logits_in((X[:, 0, 0, :1], X[:, 0, 0, 1:2]), 65, "sigmoid")


def test_a_probability_that_poses_as_a_sigmoid_logit_is_warned_of() -> None:
    class Sigmoid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).sigmoid()

    net = Sigmoid()
    with pytest.warns(UserWarning, match="one probability, not one logit"):
        decide(Classifier(net, output="sigmoid"), X, labels=torch.ones(65, dtype=torch.int64))
    # as the warning says
    cured = Classifier(net, output=lambda p: torch.stack([(1 - p).log(), p.log()], 1).flatten(1))
    torch.testing.assert_close(cured(X).softmax(1)[:, 1:], net(X))


# --------------------------------------------------------------- networks that write, and that keep


class InPlace(nn.Module):
    """Normalises its input where it stands, as `transforms(inplace=True)` do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = network()

    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).div_(0.25)
        return self.fc(x)


WRITERS = {
    "normalises": InPlace,
    "inplace ReLU": lambda: nn.Sequential(nn.ReLU(inplace=True), NET),
    "a function": lambda: lambda x: NET(x.sub_(0.1)),
    "clamps": lambda: lambda x: NET(x.clamp_(0.2, 0.8)),
    "float64": lambda: InPlace().double(),
    "in a classifier": lambda: Classifier(InPlace()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_network_that_writes_to_its_input_gets_its_own(name: str) -> None:
    net = WRITERS[name]()
    x = X[:20].clone()
    before = x.clone()
    data = ra.Images.of(x, decide(net, x))
    for attack in (ra.PGD(steps=3), ra.DeepFool(steps=3), ra.FGSM(), ra.Square(queries=5)):
        record = ra.evaluate(net, data, attack, ra.Linf(0.05), keep=20)
        assert torch.equal(data.images, before)
        assert np.array_equal(record.originals, before.numpy())
        assert record.distance[:, 3].max() <= 0.05 + 1e-6
        assert (record.clean == record.label).all() and (record.adversarial != record.label).any()
        wanted = net.fc if name == "normalises" else None
        if wanted is not None:
            again = wanted((torch.from_numpy(record.examples) - 0.5) / 0.25).argmax(1)
            assert record.adversarial.tolist() == again.tolist()


def test_an_audit_leaves_the_images_as_they_were() -> None:
    net, x = InPlace(), X[:30].clone()
    data = ra.Images.of(x, decide(net, x))
    found = ra.audit(net, net, data, ra.Linf(0.02), battery="quick")
    assert torch.equal(x, X[:30])
    assert found.verdict.counts.clean == (1.0, 1.0)


def test_a_network_that_returns_its_own_buffer_does_not_change_logits_that_were_given() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.out = network(), torch.empty(65, 10)

        def forward(self, x: Tensor) -> Tensor:
            return torch.no_grad()(self.out[: len(x)].copy_)(self.net(x).detach())

    net = Buffered()
    first = in_float(net, X)
    kept = first.clone()
    in_float(net, 1 - X)
    assert torch.equal(first, kept)


@pytest.mark.filterwarnings("ignore:the net returns more")
def test_a_network_that_returns_more_than_logits_is_attacked_in_a_lean_form_too() -> None:
    class More(nn.Module):
        shape = (1, 8, 8)

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
            )

        def forward(self, x: Tensor) -> object:
            return {"logits": self.net(x), "images": x}

    torch.manual_seed(0)
    net = More().eval()
    data = ra.Images.of(X, decide(net, X))
    assert (
        ra.evaluate(net, data, ra.PGD(steps=10), ra.Linf(0.05)).pedigree["form"]
        == "folded, channels last"
    )
    assert not any(isinstance(m, nn.BatchNorm2d) for m in lean(net).modules())


class Tagged(torch.Tensor):
    """One that refuses what it does not know, as subclasses with their own dispatch do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.cross_entropy:
            return NotImplemented
        return super().__torch_function__(func, types, args, kwargs or {})


def test_logits_of_a_tensors_subclass_are_read_as_the_tensor():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(6, 1, 4, 4)
    data = ra.Images.of(x, net(x).argmax(1))
    found = [
        ra.evaluate(f, data, "PGD(steps=3)", "Linf(0.3)")
        for f in (net, lambda v: net(v).as_subclass(Tagged))
    ]
    assert found[0] == found[1]
