"""Examples of any rank from 1, in any box: tables, time series and volumes at every door, beside
images."""

import copy
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import retroact as ra
from retroact.doors import check_box, check_images
from retroact.nets.classifier import sized
from retroact.reading import as_images
from retroact.spec import SpecError
from retroact.training.fit import fit
from retroact.training.hardening import Hardening
from retroact.training.recipes import Adversarial, MixedFGSM, Standard

N, CLASSES, LOW, HIGH = 48, 3, -3.0, 3.0
SHAPES = {"table": (6,), "series": (2, 9), "image": (1, 5, 4), "volume": (1, 3, 4, 2)}
CONVS = {"series": nn.Conv1d, "image": nn.Conv2d, "volume": nn.Conv3d}
NORMS = {
    "table": nn.BatchNorm1d,
    "series": nn.BatchNorm1d,
    "image": nn.BatchNorm2d,
    "volume": nn.BatchNorm3d,
}


def examples(kind, n=N):
    """Examples whose first entries say their class."""
    generator = torch.Generator().manual_seed(0)
    shape = SHAPES[kind]
    x = torch.randn(n, *shape, generator=generator).clamp(LOW, HIGH)
    y = torch.arange(n) % CLASSES
    x.flatten(1)[:, :4] = (y[:, None] - 1.0) * 2 + 0.3 * x.flatten(1)[:, :4]
    return x.clamp(LOW, HIGH), y


def images_of(kind, **how):
    x, y = examples(kind)
    return ra.Images.of(x, y, shape=SHAPES[kind], low=LOW, high=HIGH, split="train", **how)


def network(kind, **how):
    torch.manual_seed(0)
    shape = SHAPES[kind]
    channels = 8
    first = (
        nn.Linear(shape[0], channels)
        if kind == "table"
        else CONVS[kind](shape[0], channels, 3, padding=1)
    )
    sizes = 1 if kind == "table" else int(np.prod(shape[1:]))
    inner = nn.Sequential(
        first,
        NORMS[kind](channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(channels * sizes, 16),
        nn.ReLU(),
        nn.Linear(16, CLASSES),
    )
    return ra.Classifier(inner, **({"shape": shape} | how))


kinds = pytest.mark.parametrize("kind", SHAPES)
no_images = pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "image"])


# ----------------------------------------------------------------------------------------- the data


@no_images
def test_every_form_gives_the_same_examples_where_the_network_says_its_shape(kind, tmp_path):
    x, y = examples(kind)
    x = (x - LOW) / (HIGH - LOW)
    net, whole = network(kind), ra.Images.of(x, y, shape=SHAPES[kind])
    assert whole.images.shape == (N, *SHAPES[kind]) and (whole.low, whole.high) == (0.0, 1.0)
    rows = list(zip(x, y.tolist(), strict=True))
    forms = [
        (x, y),
        (x.numpy(), y.numpy()),
        (x.double().tolist(), y.tolist()),
        {"x": x, "target": y},
        rows,
        [{"data": a, "label": b} for a, b in rows],
        [(x[:20], y[:20]), (x[20:], y[20:])],
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=7),
        SimpleNamespace(images=x, labels=y, index=torch.arange(N), name="mine"),
        (x.movedim(1, -1), y),
    ]
    for form in forms:
        assert as_images(form, net).fingerprint == whole.fingerprint
    assert as_images(rows[:2], net).fingerprint == whole[:2].fingerprint


@kinds
def test_examples_are_kept_with_their_box_under_slices_selections_and_pickles(kind):
    whole = images_of(kind)
    for part in (whole[:9], whole.select(range(9)), pickle.loads(pickle.dumps(whole[:9]))):
        assert (part.low, part.high) == (LOW, HIGH)
        assert part.images.shape == (9, *SHAPES[kind])
    assert "in [-3, 3]" in repr(whole) and "x".join(map(str, SHAPES[kind])) in repr(whole)


