"""What people bring, made what the house uses, once, at the door: data, networks, and specs as
text.

    as_images("mnist[:1000]"); as_images((x, y), net); as_network("lenet-mnist");
    as_attack("PGD(steps=40)")

What is plainly one thing is taken; all else is refused with a sentence that names the cure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypedDict, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from retroact.activations.activation import Activation
from retroact.crafting.attack import Attack
from retroact.crafting.goals import Goal, Targets, goal_of
from retroact.crafting.oracle import Network
from retroact.crafting.threat import ThreatModel
from retroact.doors import IMAGE, Shape, named
from retroact.nets import sources, zoo
from retroact.nets.arrays import IMAGE_WORDS, LABEL_WORDS, is_picture, plain, stacked
from retroact.nets.data import DataSlice, Images, data
from retroact.retrofitting.examples import Example, noise_for
from retroact.retrofitting.surgery import Retrofit, retrofit
from retroact.spec import is_spec, is_spec_class, parse, show, take

T = TypeVar("T")


class Examples(Protocol):
    """Labelled images: `images` (n, c, h, w) float32 in [0, 1], `labels` (n,), `index` (n,),
    `name`.

    Or other examples, (n, …), and with `low` and `high` in another box than [0, 1].
    """

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...
    @property
    def name(self) -> str: ...


class Rows(Protocol):
    """Rows by position: a list of (image, label), a `datasets.Dataset`."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: Any, /) -> Any: ...


Data: TypeAlias = (
    str
    | PathLike[str]
    | Examples
    | tuple[Any, Any]
    | Mapping[str, Any]
    | Rows
    | Dataset[Any]
    | DataLoader[Any]
)
"""What `as_images` takes."""

Net: TypeAlias = str | PathLike[str] | Network
"""A network, or its zoo name, its file, or `package.module:function`."""

Said: TypeAlias = T | type[T] | str
"""A spec, its text, or its class, which stands for its defaults."""


# --------------------------------------------------------------------------------------------- data

FORMS = (
    'a text such as "mnist[:1000]", ra.Images, (images, labels), a torch Dataset or DataLoader, '
    "a datasets.Dataset, or the Path of a folder of images or of an .npz file"
)


def as_images(what: Data, net: object = None) -> Images:
    """`Images` of the notation as text, of (images, labels) as tensors, arrays or lists, of a torch
    `Dataset` or `DataLoader`, of a `datasets.Dataset`, or of the path of a folder or an .npz file;
    `Images` come back as they are.

    The shape that `net` expects says where the channels are, and whether examples are images at
    all: those of a network of shape (d,) are the rows of a table (n, d). Where the data say `low`
    and `high`, they are the box. Images are numbered in the order in
    which they come, so a loader that shuffles numbers them anew each time, and one that drops its
    last batch leaves it out; whatever is read is held in memory as float32. Raises ValueError or
    TypeError, naming the cure, for any other form.
    """
    if isinstance(what, Images):
        return what
    if isinstance(what, str):
        return data(what)
    if isinstance(what, PathLike):
        return _on_disk(Path(what))
    shape = _shape_of(net)
    if hasattr(what, "images") and hasattr(what, "labels"):
        return _examples(what, shape)
    if isinstance(what, Mapping):
        return Images.of(*_columns(what), shape=shape, **_box(what.get))
    if _is_table(what):
        return _of_table(what, shape)
    if isinstance(what, DataLoader):
        return _of_pieces(what, _batches(what), shape)
    if isinstance(what, tuple | list) and len(what) == 2 and not _is_row(what[1], shape):
        return Images.of(*what, shape=shape)
    return _of_pieces(what, _rows(what, shape), shape)


def _on_disk(path: Path) -> Images:
    if path.suffix == ".npz":
        return DataSlice(f"npz:{path}")()
    split = path.name in ("train", "validation", "test")
    return DataSlice(
        f"folder:{path.parent if split else path}", cast(Any, path.name if split else "test")
    )()


def _examples(what: Any, shape: Shape | None) -> Images:
    told = {
        word: getattr(what, word)
        for word in ("name", "split")
        if isinstance(getattr(what, word, None), str)
    }
    box = _box(partial(getattr, what))
    index = getattr(what, "index", None)
    if index is None or callable(index):  # a named tuple's method
        return Images.of(what.images, what.labels, shape=shape, **told, **box)
    return Images(what.images, what.labels, index, **told, **box)


def _shape_of(net: object) -> Shape | None:
    shape = getattr(net, "shape", None)
    known = isinstance(shape, tuple) and shape and all(isinstance(s, int) for s in shape)
    return shape if known else None


class _Box(TypedDict, total=False):
    low: float
    high: float


def _box(ask: Callable[[str, None], object]) -> _Box:
    """The ends of the box, as far as the data say them."""
    box = _Box()
    for word in ("low", "high"):
        end = ask(word, None)
        if end is not None and not callable(end):
            box[word] = cast(float, end)  # which `Images` checks
    return box


