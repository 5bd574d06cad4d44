"""What people bring, made what the house uses, once, at the door: data, networks, and specs as
text.

    as_images("mnist[:1000]"); as_images((x, y), net); as_network("lenet-mnist");
    as_attack("PGD(steps=40)")

What is plainly one thing is taken; all else is refused with a sentence that names the cure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, TypedDict, TypeGuard, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from retroact.activations.activation import Activation
from retroact.changing.change import Change
from retroact.crafting.attack import Attack
from retroact.crafting.goals import Goal, Targets, goal_of
from retroact.crafting.oracle import Network, device_of, dtype_of, evaluating
from retroact.crafting.threat import ThreatModel
from retroact.doors import IMAGE, Shape, check_batch, named
from retroact.nets import sources, zoo
from retroact.nets.arrays import IMAGE_WORDS, LABEL_WORDS, is_picture, plain, stack
from retroact.nets.data import DataSlice, Images, Split, data
from retroact.nets.hard_labels import HardLabels, gives_labels
from retroact.nets.rejecting import NeverRejecting, with_flags
from retroact.retrofitting.copying import copy_of
from retroact.retrofitting.examples import Example, noise_for
from retroact.retrofitting.surgery import Retrofit, retrofit
from retroact.spec import CallError, is_spec, is_spec_class, parse, show, take

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
    def __getitem__(self, position: int, /) -> object: ...


Pair: TypeAlias = tuple[object, object]
"""An image and its label, or all images and all labels."""

Data: TypeAlias = (
    str
    | PathLike[str]
    | Examples
    | Pair
    | Mapping[str, object]
    | Rows
    | Dataset[object]
    | DataLoader[object]
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
    and `high`, they are the box. Images are numbered in the order in which they come, so a loader
    that shuffles numbers them anew each time, and one that drops its last batch leaves it out;
    whatever is read is held in memory as float32. Raises ValueError or TypeError, naming the cure,
    for any other form.
    """
    if isinstance(what, Images):
        return what
    if isinstance(what, str):
        return data(what)
    if isinstance(what, PathLike):
        return _read_path(Path(what))
    shape = _shape_of(net)
    if hasattr(what, "images") and hasattr(what, "labels"):
        return _read_examples(cast(Examples, what), shape, net)
    if isinstance(what, Mapping):
        return Images.of(*_columns(what), shape=shape, **_box(what.get))
    if _is_table(what):
        return _read_table(what, shape)
    if isinstance(what, DataLoader):
        return _gather(what, _batches(what), shape)
    if isinstance(what, tuple | list) and len(what) == 2 and not _is_row(what[1], shape):
        return Images.of(*what, shape=shape)
    return _gather(what, _rows(what, shape), shape)


def _read_path(path: Path) -> Images:
    if path.suffix == ".npz":
        return DataSlice(f"npz:{path}")()
    if path.name in get_args(Split):
        return DataSlice(f"folder:{path.parent}", cast(Split, path.name))()
    return DataSlice(f"folder:{path}")()


def _read_examples(what: Examples, shape: Shape | None, net: object) -> Images:
    if shape is None and _begins_with_images(net):
        check_batch(what.images, None)
    texts = {
        word: getattr(what, word)
        for word in ("name", "split")
        if isinstance(getattr(what, word, None), str)
    }
    box = _box(partial(getattr, what))
    index = getattr(what, "index", None)
    if index is None or callable(index):  # a named tuple's method
        return Images.of(what.images, what.labels, shape=shape, **texts, **box)
    return Images(what.images, what.labels, index, **texts, **box)


def _begins_with_images(net: object) -> bool:
    """Whether the first layer with weights is a convolution of images."""
    modules = net.modules() if isinstance(net, nn.Module) else ()
    first = next((m for m in modules if next(m.parameters(recurse=False), None) is not None), None)
    return isinstance(first, nn.Conv2d)


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