def test_the_box_belongs_to_the_fingerprint_but_not_that_of_pixels():
    x, y = torch.rand(4, 1, 2, 2), torch.arange(4)
    usual, wide = ra.Images.of(x, y), ra.Images.of(x, y, low=-1.0, high=1)
    assert usual.fingerprint != wide.fingerprint
    assert usual.fingerprint == ra.Images.of(x, y, low=0, high=1).fingerprint
    known = ra.data("digits[:3]").fingerprint[:16]
    assert known == "2d99b43692bbf951"


def test_a_box_comes_from_the_data_where_they_say_one():
    x, y = examples("table")
    net, box = network("table"), {"low": np.float32(-3), "high": torch.tensor(3.0)}
    named = SimpleNamespace(images=x, labels=y, index=torch.arange(N), **box)
    rows = TensorDataset(x, y)
    rows.low, rows.high = LOW, HIGH
    for form in ({"x": x, "y": y} | box, named, rows, DataLoader(rows, batch_size=5)):
        read = as_images(form, net)
        assert (read.low, read.high) == (LOW, HIGH)
        assert read.fingerprint == images_of("table").fingerprint


def test_whole_numbers_are_pixels_only_in_images_of_the_box_of_pixels():
    whole, y = torch.randint(0, 2, (4, 6), generator=torch.Generator().manual_seed(0)), [0, 1, 2, 0]
    assert torch.equal(ra.Images.of(whole, y, shape=(6,)).images, whole.float())
    bytes_ = torch.arange(0, 240, 10, dtype=torch.uint8).view(4, 1, 3, 2)
    assert torch.equal(ra.Images.of(bytes_, y).images, bytes_.float() / 255)
    assert torch.equal(ra.Images.of(bytes_, y, low=0, high=255).images, bytes_.float())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, r"rows of 6 numbers; .*Classifier\(net, shape=\(6,\)\) or Images.of\(x, y, shape="),
        ({"shape": (5,)}, r"expected examples of shape \(5,\), got \(6,\); .*another net"),
        ({"shape": (2, 3)}, r"examples \(n, c, t\) of shape \(2, 3\), .*use reshape\(-1, 2, 3\)"),
        ({"shape": (1, 2, 3)}, r"use reshape\(-1, 1, 2, 3\)"),
        ({"shape": (6,)}, r"expected values in \[0,1\], got \[-3, 3\]; give the box .*low=…, high"),
        ({"shape": (6,), "low": -2.99, "high": 2.99}, r"rounding, use x.clamp\(-2.99, 2.99\)"),
        ({"shape": (6,), "low": 1, "high": -1}, r"finite low < high, got \[1, -1\]"),
        ({"shape": (6,), "low": -np.inf}, r"finite low < high"),
        ({"shape": (6,), "low": np.zeros(6)}, "one number low and one high for all entries"),
        ({"shape": (6,), "high": "wide"}, "one number low and one high for all entries"),
    ],
    ids=str,
)
def test_a_table_that_is_not_plainly_one_is_answered_with_its_cure(given, says):
    x, y = examples("table")
    x[0, :2] = torch.tensor([LOW, HIGH])
    with pytest.raises(ValueError, match=says):
        ra.Images.of(x, y, **given)


def test_one_example_and_values_that_are_none_are_told_apart_from_a_table():
    with pytest.raises(ValueError, match=r"one example needs x\[None\]"):
        check_images(torch.rand(6), (6,))
    with pytest.raises(ValueError, match="expected finite values, got NaN"):
        check_images(torch.full((2, 6), torch.nan), (6,))
    with pytest.raises(TypeError, match=r"expected float examples, got torch.int64; use x.float"):
        check_images(torch.zeros(2, 6, dtype=torch.int64), (6,))
    with pytest.raises(TypeError, match=r"a tensor of examples \(n, c, t\) of shape \(2, 3\), got"):
        check_images([[1.0]], (2, 3))
    check_images(torch.tensor([[300.0002, -100.0]]), (2,), -100, 300)
    assert check_box(0, np.int64(2)) == (0.0, 2.0)


def test_images_in_another_box_say_so_where_a_pixel_leaves_it():
    with pytest.raises(ValueError, match=r"pixels in \[-1,1\], got .*; give the box .*Images.of\("):
        ra.Images.of(torch.rand(2, 1, 4, 4) * 5, [0, 1], low=-1, high=1)


