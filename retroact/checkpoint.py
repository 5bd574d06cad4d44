"""Networks on disk: one safetensors file with weights, normalisation, architecture and retrofit.

    save(hard, "hard.safetensors"); load("hard.safetensors")
    load("mynets:build", weights="hard.safetensors")

Nothing is unpickled and nothing that a file names is imported: the architecture and the retrofit
stand in the file's metadata as specs, which are read without running any code. A network of your
own is saved in the same way; the file says which `package.module:function` built it (`code_of`),
and it is read again where you say that name yourself, or `into=` an instance that you build. The
command line says the name for you where that function is written in a file under the folder in
which you stand, and says so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, cast

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retroact.activations.files import embed
from retroact.changing.change import Change, change_of
from retroact.doors import Shape, named
from retroact.files import CheckpointError, parse_object, replacing
from retroact.ground import neutral
from retroact.nets import foreign, onnx_file, zoo
from retroact.nets.cards import Measured, model_index
from retroact.nets.classifier import Classifier, Output, sized
from retroact.nets.tensors import Layout, bare, find_faults, pack, unpack
from retroact.retrofitting.installed import Installed
from retroact.retrofitting.surgery import Retrofit
from retroact.spec import LONGEST, CallError, SpecError, parse, quote, shorten, show

FORMAT = "1"
_SHIFTS = "retrofit.shifts."


class Page(TypedDict, total=False):
    """What a file says of its network: how to build, normalise and retrofit it, and how the tensors
    beside it lie (`held`)."""

    format: str
    name: str
    network: str
    code: str
    mean: list[float]
    std: list[float]
    shape: Sequence[int] | None
    output: str | int | list[str | int] | tuple[str | int, ...] | None
    adapted: bool
    retrofit: str | None
    change: str
    held: Layout


class Audited(Protocol):
    """An audit, as far as a file says it: what was measured of both networks."""

    def measured(self) -> tuple[Measured, ...]: ...


@neutral()
def save(
    net: str | os.PathLike[str] | nn.Module, path: str | Path, *, audit: Audited | None = None
) -> Path:
    """Writes a network, retrofitted or not, to one safetensors file, whole or not at all.

    What an `audit` measured of it, and what `harden` did when it made it, stands in the file's
    metadata as a model card has it (`model-index`). Raises ValueError for an audit of others.
    Raises ValueError for a plain module (wrap it in a Classifier, which knows its normalisation)
    and for an `output=` adapter that is a function, which no file can hold (that of a
    `package.module:function` can).
    """
    net = _check_can_be_saved(named(net), Path(path))
    retrofit: Retrofit | None = getattr(net, "retrofit", None)
    if len(show(retrofit)) > LONGEST:
        raise ValueError(
            f"the retrofit's print has {len(show(retrofit)):,} characters, and at most {LONGEST:,}"
            " are read back; keep its numbers in a file, as calibrate does"
        )
    tensors, held = pack(net.module, leave=lambda module: isinstance(module, Installed))
    tensors |= {name: getattr(net, name).detach().cpu() for name in ("mean", "std")}
    if retrofit is not None:
        for sha256, content in retrofit.activation.files().items():
            tensors[_SHIFTS + sha256] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    page = _describe(net, retrofit)
    if held:
        page["held"] = held
    told = dict(page) | _card(net, audit)
    return _write(tensors, {"retroact": json.dumps(told)}, Path(path))


def _card(net: Classifier, audit: Audited | None) -> dict[str, object]:
    """What was measured of this very network; nothing where nobody measured it."""
    audited = () if audit is None else audit.measured()
    if audit is None and not net.measured:
        return {}
    own = digest(net)
    if audited and own not in {one.of for one in audited}:
        raise ValueError(
            "expected an audit of the network that is saved, got one of others; save the network"
            " that was audited, as it was then"
        )
    # a network that was changed after it was measured is another one
    known = [one for one in (*net.measured, *audited) if one.of == own]
    return {"model-index": model_index(net.name, net.shape, known)} if known else {}


def _check_can_be_saved(net: nn.Module, path: Path) -> Classifier:
    if path.suffix != ".safetensors":
        raise CallError(
            f"expected a name that ends in .safetensors, got {str(path)!r}; `load` would not read"
            " another"
        )
    if not isinstance(net, Classifier):
        raise ValueError(
            f"expected a Classifier, got {type(net).__name__}; save(Classifier(net, mean=…, std=…))"
        )
    if callable(net.output) and not net.code:
        raise ValueError(
            "an output= that is a function cannot be saved; use a name or a position instead"
        )
    if net.change and getattr(net, "retrofit", None) is not None:
        raise ValueError(
            "a net that was both changed as a whole and retrofitted cannot be saved; save one of"
            " the two"
        )
    if getattr(net, "retrofit", None) is not None and net.shape is None:
        raise ValueError(
            "a retrofit is made anew on an image when it is read; set net.shape = (c, h, w) and"
            " save then"
        )
    return net


def _describe(net: Classifier, retrofit: Retrofit | None) -> Page:
    """What the file says of the network."""
    page: Page = {
        "format": FORMAT,
        "name": net.name,
        "network": net.network,
        "code": net.code,
        "mean": net.mean.flatten().tolist(),
        "std": net.std.flatten().tolist(),
        "shape": net.shape,
        "output": None if callable(net.output) else net.output,
        "adapted": callable(net.output),
        "retrofit": None if retrofit is None else show(retrofit),
    }
    if net.change:
        page["change"] = net.change
    return page


def load(
    what: str | Path,
    *,
    weights: str | Path | None = None,
    into: nn.Module | None = None,
    shape: Shape | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> nn.Module:
    """A network by zoo name, by the file that `save` wrote, as an ONNX file (scores and no
    gradient), or as `package.module:function` with `weights`.

    `weights` are a state dict, or a file that `save` wrote, whose normalisation and retrofit then
    count too. `into`: for a saved network of your own, an untrained instance of its module
    (retrofitted anew here). `shape`: (c, h, w) of its images, where a network of your own does not
    say it. `mean` and `std`, in pixels of [0,1], normalise for a plain module that a
    `package.module:function` gives; without them its `notes` say that nothing does.

    Raises ZooError or CheckpointError, each saying where it looked and what to do.
    """
    text = str(what)
    own = {k: v for k, v in (("mean", mean), ("std", std)) if v is not None}
    if own and ":" not in text:
        raise CheckpointError(
            f"{text} says how its pixels are normalised; drop {' and '.join(own)}, which go with"
            " package.module:function"
        )
    if Path(text).suffix == ".onnx":
        if weights is not None or into is not None:
            raise CheckpointError(f"{text} is a whole network; drop weights= and into=")
        return onnx_file.read(Path(text).expanduser(), None if shape is None else tuple(shape))
    if Path(text).suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        if weights is not None:
            raise CheckpointError(
                f"{text} holds its own weights; drop weights={str(weights)!r}, or name the net's"
                " code"
            )
        return _read(Path(text), into)
    if ":" in text and weights is not None and _page_of(Path(weights).expanduser()) is not None:
        if own:
            raise CheckpointError(
                f"{weights} says how its pixels are normalised; drop {' and '.join(own)}"
            )
        return _read(Path(weights).expanduser(), sized(zoo.from_user(text), shape))
    if ":" in text:
        return sized(zoo.from_user(text, weights, mean=mean, std=std), shape)
    if weights is not None:
        raise CheckpointError(
            f"weights= goes with package.module:function, got {text!r} with {weights}"
        )
    return zoo.load(text)


def code_of(path: str | Path) -> str:
    """The `package.module:function` that built the network in a file of `save`; "" where there is
    none."""
    page = _page_of(Path(path)) or {}
    return "" if page.get("network") else str(page.get("code", ""))


def digest(net: nn.Module) -> str:
    """The first 16 hex digits of a SHA-256 over names, types, shapes and bits of all weights and
    buffers, and over the retrofit where there is one."""
    sha = hashlib.sha256(show(getattr(net, "retrofit", None)).encode())
    sha.update(change_of(net).encode())
    for name, value in sorted((bare(name), value) for name, value in net.state_dict().items()):
        if not isinstance(value, Tensor):
            content = json.dumps(value, sort_keys=True, default=lambda v: type(v).__name__)
            sha.update(f"{name} {content}".encode())
            continue
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


@neutral()
def _read(path: Path, into: nn.Module | None) -> nn.Module:
    page, tensors = _open(path)
    if lacking := {"name", "retrofit"} - page.keys():
        raise CheckpointError(
            f"{path} says nothing of its {' and its '.join(sorted(lacking))}, which every saved"
            " network has: it is damaged; make or fetch it again"
        )
    told = foreign.hash_of(path)
    try:
        net = _build(page, tensors, into, path)
        _reshape(net, page, path)
        _fill(net, tensors, page, path)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"{path} does not fit the network it names: {_shorten_lines(e)}"
        ) from None
    net.name = page["name"] or path.stem
    net.notes += told
    for name, tensor in tensors.items():
        if name.startswith(_SHIFTS):
            embed(tensor.numpy().tobytes(), sha256=name.removeprefix(_SHIFTS))
    if page["retrofit"] is None:
        return net
    try:
        retrofit = parse(page["retrofit"])
    except SpecError as e:
        raise CheckpointError(
            f"{path} was retrofitted with {shorten(page['retrofit'])}: {e}; where that is an"
            " activation of your own, import its module first (on the command line: --import)"
        ) from None
    if not isinstance(retrofit, Retrofit):
        raise CheckpointError(
            f"{path} should name a Retrofit, got {shorten(page['retrofit'])}; save the network"
            " again"
        )
    try:
        return retrofit(net)
    except (RuntimeError, LookupError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"{path}: {shorten(show(retrofit))} cannot be put into its network again:"
            f" {_shorten_lines(e)}"
        ) from e


def _reshape(net: Classifier, page: Page, path: Path) -> None:
    """Gives a net that its code has built the form of the changed one whose numbers are here."""
    if not page.get("change"):
        return
    try:
        change = parse(page["change"], Change)
    except SpecError as e:
        raise CheckpointError(
            f"{path} was changed by {shorten(page['change'])}: {e}; where that is a change of your"
            " own, import its module first (on the command line: --import)"
        ) from None
    net.module, net.change = change.shell(net.module), page["change"]


def _fill(net: Classifier, tensors: Mapping[str, Tensor], page: Page, path: Path) -> None:
    """Puts the numbers of a file into the network that it names. CheckpointError for NaN, infinity,
    and whole numbers where floats belong."""
    named = {bare(name): value for name, value in net.module.state_dict(keep_vars=True).items()}
    own = {f"module.{name}": value for name, value in named.items()} | dict(net.named_buffers())
    if wrong := list(find_faults(tensors, own)):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise CheckpointError(
            f"{path} is no network that can be used: {', '.join(map(shorten, wrong[:5]))}{more};"
            " its training diverged, or the file is damaged: save an earlier one"
        )
    unpack(net.module, tensors, page.get("held", Layout()))
    for name in {"mean", "std"} & tensors.keys():
        was, now = getattr(net, name), tensors[name]
        if now.shape != was.shape:
            raise ValueError(f"{name} is {tuple(now.shape)}, expected {tuple(was.shape)}")
        setattr(net, name, now)


def _shorten_lines(error: Exception) -> str:
    """What an error of torch says, in lines of a length that can be read."""
    lines = str(error).splitlines()[:_LINES]
    return "\n".join(map(shorten, lines)) or type(error).__name__


_LINES = 20  # of torch's list of what differs


def _build(
    page: Page, tensors: Mapping[str, Tensor], into: nn.Module | None, path: Path
) -> Classifier:
    if into is None and not page["network"]:
        raise CheckpointError(_cure_of(path, str(page.get("code", ""))))
    if into is None:
        network = parse(page["network"])
        if not isinstance(network, zoo.Network):
            raise SpecError(f"it should name a Network, got {quote(page['network'])}")
        return zoo.build(network, tensors, str(path))
    inner = into.module if isinstance(into, Classifier) else into
    shape = getattr(into, "shape", None) if page["shape"] is None else tuple(page["shape"])
    net = Classifier(
        inner, page["mean"], page["std"], shape=shape, output=_output(page, into, path)
    )
    net.code = into.code if isinstance(into, Classifier) else str(page.get("code", ""))
    return net


def _output(page: Page, into: nn.Module, path: Path) -> Output:
    if not page.get("adapted"):
        output = page["output"]
        return tuple(output) if isinstance(output, list) else output
    if not isinstance(into, Classifier) or not callable(into.output):
        raise CheckpointError(
            f"{path} holds a network whose output= is a function, which no file can hold: "
            "load it into=Classifier(your_module(), output=function)"
        )
    return into.output


def _cure_of(path: Path, code: str) -> str:
    if not code:
        return (
            f"{path} holds a network of your own, whose code it cannot name; "
            "load(path, into=your_module()) with an instance that you build"
        )
    return (
        f"{path} holds a network that {code} built, and nothing that a file names is imported: say"
        f" it yourself, load({code!r}, weights={str(path)!r}), on the command line {code} --weights"
        f" {path}; or load(path, into=your_module())"
    )


def _page_of(path: Path) -> Page | None:
    """What a file of `save` says of its network; None for every other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return _page(file.metadata() or {})
    except (KeyError, ValueError, OSError, safetensors.SafetensorError):
        return None