def _columns(row: Mapping[str, object]) -> Pair:
    """The image and the label, or all of them, of a dictionary."""
    if row and all(_is_table(part) for part in row.values()):
        first, *_ = row
        raise TypeError(
            f"expected one split, got a {type(row).__name__} of {', '.join(row)}; choose:"
            f" data[{first!r}]"
        )
    image, label = (
        next((word for word in words if word in row), None) for words in (IMAGE_WORDS, LABEL_WORDS)
    )
    if image is None or label is None:
        raise TypeError(
            "expected images and labels under names such as 'image' and 'label', got"
            f" {', '.join(map(str, row))}; give (images, labels)"
        )
    return row[image], row[label]


# ---------------------------------------------------------------------------------- a table of rows


def _is_table(what: object) -> TypeGuard[sources.Table]:
    """Whether it is a `datasets.Dataset`, which nobody holds who has not imported `datasets`."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(what, datasets.Dataset)


def _read_table(table: sources.Table, shape: Shape | None) -> Images:
    import datasets

    encoded = any(isinstance(feature, datasets.Image) for feature in table.features.values())
    # a transform of the user's is his data
    if not len(table) or not encoded or table.format["type"] == "custom":
        rows = table.with_format("numpy") if table.format["type"] is None else table
        return _gather(table, _rows(rows, shape), shape)
    source = sources.from_datasets({"rows": table}, "your table")
    pixels, labels = source.read("rows", np.arange(len(table)))
    return Images.of(
        torch.from_numpy(pixels),
        labels,
        name=_name_of(table),
        split=_split_of(table),
        class_names=source.class_names,
    )


# ----------------------------------------------------------------------------------- piece by piece


def _gather(what: object, rows: Iterator[Pair], shape: Shape | None) -> Images:
    # a loader draws from the caller's generator even where it keeps the order
    with torch.random.fork_rng(devices=[]):
        pairs = list(rows)
    box = _box(partial(getattr, [*_inner(what)][-1]))
    if not pairs:
        raise ValueError(f"expected at least one image, got a {type(what).__name__} without any")
    labels = [_number(label) for _, label in pairs]
    many = (
        labels
        if all(_dimensions(label) == 0 for label in labels)
        else stack([plain(label) for label in labels])
    )
    return Images.of(
        stack([image for image, _ in pairs]),
        many,
        name=_name_of(what),
        split=_split_of(what),
        shape=shape,
        class_names=_class_names(what, labels),
        **box,
    )


def _number(label: object) -> object:
    return label.item() if hasattr(label, "item") and not getattr(label, "ndim", 0) else label


def _rows(what: object, shape: Shape | None) -> Iterator[Pair]:
    """The rows of a data set or a list, each (image, label) or a dictionary; a row may be a whole
    batch."""
    if isinstance(what, Tensor | np.ndarray):
        raise TypeError(
            f"expected images with their labels, got one {type(what).__name__}; give (images,"
            " labels)"
        )
    positions = range(_length(what))
    rows = cast(Rows, what)
    for row in what if isinstance(what, IterableDataset) else (_row(rows, i) for i in positions):
        image, label = _pair(row)
        batch = _dimensions(image) == 1 + (IMAGE if shape is None else len(shape))
        yield from _in_step(image, label) if batch else [(image, label)]


def _row(rows: Rows, position: int) -> object:
    try:
        return rows[position]
    except (KeyError, NotImplementedError):
        raise _unknown(rows) from None


def _batches(loader: DataLoader[object]) -> Iterator[Pair]:
    _length(loader)
    for batch in loader:
        image, label = _pair(batch)
        yield from [(image, label)] if loader.batch_sampler is None else _in_step(image, label)


def _in_step(images: object, labels: object) -> Iterator[Pair]:
    x, y = cast(Sequence[object], images), cast(Sequence[object], labels)
    if len(x) != len(y):
        raise ValueError(
            f"expected one label per image, got a batch of {len(x)} images and {len(y)} labels"
        )
    return zip(x, y, strict=True)


def _pair(row: object) -> Pair:
    if isinstance(row, Mapping):
        return _columns(row)
    if isinstance(row, tuple | list) and len(row) > 1:
        return row[0], row[1]
    raise TypeError(
        f"expected each row to be (image, label) or a dictionary of both, got {type(row).__name__};"
        " all images and all labels are a pair, (images, labels)"
    )


def _is_row(what: object, shape: Shape | None) -> bool:
    """Whether it is (image, label) or a dictionary of both, and no labels of several images."""
    if isinstance(what, Mapping):
        return True
    if not isinstance(what, tuple | list) or len(what) < 2:
        return False
    of_table = shape is not None and len(shape) == 1
    vector = of_table and (_dimensions(what[0]), _dimensions(what[1])) == (1, 0)
    return vector or _dimensions(what[0]) > 1 or is_picture(what[0])


def _dimensions(what: object) -> int:
    if hasattr(what, "ndim"):
        return int(what.ndim)
    return 1 + (_dimensions(what[0]) if what else 0) if isinstance(what, list | tuple) else 0


def _length(what: object) -> int:
    """How many rows or batches there are; TypeError for a stream, and for what is no data."""
    try:
        return len(cast(Sized, what))
    except TypeError:
        if isinstance(what, type) or not (
            hasattr(what, "__iter__") or hasattr(what, "__getitem__")
        ):
            raise _unknown(what) from None
        raise TypeError(
            f"expected data of a known length, got a {type(what).__name__} without one; "
            "take a part of it: list(itertools.islice(data, 1000))"
        ) from None


def _unknown(what: object) -> TypeError:
    return TypeError(f"cannot read {type(what).__name__} as data; expected {FORMS}")


# ------------------------------------------------------------------------- what data says of itself


def _inner(what: object) -> Iterator[object]:
    """The data set and those that it wraps: a loader's, a subset's."""
    while what is not None:
        yield what
        what = getattr(what, "dataset", None)


def _name_of(what: object) -> str:
    *_, last = _inner(what)
    return "yours" if isinstance(last, list | tuple) else f"your {type(last).__name__}"


def _split_of(what: object) -> str:
    """test, validation or train where the data says so, as torchvision's does: nothing is tuned on
    test data."""
    for inner in _inner(what):
        split, trained = str(getattr(inner, "split", "")), getattr(inner, "train", None)
        if split in SPLITS:
            return SPLITS[split]
        if isinstance(trained, bool):
            return "train" if trained else "test"
    return ""


SPLITS = {alias: split for split, aliases in sources.ALIASES.items() for alias in aliases}


def _class_names(what: object, labels: Sequence[object]) -> tuple[str, ...]:
    *_, last = _inner(what)
    names = getattr(last, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        return ()
    whole = [label for label in labels if isinstance(label, int)]
    fit = len(whole) == len(labels) and max(whole) < len(names)
    return tuple(names) if fit else ()


# ------------------------------------------------------------------------------- networks and specs


def as_network(what: Net) -> Network:
    """A network as it comes, or by its zoo name, its file, or `package.module:function`.

    Raises ZooError or CheckpointError as `load` does, and TypeError for what is no network.
    """
    net = named(what)
    if isinstance(net, type):
        raise TypeError(
            f"expected a network, got the class {net.__name__}; make one: {net.__name__}(…)"
        )
    if is_spec(net):
        raise TypeError(
            f"expected a network, got the spec {show(net)}; where it makes one, give what its"
            " call makes"
        )
    if not callable(net):
        raise TypeError(
            f'expected a network or its name, such as "lenet-mnist", got {type(net).__name__}'
        )
    return net


Rejected = Literal["wrong", "robust"]
"""What an example counts as that a network rejects instead of deciding its class: wrong, or, where
it is perturbed, robust."""
Counting = Literal[Rejected, "both"]
"""The same, or one after the other."""


def as_rejecting(
    before: Network, after: Network, images: Images, rejected: Rejected | None
) -> tuple[Network, Network]:
    """Both networks with one more class, the last, "rejected": those that have it as they are,
    those that flag what they reject (logits (n, k) and a bool (n,)) with the flag as that class,
    those that never reject with a class that they never decide. As they are where nobody rejects.

    Raises CallError where a network rejects and `rejected` does not say what that counts as, and
    where it says so and neither rejects.
    """
    if rejected is not None and rejected not in get_args(Rejected):
        raise CallError(f'rejected: expected "wrong", "robust" or "both", got {rejected!r}')
    asked = [_count_classes(net, images) for net in (before, after)]
    classes, flags = [k for k, _ in asked], [flag for _, flag in asked]
    if rejected is None:
        _refuse_unsaid(classes, any(flags), images)
        return before, after
    most = max(classes)
    if min(classes) == 0 or most - min(classes) > 1 or int(images.labels.max()) >= most - 1:
        given = " and ".join(map(str, classes))
        raise CallError(
            f"rejected={rejected!r}: expected networks of {images.classes} classes and one more,"
            f" the last, for what is rejected, or a flag (n,) of bool, got {given} classes"
        )
    old, new = (
        with_flags(net) if flag else net if k == most else NeverRejecting(net)
        for net, (k, flag) in zip((before, after), asked, strict=True)
    )
    return old, old if after is before else new


def _count_classes(net: Network, images: Images) -> tuple[int, bool]:
    """Of how many classes a network's answer is, "rejected" among them (0 where it does not say),
    and whether it flags what it rejects."""
    some = images.images[:2]
    for network, flagged in ((with_flags(net), True), (net, False)):
        answer = _ask_a_copy(network, some)
        if isinstance(answer, Tensor) and answer.is_floating_point() and answer.dim() == 2:
            return answer.shape[1], flagged
    return 0, False


def _refuse_unsaid(classes: Sequence[int], flags: bool, images: Images) -> None:
    named = len(images.class_names)
    one_more = max(classes) - min(classes) == 1 and min(classes) > 0
    if flags or one_more or (named and max(classes) == named + 1):
        how = "flags" if flags else f"has {max(classes)} classes, one more than there are, for"
        raise CallError(
            f'a network {how} what it rejects; say what that counts as: rejected="wrong", or'
            ' rejected="robust" (only a wrong class that is not rejected breaks an example), or'
            ' rejected="both"'
        )


def as_scoring(net: Network, images: Images, beside: Network) -> Network:
    """A network that gives logits: itself, or, where it answers with the number of a class, that as
    `HardLabels`, of as many classes as the one `beside` it gives, or as its labels count."""
    answer = _ask_a_copy(net, images.images[:2])
    if not gives_labels(answer, min(2, len(images.images))):
        return net
    other = _ask_a_copy(beside, images.images[:2])
    if isinstance(other, Tensor) and other.is_floating_point() and other.dim() == 2:
        return HardLabels(net, other.shape[1])
    return HardLabels(net, int(images.labels.max()) + 1)


def _ask_a_copy(net: Network, x: Tensor) -> object:
    """What a network answers; a copy is asked where there is one, as it may remember."""
    fresh = copy_of(net)
    asked = net if fresh is None else fresh
    try:
        with torch.no_grad(), evaluating(asked):
            # some write to it
            return asked(x.to(device_of(asked), dtype_of(asked) or x.dtype, copy=True))
    except Exception:  # others ask again, and say why
        return None


def as_module(what: Net) -> nn.Module:
    """`as_network` where a module is needed, to read its weights and activations."""
    net = as_network(what)
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"expected an nn.Module, got {type(net).__name__}; wrap the function in a module"
        )
    return net


def as_changed(
    what: Net | Said[Activation] | Retrofit | Change, before: Network, images: Tensor | None = None
) -> Network:
    """A changed network, or the one `before` the change with the activation that `what` is, or
    says, or after a change of the whole that needs no data.

    Where `before` does not say the shape of its input, it is that of the `images` (n, …).
    """
    after: object = parse(what) if isinstance(what, str) and _names_a_spec(what) else what
    if isinstance(after, Change):
        return after(as_module(before))
    if isinstance(after, Retrofit):
        return after(as_module(before), _example(before, images))
    own = isinstance(after, Activation) and not isinstance(after, nn.Module)
    if is_spec_class(after) or is_spec(after) or own:
        activation = as_activation(cast(Activation, after))
        return retrofit(as_module(before), activation, example=_example(before, images))
    return as_network(cast(Net, after))


def _example(before: Network, images: Tensor | None) -> Example | None:
    if images is None or _shape_of(before) is not None:
        return None
    return noise_for(as_module(before), images.shape[1:])


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
    return [as_threat(threat) for threat in cast(Sequence[Said[ThreatModel]], several)]


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
