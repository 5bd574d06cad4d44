"""Data: images in [0,1] as float32, labels as int64, and for each example where it came from.

Images are the common case: examples may have any shape of rank 1 or more, and lie in any box.

`data("mnist[:1000]")` reads a `DataSlice` and calls it. A data set is looked for first under
RETROACT_DATA, then on the hub; `digits` is embedded in scikit-learn, and `folder:PATH` and
`npz:PATH` are your own.
Only the rows of the slice are decoded; decoded pixels stay in memory, so that the next call is
free.

Three splits, disjoint: `test` (a bare name), `validation` (never trained on) and `train`. MNIST
holds out train[55000:], CIFAR-10 train[40000:41017]; elsewhere the set's own validation and test
splits serve, and what is missing is drawn once from train by a fixed shuffle: 2/10 for test, 1/10
for validation.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Literal, cast

import numpy as np
import torch
from torch import Tensor

from retroact.doors import IMAGE, Shape, check_batch, check_box, check_labels
from retroact.nets import arrays, sources
from retroact.nets.sources import DataError, NotationError
from retroact.spec import Within, quote, spec

Split = Literal["test", "validation", "train"]


def data(text: str) -> Images:
    """Reads `NAME[/SPLIT][START:STOP]`, such as "mnist[:1000]"; a bare name is its test split."""
    return DataSlice.read(text)()


# ------------------------------------------------------------------------------------------- slice

_NOTATION = re.compile(
    r"(?P<name>.+?)(/(?P<split>train|validation|test))?(\[(?P<a>\d{,15}):(?P<b>\d{,15})\])?"
)
_LONGEST = 5000  # characters of a text: the path of a file has fewer


@spec
class DataSlice:
    """Examples `start` to `stop` (not included; None is the end) of a split of the data set `name`.

    `str` gives the notation that `read` reads: "mnist[:1000]", "mnist/train[100:200]",
    "mnist/validation".
    """

    name: str
    split: Split = "test"
    start: Annotated[int, Within(0)] = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.stop is not None and self.stop <= self.start:
            raise NotationError(
                f"{self}: no example lies in [{self.start}:{self.stop}]; expected start < stop"
            )

    @classmethod
    def read(cls, text: str) -> DataSlice:
        """Reads the notation; raises DataError for anything else."""
        if not isinstance(text, str):
            raise DataError(
                f'expected a text such as "mnist[:1000]", got {type(text).__name__}; '
                "Images.of(images, labels) takes your own"
            )
        match = _NOTATION.fullmatch(text.strip()) if len(text) <= _LONGEST else None
        if match is None or ("[" in match["name"] and not match["name"].startswith(sources.FILES)):
            raise NotationError(
                f'cannot read {quote(text)} as data; write "mnist", "mnist/train", or'
                ' "mnist[100:200]"'
            )
        stop = int(match["b"]) if match["b"] else None
        split = cast(Split, match["split"] or "test")
        return cls(match["name"], split, int(match["a"] or 0), stop)

    def __str__(self) -> str:
        split = "" if self.split == "test" else f"/{self.split}"
        if not self.start and self.stop is None:
            return f"{self.name}{split}"
        return f"{self.name}{split}[{self.start or ''}:{'' if self.stop is None else self.stop}]"

    def __call__(self) -> Images:
        """Loads the slice; raises DataError where it is not there, too short, or no images."""
        if str(self) in _brought:
            return _brought[str(self)]
        if self.name.startswith(_OWN):
            return self._of_ones_own()
        source = sources.find(self.name)
        own_split, rows = sources.rows_of(self.name, self.split, source.sizes)
        if self.start >= len(rows) or (self.stop or 0) > len(rows):
            raise DataError(
                f"{self}: this split has {len(rows)} examples; choose within [0:{len(rows)}]"
            )
        rows = rows[self.start : self.stop]
        pixels, labels = sources.decoded(self.name, own_split, rows)
        return Images(
            images=torch.from_numpy(pixels.astype(np.float32)).div_(source.white),
            labels=torch.from_numpy(labels.copy()),
            index=torch.from_numpy(rows.copy()),
            name=str(self),
            split=self.split,
            classes=len(source.class_names),
            class_names=source.class_names,
            origin=f"{source.origin}, {own_split}",
            low=source.low,
            high=source.high,
        )

    def _of_ones_own(self) -> Images:
        if self.name not in _own:
            raise DataError(
                f"{self.name} were images of your own in another process; bring them again, as they"
                " were"
            )
        whole = _own[self.name]
        if self.start >= len(whole) or (self.stop or 0) > len(whole) or self.split != "test":
            raise DataError(
                f"{self}: these are {len(whole)} examples in one split; choose within"
                f" [0:{len(whole)}]"
            )
        return replace(whole[self.start : self.stop], name=str(self))

    def describe_split(self) -> str:
        """What is to be known of a split that was drawn from files of your own, as they lack one;
        "" where it is theirs. Raises as reading the slice does."""
        if not self.name.startswith(sources.FILES):
            return ""
        return sources.describe_split(self.name, self.split, sources.find(self.name).sizes)

    def narrow(self, start: int, stop: int) -> DataSlice:
        """The slice of this slice: examples `start` to `stop` counted from this one's start."""
        return replace(self, start=self.start + start, stop=self.start + stop)


