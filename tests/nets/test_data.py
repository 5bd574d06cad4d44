import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retroact.nets import sources
from retroact.nets.data import DataSlice, Images, data, name_split
from retroact.nets.sources import DataError
from retroact.spec import SpecError, key, parse, show

ROOT = os.environ.get("RETROACT_DATA", "")
needs_mnist = pytest.mark.skipif(
    not Path(ROOT, "mnist").is_dir() or not ROOT, reason="no MNIST under RETROACT_DATA"
)
needs_cifar10 = pytest.mark.skipif(
    not Path(ROOT, "cifar10").is_dir() or not ROOT, reason="no CIFAR-10 under RETROACT_DATA"
)

NOTATIONS = [
    "mnist",
    "mnist[:1000]",
    "mnist/train[100:200]",
    "mnist/validation",
    "digits[5:]",
    "owner/name/train[3:9]",
    "folder:some/where/validation[:2]",
]


# --------------------------------------------------------------------------------------- notation


@pytest.mark.parametrize("text", NOTATIONS)
def test_a_slice_prints_as_it_is_read(text: str) -> None:
    part = DataSlice.read(text)
    assert str(part) == text
    assert parse(show(part)) == part
    assert key(parse(show(part))) == key(part)


def test_a_bare_name_is_its_test_split() -> None:
    assert DataSlice.read("mnist") == DataSlice.read("mnist/test") == DataSlice("mnist", "test")
    assert DataSlice.read("owner/name/train") == DataSlice("owner/name", "train")


@pytest.mark.parametrize(
    "text", ["", "mnist[1]", "mnist[-5:]", "mnist[5:5]", "mnist[9:3]", "mnist[::2]", "mnist]"]
)
def test_what_is_no_slice_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        DataSlice.read(text)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'mnist'"):
        data("mnits")
    with pytest.raises(SpecError, match="test, train, validation"):
        DataSlice("mnist", "dev")  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------- digits


def test_digits_are_images_in_the_unit_interval() -> None:
    digits = data("digits")
    assert digits.images.shape == (359, 1, 8, 8)
    assert digits.images.dtype == torch.float32
    assert digits.labels.dtype == digits.index.dtype == torch.int64
    assert (digits.images.min(), digits.images.max()) == (0.0, 1.0)
    assert (digits.split, digits.classes, digits.name) == ("test", 10, "digits")
    assert digits.origin.startswith("scikit-learn")


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    part = data("digits/validation[3:7]")
    assert torch.equal(part.images.flatten(1).double() * 16, torch.from_numpy(pixels)[part.index])
    assert torch.equal(part.labels, torch.from_numpy(labels)[part.index].long())


