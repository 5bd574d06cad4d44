"""What people bring gives the same bits as `Images` of the same pixels, and what is no data gives
its cure."""

import itertools
import random
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

import retroact as ra
from retroact.reading import as_changed, as_goal, as_images
from retroact.spec import SpecError

N = 12


def network(shape=(3, 8, 8), *, known=True):
    torch.manual_seed(0)
    inner = nn.Sequential(
        nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 16), nn.ReLU(), nn.Linear(16, 5)
    )
    return ra.Classifier(inner, shape=shape if known else None)


def scene(channels=3):
    """Pixels of 8 bits, channels first, and the network's own decisions as labels."""
    bytes_ = np.random.default_rng(0).integers(0, 256, (N, channels, 8, 8)).astype(np.uint8)
    net = network((channels, 8, 8))
    with torch.no_grad():
        labels = net(torch.from_numpy(bytes_).float() / 255).argmax(1)
    return net, bytes_, labels


COLOUR, GREY = scene(3), scene(1)


def pictures(pixels):
    return [Image.fromarray(p[0] if len(p) == 1 else p.transpose(1, 2, 0)) for p in pixels]


class Photos(Dataset):
    """A data set of photos as people write one; `how` makes the row of an image and its label."""

    def __init__(self, pixels, labels, how=lambda image, label: (image, label)) -> None:
        self.pictures, self.labels, self.how = pictures(pixels), labels.tolist(), how

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i):
        return self.how(self.pictures[i], self.labels[i])


def table(pixels, labels, **features):
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list("abcde")),
    } | features
    held = {"image": pictures(pixels), "label": labels.tolist()}
    return datasets.Dataset.from_dict(held, features=datasets.Features(features))


def to_tensor(picture) -> Tensor:
    array = torch.from_numpy(np.array(picture))
    return (array[None] if array.ndim == 2 else array.permute(2, 0, 1)).float().div(255)


