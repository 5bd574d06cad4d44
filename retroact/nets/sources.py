"""Sources: where the pixels of a data set come from, which rows make up a split, and their
decoding.

A source has its own splits (`sizes`) and reads rows of them. `find` looks under RETROACT_DATA
first, then on the hub; `rows_of` says which rows are `train`, `validation` and `test`; `decoded`
keeps in memory what it decoded, and nothing is written beside the data (`datasets` keeps its own
cache).
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import io
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from retroact.doors import MOST_CLASSES
from retroact.nets import npz
from retroact.nets.arrays import upright
from retroact.spec import CallError, shorten

HUB = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
"""The hub ids behind the short names."""

FILES = ("folder:", "npz:")
"""What a name of your own data begins with: a folder of images, a file of arrays."""

HELD_OUT = {"mnist": (55000, 60000), "cifar10": (40000, 41017)}
"""Rows of the training split that are validation; CIFAR-10's are original pixels in every copy we
know."""

THREE_WAYS = (
    "three ways to data: set RETROACT_DATA to a folder with mnist/ and cifar10/ as parquet files; "
    "or let `datasets` fetch it from the hub, which needs internet; "
    'or use "digits" (embedded), "folder:PATH" (your own images, one sub-folder per class)'
    ' or "npz:PATH" (your own arrays)'
)

Pixels = NDArray[np.uint8 | np.float32]
Rows = NDArray[np.int64]


class Table(Protocol):
    """What is asked of a `datasets.Dataset`."""

    @property
    def features(self) -> Mapping[str, object]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, what: str) -> Sequence[int]: ...
    @property
    def format(self) -> Mapping[str, object]: ...
    def with_format(self, kind: str | None) -> Table: ...
    def cast_column(self, name: str, feature: object) -> Any: ...


Splits: TypeAlias = Mapping[str, Table]
"""A `datasets.DatasetDict`: the rows of each of the source's own splits."""


class Cell(TypedDict):
    """An image as `datasets` has it where nobody has decoded it."""

    bytes: bytes | None
    path: str | None


Homes: TypeAlias = Sequence[Path] | None
"""The folders in which files that a table names must lie; None for a table that its owner hands
over, whose paths are his."""


class DataError(ValueError):
    """Data that is not there, cannot be read, or is no set of images with labels."""


class NotationError(DataError, CallError):
    """A text that names no data."""


# ------------------------------------------------------------------------------------------ splits


def rows_of(name: str, split: str, sizes: Mapping[str, int]) -> tuple[str, Rows]:
    """Which of the source's own splits, and which of its rows, make up `split`."""
    own = next((s for s in ALIASES[split] if s in sizes), None)
    if split != "train" and own is not None:
        return own, np.arange(sizes[own])
    if "train" not in sizes:
        raise DataError(
            f"{name} has no {split} split and no train split to draw it from; it has"
            f" {', '.join(sizes)}"
        )
    return "train", _draw(name, sizes)[split]


ALIASES = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
"""What each split may be called in a source."""


def describe_split(name: str, split: str, sizes: Mapping[str, int]) -> str:
    """How many of its examples make up a split that was drawn from train, and which splits are
    lacking; "" where it is one of the source's own, whole."""
    own, rows = rows_of(name, split, sizes)
    if len(rows) == sizes[own]:
        return ""
    lacking = [s for s in ("validation", "test") if not any(a in sizes for a in ALIASES[s])]
    return (
        f"{name} has no {' and no '.join(lacking)} split of its own, so its {split} split is"
        f" {len(rows)} of its {sizes[own]} examples, drawn once{_cure_of(name, split)}"
    )


def _cure_of(name: str, split: str) -> str:
    """Where images of a folder lie that are that split whole."""
    path = _path(name.removeprefix("folder:"))
    if split == "train" or not name.startswith("folder:"):
        return ""
    return f"; class folders in {path.absolute().name}/{split}/ would be taken whole"


def _draw(name: str, sizes: Mapping[str, int]) -> dict[str, Rows]:
    n = sizes["train"]
    # RandomState, because numpy promises that its stream never changes; default_rng may.
    order = np.random.RandomState(0).permutation(n).astype(np.int64)
    tests = 0 if "test" in sizes else n // 5
    held = 0 if any(s in sizes for s in ALIASES["validation"]) else n // 10
    validation = order[tests : tests + held]
    if name in HELD_OUT and n >= HELD_OUT[name][1]:
        validation = np.arange(*HELD_OUT[name])
    train = np.setdiff1d(np.arange(n), np.concatenate([order[:tests], validation]))
    return {"train": train, "validation": np.sort(validation), "test": np.sort(order[:tests])}