def test_the_splits_of_digits_are_disjoint_whole_and_fixed() -> None:
    parts = [set(data(f"digits/{s}").index.tolist()) for s in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [1259, 179, 359]
    assert set.union(*parts) == set(range(1797))
    assert data("digits").index[:4].tolist() == [4, 5, 6, 9]


def test_every_digit_occurs_in_every_split() -> None:
    for split in ("train", "validation", "test"):
        assert torch.bincount(data(f"digits/{split}").labels, minlength=10).min() > 5


def test_slices_beyond_the_split_are_refused() -> None:
    with pytest.raises(DataError, match="this split has 359 examples"):
        data("digits[:360]")
    with pytest.raises(DataError, match="this split has 179 examples"):
        data("digits/validation[179:]")


def test_loading_twice_gives_tensors_of_ones_own() -> None:
    first = data("digits[:3]")
    first.images.zero_()
    first.labels.zero_()
    assert data("digits[:3]").images.max() > 0
    assert data("digits[:3]").labels.max() > 0


# ----------------------------------------------------------------------------------------- images


def test_slicing_keeps_index_and_name_in_step() -> None:
    part = data("digits[10:50]")[5:8]
    assert part.name == "digits[15:18]"
    again = data(part.name)
    assert torch.equal(part.index, again.index)
    assert torch.equal(part.images, again.images)
    assert part.fingerprint == again.fingerprint


def test_selection_keeps_index_and_says_so_in_its_name() -> None:
    digits = data("digits[:20]")
    chosen = digits.select(torch.tensor([7, 3]))
    assert torch.equal(chosen.index, digits.index[[7, 3]])
    assert torch.equal(chosen.labels, digits.labels[[7, 3]])
    sevens = digits.select(digits.labels == 7)
    assert len(sevens) > 0
    assert set(sevens.labels.tolist()) == {7}
    assert sevens.name != chosen.name
    with pytest.raises(DataError):
        DataSlice.read(chosen.name)


def test_bad_slices_of_images_are_refused() -> None:
    digits = data("digits[:20]")
    with pytest.raises(TypeError, match="use select"):
        digits[::2]
    with pytest.raises(TypeError, match="use select"):
        digits[3]  # type: ignore[index]
    with pytest.raises(DataError, match="no example"):
        digits[5:5]


def test_a_fingerprint_names_pixels_and_labels_and_nothing_else() -> None:
    digits = data("digits[:5]")
    x, y = digits.images, digits.labels
    assert Images.of(x.clone(), y.clone(), name="other").fingerprint == digits.fingerprint
    brighter = x.clone()
    brighter[0, 0, 0, 0] += 1 / 16
    assert Images.of(brighter, y).fingerprint != digits.fingerprint
    assert Images.of(x, y.flip(0)).fingerprint != digits.fingerprint


def test_images_pickle() -> None:
    digits = data("digits[:5]")
    again = pickle.loads(pickle.dumps(digits))
    assert (again.fingerprint, again.name) == (digits.fingerprint, digits.name)


def test_the_door_refuses_what_are_no_images() -> None:
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ValueError, match="divide by 255"):
        Images.of(x * 255, y)
    with pytest.raises(ValueError, match=r"shape \(4,\), got \(3,\)"):
        Images.of(x, y[:3])
    with pytest.raises(TypeError, match=r"use images.float\(\) / 255"):
        Images((x * 255).long(), y, torch.arange(4))
    with pytest.raises(ValueError, match="one index per image"):
        Images(x, y, torch.arange(3))
    with pytest.raises(ValueError, match="below 3"):
        Images(x, y, torch.arange(4), classes=3)


# ---------------------------------------------------------------------------------- MNIST, CIFAR-10


@needs_mnist
def test_mnist_is_mnist() -> None:
    test = data("mnist[:1000]")
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert test.images.shape == (1000, 1, 28, 28)
    assert test.index.tolist() == list(range(1000))
    # the mean over all of MNIST's training pixels, as every tutorial prints it
    assert data("mnist/train[:5000]").images.mean().item() == pytest.approx(0.1307, abs=2e-3)


@needs_mnist
def test_the_validation_split_of_mnist_is_never_trained_on() -> None:
    held = data("mnist/validation[:10]")
    assert held.index.tolist() == list(range(55000, 55010))
    assert held.split == "validation"
    sizes = {"train": 60000, "test": 10000}
    _, train = sources.rows_of("mnist", "train", sizes)
    assert train.tolist() == list(range(55000))