def last(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


Pair = namedtuple("Pair", "images labels")

FORMS = {
    "uint8 array, channels first": lambda p, y: (p, y.numpy()),
    "uint8 array, channels last": lambda p, y: (last(p), y.numpy()),
    "uint8 tensor, channels first": lambda p, y: (torch.from_numpy(p), y),
    "uint8 tensor, channels last": lambda p, y: (torch.from_numpy(last(p)), y),
    "float32 tensor": lambda p, y: (torch.from_numpy(p).float() / 255, y),
    "float32 tensor, channels last": lambda p, y: (torch.from_numpy(last(p)).float() / 255, y),
    "float32 array, channels last": lambda p, y: (last(p).astype(np.float32) / 255, y.numpy()),
    "float64 array": lambda p, y: (p / 255, y.numpy()),
    "big-endian floats": lambda p, y: ((p / 255).astype(">f4"), y.numpy().astype(">i4")),
    "long doubles": lambda p, y: ((p / 255).astype(np.longdouble), y.numpy()),
    "read-only": lambda p, y: (np.frombuffer(p.tobytes(), np.uint8).reshape(p.shape), y.numpy()),
    "strided and backwards": lambda p, y: (
        np.repeat(p, 2, 3)[::-1, :, :, ::2][::-1],
        y.numpy().repeat(2)[::2],
    ),
    "channels-last memory": lambda p, y: (
        (torch.from_numpy(p).float() / 255).to(memory_format=torch.channels_last),
        y,
    ),
    "nested lists": lambda p, y: ((p / 255).tolist(), y.tolist()),
    "nested lists of whole numbers": lambda p, y: (p.tolist(), y.tolist()),
    "int64 array, channels last": lambda p, y: (last(p).astype(int), y.numpy()),
    "a list, not a tuple": lambda p, y: [torch.from_numpy(p).float() / 255, y],
    "a list of arrays": lambda p, y: (list(last(p)), y.tolist()),
    "a list of tensors": lambda p, y: (list(torch.from_numpy(p).float() / 255), list(y)),
    "a list of pictures": lambda p, y: (pictures(p), y.tolist()),
    "a named tuple": lambda p, y: Pair(p, y),
    "a dictionary": lambda p, y: {"pixel_values": torch.from_numpy(p).float() / 255, "labels": y},
    "int32 labels": lambda p, y: (p, y.to(torch.int32)),
    "uint8 labels": lambda p, y: (p, y.to(torch.uint8)),
    "sparse": lambda p, y: ((torch.from_numpy(p).float() / 255).to_sparse(), y),
    "images that require grad": lambda p, y: (
        (torch.from_numpy(p).float() / 255).requires_grad_(),
        y,
    ),
    "a parameter": lambda p, y: (nn.Parameter(torch.from_numpy(p).float() / 255), y),
    "Images": lambda p, y: ra.Images.of(torch.from_numpy(p).float() / 255, y),
    "rows": lambda p, y: [(torch.from_numpy(a), int(b)) for a, b in zip(p, y, strict=True)],
    "rows as dictionaries": lambda p, y: [
        {"img": a, "target": b} for a, b in zip(pictures(p), y, strict=True)
    ],
    "batches in a list": lambda p, y: [
        [torch.from_numpy(p[i : i + 6]), y[i : i + 6]] for i in (0, 6)
    ],
    "a TensorDataset": lambda p, y: TensorDataset(torch.from_numpy(p), y),
    "a Dataset of pictures": lambda p, y: Photos(p, y),
    "a Dataset of tensors": lambda p, y: Photos(
        p, y, lambda image, label: (to_tensor(image), label)
    ),
    "a Dataset of dictionaries": lambda p, y: Photos(
        p, y, lambda image, label: {"image": image, "label": label}
    ),
    "a Dataset with more in a row": lambda p, y: Photos(
        p, y, lambda image, label: (image, label, "where from")
    ),
    "a Subset": lambda p, y: Subset(Photos(p, y), range(N)),
    "a ConcatDataset": lambda p, y: ConcatDataset([Photos(p[:5], y[:5]), Photos(p[5:], y[5:])]),
    "a DataLoader": lambda p, y: DataLoader(TensorDataset(torch.from_numpy(p), y), batch_size=5),
    "a DataLoader without batches": lambda p, y: DataLoader(
        TensorDataset(torch.from_numpy(p), y), batch_size=None
    ),
    "a DataLoader of dictionaries": lambda p, y: DataLoader(
        Photos(p, y, lambda image, label: {"image": to_tensor(image), "label": label}), batch_size=7
    ),
    "a table": lambda p, y: table(p, y),
    "a table in torch's format": lambda p, y: table(p, y).with_format("torch"),
    "a table with a transform": (
        lambda p, y: table(p, y).with_transform(
            lambda rows: {
                "pixel_values": [to_tensor(i) for i in rows["image"]],
                "label": rows["label"],
            }
        )
    ),
    "rows of a table": lambda p, y: table(p, y)[:],
    "a table of arrays": lambda p, y: datasets.Dataset.from_dict(
        {"image": list(p), "label": y.tolist()},
        features=datasets.Features(
            {"image": datasets.Array3D(p.shape[1:], "uint8"), "label": datasets.Value("int64")}
        ),
    ),
}


@pytest.fixture(scope="module")
def expected():
    results = {}
    for net, p, y in (COLOUR, GREY):
        images = ra.Images.of(torch.from_numpy(p).float() / 255, y)
        results[p.shape[1]] = (
            images,
            ra.evaluate(net, images, ra.PGD(steps=3), ra.Linf(0.02), keep=N),
        )
    return results


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [COLOUR, GREY], ids=["colour", "grey"])
def test_every_form_gives_the_bits_of_images_of_the_same_pixels(form, given, expected):
    net, p, y = given
    images, record = expected[p.shape[1]]
    read = as_images(FORMS[form](p.copy(), y.clone()), net)
    assert read.fingerprint == images.fingerprint and torch.equal(read.index, images.index)
    assert read.images.is_contiguous() and not read.images.requires_grad
    assert (
        ra.evaluate(net, FORMS[form](p.copy(), y.clone()), ra.PGD(steps=3), ra.Linf(0.02), keep=N)
        == record
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_network_that_does_not_say_its_shape_reads_the_same(form, expected):
    _, p, y = COLOUR
    assert (
        as_images(FORMS[form](p, y), network(known=False)).fingerprint == expected[3][0].fingerprint
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_floats_are_widened(dtype):
    x = torch.rand(N, 3, 8, 8).to(dtype)
    assert torch.equal(as_images((x, torch.arange(N))).images, x.float())


def test_grey_images_receive_their_channel():
    _, p, y = GREY
    whole = as_images((p, y)).fingerprint
    assert (
        as_images((p[:, 0], y)).fingerprint
        == as_images((list(torch.from_numpy(p[:, 0])), y)).fingerprint
        == whole
    )
    assert (
        as_images(DataLoader(TensorDataset(torch.from_numpy(p[:, 0]), y), 5)).fingerprint == whole
    )


def test_tensors_of_inference_mode_are_made_usable():
    net, p, y = COLOUR
    with torch.inference_mode():
        x = torch.from_numpy(p).float() / 255
        inside = ra.Images.of(x, y)
    for images in (inside, as_images((x, y))):
        assert not images.images.is_inference()
        ra.evaluate(net, images, ra.PGD(steps=1), ra.Linf(0.1))


def test_a_path_is_the_folder_of_that_name(tmp_path):
    folder = tmp_path / "a[1]b*"
    for split, label in itertools.product(("train", "test"), "xy"):
        (folder / split / label).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (6, 6), 40 * i + ord(label)).save(folder / split / label / f"{i}.png")
    text = ra.data(f"folder:{folder}")
    assert (len(text), text.class_names, text.split) == (8, ("x", "y"), "test")
    assert (
        as_images(folder).fingerprint
        == as_images(f"folder:{folder}[0:8]").fingerprint
        == text.fingerprint
    )
    assert as_images(folder / "train").split == "train"
    assert ra.data(f"folder:{folder}[2:4]").labels.tolist() == [0, 0]
    with pytest.raises(ValueError, match="no such folder"):
        as_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match='did you mean the folder "folder:'):
        ra.data(str(tmp_path))


