"""The doors that data passes once, before any work, and the one that a network's answers pass: what
was expected, what came, and what to do.

Everyone may use them; they know tensors, and of networks only what these return and which mode they
are in.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias, TypeGuard, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

N = TypeVar("N")

SLACK = 1e-6
"""How far outside the box an entry may lie, as a share of the box [0,1]: the rounding of a float32
decoder, never an unscaled image."""

SEEDS = 2**62
"""Seeds lie below: attacks add small numbers to them, and their sum must be an int64."""

Shape = tuple[int, ...]
"""The shape of an example: (c, h, w) of an image, (c, t) of a time series, (d,) of a table's
row."""

IMAGE = 3
"""The rank of the shape of an image."""

MOST_CLASSES = 2**20
"""Labels lie below where the data do not say how many classes there are: for a larger one names and
tables would be made of all that lie between."""
Steps: TypeAlias = tuple[str | int, ...]
Place: TypeAlias = str | int | Steps
"""Where in a network's output something is: a key or attribute, a position, or several of these,
outermost first."""


def check_images(
    images: Tensor, shape: Shape | None = None, low: float = 0.0, high: float = 1.0
) -> None:
    """Raises unless `images` are floats (n, c, h, w), finite and in [low, high] with some slack.

    The slack is 1e-6 of [0,1]. With `shape`, of any rank, they may be other examples, (n, *shape).
    """
    check_batch(images, shape)
    if images.numel() == 0:
        raise ValueError(f"expected at least one image, got shape {tuple(images.shape)}")
    least, most = (float(v) for v in torch.aminmax(images))
    entries = "pixels" if images.ndim == 1 + IMAGE else "values"
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ValueError(
            f"expected finite {entries}, got NaN or infinity; look for a division by zero before"
        )
    slack = SLACK * max(high - low, abs(low), abs(high))
    if least < low - slack or most > high + slack:
        usual = (low, high) == (0.0, 1.0) and entries == "pixels"
        cure = _cure(least, most) if usual else _cure_of_a_box(images, (least, most), (low, high))
        raise ValueError(
            f"expected {entries} in [{low:g},{high:g}], got [{least:g}, {most:g}]; {cure}"
        )


def check_box(low: object, high: object) -> tuple[float, float]:
    """The ends of the box that all entries of examples lie in, as floats.

    Raises ValueError unless both are one finite number, and low < high.
    """
    try:
        box = float(low), float(high)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"expected one number low and one high for all entries, got {low!r} and {high!r};"
            " scale the features to one box"
        ) from None
    if not (math.isfinite(box[0]) and math.isfinite(box[1]) and box[0] < box[1]):
        raise ValueError(
            f"expected a box with finite low < high, got [{box[0]:g}, {box[1]:g}]; take the"
            " smallest and the largest value that an example may have"
        )
    return box


def _cure(low: float, high: float) -> str:
    if low > -0.01 and high < 1.01:
        return "where that is rounding, use images.clamp(0, 1)"
    if low >= 0 and high <= 255:
        return "divide by 255" + ("" if high > 127 else f", or by what white is ({high:g}?)")
    if low >= 0 and high <= 65535:
        return "divide by 65535, or by what white is"
    if low >= -0.5 - SLACK and high <= 0.5 + SLACK:
        return "map [-0.5,0.5] to [0,1] with x + 0.5 and give the net Classifier(net, mean=0.5)"
    if low >= -1 - SLACK and high <= 1 + SLACK:
        return (
            "map [-1,1] to [0,1] with (x + 1) / 2 and give the net Classifier(net, mean=0.5,"
            " std=0.5)"
        )
    return (
        "leave normalisation to Classifier(net, mean=…, std=…), out of the data and its transforms,"
        " and pass raw pixels / 255"
    )


def _cure_of_a_box(examples: Tensor, came: tuple[float, float], box: tuple[float, float]) -> str:
    (least, most), (low, high) = came, box
    if least > low - 0.01 * (high - low) and most < high + 0.01 * (high - low):
        return f"where that is rounding, use x.clamp({low:g}, {high:g})"
    shape = "" if examples.ndim == 1 + IMAGE else f", shape={tuple(examples.shape[1:])}"
    return f"give the box that they lie in, Images.of(x, y{shape}, low=…, high=…), or scale them"


def check_batch(images: Tensor, shape: Shape | None) -> None:
    """Raises unless `images` are floats (n, c, h, w), or (n, *shape) where the shape of one is
    known; reads no values."""
    are_images = shape is None or len(shape) == IMAGE
    if not isinstance(images, Tensor):
        raise TypeError(
            f"expected a tensor of {_form(shape)}, got {type(images).__name__}; use torch.as_tensor"
        )
    if not images.is_floating_point():
        raise TypeError(
            f"expected float images in [0,1], got {images.dtype}; use images.float() / 255"
            if are_images
            else f"expected float examples, got {images.dtype}; use x.float()"
        )
    if images.ndim != 1 + (IMAGE if shape is None else len(shape)):
        raise ValueError(
            f"expected {_form(shape)}, got shape {tuple(images.shape)};"
            f" {_cure_of_rank(images, shape)}"
        )
    if shape is not None and tuple(images.shape[1:]) != shape:
        swapped = are_images and tuple(images.permute(0, 3, 1, 2).shape[1:]) == shape
        cure = (
            "permute(0, 3, 1, 2) puts channels first"
            if swapped
            else "resize them or choose another net"
        )
        what = "images" if are_images else "examples"
        raise ValueError(f"expected {what} of shape {shape}, got {tuple(images.shape[1:])}; {cure}")


def _form(shape: Shape | None) -> str:
    """What a batch is called, and its axes."""
    axes = {1: "(n, d)", 2: "(n, c, t)"}
    if shape is None or len(shape) == IMAGE:
        return "images (n, c, h, w)"
    return f"examples {axes.get(len(shape), '(n, …)')} of shape {shape}"


def _cure_of_rank(examples: Tensor, shape: Shape | None) -> str:
    """What to do with a batch of too many or too few axes."""
    came = tuple(examples.shape[1:])
    if shape is None:
        table = f"; what are no images need their shape, such as Classifier(net, shape={came})"
        return f"one image needs images[None]{table if came else ''}"
    if came and math.prod(came) == math.prod(shape):
        return f"use reshape(-1, {', '.join(map(str, shape))})"
    if len(shape) == IMAGE:
        return "one image needs images[None]"
    return "one example needs x[None]" if tuple(examples.shape) == shape else "choose another net"


def check_labels(labels: Tensor, classes: int | None = None, n: int | None = None) -> None:
    """Raises unless `labels` are int64 (n,), each at least 0 and below `classes` where that is
    known."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"expected labels as an int64 tensor, got {type(labels).__name__}; use"
            " torch.as_tensor(labels).long()"
        )
    if labels.ndim != 1 or (n is not None and len(labels) != n):
        expected = "(n,)" if n is None else f"({n},)"
        raise ValueError(
            f"expected one label per image, shape {expected}, got"
            f" {tuple(labels.shape)}{_one_label(labels, n)}"
        )
    if labels.dtype != torch.int64:
        cure = "use torch.as_tensor(labels).long()"
        if labels.is_floating_point() and not bool((labels == labels.round()).all()):
            cure = "an attack needs classes, numbered from 0"
        raise TypeError(f"expected labels as an int64 tensor, got {labels.dtype}; {cure}")
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    below = "" if classes is None else f" and below {classes}"
    if classes is None and high >= MOST_CLASSES:
        below = f" and below {MOST_CLASSES:,}"
        cure = "number the classes anew: np.unique(labels, return_inverse=True)[1]"
        raise ValueError(f"expected labels at least 0{below}, got {low} to {high}; {cure}")
    if low < 0 or (classes is not None and high >= classes):
        cure = "check the order of classes"
        if low >= 1 and high == classes:
            cure = "they count from 1: use labels - 1"
        raise ValueError(f"expected labels at least 0{below}, got {low} to {high}; {cure}")