@needs_mnist
def test_a_slice_does_not_decode_the_whole_split(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    whole = sources._pixels
    monkeypatch.setattr(
        sources, "_pixels", lambda cell, row: decoded.append(row) or whole(cell, row)
    )
    sources._decode.cache_clear()
    data("mnist/train[54990:]")
    assert set(decoded) == set(range(54990, 55000))


@needs_cifar10
def test_cifar10_is_cifar10() -> None:
    test = data("cifar10[:8]")
    assert [test.class_names[i] for i in test.labels] == [
        *("cat", "ship", "ship", "airplane", "frog", "frog", "automobile", "frog")
    ]
    assert test.images.shape == (8, 3, 32, 32)
    held = data("cifar10/validation[:5]")
    assert held.index.tolist() == [40000, 40001, 40002, 40003, 40004]


def test_cifar10_trains_on_all_but_its_validation_rows() -> None:
    sizes = {"train": 50000, "test": 10000}
    train = sources.rows_of("cifar10", "train", sizes)[1]
    held = sources.rows_of("cifar10", "validation", sizes)[1]
    assert (len(train), len(held)) == (48983, 1017)
    assert not set(train) & set(held)


# -------------------------------------------------------------------------------- splits in general


@pytest.mark.parametrize(
    "sizes", [{"train": 100}, {"train": 100, "test": 10}, {"train": 100, "val": 10}]
)
def test_missing_splits_are_drawn_from_train_without_overlap(sizes: dict[str, int]) -> None:
    drawn = [sources.rows_of("o/n", s, sizes) for s in ("train", "validation", "test")]
    from_train = [rows for own, rows in drawn if own == "train"]
    together = np.concatenate(from_train)
    assert sorted(together) == list(range(100))


def test_a_set_that_has_neither_the_split_nor_train_says_what_it_has() -> None:
    with pytest.raises(DataError, match="it has test"):
        sources.rows_of("o/n", "validation", {"test": 10})


# ------------------------------------------------------------------------------ where there is none


def test_no_data_and_no_hub_names_the_three_ways_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETROACT_DATA", raising=False)
    monkeypatch.setattr(sources, "_reachable", lambda hub_id: False)
    sources._find.cache_clear()
    with pytest.raises(DataError, match=r"RETROACT_DATA.*hub.*digits.*folder:PATH"):
        data("mnist")


def test_an_offline_hub_is_known_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    began = time.monotonic()
    assert not sources._reachable("nobody/has-this-in-a-cache")
    assert time.monotonic() - began < 10


def test_a_corrupt_parquet_file_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 and then nothing")
    monkeypatch.setenv("RETROACT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="cannot read mnist"):
        data("mnist")


def _folder(root: Path, modes: str = "L", size: tuple[int, int] = (6, 6), n: int = 5) -> Path:
    for label, shade in (("bright", 255), ("dark", 0)):
        (root / label).mkdir(parents=True)
        for i in range(n):
            Image.new(modes, size, shade if modes == "L" else (shade,) * len(modes)).save(
                root / label / f"{i}.png"
            )
    return root


def test_a_folder_of_images_is_a_data_set(tmp_path: Path) -> None:
    _folder(tmp_path / "train")
    _folder(tmp_path / "test")
    test = data(f"folder:{tmp_path}")
    assert test.images.shape == (10, 1, 6, 6)
    assert test.class_names == ("bright", "dark")
    assert torch.equal(test.images.amax((1, 2, 3)), (test.labels == 0).float())
    assert len(data(f"folder:{tmp_path}/train")) == 9
    assert len(data(f"folder:{tmp_path}/validation")) == 1


def test_a_folder_without_splits_is_split_once(tmp_path: Path) -> None:
    _folder(tmp_path / "all", "RGB", n=10)
    parts = [data(f"folder:{tmp_path}/all/{s}") for s in ("train", "validation", "test")]
    assert [len(p) for p in parts] == [14, 2, 4]
    assert parts[0].images.shape[1] == 3


def test_how_many_of_ones_own_make_up_a_drawn_split_is_said(tmp_path: Path) -> None:
    _folder(tmp_path / "all", "RGB", n=10)
    said = {s: DataSlice.read(f"folder:{tmp_path}/all{s}").describe_split() for s in ("", "/train")}
    lacks = "has no validation and no test split of its own, so its"
    assert f"all {lacks} test split is 4 of its 20 examples, drawn once; class" in said[""]
    assert said[""].endswith("class folders in all/test/ would be taken whole")
    assert said["/train"].endswith("so its train split is 14 of its 20 examples, drawn once")
    _folder(tmp_path / "both" / "train")
    _folder(tmp_path / "both" / "test")
    whole = DataSlice.read(f"folder:{tmp_path}/both[:3]")
    assert whole.describe_split() == "" == DataSlice.read("digits").describe_split()
    held = DataSlice.read(f"folder:{tmp_path}/both/train").describe_split()
    assert "both has no validation split of its own, so its train split is 9 of its 10" in held


def test_another_split_of_the_same_data_is_named_where_it_has_a_name() -> None:
    assert name_split("folder:train[:9]", "train") == "folder:train/train"
    assert name_split("mnist/validation", "train") == "mnist/train"
    assert name_split("your Photos", "validation") == "another split"


def test_images_of_several_sizes_or_odd_modes_are_refused(tmp_path: Path) -> None:
    _folder(tmp_path / "mixed" / "test")
    Image.new("L", (7, 6)).save(tmp_path / "mixed" / "test" / "dark" / "odd.png")
    with pytest.raises(DataError, match="one size"):
        data(f"folder:{tmp_path}/mixed")
    _folder(tmp_path / "clear" / "test", "RGBA")
    with pytest.raises(DataError, match="mode RGBA"):
        data(f"folder:{tmp_path}/clear")


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "test", size=(40, 40))
    whole = (folder / "dark" / "0.png").read_bytes()
    (folder / "dark" / "0.png").write_bytes(whole[:40])
    with pytest.raises(DataError, match="cannot be decoded"):
        data(f"folder:{tmp_path}")


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="no such folder"):
        data("folder:/nowhere/at/all")