def test_data_say_which_split_they_are_and_nothing_is_tuned_on_test_data():
    _, p, y = COLOUR
    photos = Photos(p, y)
    photos.train = False
    for given in (
        photos,
        Subset(photos, [0, 1]),
        DataLoader(TensorDataset(*map(torch.tensor, (p, y.numpy())))).dataset,
    ):
        assert as_images(given).split == ("" if isinstance(given, TensorDataset) else "test")
    with pytest.raises(ValueError, match="your Photos is test data"):
        ra.tune(network(), "JumpReLU", photos, "Linf(0.1)", grid=[1.0])
    split = datasets.Dataset.from_dict(
        {"image": list(p), "label": y.tolist()}, split=datasets.Split.VALIDATION
    )
    assert as_images(split).split == "validation"
    named = table(p, y)
    assert as_images(named).class_names == tuple("abcde") and as_images(named).classes == 5
    assert as_images(named).name == "your Dataset" and as_images((p, y)).name == "yours"


def test_reading_leaves_the_callers_generators_alone_and_keeps_the_order_of_the_loader():
    _, p, y = COLOUR
    loader = DataLoader(
        TensorDataset(torch.from_numpy(p), y), batch_size=5, shuffle=True, drop_last=True
    )
    before = torch.get_rng_state(), random.getstate()
    read = as_images(loader)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert len(read) == 10 and read.index.tolist() == list(range(10))
    order = [
        int((torch.from_numpy(p) == (x * 255).byte()).flatten(1).all(1).nonzero())
        for x in read.images + 1e-4
    ]
    assert order != sorted(order) and torch.equal(y[order], read.labels)


def test_data_is_read_on_the_cpu_whatever_torchs_defaults():
    _, p, y = COLOUR
    whole = as_images((p, y.tolist())).fingerprint
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        assert as_images((p, y.tolist())).fingerprint == whole
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)


# ----------------------------------------------------------------------------------------- channels


@pytest.mark.parametrize(
    ("size", "shape", "came"),
    [
        ((8, 8, 3), None, (3, 8, 8)),
        ((6, 9, 3), None, (3, 6, 9)),
        ((3, 8, 8), None, (3, 8, 8)),
        ((3, 8, 3), (3, 8, 3), (3, 8, 3)),
        ((8, 3, 3), (3, 8, 3), (3, 8, 3)),
        ((8, 8, 12), (12, 8, 8), (12, 8, 8)),
        ((4, 4, 4), (4, 4, 4), (4, 4, 4)),
    ],
    ids=str,
)
def test_the_channels_are_where_shape_or_sizes_say(size, shape, came):
    x = np.random.default_rng(0).random((5, *size), dtype=np.float32)
    net = None if shape is None else network(shape)
    read = as_images((x, [0] * 5), net).images
    assert tuple(read.shape[1:]) == came
    turned = x if size == came else x.transpose(0, 3, 1, 2)
    assert np.array_equal(read.numpy(), turned)


@pytest.mark.parametrize("size", [(3, 8, 3), (1, 28, 1), (3, 3, 3), (2, 8, 8), (8, 8, 8)], ids=str)
def test_channels_that_could_be_at_either_end_are_refused_for_an_array_and_torchs_in_a_tensor(size):
    x = np.zeros((5, *size), np.float32)
    with pytest.raises(
        ValueError,
        match=r"cannot tell the channels in images of shape .*Classifier\(net, shape=.*from_numpy",
    ):
        as_images((x, [0] * 5))
    assert as_images((torch.from_numpy(x), [0] * 5)).images.shape == (5, *size)


def test_signals_in_a_tensor_are_no_pictures():
    x = torch.rand(5, 9, 128, 1)
    assert torch.equal(as_images((x, [0] * 5)).images, x)


# ------------------------------------------------------------------------------------------- cures

X, Y = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
BYTES = (X * 255).byte()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Lengthless(Dataset):
    def __getitem__(self, i):
        return X[i], Y[i]


def normalised(mean, std):
    return DataLoader(TensorDataset((X - mean) / std, Y), batch_size=4)