# ---------------------------------------------------------------------------------- files of arrays


@kinds
def test_a_file_of_arrays_holds_examples_labels_and_their_box(kind, tmp_path, monkeypatch):
    x, y = examples(kind)
    np.savez(tmp_path / "mine.npz", x=x.numpy(), y=y.numpy(), low=LOW, high=HIGH)
    monkeypatch.chdir(tmp_path)
    parts = [ra.data(f"npz:mine.npz{part}") for part in ("/train", "/validation", "")]
    assert [len(part) for part in parts] == [35, 4, 9]
    assert sorted(torch.cat([part.index for part in parts]).tolist()) == list(range(N))
    for part in parts:
        assert torch.equal(part.images, x[part.index]) and torch.equal(part.labels, y[part.index])
        assert (part.low, part.high, part.classes) == (LOW, HIGH, CLASSES)
    assert parts[0].split == "train" and parts[0].name == "npz:mine.npz/train"
    assert as_images(tmp_path / "mine.npz").fingerprint == parts[2].fingerprint
    assert ra.data("npz:mine.npz/train[2:4]").index.tolist() == parts[0].index[2:4].tolist()


def test_a_file_of_arrays_may_hold_its_splits_and_the_names_of_its_classes(tmp_path):
    pixels = np.arange(0, 240, 3, dtype=np.uint8).reshape(20, 2, 2)
    path, y = tmp_path / "mine.npz", np.arange(20) % 2
    parts = {"x_train": pixels, "y_train": y, "x_test": pixels[-2:], "y_test": y[-2:]}
    np.savez(path, **parts, class_names=["low", "high"])
    test, train = ra.data(f"npz:{path}"), ra.data(f"npz:{path}/train")
    assert (len(test), len(train), test.class_names) == (2, 18, ("low", "high"))
    assert torch.equal(test.images, torch.from_numpy(pixels[-2:, None] / 255).float())
    assert np.array_equal(test.labels.numpy(), y[-2:])
    np.savez(path, **parts | {"x_test": pixels[-4:-2]})  # another file under the same name
    assert not torch.equal(ra.data(f"npz:{path}").images, test.images)


def test_a_file_that_holds_no_examples_is_refused_and_runs_nothing(tmp_path):
    path, y = tmp_path / "mine.npz", np.zeros(4, int)
    with pytest.raises(ValueError, match=r"there is no such file; np.savez\(path, x=…, y=…\)"):
        ra.data(f"npz:{path}")
    for held, says in (
        ({"a": y, "b": y}, r"mine.npz: expected arrays under names such as x and y.*, got a, b"),
        ({"x": np.zeros((4, 3)), "y": y[:3]}, r"mine.npz: .*one label per image"),
        (
            {"x": np.full((4, 3), 2.0), "y": y},
            r"mine.npz: expected values in \[0,1\], got \[2, 2\]",
        ),
        ({"x": np.array([print] * 4), "y": y}, "mine.npz: Object arrays cannot be loaded"),
    ):
        np.savez(path, **held)
        with pytest.raises(ValueError, match=says):
            ra.data(f"npz:{path}")
    path.write_bytes(b"PK no")
    with pytest.raises(ValueError, match="mine.npz: "):
        ra.data(f"npz:{path}")


# ----------------------------------------------------------------------------------- the classifier


@no_images
def test_it_normalises_per_channel_or_feature(kind):
    x, shape = examples(kind)[0], SHAPES[kind]
    mean, std = torch.arange(shape[0]) + 5.0, torch.arange(shape[0]) + 1.0
    net = network(kind, mean=mean.tolist(), std=std.tolist())
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(shape[0])], 1)
    assert torch.equal(net(x), net.module(by_hand))
    assert torch.equal(network(kind)(x), network(kind).module(x))
    assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))