def _page(metadata: Mapping[str, str]) -> Page:
    """The page in a file's metadata. KeyError where there is none, ValueError where it is none."""
    page = parse_object(metadata["retroact"])
    for name, kinds in _KINDS.items():
        if not isinstance(page.get(name, _MISSING.get(name)), kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"expected its {name} as {expected}, got {quote(page.get(name))}")
    for name in ("mean", "std", "shape"):
        if not all(isinstance(v, int | float) and abs(v) < _BEYOND for v in page.get(name) or ()):
            raise ValueError(f"expected its {name} as numbers, got {quote(page[name])}")
    if math.prod(page.get("shape") or ()) > LARGEST:
        raise ValueError(
            f"expected examples of at most {LARGEST:,} entries, got shape {quote(page['shape'])}"
        )
    return cast(Page, page)


LARGEST = 2**26
"""Entries of an example, by the shape that a file says: one is made to find the sites on."""

_BEYOND = 1e30


_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    "format": (str,),
    "name": (str,),
    "network": (str,),
    "code": (str,),
    "mean": (list,),
    "std": (list,),
    "shape": (list, _NONE),
    "output": (str, int, list, _NONE),
    "adapted": (bool,),
    "retrofit": (str, _NONE),
    "change": (str,),
    "held": (dict,),
}
_MISSING: dict[str, object] = {
    "code": "",
    "adapted": False,
    "change": "",
    "held": {},
}  # where none is said


def _open(path: Path) -> tuple[Page, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(
            f"no file {path}; save(net, path) or `retroact retrofit … --out FILE` writes one"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no safetensors file, and unpickling one could run its code; bring its"
            " weights with `package.module:function --weights FILE` (read without running any) and"
            " save that"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "retroact" in metadata:
                names = file.keys()  # a method of its own: the file is no mapping
                page = _check_format(_page(metadata), path)
                return page, {name: file.get_tensor(name) for name in names}
    except CheckpointError:
        raise
    except Exception as e:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: {shorten(str(e))}; make or fetch it again"
        ) from None
    raise CheckpointError(
        f"{path} has tensors but does not say of which network; bring it as "
        f"`package.module:function --weights {path.name}`"
    )


def _check_format(page: Page, path: Path) -> Page:
    if page.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {shorten(str(page.get('format')))}, expected {FORMAT}; upgrade"
            " retroact"
        )
    return page


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> Path:
    with replacing(path) as draft:
        save_file(tensors, draft, metadata=metadata)
    return path