CURES = {
    "one-hot labels": (
        (X, nn.functional.one_hot(Y, 5)),
        r"shape \(6,\), got \(6, 5\); .* labels.argmax\(1\)",
    ),
    "soft labels": ((X, torch.full((6, 5), 0.2)), r"labels.argmax\(1\)"),
    "one-hot rows": ([(x, y) for x, y in zip(X, torch.eye(6), strict=True)], r"labels.argmax\(1\)"),
    "one-hot lists": ((X, torch.eye(6).tolist()), r"labels.argmax\(1\)"),
    "a column of labels": ((X, Y[:, None]), r"labels.flatten\(\)"),
    "float labels": ((X, Y.float()), r"int64 tensor, got torch.float32; use .*long\(\)"),
    "float labels in a list": ((X, [0.0, 1.0, 2.0, 3.0, 4.0, 0.0]), r"long\(\)"),
    "targets of a regression": ((X, Y + 0.5), "an attack needs classes, numbered from 0"),
    "names as labels": ((X, list("abcabc")), "number the classes from 0"),
    "no labels at all": ((X, [None] * 6), "expected numbers, got list of object"),
    "a label too few": (
        (X, Y[:5]),
        r"shape \(6,\), got \(5,\); images and labels must be of the same examples",
    ),
    "label -1": ((X, Y - 1), "labels at least 0, got -1 to 3"),
    "labels alone first": ((Y, X), "they come first, then their labels"),
    "floats up to 255": ((BYTES.float(), Y), r"got .*; divide by 255$"),
    "float64 up to 255": ((BYTES.numpy().astype(float), Y), "divide by 255$"),
    "floats up to 16": (((X * 16).round(), Y), r"divide by 255, or by what white is \(16\?\)"),
    "16 bits": (((X * 65535).round(), Y), "divide by 65535"),
    "[-1, 1]": (
        (X * 2 - 1, Y),
        r"\(x \+ 1\) / 2 and give the net Classifier\(net, mean=0.5, std=0.5\)",
    ),
    "normalised": (((X - 0.1307) / 0.3081, Y), "leave normalisation to Classifier"),
    "a loader that normalises": (
        normalised(0.45, 0.22),
        "leave normalisation to Classifier.*out of the data and its transf",
    ),
    "a loader to [-1, 1]": (normalised(0.5, 0.5), r"\(x \+ 1\) / 2"),
    "uint8 of zeros and ones": (
        (X.round().byte(), Y),
        r"got 0 to 1; where 1 is white, use images.float\(\) / 1",
    ),
    "whole pixels up to 16": (
        ((X * 16).round().long(), Y),
        r"got 0 to 16; where 16 is white, .* / 16",
    ),
    "16 bits, whole": (((X * 65535).long(), Y), "where 65.* is white"),
    "16 bits without a sign": (((X * 65535).numpy().astype("uint16"), Y), "where 65.* is white"),
    "8 bits with a sign": (
        ((X * 127).to(torch.int8), Y),
        r"of int8; where 12. is white, use images.float\(\) / 12",
    ),
    "[-0.5, 0.5]": ((X - 0.5, Y), r"x \+ 0.5 and give the net Classifier\(net, mean=0.5\)"),
    "negative whole pixels": ((BYTES.long() - 128, Y), "from 0 to 255, got -128 to"),
    "a mask": ((X > 0.5, Y), "got 0 to 1; where 1 is white"),
    "NaN": ((X * float("nan"), Y), "finite pixels"),
    "one image": ((X[0], Y[:1]), r"one image needs images\[None\]"),
    "one image and its label": ((X[0], 3), r"one image needs images\[None\]"),
    "flat rows": ((torch.rand(6, 64), Y), r"rows of 64 numbers; use reshape\(-1, 1, 8, 8\)"),
    "flat rows of odd length": ((torch.rand(6, 50), Y), "channels, height, width"),
    "complex": ((X.to(torch.complex64), Y), "float images"),
    "an empty pair": ((X[:0], Y[:0]), "at least one image"),
    "an empty list": ([], "at least one image, got a list"),
    "an empty Dataset": (TensorDataset(X[:0], Y[:0]), "at least one image, got a TensorDataset"),
    "an empty loader": (
        DataLoader(TensorDataset(X[:3], Y[:3]), batch_size=4, drop_last=True),
        "at least one image",
    ),
    "an empty table": (table(BYTES[:0].numpy(), Y[:0]), "at least one image, got a Dataset"),
    "sizes that differ": (
        ([X[0], X[1, :, :7]], [0, 1]),
        r"image 1 is \(3, 7, 8\) .*image 0 is \(3, 8, 8\).*resize",
    ),
    "rows that differ": (
        [(X[0], 0), (X[1, :, :, :7], 1)],
        "image 1 is .* resize or convert them first",
    ),
    "nested lists that differ": (([[[0.1, 0.2]], [[0.1]]], [0, 1]), "rows of several sizes"),
    "types that differ": (
        [(X[0], 0), (BYTES[1], 1)],
        r"image 1 is \(3, 8, 8\) of uint8 .* of float32",
    ),
    "pictures in RGBA": ([(Image.new("RGBA", (8, 8)), 0)], r"mode RGBA; convert\('RGB'\) first"),
    "images without labels": (X, r"with their labels, got one Tensor; give \(images, labels\)"),
    "an array without labels": (X.numpy(), "got one ndarray"),
    "a Dataset without labels": (TensorDataset(X), r"each row to be \(image, label\)"),
    "images, labels and more": ((X, Y, Y), r"got Tensor; all images and all labels are a pair"),
    "rows of images": ([X[0], X[1], X[2]], "each row to be .* got Tensor"),
    "strange names": ({"a": X, "b": Y}, "names such as 'image' and 'label', got a, b"),
    "strange names in a Dataset": ([{"photo": X[0], "label": 1}], "got photo, label"),
    "all splits": (
        datasets.DatasetDict({"test": table(BYTES.numpy(), Y)}),
        r"one split, .* choose: data\['test'\]",
    ),
    "a stream": (Stream(), r"known length, got a Stream .* list\(itertools.islice\(data, 1000\)\)"),
    "a generator": (((x, y) for x, y in zip(X, Y, strict=True)), "known length, got a generator"),
    "a loader of a stream": (DataLoader(Stream(), batch_size=4), "known length, got a DataLoader"),
    "a Dataset without a length": (Lengthless(), "known length, got a Lengthless"),
    "a number": (3, "cannot read int as data; expected a text such as"),
    "None": (None, "cannot read NoneType as data"),
    "the class": (ra.Images, "as data; expected"),
    "other text": ("mnits", "did you mean 'mnist'"),
}