# ----------------------------------------------------------------------------------------- sources


class Source(NamedTuple):
    """Where pixels come from: `read(own split, rows)` gives uint8 (n, c, h, w) up to `white`, and
    labels.

    Or other examples (n, …), as floats of which 1 is `white`, in the box [low, high].
    """

    origin: str
    class_names: tuple[str, ...]
    sizes: Mapping[str, int]
    white: int
    read: Callable[[str, Rows], tuple[Pixels, Rows]]
    low: float = 0.0
    high: float = 1.0


def _local(name: str) -> str:
    """The folder of parquet files under RETROACT_DATA, or "" where there is none; of a file of
    arrays, what tells it from the file that lay there before."""
    if name.startswith("npz:"):
        path = _npz_path(name)
        return f"{path.stat().st_mtime_ns} {path.stat().st_size}" if path.is_file() else ""
    root = os.environ.get("RETROACT_DATA", "")
    folder = Path(root, name)
    own = name.startswith(FILES)
    return str(folder) if root and not own and any(folder.glob("**/*.parquet")) else ""


def state_of(name: str) -> str:
    """What tells the files of a data set from others that may lie there later; "" for one whose
    files cannot be looked at without reading it (the hub's, folders of images, digits)."""
    local = _local(name)
    if name.startswith("npz:"):
        return f"{_npz_path(name).absolute()} {local}" if local else ""
    tables = sorted(Path(local).glob("**/*.parquet")) if local else []
    return "|".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in tables)


def find(name: str) -> Source:
    """The source of the data set `name`; raises DataError where there is none."""
    return _find(name, _local(name))


@lru_cache(maxsize=8)
def _find(name: str, local: str) -> Source:
    if name == "digits":
        return _digits()
    if name.startswith("folder:"):
        path = _path(name.removeprefix("folder:"))
        return from_datasets(_image_folder(path), "image folder", [path])
    if name.startswith("npz:"):
        return _file_of_arrays(_npz_path(name))
    if local:
        return from_datasets(_open(local), "local parquet", [Path(local)])
    hub_id = HUB.get(name, name)
    return from_datasets(_from_hub(hub_id), f"hub {hub_id}", _caches())


