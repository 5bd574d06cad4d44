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
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from retroact.activations.files import embed
from retroact.doors import Shape, named
from retroact.files import CheckpointError, replacing
from retroact.ground import neutral
from retroact.nets import zoo
from retroact.nets.classifier import Classifier, Output, sized
from retroact.nets.tensors import Layout, bare, pack, unpack
from retroact.retrofitting.installed import Installed
from retroact.retrofitting.surgery import Retrofit
from retroact.spec import CallError, SpecError, parse, show

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
    held: Layout


@neutral()
def save(net: str | os.PathLike[str] | nn.Module, path: str | Path) -> Path:
    """Writes a network, retrofitted or not, to one safetensors file, whole or not at all.

    Raises ValueError for a plain module (wrap it in a Classifier, which knows its normalisation)
    and for an `output=` adapter that is a function, which no file can hold (that of a
    `package.module:function` can).
    """
    net = _check_can_be_saved(named(net), Path(path))
    retrofit: Retrofit | None = getattr(net, "retrofit", None)
    tensors, held = pack(net.module, leave=lambda module: isinstance(module, Installed))
    tensors |= {name: getattr(net, name).detach().cpu() for name in ("mean", "std")}
    if retrofit is not None:
        for sha256, content in retrofit.activation.files().items():
            tensors[_SHIFTS + sha256] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    page = _describe(net, retrofit)
    if held:
        page["held"] = held
    return _write(tensors, {"retroact": json.dumps(page)}, Path(path))


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
    if getattr(net, "retrofit", None) is not None and net.shape is None:
        raise ValueError(
            "a retrofit is made anew on an image when it is read; set net.shape = (c, h, w) and"
            " save then"
        )
    return net


def _describe(net: Classifier, retrofit: Retrofit | None) -> Page:
    """What the file says of the network."""
    return {
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


def load(
    what: str | Path,
    *,
    weights: str | Path | None = None,
    into: nn.Module | None = None,
    shape: Shape | None = None,
) -> nn.Module:
    """A network by zoo name, by the file that `save` wrote, or as `package.module:function` with
    `weights`.

    `weights` are a state dict, or a file that `save` wrote, whose normalisation and retrofit then
    count too. `into`: for a saved network of your own, an untrained instance of its module
    (retrofitted anew here). `shape`: (c, h, w) of its images, where a network of your own does not
    say it.

    Raises ZooError or CheckpointError, each saying where it looked and what to do.
    """
    text = str(what)
    if Path(text).suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"):
        if weights is not None:
            raise CheckpointError(
                f"{text} holds its own weights; drop weights={str(weights)!r}, or name the net's"
                " code"
            )
        return _read(Path(text), into)
    if ":" in text and weights is not None and _page_of(Path(weights).expanduser()) is not None:
        return _read(Path(weights).expanduser(), sized(zoo.from_user(text), shape))
    if ":" in text:
        return sized(zoo.from_user(text, weights), shape)
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
    try:
        net = _build(page, into, path)
        unpack(net.module, tensors, page.get("held", Layout()))
        for name in {"mean", "std"} & tensors.keys():
            setattr(net, name, tensors[name])
    except (RuntimeError, SpecError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path} does not fit the network it names: {e}") from None
    net.name = page["name"] or path.stem
    for name, tensor in tensors.items():
        if name.startswith(_SHIFTS):
            embed(tensor.numpy().tobytes(), sha256=name.removeprefix(_SHIFTS))
    if page["retrofit"] is None:
        return net
    try:
        retrofit = parse(page["retrofit"])
    except SpecError as e:
        raise CheckpointError(
            f"{path} was retrofitted with {page['retrofit']}: {e}; where that is an activation of"
            " your own, import its module first (on the command line: --import)"
        ) from None
    if not isinstance(retrofit, Retrofit):
        raise CheckpointError(
            f"{path} should name a Retrofit, got {page['retrofit']}; save the network again"
        )
    return retrofit(net)


def _build(page: Page, into: nn.Module | None, path: Path) -> Classifier:
    if into is None and not page["network"]:
        raise CheckpointError(_cure_of(path, str(page.get("code", ""))))
    if into is None:
        network = parse(page["network"])
        if not isinstance(network, zoo.Network):
            raise SpecError(f"it should name a Network, got {page['network']}")
        return network()
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
            page = json.loads((file.metadata() or {})["retroact"])
    except (KeyError, ValueError, OSError, safetensors.SafetensorError):
        return None
    return cast(Page, page) if isinstance(page, dict) else None


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
            page = json.loads((file.metadata() or {})["retroact"])
            names = file.keys()  # a method of its own: the file is no mapping
            tensors = {name: file.get_tensor(name) for name in names}
    except KeyError:
        raise CheckpointError(
            f"{path} has tensors but does not say of which network; bring it as "
            f"`package.module:function --weights {path.name}`"
        ) from None
    except (safetensors.SafetensorError, OSError, ValueError) as e:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file: {e}; make or fetch it again"
        ) from None
    if page.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {page.get('format')}, expected {FORMAT}; upgrade retroact"
        )
    return page, tensors


def _write(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> Path:
    with replacing(path) as draft:
        save_file(tensors, draft, metadata=metadata)
    return path