@pytest.mark.parametrize("case", CURES)
def test_what_is_no_data_is_answered_with_its_cure(case):
    given, says = CURES[case]
    asked = []

    def net(x: Tensor) -> Tensor:
        asked.append(len(x))
        return x.flatten(1)[:, :5]

    with pytest.raises((ValueError, TypeError), match=says):
        ra.evaluate(net, given, ra.PGD(steps=1), ra.Linf(0.1))
    assert not asked


def test_the_cures_cure():
    net = network()
    for given in (
        (X, nn.functional.one_hot(Y, 5).argmax(1)),
        list(itertools.islice(Stream(), 1000)),
        list(itertools.islice(iter(zip(X, Y, strict=True)), 1000)),
        list(itertools.islice(DataLoader(Stream(), batch_size=4), 1000)),
        datasets.DatasetDict({"test": table(BYTES.numpy(), Y)})["test"],
    ):
        assert len(ra.evaluate(net, given, "FGSM", "Linf(0.1)")) == 6


def test_labels_from_1_are_known_by_the_networks_classes():
    with pytest.raises(
        ValueError, match="at least 0 and below 5, got 1 to 5; they count from 1: use labels - 1"
    ):
        ra.evaluate(network(), (X, torch.tensor([1, 2, 3, 4, 5, 1])), ra.PGD(steps=1), ra.Linf(0.1))


# ------------------------------------------------------------------------------ networks and specs


def same(one, other):
    return one == other and {k: v for k, v in one.pedigree.items() if k != "seconds"} == {
        k: v for k, v in other.pedigree.items() if k != "seconds"
    }


def test_evaluate_takes_texts_and_classes():
    net, part = ra.load("digits-cnn"), ra.data("digits[:8]")
    record = ra.evaluate(net, part, ra.PGD(steps=2), ra.Linf(0.1), goal=ra.Targeted(3), source=net)
    assert same(
        ra.evaluate(
            "digits-cnn",
            "digits[:8]",
            "PGD(steps=2)",
            "Linf(0.1)",
            goal="Targeted(3)",
            source="digits-cnn",
        ),
        record,
    )
    assert same(
        ra.evaluate(net, part, ra.FGSM, "Linf(8/255)"),
        ra.evaluate(net, part, ra.FGSM(), ra.Linf("8/255")),
    )
    both = ra.evaluate_all(
        "digits-cnn", "digits[:8]", "FGSM", ["Linf(0.1)", ra.Linf(0.2)], goal=ra.LeastLikely
    )
    assert [r.pedigree["threat"] for r in both] == ["Linf(eps=0.1)", "Linf(eps=0.2)"]
    assert same(ra.evaluate_all(net, part, "FGSM", "Linf(0.1)", goal="LeastLikely")[0], both[0])