def _columns(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """The image and the label, or all of them, of a dictionary."""
    if row and all(_is_table(part) for part in row.values()):
        first, *_ = row
        raise TypeError(
            f"expected one split, got a {type(row).__name__} of {', '.join(row)}; choose:"
            f" data[{first!r}]"
        )
    found = [
        next((word for word in words if word in row), None) for words in (IMAGE_WORDS, LABEL_WORDS)
    ]
    if None in found:
        raise TypeError(
            "expected images and labels under names such as 'image' and 'label', got"
            f" {', '.join(map(str, row))}; give (images, labels)"
        )
    return row[cast(str, found[0])], row[cast(str, found[1])]


# ---------------------------------------------------------------------------------- a table of rows


def _is_table(what: object) -> bool:
    """Whether it is a `datasets.Dataset`, which nobody holds who has not imported `datasets`."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(what, datasets.Dataset)


def _of_table(table: Any, shape: Shape | None) -> Images:
    import datasets

    encoded = any(isinstance(feature, datasets.Image) for feature in table.features.values())
    # a transform of the user's is his data
    if not len(table) or not encoded or table.format["type"] == "custom":
        rows = table.with_format("numpy") if table.format["type"] is None else table
        return _of_pieces(table, _rows(rows, shape), shape)
    source = sources.from_datasets({"rows": table}, "your table")
    found, labels = source.read("rows", np.arange(len(table)))
    return Images.of(
        torch.from_numpy(found),
        labels,
        name=_name_of(table),
        split=_split_of(table),
        class_names=source.class_names,
    )


# ----------------------------------------------------------------------------------- piece by piece


def _of_pieces(what: Any, pieces: Iterator[tuple[Any, Any]], shape: Shape | None) -> Images:
    # a loader draws from the caller's generator even where it keeps the order
    with torch.random.fork_rng(devices=[]):
        found = list(pieces)
    box = _box(partial(getattr, [*_inner(what)][-1]))
    if not found:
        raise ValueError(f"expected at least one image, got a {type(what).__name__} without any")
    labels = [_number(label) for _, label in found]
    many = (
        labels
        if all(np.ndim(label) == 0 for label in labels)
        else stacked([plain(label) for label in labels])
    )
    return Images.of(
        stacked([image for image, _ in found]),
        many,
        name=_name_of(what),
        split=_split_of(what),
        shape=shape,
        class_names=_class_names(what, labels),
        **box,
    )


def _number(label: Any) -> Any:
    return label.item() if hasattr(label, "item") and not getattr(label, "ndim", 0) else label


def _rows(what: Any, shape: Shape | None) -> Iterator[tuple[Any, Any]]:
    """The rows of a data set or a list, each (image, label) or a dictionary; a row may be a whole
    batch."""
    if isinstance(what, Tensor | np.ndarray):
        raise TypeError(
            f"expected images with their labels, got one {type(what).__name__}; give (images,"
            " labels)"
        )
    _refuse_stream(what)
    for row in (
        what if isinstance(what, IterableDataset) else (_row(what, i) for i in range(len(what)))
    ):
        image, label = _pair(row)
        batch = _dimensions(image) == 1 + (IMAGE if shape is None else len(shape))
        yield from _in_step(image, label) if batch else [(image, label)]


def _row(what: Any, position: int) -> Any:
    try:
        return what[position]
    except (KeyError, NotImplementedError):
        raise _unknown(what) from None


def _batches(loader: DataLoader[Any]) -> Iterator[tuple[Any, Any]]:
    _refuse_stream(loader)
    for batch in loader:
        image, label = _pair(batch)
        yield from [(image, label)] if loader.batch_sampler is None else _in_step(image, label)


def _in_step(images: Any, labels: Any) -> Iterator[tuple[Any, Any]]:
    if len(images) != len(labels):
        raise ValueError(
            f"expected one label per image, got a batch of {len(images)} images and {len(labels)}"
            " labels"
        )
    return zip(images, labels, strict=True)


def _pair(row: Any) -> tuple[Any, Any]:
    if isinstance(row, Mapping):
        return _columns(row)
    if isinstance(row, tuple | list) and len(row) > 1:
        return row[0], row[1]
    raise TypeError(
        f"expected each row to be (image, label) or a dictionary of both, got {type(row).__name__};"
        " all images and all labels are a pair, (images, labels)"
    )


def _is_row(what: Any, shape: Shape | None) -> bool:
    """Whether it is (image, label) or a dictionary of both, and no labels of several images."""
    if isinstance(what, Mapping):
        return True
    if not isinstance(what, tuple | list) or len(what) < 2:
        return False
    of_table = shape is not None and len(shape) == 1
    vector = of_table and (_dimensions(what[0]), _dimensions(what[1])) == (1, 0)
    return vector or _dimensions(what[0]) > 1 or is_picture(what[0])


def _dimensions(what: Any) -> int:
    if hasattr(what, "ndim"):
        return int(what.ndim)
    return 1 + (_dimensions(what[0]) if what else 0) if isinstance(what, list | tuple) else 0


def _refuse_stream(what: Any) -> None:
    try:
        len(what)
    except TypeError:
        if isinstance(what, type) or not (
            hasattr(what, "__iter__") or hasattr(what, "__getitem__")
        ):
            raise _unknown(what) from None
        raise TypeError(
            f"expected data of a known length, got a {type(what).__name__} without one; "
            "take a part of it: list(itertools.islice(data, 1000))"
        ) from None


def _unknown(what: Any) -> TypeError:
    return TypeError(f"cannot read {type(what).__name__} as data; expected {FORMS}")


# ------------------------------------------------------------------------- what data says of itself


def _inner(what: Any) -> Iterator[Any]:
    """The data set and those that it wraps: a loader's, a subset's."""
    while what is not None:
        yield what
        what = getattr(what, "dataset", None)


def _name_of(what: Any) -> str:
    *_, last = _inner(what)
    return "yours" if isinstance(last, list | tuple) else f"your {type(last).__name__}"


def _split_of(what: Any) -> str:
    """test, validation or train where the data says so, as torchvision's does: nothing is tuned on
    test data."""
    for inner in _inner(what):
        said, trained = str(getattr(inner, "split", "")), getattr(inner, "train", None)
        if said in SPLITS:
            return SPLITS[said]
        if isinstance(trained, bool):
            return "train" if trained else "test"
    return ""


SPLITS = {alias: split for split, aliases in sources.ALIASES.items() for alias in aliases}


def _class_names(what: Any, labels: Sequence[Any]) -> tuple[str, ...]:
    *_, last = _inner(what)
    names = getattr(last, "classes", None)
    fits = isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)
    whole = all(isinstance(label, int) for label in labels)
    return tuple(names) if names and fits and whole and max(labels) < len(names) else ()


# ------------------------------------------------------------------------------- networks and specs


def as_network(what: Net) -> Network:
    """A network as it comes, or by its zoo name, its file, or `package.module:function`.

    Raises ZooError or CheckpointError as `load` does, and TypeError for what is no network.
    """
    found = named(what)
    if isinstance(found, type):
        raise TypeError(
            f"expected a network, got the class {found.__name__}; make one: {found.__name__}(…)"
        )
    if is_spec(found):
        raise TypeError(
            f"expected a network, got the spec {show(found)}; where it makes one, give what its"
            " call makes"
        )
    if not callable(found):
        raise TypeError(
            f'expected a network or its name, such as "lenet-mnist", got {type(found).__name__}'
        )
    return cast(Network, found)


def as_module(what: Net) -> nn.Module:
    """`as_network` where a module is needed, to read its weights and activations."""
    found = as_network(what)
    if not isinstance(found, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(found).__name__}; wrap the function in a module"
        )
    return found


def as_changed(
    what: Net | Said[Activation] | Retrofit, twin: Network, images: Tensor | None = None
) -> Network:
    """A changed network, or `twin` with the activation that `what` is, or says.

    Where `twin` does not say the shape of its input, it is that of the `images` (n, c, h, w).
    """
    found: Any = parse(what) if isinstance(what, str) and _names_a_spec(what) else what
    if isinstance(found, Retrofit):
        return found(as_module(twin), _example(twin, images))
    if (
        is_spec_class(found)
        or is_spec(found)
        or (isinstance(found, Activation) and not isinstance(found, nn.Module))
    ):
        return retrofit(as_module(twin), as_activation(found), example=_example(twin, images))
    return as_network(found)


def _example(twin: Network, images: Tensor | None) -> Example | None:
    if images is None or _shape_of(twin) is not None:
        return None
    return noise_for(as_module(twin), images.shape[1:])


def _names_a_spec(text: str) -> bool:
    """`JumpReLU(1.0)` or a bare name; what networks are called has a dash, a dot or a colon in it,
    as a rule."""
    return (text.strip().endswith(")") or text.strip().isidentifier()) and text not in zoo.names()


def as_attack(what: Said[Attack]) -> Attack:
    """An attack, or the one that a text such as "PGD(steps=40)" says."""
    return take(what, Attack)


def as_threat(what: Said[ThreatModel]) -> ThreatModel:
    """A threat model, or the one that a text such as "Linf(8/255)" says."""
    return take(what, ThreatModel)


def as_threats(what: Said[ThreatModel] | Sequence[Said[ThreatModel]]) -> list[ThreatModel]:
    """Threat models; one alone is a list of one."""
    several = what if isinstance(what, list | tuple) else [what]
    return [as_threat(one) for one in cast(Sequence[Any], several)]


def as_activation(what: Said[Activation]) -> Activation:
    """An activation, or the one that a text such as "JumpReLU(1.0)" says."""
    return take(what, Activation)


def as_goal(what: Said[Goal] | Targets | None, index: Tensor | None = None) -> Goal | None:
    """A goal, or the one that a text such as "Targeted(3)" says; None stays the default.

    Where the `index` (n,) of examples is given, `what` may be a class for each of them.
    """
    if what is None:
        return None
    if index is not None and isinstance(what, Tensor | np.ndarray | list | tuple):
        return goal_of(what, index)
    return take(what, Goal)
