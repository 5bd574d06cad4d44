import copy
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU
from retroact.checkpoint import load, save
from retroact.doors import check_images, check_labels, warn_of_probabilities
from retroact.nets.classifier import Classifier, Output
from retroact.nets.lenet_like import LeNetLike
from retroact.retrofitting.export import export
from retroact.retrofitting.surgery import retrofit

X = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def _linear() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5))


# ----------------------------------------------------------------------------------------- forward


def test_it_normalises_once_and_per_channel() -> None:
    net = _linear()
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    by_hand = torch.stack([(X[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(Classifier(net, mean, std)(X), net(by_hand))


def test_mean_0_and_std_1_leave_every_bit_alone() -> None:
    net = _linear()
    assert torch.equal(Classifier(net)(X), net(X))


def test_it_is_in_eval_mode_from_birth_and_leaves_the_weights_reachable() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 5)).train()
    classifier = Classifier(net, shape=(3, 4, 4))
    assert not classifier.training
    assert not net.training
    assert classifier.module is net
    assert torch.equal(classifier(X), classifier(X))
    assert list(classifier.module.state_dict()) == ["2.weight", "2.bias"]


def test_it_pickles_and_traces() -> None:
    classifier = Classifier(LeNetLike()(), 0.1307, 0.3081, shape=(1, 28, 28), name="lenet")
    x = torch.rand(2, 1, 28, 28)
    again = pickle.loads(pickle.dumps(classifier))
    assert torch.equal(again(x), classifier(x))
    assert (again.shape, again.name) == ((1, 28, 28), "lenet")
    assert torch.equal(torch.fx.symbolic_trace(classifier)(x), classifier(x))
    exported = torch.export.export(classifier, (x,)).module()
    torch.testing.assert_close(exported(x), classifier(x))


def test_gradients_reach_the_pixels_scaled_by_std() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2, bias=False))
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(Classifier(net, 0.5, 0.25)(x)[:, 0].sum(), x)
    expected = net[1].weight[0].view(1, 3, 4, 4).expand(3, 3, 4, 4) / 0.25
    torch.testing.assert_close(gradient, expected)


# ------------------------------------------------------------------------------------------ output