def test_a_network_is_read_from_its_file(tmp_path):
    path = ra.save("digits-cnn", tmp_path / "net.safetensors")
    for said in (path, str(path)):
        assert same(
            *(ra.evaluate(net, "digits[:8]", "FGSM", "Linf(0.1)") for net in (said, "digits-cnn"))
        )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"attack": "Linf(0.1)"},
            r"Linf\(eps=0.1\).* does not belong here; expected an attack: `retroact list attacks`",
        ),
        ({"attack": ra.Targeted(3)}, "expected an attack"),
        ({"attack": ra.Linf}, "Linf needs eps"),
        ({"attack": lambda x: x}, "<function .* does not belong here; expected an attack"),
        (
            {"attack": nn.Linear},
            r"expected an attack, got the class Linear; make one: Linear\(…\)",
        ),
        ({"attack": "PDG"}, "did you mean PGD"),
        (
            {"threat": "PGD"},
            r"PGD\(steps=40\).* does not belong here; expected a threat model, one of: L1, L2,",
        ),
        ({"threat": 0.1}, "0.1 does not belong here; expected a threat"),
        ({"threat": torch.tensor(0.1)}, r"tensor\(0.1.*\) does not belong here; expected a threat"),
        ({"threat": "0.1"}, r"0.1 is a radius, .* did you mean Linf\(0.1\)\?"),
        ({"goal": "PGD"}, r"PGD\(steps=40\).* does not belong here; expected a goal"),
        ({"goal": ra.Linf(0.1)}, r"Linf\(eps=0.1\).* does not belong here; expected a goal"),
        (
            {"goal": ra.JumpReLU(1.0)},
            r"JumpReLU\(kappa=1.0\).* does not belong here; expected a goal",
        ),
        (
            {"goal": 3},
            "3 does not belong here; expected a goal, one of: LeastLikely, PerImage, Random",
        ),
        ({"network": ra.JumpReLU(1.0)}, r"expected a network, got the spec JumpReLU\(kappa=1.0\)"),
        ({"network": nn.Linear}, r"got the class Linear; make one: Linear\(…\)"),
        ({"network": None}, "expected a network or its name, .* got NoneType"),
        ({"network": "lenet-mnits"}, "did you mean lenet-mnist"),
        ({"source": 3}, "expected a network or its name"),
    ],
    ids=lambda given: given if isinstance(given, str) else "-".join(given),
)
def test_what_stands_in_the_wrong_place_is_told_what_belongs_there(change, says):
    given = {
        "network": network(),
        "data": (X, Y),
        "attack": ra.FGSM(),
        "threat": ra.Linf(0.1),
    } | change
    with pytest.raises((SpecError, TypeError, ValueError), match=says):
        ra.evaluate(**given)


def test_a_goal_of_ones_own_is_let_pass():
    def mine(labels, logits, index):
        return ra.Untargeted()(labels, logits, index)

    assert as_goal(mine) is mine and as_goal(None) is None


def test_an_audit_takes_an_activation_for_the_changed_network(brief):
    quick = {"battery": "quick", "seed": 1}
    before, part = ra.load("digits-cnn"), ra.data("digits[:20]")
    by_hand = ra.audit(before, ra.retrofit(before, ra.JumpReLU(0.5)), part, ra.Linf(0.1), **quick)
    by_text = ra.audit(
        "digits-cnn",
        "JumpReLU(0.5)",
        "digits[:20]",
        "Linf(0.1)",
        claimed="PGD(steps=40, relative_step=1/30)",
        **quick,
    )

    def timeless(audit):
        return replace(audit.numbers(), pedigree=None, attacks=None)

    assert timeless(by_hand) == timeless(by_text)
    assert by_text.names == ("digits-cnn", "digits-cnn + JumpReLU(kappa=0.5)")


def test_a_changed_network_is_told_from_an_activation():
    before = ra.load("digits-cnn")
    for said in (
        "JumpReLU",
        "JumpReLU()",
        ra.JumpReLU,
        ra.JumpReLU(0.0),
        "Retrofit(JumpReLU(0.0))",
        ra.Retrofit("JumpReLU"),
    ):
        assert as_changed(said, before).retrofit.activation == ra.JumpReLU(0.0)
    assert getattr(as_changed("digits-cnn", before), "retrofit", None) is None
    assert as_changed(before, before) is before
    with pytest.raises(
        SpecError, match=r"PGD\(steps=40\).* does not belong here; expected an activation"
    ):
        as_changed("PGD", before)
    with pytest.raises(SpecError, match="did you mean JumpReLU"):
        as_changed("JumpRelu(1.0)", before)
    with pytest.raises(ValueError, match="unknown net"):
        as_changed("digits-cnm", before)


def test_retrofit_and_its_neighbours_take_texts(tmp_path):
    net = ra.load("digits-cnn")
    hard = ra.retrofit("digits-cnn", "JumpReLU(1.0)")
    x = ra.data("digits[:4]").images
    assert hard.retrofit == ra.Retrofit(ra.JumpReLU(1.0)) == ra.Retrofit("JumpReLU(1.0)")
    assert torch.equal(hard(x), ra.retrofit(net, ra.JumpReLU(1.0))(x))
    assert ra.retrofit(net, ra.JumpReLU).retrofit.activation == ra.JumpReLU()
    assert ra.refit(hard, "SReLU(2)").retrofit.activation == ra.SReLU(2.0)
    assert [s.name for s in ra.sites("digits-cnn")] == [s.name for s in ra.sites(net)]
    saved = ra.save(hard, tmp_path / "hard.safetensors")
    assert torch.equal(ra.fold(saved)(x), ra.fold(hard)(x))
    assert ra.export("digits-cnn", tmp_path / "net.pt2").agreement == 1.0
    with pytest.raises(SpecError, match="expected an activation"):
        ra.retrofit(net, "PGD(steps=4)")
    with pytest.raises(ValueError, match="at least one of images="):
        ra.export(net, tmp_path / "e.pt2", images=x[:0])