def _caches() -> list[Path]:
    """Where files lie that `datasets` has fetched from the hub."""
    import datasets
    from huggingface_hub import constants

    return [Path(datasets.config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]


def decoded(name: str, own_split: str, rows: Rows) -> tuple[Pixels, Rows]:
    """The pixels, uint8 (n, c, h, w), and labels of `rows`, as they were decoded the last time or
    now."""
    return _decode(name, _local(name), own_split, rows.tobytes())


@lru_cache(maxsize=4)
def _decode(name: str, local: str, own_split: str, rows: bytes) -> tuple[Pixels, Rows]:
    pixels, labels = _find(name, local).read(own_split, np.frombuffer(rows, dtype=np.int64))
    if labels.min() < 0:
        raise DataError(
            f"{name}, split {own_split}: some labels are {labels.min()}, so it has none; use"
            " another"
        )
    return pixels, labels


def _digits() -> Source:
    pixels, labels = _read_digits()
    images = pixels.reshape(-1, 1, 8, 8).astype(np.uint8)
    return Source(
        origin="scikit-learn",
        class_names=tuple("0123456789"),
        sizes={"train": len(labels)},
        white=16,
        read=lambda _, rows: (images[rows], labels[rows].astype(np.int64)),
    )


def _read_digits() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows of 64 pixels, and labels, as load_digits gives them: from the file that it reads, as
    importing scikit-learn takes a second."""
    home = importlib.util.find_spec("sklearn")
    places = [] if home is None else home.submodule_search_locations or []
    files = [Path(place) / "datasets" / "data" / "digits.csv.gz" for place in places]
    if files and files[0].is_file():
        rows = np.loadtxt(files[0], delimiter=",")
        return rows[:, :-1], rows[:, -1]
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


def _image_folder(path: Path) -> Splits:
    if not path.is_dir():
        raise DataError(
            f"folder:{path}: there is no such folder; expected one with a sub-folder per class"
        )
    _check_has_images(path)
    # "a[1]b" is a name here, no pattern
    return _open("imagefolder", data_dir=glob.escape(str(path)))


LOOK = 1.0
"""Seconds that a folder is looked through for images, before `datasets` lists all of it."""

SHARE = 0.1
"""Of the files of a folder of images: how many are images at least."""


def _check_has_images(path: Path) -> None:
    """Raises DataError where hardly any of the files that are found soon are images."""
    from PIL import Image

    suffixes, until = Image.registered_extensions(), time.monotonic() + LOOK
    seen = images = 0
    for name in _files_below(path):
        seen, images = seen + 1, images + (Path(name).suffix.lower() in suffixes)
        if time.monotonic() > until:
            break
    if not images or images < SHARE * seen:
        raise DataError(
            f"folder:{path}: {images} of the {seen} files and folders that were looked at are"
            " images; expected a folder with a sub-folder of images per class"
        )


def _files_below(path: Path) -> Iterator[str]:
    """The names of the files of a folder and of those in it, a folder at a time, widest first."""
    folders = deque([path])
    while folders:
        try:
            with os.scandir(folders.popleft()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                        yield ""  # so that time is asked for also where there are folders alone
                    else:
                        yield entry.name
        except OSError:  # a folder that may not be read
            continue


def _npz_path(name: str) -> Path:
    return _path(name.removeprefix("npz:"))


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # which leaves the home of nobody as it is


def _file_of_arrays(path: Path) -> Source:
    if not path.is_file():
        raise DataError(f"npz:{path}: there is no such file; np.savez(path, x=…, y=…) writes one")
    try:
        splits, (low, high), names = npz.read(path)
    except (ValueError, TypeError, OSError) as e:
        raise DataError(f"{path.name}: {e}") from e

    def read(own_split: str, rows: Rows) -> tuple[Pixels, Rows]:
        examples, labels = splits[own_split]
        return examples.numpy()[rows], labels.numpy()[rows]

    sizes = {split: len(labels) for split, (_, labels) in splits.items()}
    return Source("file of arrays", names, sizes, 1, read, low, high)


def _from_hub(hub_id: str) -> Splits:
    if not _reachable(hub_id):
        raise DataError(
            f"{hub_id} is not under RETROACT_DATA and the hub does not answer; {THREE_WAYS}"
        )
    return _open(hub_id)


def _reachable(hub_id: str) -> bool:
    """One question with a short limit, because `datasets` itself retries for half a minute."""
    import datasets
    from huggingface_hub import HfApi

    if (Path(datasets.config.HF_DATASETS_CACHE) / hub_id.replace("/", "___")).is_dir():
        return True
    try:
        HfApi().dataset_info(hub_id, timeout=5)
    except Exception as e:
        if type(e).__name__ in ("RepositoryNotFoundError", "GatedRepoError"):
            raise DataError(
                f"the hub has no data set {hub_id!r} that is open to you: {e}; {THREE_WAYS}"
            ) from None
        return False
    return True


def _open(path: str, **options: str) -> Splits:
    import datasets

    try:
        with _quiet():
            splits: Splits = datasets.load_dataset(path, **options)
    except Exception as e:
        raise DataError(
            f"cannot read {Path(path).name}: {type(e).__name__}: {_first_line(e)}; {THREE_WAYS}"
        ) from e
    kind: type = datasets.DatasetDict
    if not isinstance(splits, kind):
        raise DataError(
            f"{path}: expected splits of rows, got {type(splits).__name__}; {THREE_WAYS}"
        )
    return splits


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`, which are left as they were."""
    import datasets

    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [""])[0][:200]


def from_datasets(splits: Splits, origin: str, homes: Homes = None) -> Source:
    """The source behind `datasets.Dataset`s, by split, that have a column of images and one of
    labels; files that it names are read where they lie in one of the `homes`."""
    import datasets

    features = next(iter(splits.values())).features
    image = _column(
        features, origin, "image", lambda f: isinstance(f, datasets.Image), ("image", "img")
    )
    label = _column(
        features, origin, "label", lambda f: isinstance(f, datasets.ClassLabel), ("label", "labels")
    )
    plain = {
        k: part.with_format(None).cast_column(image, datasets.Image(decode=False))
        for k, part in splits.items()
    }

    def read(own_split: str, rows: Rows) -> tuple[Pixels, Rows]:
        part = plain[own_split].select(rows)[:]
        return _decode_cells(part[image], rows, homes), _labels(part[label], rows)

    sizes = {str(k): len(v) for k, v in splits.items()}
    return Source(origin, _class_names(features[label], splits, label), sizes, 255, read)