@no_images
def test_a_classifier_that_says_no_shape_is_given_one_and_stays_as_it_was(kind):
    x, shape = examples(kind)[0], SHAPES[kind]
    means = [0.1 * c for c in range(shape[0])]
    bare = network(kind, mean=means, std=2.0, shape=None)
    with pytest.raises(ValueError, match=rf"Classifier\(net, shape=\({shape[0]},"):
        bare(x)
    given = sized(bare, shape)
    assert torch.equal(given(x), network(kind, mean=means, std=2.0)(x))
    assert bare.shape is None and bare.mean.shape == (1, shape[0], 1, 1)
    assert given.module is bare.module


def test_other_examples_than_the_networks_are_refused_with_the_cure():
    net = network("table")
    with pytest.raises(ValueError, match=r"examples of shape \(6,\), got \(5,\); .*another net"):
        net(torch.rand(2, 5))
    with pytest.raises(ValueError, match=r"\(n, d\) of shape \(6,\), got .*; use reshape\(-1, 6\)"):
        net(torch.rand(2, 1, 2, 3))
    with pytest.raises(ValueError, match="mean has 2 numbers for 6 features; give 1 or 6"):
        network("table", mean=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"use reshape\(-1, 1, 5, 4\)"):
        network("image")(torch.rand(2, 20))


# ----------------------------------------------------------------------------------- the whole walk


@kinds
def test_examples_of_every_rank_are_retrofitted_saved_attacked_trained_on_and_hardened(
    kind, tmp_path
):
    data, net = images_of(kind), network(kind)
    plan = Standard(epochs=8, lr=0.05, batch=16, weight_decay=0.0)
    fit(net, data, plan)
    assert ra.clean_accuracy(ra.evaluate(net, data, "FGSM", "Linf(0.01)")) > 0.9
    hard = ra.retrofit(net, "JumpReLU(0.2)")
    again = ra.load(ra.save(hard, tmp_path / "hard.safetensors"), into=copy.deepcopy(net.module))
    assert again.shape == SHAPES[kind] and torch.equal(again(data.images), hard(data.images))
    weak = ra.evaluate(net, data, "PGD(steps=5)", "Linf(0.8)", keep=N)
    assert ra.robust_accuracy(weak) < ra.clean_accuracy(weak)
    assert weak.examples.shape == (N, *SHAPES[kind])
    assert LOW <= weak.examples.min() < -1 and 1 < weak.examples.max() <= HIGH
    recipe = Hardening(steps=80, batch=48, attack_steps=5, learn="all", lr=0.01)
    hardened = ra.harden(net, data, "Linf(0.8)", recipe, held=data, keep=0.5)
    after = ra.evaluate(hardened.net, data, "PGD(steps=5)", "Linf(0.8)")
    assert ra.robust_accuracy(after) > ra.robust_accuracy(weak)


@kinds
@pytest.mark.parametrize(
    "recipe", [MixedFGSM(ratio=1.0, eps=2.5), Adversarial(eps=2.5, steps=2, step=2.0)], ids=type
)
def test_adversarial_recipes_stay_in_the_box_of_the_data(kind, recipe):
    seen = []
    net, data = network(kind), images_of(kind)
    net.module.register_forward_pre_hook(
        lambda module, x: seen.append(x[0].detach()) if net.training else None
    )
    plan = Standard(epochs=1, batch=16)
    fit(net, data, replace(recipe, standard=plan))
    shown = torch.cat(seen)
    assert shown.shape == (N, *SHAPES[kind])
    assert shown.min() == LOW and shown.max() == HIGH


@no_images
@pytest.mark.parametrize("word", ["augment", "sizes", "channels_last"])
def test_what_makes_sense_for_images_only_says_so(kind, word):
    plan = Standard(epochs=2, batch=16, **{word: (4,) if word == "sizes" else True})
    with pytest.raises(ValueError, match=rf"Standard.{word} is for images .*; leave it out"):
        fit(network(kind), images_of(kind), plan)


def test_a_radius_as_wide_as_the_box_is_a_threat_of_its_own_units():
    with pytest.raises(SpecError, match="expected at most 1, got 2"):
        ra.Linf(2.0)
    record = ra.evaluate(network("table"), images_of("table"), "FGSM", ra.Linf(2.0, width=6.0))
    assert float(record.distance[:, 3].max()) == pytest.approx(2.0)