def test_fields_of_specs_take_texts():
    assert ra.PerSite(["JumpReLU(1)", "ReLU"]) == ra.PerSite((ra.JumpReLU(1.0), ra.ReLU()))
    cell = ra.Cell(
        ra.Model("digits-cnn", ra.JumpReLU(1.0)), "digits[:4]", ra.PGD(steps=2), ra.Linf(0.1)
    )
    texts = ra.Cell(
        ra.Model("digits-cnn", "JumpReLU(1.0)"),
        "digits[0:4]",
        "PGD(steps=2)",
        "Linf(0.1)",
        goal="Untargeted",
    )
    assert texts == cell and ra.key(texts) == ra.key(cell)
    assert ra.Cell(
        "digits-cnn", "digits", "PGD", "Linf(0.1)", source="digits-cnn"
    ).source == ra.Model("digits-cnn")
    assert ra.Cell(ra.show(cell.model), "digits[:4]", ra.PGD(steps=2), ra.Linf(0.1)) == cell
    assert ra.parse(ra.show(cell)) == cell
    with pytest.raises(SpecError, match="expected an activation"):
        ra.Model("digits-cnn", "PGD")
    with pytest.raises(SpecError, match="seed: expected a number at least 0"):
        ra.Cell("digits-cnn", "digits", "PGD", "Linf(0.1)", seed=-1)


def test_tune_and_harden_take_texts():
    by_text = ra.tune("digits-cnn", "JumpReLU", "digits/validation[:20]", "Linf(0.1)", grid=[0.5])
    held = ra.data("digits/validation[:20]")
    assert by_text == ra.tune(ra.load("digits-cnn"), ra.JumpReLU, held, ra.Linf(0.1), grid=[0.5])
    with pytest.raises(ValueError, match="an activation class"):
        ra.tune("digits-cnn", "JumpReLU(0.5)", held, "Linf(0.1)")
    train = ra.data("digits/train[:64]")
    by_text = ra.harden(
        "digits-cnn",
        "digits/train[:64]",
        "Linf(0.1)",
        "Hardening(steps=2)",
        held="digits/validation[:20]",
    )
    by_hand = ra.harden(
        ra.load("digits-cnn"),
        train,
        ra.Linf(0.1),
        ra.Hardening(steps=2),
        held=(held.images, held.labels),
    )
    assert (
        torch.equal(by_text.net(held.images), by_hand.net(held.images))
        and by_text.curve == by_hand.curve
    )
    with pytest.raises(SpecError, match="expected a recipe"):
        ra.harden("digits-cnn", train, "Linf(0.1)", "PGD")


@pytest.mark.parametrize("executor", ["Serial", "Processes(2)"])
def test_a_sweep_runs_on_images_of_ones_own(tmp_path, executor):
    part = ra.data("digits[:6]")
    given = (part.images, part.labels)
    cells = ra.grid(
        "digits-cnn",
        ["none", ra.JumpReLU(0.5)][1:],
        "FGSM",
        ["Linf(0.1)", "Linf(0.2)"],
        given,
        seeds=0,
    )
    cells.append(ra.Cell("digits-cnn", given, "PGD(steps=2)", "Linf(0.1)"))
    with ra.Store(tmp_path / "s.sqlite") as store:
        records = ra.sweep([*cells[:2], ra.show(cells[2])], store, executor=executor)
    assert cells[0].data.startswith("yours:") and len(records) == 3
    alone = ra.evaluate("digits-cnn", given, "PGD(steps=2)", "Linf(0.1)")
    assert records[2] == alone
    assert records[2].pedigree["data"] == cells[0].data
    with pytest.raises(SpecError, match="expected cells such as Cell"):
        ra.sweep(["PGD"], store)


def test_images_of_ones_own_have_a_name_made_of_what_they_hold():
    part = ra.data("digits[:6]")
    cell = ra.Cell("digits-cnn", (part.images, part.labels), "FGSM", "Linf(0.1)")
    assert ra.data(cell.data + "[2:4]").fingerprint == part[2:4].fingerprint
    moved = ra.Images(part.images, part.labels, part.index)  # the same pixels, other noise
    assert ra.Cell("digits-cnn", moved, "FGSM", "Linf(0.1)").data != cell.data
    assert ra.Cell("digits-cnn", part, "FGSM", "Linf(0.1)").data == "digits[:6]"
    assert ra.Cell("digits-cnn", part.select([1, 2]), "FGSM", "Linf(0.1)").data.startswith("yours:")
    with pytest.raises(ValueError, match="in another process; bring them again"):
        ra.data("yours:0123456789abcdef")
    with pytest.raises(ValueError, match=r"choose within \[0:6\]"):
        ra.data(cell.data + "[:7]")


# ----------------------------------------------------------------------------- the numbers of a run