def _column(
    features: Mapping[str, object],
    origin: str,
    what: str,
    fits: Callable[[object], bool],
    usual: tuple[str, ...],
) -> str:
    fitting = [name for name, feature in features.items() if fits(feature)]
    fitting += [name for name in usual if name in features and name not in fitting]
    if not fitting:
        raise DataError(
            f"{origin}: expected a column with one {what} per row, got {', '.join(features)};"
            f" {THREE_WAYS}"
        )
    return fitting[0]


def _class_names(feature: object, splits: Splits, label: str) -> tuple[str, ...]:
    if hasattr(feature, "names"):
        return tuple(feature.names)
    if "int" not in str(getattr(feature, "dtype", "")):
        raise DataError(
            f"expected whole numbers or class names as labels, got {feature}; cast {label!r}"
        )
    labels = [part[label][:] for part in splits.values()]
    most = max((y for part in labels for y in part if y is not None), default=-1)
    if most >= MOST_CLASSES:
        raise DataError(
            f"expected labels below {MOST_CLASSES:,}, got {most} in {label!r}; number the classes"
            " anew, from 0"
        )
    return tuple(str(i) for i in range(int(most) + 1))


def _labels(column: Sequence[int | None], rows: Rows) -> Rows:
    for i, label in enumerate(column):
        if label is None:
            raise DataError(f"image {rows[i]} has no label; leave it out, or label it")
    return np.asarray(column, dtype=np.int64)


def _decode_cells(cells: Sequence[Cell], rows: Rows, homes: Homes) -> Pixels:
    """Decodes to uint8 (n, c, h, w); raises DataError at the first image that differs or does not
    open."""
    first = _pixels(_locate(cells[0], rows[0], homes), rows[0])
    out = np.empty((len(cells), *first.shape), dtype=np.uint8)
    for i, cell in enumerate(cells):
        one = _pixels(_locate(cell, rows[i], homes), rows[i])
        if one.shape != first.shape:
            raise DataError(
                f"image {rows[i]} is {one.shape} and image {rows[0]} is {first.shape}, expected one"
                " size (channels, height, width) for all; resize or convert them first"
            )
        out[i] = one
    return out


LARGEST = 2**26
"""Pixels of an image: a file of a few kilobytes can say that it has billions."""


def _pixels(cell: Cell, row: int) -> Pixels:
    from PIL import Image

    file = io.BytesIO(cell["bytes"]) if cell["bytes"] else str(cell["path"])
    try:
        with _quiet_about_size(), Image.open(file) as picture:
            _check_picture(picture.mode, picture.size, row)
            pixels = np.asarray(upright(picture))
    except DataError:
        raise
    except Exception as e:
        raise DataError(
            f"image {row} cannot be decoded: {_first_line(e)}; replace the file; {THREE_WAYS}"
        ) from e
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _check_picture(mode: str, size: tuple[int, int], row: int) -> None:
    if mode not in ("L", "RGB"):
        raise DataError(
            f"image {row} has mode {mode}, expected grey (L) or RGB of 8 bits; convert it first"
        )
    if size[0] * size[1] > LARGEST:
        raise DataError(
            f"image {row} says that it has {size[0]:,} x {size[1]:,} pixels, expected at most"
            f" {LARGEST:,}; resize it first"
        )


def _locate(cell: Cell | None, row: int, homes: Homes) -> Cell:
    """The same image with the whole path of its file. DataError where that lies elsewhere than in
    one of the `homes`, or is none."""
    if cell is None or not (cell["bytes"] or cell["path"]):
        raise DataError(f"image {row} is not there; leave its row out, or give its bytes")
    if cell["bytes"]:
        return cell
    path = os.path.abspath(os.path.join(homes[0] if homes else "", str(cell["path"])))
    roots = [root for home in homes or () for root in (home.absolute(), home.resolve())]
    if homes is not None and not any(Path(path).is_relative_to(root) for root in roots):
        raise DataError(
            f"image {row} names a file outside its folder, {shorten(path)}, which is not read; put"
            " it there, or its bytes into the table"
        )
    if not os.path.isfile(path):
        raise DataError(f"image {row} names {shorten(path)}, which is no file; {THREE_WAYS}")
    return Cell(bytes=None, path=path)


@contextlib.contextmanager
def _quiet_about_size() -> Iterator[None]:
    """Without Pillow's warning of large images: what is too large is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