def name_split(name: str, split: Literal["train", "validation"]) -> str:
    """The notation of that split of the data that a slice is of; "another split" for examples whose
    name is no notation."""
    try:
        return str(DataSlice(DataSlice.read(name).name, split))
    except DataError:
        return "another split"


def _check_name(name: str) -> None:
    hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if name in ("digits", *sources.HUB) or name.startswith((*sources.FILES, _OWN)) or hub:
        return
    near = difflib.get_close_matches(name.lower(), ["digits", *sources.HUB], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if _is_folder(name):
        hint = f'; did you mean the folder "folder:{name}"?'
    raise NotationError(
        f"unknown data set {quote(name)}{hint} Known: digits, {', '.join(sources.HUB)}, "
        'any hub id "owner/name", any folder of images "folder:PATH", any file of arrays "npz:PATH"'
    )


def _is_folder(name: str) -> bool:
    try:
        return os.path.isdir(os.path.expanduser(name))
    except ValueError:  # with a NUL in it
        return False


# ------------------------------------------------------------------------------------------ images


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images in [0,1], float32 (n, c, h, w), their int64 labels (n,), and where each one came from.

    Examples of another shape, (n, c, t) or (n, d), are held in the same way; `low` and `high` are
    the ends of the box that every entry lies in and that attacks stay in.
    `index` (n,) is the row in the source's own split and stays with its example under slicing.
    `name` is the notation that loads the same again; `split` tells test data from validation and
    train.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    name: str = "yours"
    split: str = ""
    classes: int = 0
    class_names: tuple[str, ...] = field(default=())
    origin: str = "in memory"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        low, high = check_box(self.low, self.high)
        images = arrays.within(self.images, low, high)
        if images.ndim == IMAGE and len(images) != len(self.labels):
            check_batch(images, None)  # a single image rather than a series for each label
        labels, index = (
            arrays.classes(self.labels, len(images)),
            arrays.numbers(self.index, "an index"),
        )
        if index.shape != labels.shape:
            raise ValueError(
                f"expected one index per image, ({len(labels)},), got {tuple(index.shape)}"
            )
        classes = self.classes or int(labels.max()) + 1
        check_labels(labels, classes)
        for name, value in (
            ("images", images),
            ("labels", labels),
            ("index", index),
            ("classes", classes),
            ("low", low),
            ("high", high),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def of(
        cls,
        images: object,
        labels: object,
        *,
        name: str = "yours",
        split: str = "",
        shape: Shape | None = None,
        class_names: tuple[str, ...] = (),
        low: float = 0.0,
        high: float = 1.0,
    ) -> Images:
        """Images of your own, numbered from 0: tensors, numpy arrays or lists, uint8 or floats in
        [0,1].

        Channels may come last where that is plain, or where `shape` (c, h, w) says so. A `shape`
        (c, t) or (d,) says that they are time series (n, c, t) or the rows of a table (n, d); `low`
        and `high` are the box that all entries lie in. Raises as `pixels` says.
        """
        y = arrays.plain(labels)
        n = len(y) if y.ndim else None
        index = torch.arange(n or 0, device="cpu")
        return cls(
            arrays.pixels(images, shape=shape, n=n, box=check_box(low, high)),
            y,
            index,
            name,
            split,
            len(class_names),
            class_names,
            low=low,
            high=high,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(str(s) for s in self.images.shape[1:])
        box = "" if self._is_usual else f" in [{self.low:g}, {self.high:g}]"
        what = f"{len(self)} of {shape}{box}"
        return f"Images({self.name!r}, {what}, {self.classes} classes, {self.origin})"

    @property
    def _is_usual(self) -> bool:
        return (self.low, self.high) == arrays.UNIT

    def __getitem__(self, part: slice) -> Images:
        """The examples of a slice with step 1, named in the same notation."""
        if not isinstance(part, slice) or part.step not in (None, 1):
            raise TypeError(
                f"expected a slice such as images[:10], got {part!r}; use select for chosen rows"
            )
        start, stop, _ = part.indices(len(self))
        if stop <= start:
            raise DataError(
                f"{self.name}: no example lies in {part.start}:{part.stop} of {len(self)}"
            )
        return self._at(torch.arange(start, stop), _narrow(self.name, start, stop))

    def select(self, rows: object) -> Images:
        """The examples at positions `rows` (whole numbers), in that order, or where a bool `rows`
        (n,) is True."""
        rows = arrays.numbers(rows, "rows")
        if rows.dtype == torch.bool:
            if len(rows) != len(self):
                raise ValueError(
                    f"expected one True or False per image, ({len(self)},), got ({len(rows)},)"
                )
            rows = rows.nonzero().flatten()
        if len(rows) and not -len(self) <= int(rows.min()) <= int(rows.max()) < len(self):
            raise ValueError(
                f"expected rows from 0 to {len(self) - 1}, got {int(rows.min())} to"
                f" {int(rows.max())}"
            )
        chosen = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:8]
        return self._at(rows, f"{self.name} ({len(rows)} chosen, {chosen})")

    def _at(self, rows: Tensor, name: str) -> Images:
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            index=self.index[rows],
            name=name,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, pixels, labels and box: the same for the same data, whatever its
        source."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if not self._is_usual:  # so that pixels keep the name they had before there were boxes
            digest.update(repr((self.low, self.high)).encode())
        digest.update(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


_OWN = "yours:"
_own: dict[str, Images] = {}


def embed(images: Images) -> str:
    """Keeps images of your own for this process; gives the name that `data` reads, made of what
    they hold."""
    held = hashlib.sha256(
        f"{images.fingerprint} {images.split}".encode() + images.index.numpy().tobytes()
    )
    name = f"{_OWN}{held.hexdigest()[:16]}"
    _own[name] = images
    return name


def embedded() -> list[Images]:
    """What was embedded, for a process that is to know it too."""
    return list(_own.values())


_brought: dict[str, Images] = {}


def bring(images: Images) -> None:
    """Makes images known under the notation that they have elsewhere, for a process that may lack
    their files."""
    _brought.pop(images.name, None)
    _brought[images.name] = images
    while len(_brought) > 8:
        del _brought[next(iter(_brought))]


def _narrow(name: str, start: int, stop: int) -> str:
    try:
        return str(DataSlice.read(name).narrow(start, stop))
    except DataError:
        return f"{name}[{start}:{stop}]"