WRONG = [
    ("keep", -1, "at least 0, got -1"),
    ("keep", 1.5, "at least 0, got 1.5"),
    ("keep", True, "at least 0, got True"),
    ("chunk", 0, "at least 1, got 0"),
    ("chunk", -1, "at least 1, got -1"),
    ("chunk", 2.5, "at least 1, got 2.5"),
    ("chunk", True, "at least 1, got True"),
    ("chunk", "64", "at least 1, got '64'"),
    ("seed", -1, "from 0 to 4611686018427387904, got -1"),
    ("seed", 2**63, f"got {2**63}"),
    ("seed", 1.5, "got 1.5"),
    ("seed", np.float64(1.0), "got np.float64"),
    ("seed", False, "got False"),
    ("seed", np.True_, "got np.True_"),
    ("seed", None, "got None"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_numbers_that_are_none_are_refused_at_every_door(name, value, says, tmp_path):
    says = f"{name}: expected a whole number .*{says}"
    net, part, held, given = (
        ra.load("digits-cnn"),
        ra.data("digits[:4]"),
        ra.data("digits/validation[:4]"),
        {name: value},
    )
    doors = [lambda: ra.evaluate(net, part, "FGSM", "Linf(0.1)", **given)]
    if name != "keep":
        scene = part.images, part.labels, part.index
        doors.append(lambda: ra.craft(ra.FGSM(), net, *scene, ra.Linf(0.1), **given))
        doors.append(lambda: ra.audit(net, "JumpReLU(1.0)", part, "Linf(0.1)", **given))
        doors.append(lambda: ra.tune(net, "JumpReLU", held, "Linf(0.1)", **given))
    if name == "seed":
        doors.append(lambda: ra.harden(net, held, "Linf(0.1)", **given))
    else:
        with ra.Store(tmp_path / "s.sqlite") as store:
            doors.append(
                lambda: ra.sweep(
                    [ra.Cell("digits-cnn", "digits[:4]", "FGSM", "Linf(0.1)")], store, **given
                )
            )
    for door in doors:
        with pytest.raises(ValueError, match=says):
            door()


def test_whole_numbers_of_numpy_and_torch_are_whole_numbers():
    net, part = ra.load("digits-cnn"), ra.data("digits[:4]")
    plain = ra.evaluate(net, part, "PGD(steps=2)", "Linf(0.1)", seed=3, chunk=2, keep=1)
    numpy = ra.evaluate(
        net,
        part,
        "PGD(steps=2)",
        "Linf(0.1)",
        seed=np.uint8(3),
        chunk=np.int64(2),
        keep=torch.tensor(1),
    )
    assert numpy == plain and numpy.examples.shape[0] == 1 and type(numpy.pedigree["seed"]) is int
    ra.evaluate(net, part, "PGD(steps=2)", "Linf(0.1)", seed=2**62, chunk=10**9, keep=10**9)


# ------------------------------------------------------------------------------------- small doors


def test_images_take_arrays_and_lists():
    images = ra.Images.of(X.numpy(), Y.tolist())
    assert images.fingerprint == ra.Images.of(X, Y).fingerprint
    assert (
        images.select(np.arange(3)).name
        == images.select([0, 1, 2]).name
        == images.select(torch.arange(3)).name
    )
    assert images.select(np.array([True, False] * 3)).index.tolist() == [0, 2, 4]
    assert ra.Images(X, Y, np.arange(6, dtype=np.int16)).index.dtype == torch.int64
    for rows, says in (
        ([0.5], "rows as whole numbers"),
        ([6], "from 0 to 5, got 6"),
        ([True], "one True or False per"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            images.select(rows)
    with pytest.raises(TypeError, match="an index as whole numbers"):
        ra.Images(X, Y, [0.5] * 6)
    with pytest.raises(ValueError, match=r"takes your own"):
        ra.data((X, Y))


def test_images_that_require_grad_pass_without_a_warning_or_a_graph(recwarn):
    net = network()
    x = X.clone().requires_grad_()
    record = ra.evaluate(net, ra.Images.of(x, Y), ra.PGD(steps=2), ra.Linf(0.1), keep=6)
    assert record == ra.evaluate(net, ra.Images.of(X, Y), ra.PGD(steps=2), ra.Linf(0.1), keep=6)
    assert x.requires_grad and x.grad is None and not recwarn.list


@pytest.mark.parametrize(
    "given", [{"mean": 123.0, "std": 58.0}, {"mean": (123.7, 116.3, 103.5)}, {"std": 58.4}], ids=str
)
def test_a_mean_for_pixels_up_to_255_is_refused(given):
    with pytest.raises(
        ValueError,
        match=(
            r"for pixels in \[0,255\], and pixels here are in \[0,1\]; divide mean and std by 255"
        ),
    ):
        ra.Classifier(nn.Flatten(), **given)
    ra.Classifier(nn.Flatten(), **{k: np.asarray(v) / 255 for k, v in given.items()})


def test_reading_imports_datasets_for_nobody():
    code = (
        "import sys, torch\nfrom retroact.reading import as_images\nas_images((torch.rand(2, 1, 4,"
        " 4), [0, 1]))\nassert 'datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