def _one_label(labels: Tensor, n: int | None) -> str:
    """The cure for labels of another shape."""
    if labels.ndim == 2 and n in (None, len(labels)):
        return (
            "; use labels.flatten()"
            if labels.shape[1] == 1
            else "; where they are one-hot, use labels.argmax(1)"
        )
    if labels.ndim == 1:
        return "; images and labels must be of the same examples, in the same order"
    return "" if labels.ndim else "; one image needs a list of one label"


def whole(value: object, name: str, low: int = 0, high: int | None = None) -> int:
    """`value`, of any type of integer, as an int; ValueError unless it is a whole number from `low`
    to `high`."""
    try:
        given = operator.index(value)  # type: ignore[arg-type]
        number = None if isinstance(value, bool) else given
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{name}: expected a whole number {bounds}, got {value!r}")
    return number


def checked(seed: object, chunk: object = None, keep: object = 0) -> tuple[int, int | None, int]:
    """The three numbers of a run as ints: its seed, images per chunk (None: the attack's own),
    images to keep."""
    return (
        whole(seed, "seed", 0, SEEDS),
        None if chunk is None else whole(chunk, "chunk", 1),
        whole(keep, "keep"),
    )


def check_device(device: str) -> None:
    """Raises ValueError for a device that this machine, or this torch, has not."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:  # a torch without CUDA asserts that it has it
        raise ValueError(
            f"device {device!r} is not here{_why_not(device, e)}; choose one of: {_devices_here()}"
        ) from e


def _why_not(device: str, error: Exception) -> str:
    """What torch says of a device, but for its list of two dozen kinds."""
    said = str(error).strip().splitlines()[0].rstrip(".")
    if device.lower().startswith("gpu"):
        return " (torch calls a graphics card cuda)"
    return "" if "expected one of" in said.lower() else f" ({said})"


def _devices_here() -> str:
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return ", ".join(["cpu", *(name for name, is_here in has.items() if is_here)])


@contextmanager
def noting_failure(images: object) -> Iterator[None]:
    """Adds a note that names the shape of its `images` to what a net raises on them; the error
    stays what it is."""
    try:
        yield
    except RuntimeError as e:
        if isinstance(images, Tensor):
            what = "images" if images.ndim == 1 + IMAGE else "examples"
            note = (
                f"the net failed on {what} of shape {tuple(images.shape[1:])}; it may want another"
                " size or channels"
            )
            if note not in getattr(e, "__notes__", ()):
                e.add_note(note)
        raise


def named(net: N | str | os.PathLike[str]) -> N | nn.Module:
    """`net`, or, where it is a text or a path, the network that `retroact.load` finds by it.

    By its public name, as `parse` finds specs, for whoever may stand before networks on disk.
    """
    if not isinstance(net, str | os.PathLike):
        return net
    module: nn.Module = importlib.import_module(__package__).load(net)
    return module


def warn_of_probabilities(logits: Tensor) -> bool:
    """Warns, and says True, where every row of `logits` (n, k) is at least 0 and sums to 1 within
    1e-3.

    Attacks need logits: a softmax in the net makes their gradients vanish and flatters it. Two
    logits [0, p] with every p in [0,1] for 8 images or more are a probability too, of a sigmoid in
    the net: class 0 could never win.
    """
    rows = logits.detach().float()
    if rows.shape[1] == 2 and _is_one_probability(*rows.unbind(1)):
        warnings.warn(
            "the net seems to return one probability, not one logit, so that class 0 can never win:"
            " remove its sigmoid, or pass output=lambda p: torch.stack([(1 - p).log(), p.log()],"
            " 1).flatten(1)",
            stacklevel=2,
        )
        return True
    are_shares = bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all())
    are_probabilities = rows.shape[1] > 1 and are_shares
    if are_probabilities:
        warnings.warn(
            "the net seems to return probabilities, not logits; attacks on it would see vanishing"
            " gradients: remove its softmax, or pass output=lambda p: p.log()",
            stacklevel=2,
        )
    return are_probabilities


def _is_one_probability(zero: Tensor, p: Tensor) -> bool:
    return len(p) >= 8 and bool(((zero == 0) & (p >= 0) & (p <= 1)).all())


# ------------------------------------------------------------------------- what a network returned


SIGMOID = "sigmoid"
"""The output= of a network that returns one logit z per image, P(class 1) = 1 / (1 + exp(-z))."""


class SeveralPlacesError(ValueError):
    """A network returned several tensors that may be its logits."""


def logits_in(out: object, n: int, output: Place | None = None) -> Tensor:
    """The logits (n, k), k ≥ 2, in what a network returned for `n` images.

    Without `output`, the one float tensor (n, k) of a tuple, mapping, dataclass or other object,
    some levels deep, or the output itself, also where it holds integers; (n, k, 1, …) counts as (n,
    k) where nothing else does, and (k,) as (1, k) for one image, whom a squeeze has cost its batch.
    `output` says where they are; "sigmoid" makes [0, z] of one logit z per image.
    Raises SeveralPlacesError where several tensors may be meant, ValueError or TypeError where none
    can.
    """
    if _are_logits(out, n) and output is None:
        return out
    if output == SIGMOID:
        return _widen(out, n)
    inner = out if output is None else _pick(out, output)
    readings = _readings(inner, n)
    if len(readings) > 1:
        raise SeveralPlacesError(
            f"the net returned {len(readings)} tensors that may be its logits for {n} images:"
            f" {_list(readings)}; name one: Classifier(net,"
            f" output={spelled(next(iter(readings)))}), or return it alone"
        )
    if not readings:
        raise _refusal(inner, n)
    ((place, logits),) = readings.items()
    if logits.shape[1] == 1:
        raise _refusal(inner, n)
    _note(_steps(output), place)
    return logits


def _are_logits(value: object, n: int) -> TypeGuard[Tensor]:
    # asked first, as under torch.export the sizes are symbols, of which more could not be asked
    return _floats(value) and value.ndim == 2 and value.shape[0] == n and value.shape[1] > 1


def _floats(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point()


def _readings(out: object, n: int) -> dict[Steps, Tensor]:
    """Every place whose tensor may be logits, with the tensor as (n, k)."""
    flat, squeezed, trailing = {}, {}, {}
    for place, value in _unique(_tensors(out)):
        if not place and value.ndim == 2 and not value.is_complex():
            value = _as_floats(value)
        if not _floats(value) or (n > 0 and value.numel() == 0):
            continue
        if value.ndim == 2 and value.shape[0] == n:
            flat[place] = value
        elif value.ndim == 1 and n == 1 and len(value) > 1:
            squeezed[place] = value[None]
        elif value.ndim > 2 and value.shape[0] == n and value.numel() == n * value.shape[1]:
            trailing[place] = value.flatten(1)
    # A squeeze makes it hard to say, for one image, what belongs to the image: then everything may
    # be meant.
    return flat | squeezed | trailing if squeezed else flat or trailing


def _as_floats(value: Tensor) -> Tensor:
    """Quantised scores, and one-hot decisions, which are scores without slopes."""
    return value if _floats(value) else value.dequantize() if value.is_quantized else value.float()


def _widen(out: object, n: int) -> Tensor:
    """[0, z], (n, 2), of the one logit z per image, whose softmax is [1 - sigmoid(z),
    sigmoid(z)]."""
    columns = {
        p: v.reshape(n, 1) for p, v in _unique(_tensors(out)) if _floats(v) and _is_column(v, n)
    }
    if len(columns) > 1:
        raise SeveralPlacesError(
            f"the net returned {len(columns)} tensors of one number for each of {n} images:"
            f" {_list(columns)}; choose and widen one: Classifier(net, output=lambda out: …), which"
            " gives logits (n, 2)"
        )
    if not columns:
        raise ValueError(
            f'output="sigmoid" expects one float logit per image, shape ({n},) or ({n}, 1), got'
            f" {_describe(out)}; leave output= out where the net gives logits of several classes"
        )
    (z,) = columns.values()
    return torch.cat([torch.zeros_like(z), z], 1)


def _is_column(value: Tensor, n: int) -> bool:
    return value.numel() == n and (value.ndim == 0 or value.shape[0] == n)


# ---- the places of an output

_DEEPEST = 4


def _tensors(out: object, place: Steps = ()) -> Iterator[tuple[Steps, Tensor]]:
    """Every tensor in an output, and where; arrays of numbers become tensors."""
    if isinstance(out, Tensor):
        yield place, out
    elif isinstance(out, np.ndarray):
        yield place, torch.tensor(out)
    elif len(place) < _DEEPEST:
        for step, inner in _inside(out):
            yield from _tensors(inner, (*place, step))


def _inside(out: object) -> list[tuple[str | int, object]]:
    if isinstance(out, Mapping):
        return list(out.items())
    if hasattr(out, "_fields"):  # a named tuple
        return list(zip(out._fields, cast(Sequence[object], out), strict=True))
    if isinstance(out, Sequence) and not isinstance(out, str | bytes):
        return list(enumerate(out))
    if dataclasses.is_dataclass(out) and not isinstance(out, type):
        return [(f.name, getattr(out, f.name)) for f in dataclasses.fields(out)]
    if isinstance(out, type | nn.Module) or callable(out):
        return []
    return [
        (name, value)
        for name, value in getattr(out, "__dict__", {}).items()
        if not name.startswith("_")
    ]


def _unique(
    tensors: Iterator[tuple[Steps, Tensor]],
) -> Iterator[tuple[Steps, Tensor]]:
    seen: list[Tensor] = []
    for place, value in tensors:
        if not any(value is earlier for earlier in seen):
            seen.append(value)
            yield place, value


def _pick(out: object, output: Place) -> object:
    for step in _steps(output):
        try:
            out = _inner(out, step)
        except (AttributeError, KeyError, IndexError, TypeError):
            raise ValueError(
                f"the net returned {type(out).__name__}, which has no {step!r}; {_has(out)}"
            ) from None
    return out


def _inner(out: object, step: str | int) -> object:
    if isinstance(out, Mapping):
        return out[step]
    if isinstance(step, int):
        return cast(Sequence[object], out)[step]
    return getattr(out, step)


def _steps(output: Place | None) -> Steps:
    return output if isinstance(output, tuple) else () if output is None else (output,)


def _has(out: object) -> str:
    if isinstance(out, Tensor):
        return "it is a tensor, so drop output="
    if isinstance(out, Sequence) and not hasattr(out, "_fields"):
        return f"it has positions 0 to {len(out) - 1}"
    names = ", ".join(repr(step) for step, _ in _inside(out))
    return f"it has the keys {names}" if isinstance(out, Mapping) else f"it has {names}"


def _list(tensors: Mapping[Steps, Tensor]) -> str:
    return ", ".join(f"{spelled(place)} {tuple(value.shape)}" for place, value in tensors.items())


def spelled(place: Steps) -> str:
    """The place as `output=` has it."""
    return repr(place[0] if len(place) == 1 else place)


# ---- refusals


def _refusal(out: object, n: int) -> Exception:
    """Why there are no logits in `out`, and what to do."""
    came = f"the net returned {_describe(out)} for {n} images"
    values = [value for _, value in _tensors(out)]
    if not values:
        return TypeError(
            f"{came}, expected logits of shape (n, k), a tensor or one in a tuple, mapping or"
            " object; say where it is: Classifier(net, output=function), or return it alone"
        )
    floats = [v for v in values if _floats(v)]
    if not floats:
        return ValueError(
            f"{came}, decisions it seems, expected logits of shape (n, k): return the scores behind"
            " them, or where there are none F.one_hot(decisions, k)"
        )
    if any(_is_column(v, n) for v in floats):
        return ValueError(
            f"{came}, expected logits of shape (n, k): of one sigmoid logit Classifier(net,"
            ' output="sigmoid") makes two classes; a function returns'
            " torch.cat([torch.zeros_like(z), z], 1) for its z (n, 1)"
        )
    if any(v.ndim > 2 and v.shape[0] == n for v in floats):
        return ValueError(
            f"{came}, a map or a sequence, expected logits of shape (n, k), one row per image: "
            "take what decides, such as Classifier(net, output=lambda out: out.flatten(2).mean(2))"
        )
    return ValueError(
        f"{came}, expected logits of shape (n, k), k at least 2; adapt it with Classifier(net,"
        " output=function)"
    )


def _describe(out: object) -> str:
    if isinstance(out, Tensor | np.ndarray):
        return f"{out.dtype} of shape {tuple(out.shape)}"
    inside = ", ".join(
        f"{spelled(p)} {v.dtype} {tuple(v.shape)}" for p, v in list(_tensors(out))[:12]
    )
    return f"{type(out).__name__} with {inside}" if inside else type(out).__name__


# ---- what is said of it

_noted: ContextVar[list[Steps] | None] = ContextVar("_noted", default=None)


@contextmanager
def places() -> Iterator[list[Steps]]:
    """A list that fills with the places at which `logits_in` found logits by itself, in the time of
    the block."""
    mine: list[Steps] = []
    token = _noted.set(mine)
    try:
        yield mine
    finally:
        _noted.reset(token)


def _note(named: Steps, place: Steps) -> None:
    noted = _noted.get()
    if place and noted is not None:
        noted.append((*named, *place))


def warn_of_place(noted: Sequence[Steps]) -> None:
    """Says, in a warning, where in a larger output logits were found, if they were."""
    if noted:
        warnings.warn(
            f"the net returns more than logits: they were found at {spelled(noted[0])}; "
            f"Classifier(net, output={spelled(noted[0])}) names that place",
            stacklevel=2,
        )


# ------------------------------------------------------------------------------------- its mode


def switch_to_eval(net: nn.Module) -> None:
    """Eval mode for every module that has a mode; an exported one's was fixed when it was made.

    Raises ValueError where that fixed mode is training: its batch norms and dropout would ask the
    batch or chance.
    """
    if any(_trains(call) for call in _calls_for_ever(net)):
        raise ValueError(
            f"{type(net).__name__} was exported or traced in train mode, which eval() cannot"
            " change: its dropout and batch norms stay random or follow the batch; call net.eval()"
            " and export it again"
        )
    training = [m for m in net.modules() if getattr(m, "training", False)]
    try:
        if training:
            net.eval()
    except (NotImplementedError, TypeError):
        # an exported module among them, or a train() of the user's own
        for m in training:
            m.training = False


def _calls_for_ever(net: nn.Module) -> Iterator[Mapping[str, object]]:
    """The arguments, by name, of the torch operations that exporting or tracing has written
    down."""
    if isinstance(net, torch.jit.ScriptModule):
        yield from _calls_in_script(net)
        return  # its graph has those of its children in it
    if isinstance(net, fx.GraphModule):
        yield from _calls_in_graph(net)
    for child in net.children():
        yield from _calls_for_ever(child)


def _trains(call: Mapping[str, object]) -> bool:
    return any(call.get(flag) is True for flag in ("train", "training"))


def _calls_in_graph(net: fx.GraphModule) -> Iterator[dict[str, object]]:
    for node in net.graph.nodes:
        schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
        if schema is not None:
            yield dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(
                node.kwargs
            )


def _calls_in_script(net: torch.jit.ScriptModule) -> Iterator[dict[str, object]]:
    graph = getattr(net, "inlined_graph", None)
    for node in () if graph is None else graph.nodes():
        if node.kind() in ("aten::batch_norm", "aten::dropout"):
            schema = torch._C.parse_schema(node.schema())
            names = (a.name for a in schema.arguments)
            yield {name: v.toIValue() for name, v in zip(names, node.inputs(), strict=False)}