class _Wrapped(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.inner = _linear()

    def forward(self, x: Tensor) -> object:
        logits = self.inner(x)
        match self.kind:
            case "dict":
                return {"logits": logits, "loss": None}
            case "tuple":
                return None, logits
            case "object":
                return SimpleNamespace(logits=logits)
            case "map":
                return logits[:, :, None]
            case _:
                return logits


@pytest.mark.parametrize(
    ("kind", "output"),
    [("dict", "logits"), ("tuple", 1), ("object", "logits"), ("map", lambda out: out.squeeze(2))],
)
def test_it_finds_logits_in_other_outputs(kind: str, output: object) -> None:
    net = _Wrapped(kind)
    assert torch.equal(Classifier(net, output=output)(X), net.inner(X))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dict", "tuple", "object"])
def test_it_finds_the_one_tensor_of_logits_by_itself(kind: str) -> None:
    net = _Wrapped(kind)
    assert torch.equal(Classifier(net)(X), net.inner(X))
    assert torch.equal(Classifier(net)(X[:1]), net.inner(X[:1]))


def test_trailing_dimensions_of_1_are_no_map() -> None:
    net = _Wrapped("map")
    assert torch.equal(Classifier(net)(X), net.inner(X))


def test_an_output_that_is_no_logits_says_what_came_and_what_to_do() -> None:
    with pytest.raises(
        TypeError, match=r"returned NoneType for 3 images.*Classifier\(net, output=function\)"
    ):
        Classifier(_Wrapped("dict"), output="loss")(X)
    with pytest.raises(ValueError, match=r"shape \(3, 5, 2\) for 3 images"):
        Classifier(_linear(), output=lambda out: torch.stack([out, out], 2))(X)
    with pytest.raises(ValueError, match="has the keys 'logits', 'loss'"):
        Classifier(_Wrapped("dict"), output="scores")(X)
    with pytest.raises(ValueError, match="positions 0 to 1"):
        Classifier(_Wrapped("tuple"), output=2)(X)
    with pytest.raises(ValueError, match="has no 'b'; it has the keys 'logits', 'loss'"):
        Classifier(_Wrapped("dict"), output=("b", 0))(X)
    with pytest.raises(ValueError, match="it is a tensor, so drop output="):
        Classifier(_linear(), output="logits")(X)
    with pytest.raises(ValueError, match=r"returned torch.int64 of shape \(3,\).* decisions"):
        Classifier(_linear(), output=lambda out: out.argmax(1))(X)


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("dict", None),
        ("dict", "logits"),
        ("tuple", None),
        ("tuple", (1,)),
        ("map", None),
        ("plain", "sigmoid"),
    ],
)
def test_whatever_its_output_it_pickles_traces_exports_and_is_retrofitted(
    kind: str, output: Output, tmp_path: Path
) -> None:
    net = _Wrapped(kind)
    net.inner = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1 if output == "sigmoid" else 5)
    )
    classifier = Classifier(net, 0.5, 0.25, shape=(3, 4, 4), output=output)
    expected = classifier(X)
    assert expected.shape == (3, 2 if output == "sigmoid" else 5)
    assert torch.equal(pickle.loads(pickle.dumps(classifier))(X), expected)
    assert torch.equal(torch.fx.symbolic_trace(classifier)(X), expected)
    assert torch.equal(retrofit(classifier, JumpReLU(0.0))(X), expected)
    assert (
        export(retrofit(classifier, JumpReLU(0.1)), tmp_path / "net.pt2", images=X).max_difference
        < 1e-5
    )
    save(classifier, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors", into=copy.deepcopy(net))
    assert again.output == output
    assert torch.equal(again(X), expected)


# ------------------------------------------------------------------------------------ construction


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf"), (0.5, 0.0, 0.5), ()])
def test_a_std_that_cannot_divide_is_refused(std: object) -> None:
    with pytest.raises(ValueError, match="std"):
        Classifier(_linear(), 0.0, std)  # type: ignore[arg-type]


def test_bad_construction_is_refused() -> None:
    with pytest.raises(ValueError, match="2 numbers for 3 channels"):
        Classifier(_linear(), (0.1, 0.2), shape=(3, 4, 4))
    with pytest.raises(TypeError, match=r"plain nn\.Module"):
        Classifier(Classifier(_linear()))
    with pytest.raises(TypeError, match="got function"):
        Classifier(lambda x: x)  # type: ignore[arg-type]
    for shape in ((4, 0), (), (-1,)):
        with pytest.raises(ValueError, match=r"\(channels, height, width\)"):
            Classifier(_linear(), shape=shape)


# ------------------------------------------------------------------------------------------- doors


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (X * 255, "divide by 255"),
        (X * 2 - 1, r"mean=0\.5, std=0\.5"),
        ((X - 0.1307) / 0.3081, "leave normalisation to Classifier"),
        (X.where(X > 0.1, torch.nan), "NaN or infinity"),
        (X[0], r"images\[None\]"),
        (X[:0], "at least one image"),
        (X.clone().fill_(1 + 1e-5), r"clamp\(0, 1\)"),
    ],
)
def test_images_that_are_none_are_refused_with_the_cure(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_images(images)


def test_images_of_another_type_or_shape_are_refused_with_the_cure() -> None:
    with pytest.raises(TypeError, match=r"uint8; use images\.float\(\) / 255"):
        check_images((X * 255).to(torch.uint8))
    with pytest.raises(TypeError, match=r"torch\.as_tensor"):
        check_images(X.numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels first"):
        check_images(torch.rand(2, 28, 28, 1), (1, 28, 28))
    with pytest.raises(
        ValueError, match=r"expected images of shape \(1, 28, 28\), got \(3, 4, 4\)"
    ):
        Classifier(_linear(), shape=(1, 28, 28))(X)


def test_rounding_beyond_the_interval_is_let_through() -> None:
    check_images(torch.tensor([-9e-7, 1 + 9e-7]).view(1, 1, 1, 2))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, r"\.long\(\)"),
        ([0, 1, 2], TypeError, "got list"),
        (torch.tensor([0, 1]), ValueError, r"shape \(3,\), got \(2,\)"),
        (torch.tensor([[0, 1, 2]]), ValueError, "one label per image"),
        (torch.tensor([0, 1, 5]), ValueError, "below 5, got 0 to 5"),
        (torch.tensor([0, -1, 2]), ValueError, "at least 0"),
    ],
)
def test_labels_that_are_none_are_refused(
    labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_labels(labels, classes=5, n=3)


def test_probabilities_are_warned_of_and_logits_are_not() -> None:
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="probabilities, not logits"):
        assert warn_of_probabilities(logits.softmax(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_of_probabilities(logits)
        assert not warn_of_probabilities(logits.relu())
