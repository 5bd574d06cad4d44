"""The zoo: trained nets by name, as safetensors, each with a page that says where it comes from.

`load("lenet-mnist")` finds NAME.safetensors and NAME.json under RETROACT_ZOO, then in the package's
own `weights/` (files under 600 kB), then in the repository's `zoo/`, and loads it only where the
weights have the SHA-256 that the page promises. `from_user` brings a net of your own.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from retroact.files import replacing
from retroact.ground import neutral
from retroact.nets import foreign
from retroact.nets.alex_like import AlexLike
from retroact.nets.cifar10_cnn import Cifar10CNN1
from retroact.nets.classifier import Classifier, Output, Shape
from retroact.nets.digits_cnn import DigitsCNN
from retroact.nets.lenet_like import LeNetLike
from retroact.nets.mnist_cnn import MnistCNN
from retroact.nets.mobilenet_v2 import MobileNetV2
from retroact.nets.pages import Entry as Entry
from retroact.nets.pages import ZooError as ZooError
from retroact.nets.pages import describe_shadow, find, folders, how_to_get, read
from retroact.nets.pages import names as names
from retroact.nets.preact_resnet import PreActResNet18
from retroact.nets.resnet20 import ResNet20
from retroact.nets.tensors import find_faults, state_of
from retroact.nets.wide_resnet import WideResNet
from retroact.spec import CallError, SpecError, parse, quote, shorten, show, spec

PACKAGE_LIMIT = 600_000
"""Bytes of the largest weights file in the wheel; larger ones live in the repository's zoo/, in
fp16."""


NOT_NORMALISED = (
    "{where} gives a plain module, and nothing says how its pixels are normalised: those of [0,1]"
    " reach it as they are; where it was trained on others, give mean and std (--mean, --std), or"
    " let it give a Classifier"
)


class NameOfNoNetError(ZooError, CallError):
    """A text that names no net."""


class Architecture(Protocol):
    """A spec that builds an untrained net."""

    def __call__(self) -> nn.Module: ...


@spec
class Network:
    """An architecture with what it expects: its data set, images (c, h, w), mean and std in pixel
    units."""

    architecture: Architecture
    data: str
    shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    classes: int = 10

    def __post_init__(self) -> None:
        # files name networks, and in this place a Model, called, would import what it names, a
        # DataSlice fetch it
        room, _, file = type(self.architecture).__module__.rpartition(".")
        if room.split(".")[0] == "retroact" and (room != "retroact.nets" or file == "data"):
            raise SpecError(
                "Network.architecture: expected one such as LeNetLike(), got"
                f" {show(self.architecture)}"
            )

    def __call__(self) -> Classifier:
        """A classifier with untrained weights, drawn from torch's global generator."""
        net = Classifier(self.architecture(), self.mean, self.std, shape=self.shape)
        net.network = show(self)
        return net


def _digits(architecture: Architecture) -> Network:
    return Network(architecture, "digits", (1, 8, 8))


def _mnist(architecture: Architecture, mean: float, std: float) -> Network:
    return Network(architecture, "mnist", (1, 28, 28), (mean,), (std,))


def _cifar10(architecture: Architecture) -> Network:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return Network(architecture, "cifar10", (3, 32, 32), mean, std)


NETWORKS: dict[str, Network] = {
    "digits-cnn": _digits(DigitsCNN()),
    "mnist-cnn": _mnist(MnistCNN(), 0.0, 1.0),
    "mnist-cnn-shifted": _mnist(MnistCNN(), 0.0, 1.0),
    "lenet-mnist": _mnist(LeNetLike(), 0.1307, 0.3081),
    "lenet-mnist-steps": _mnist(LeNetLike(), 0.1307, 0.3081),
    "lenet-mnist-robust": _mnist(LeNetLike(), 0.1307, 0.3081),
    "lenet-mnist-robust-steps": _mnist(LeNetLike(), 0.1307, 0.3081),
    "cifar10-cnn1": Network(Cifar10CNN1(), "cifar10", (3, 32, 32)),
    "alexlike-cifar10": _cifar10(AlexLike()),
    "alexlike-cifar10-robust": _cifar10(AlexLike()),
    "resnet20-cifar10": _cifar10(ResNet20()),
    "resnet20-cifar10-robust": _cifar10(ResNet20()),
    "wideresnet-cifar10": _cifar10(WideResNet()),
    "wideresnet-cifar10-robust": _cifar10(WideResNet()),
    "mobilenetv2-cifar10": _cifar10(MobileNetV2()),
    "mobilenetv2-cifar10-robust": _cifar10(MobileNetV2()),
    "preactresnet18-cifar10-robust": _cifar10(PreActResNet18()),
}
"""Every net that can be trained by name; mean and std as in the papers (raw pixels for Borji 2020's
nets)."""


# ------------------------------------------------------------------------------------------- look


def entry(name: str) -> Entry:
    """The page of a net; raises ZooError where there is none."""
    return read(_folder(name), name)


@neutral()
def load(name: str, folder: Path | None = None) -> Classifier:
    """The net `name`, trained, in eval mode, in float32, from `folder` where one is given; raises
    ZooError where it is missing or damaged."""
    notes = describe_shadow(name) if folder is None else ()
    folder = _folder(name) if folder is None else folder
    page = read(folder, name)
    path = folder / f"{name}.safetensors"
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != page.weights_sha256:
        raise ZooError(
            f"{path} is not the file its page describes (SHA-256 differs); {how_to_get(name)}"
        )
    network, tensors = _network(page), _tensors(raw, str(path))
    net = build(network, tensors, str(path))
    net.name, net.notes = name, notes
    _fill(net.module, tensors, str(path))
    return net


def build(network: Network, tensors: Mapping[str, Tensor], where: str) -> Classifier:
    """The network that a file names, untrained. Raises ZooError where it cannot be, and where it
    has many more numbers than the file holds, before room is made for them all."""
    own, held = _count(network), sum(t.numel() for t in tensors.values())
    if own > 2 * held + 1_000_000:
        raise ZooError(
            f"{where} holds {held:,} numbers and names a network of {own:,},"
            f" {shorten(show(network))}; make or fetch it again"
        )
    try:
        return network()
    except (RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as e:
        raise ZooError(f"{where} names {shorten(show(network))}: {shorten(str(e))}") from None


def _count(network: Network) -> int:
    """The parameters of a network, counted without making them; 0 where it cannot be built so."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in network.architecture().parameters())
    except Exception:  # whatever one of the user's own does there, or none can
        return 0


def _folder(name: str) -> Path:
    folder = find(name)
    if folder is not None:
        return folder
    looked = ", ".join(str(f) for f in folders())
    if name in NETWORKS:
        raise ZooError(
            f"the weights of {name} are not here; looked in {looked}; {how_to_get(name)}"
        )
    near = difflib.get_close_matches(name, [*names(), *NETWORKS], n=1, cutoff=0.4)
    hint = (
        f"; did you mean {near[0]}?"
        if near
        else f"; did you mean {name[:-3]}:FUNCTION?"
        if name.endswith(".py")
        else ""
    )
    known = ", ".join(sorted({*names(), *NETWORKS}))
    raise NameOfNoNetError(
        f"unknown net {quote(name)}{hint} (known: {known}; your own: package.module:function)"
    )


def _network(page: Entry) -> Network:
    try:
        network = parse(page.network)
    except SpecError as e:
        raise ZooError(f"{page.name}: its page names a network that is not known here: {e}") from e
    if not isinstance(network, Network):
        raise ZooError(f"{page.name}: its page should name a Network, got {page.network}")
    return network


# ------------------------------------------------------------------------------------------- keep


def write(net: Classifier, page: Entry, folder: str | Path) -> Entry:
    """Writes NAME.safetensors and NAME.json into `folder`, each whole or not at all; gives the
    final page.

    `page.dtype` says how floating-point weights are stored; `weights_sha256` is filled in.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    # one word of metadata only: safetensors writes several in any order, and then the hash is any
    # hash
    raw = safetensors.torch.save(stored(net, page.dtype), metadata={"network": page.network})
    page = dataclasses.replace(page, weights_sha256=hashlib.sha256(raw).hexdigest())
    _replace(out / f"{page.name}.safetensors", raw)
    _replace(
        out / f"{page.name}.json", (json.dumps(dataclasses.asdict(page), indent=2) + "\n").encode()
    )
    return page


def stored(net: Classifier, dtype: str) -> dict[str, Tensor]:
    """The weights of the inner net as they are stored: floating-point ones as `dtype`, on the
    CPU."""
    kept: torch.dtype = getattr(torch, dtype)
    weights = {k: v.detach().cpu() for k, v in net.module.state_dict().items()}
    return {
        k: (v.to(kept) if v.is_floating_point() else v).contiguous() for k, v in weights.items()
    }


def _replace(path: Path, raw: bytes) -> None:
    with replacing(path) as draft:
        draft.write_bytes(raw)


# -------------------------------------------------------------------------------------- your own


def from_user(
    where: str,
    weights: str | Path | None = None,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    shape: Shape | None = None,
    output: Output = None,
) -> Classifier:
    """A net of your own: calls `package.module:function`, loads `weights` into it, wraps it in a
    Classifier.

    `weights` is a checkpoint, as safetensors or of torch.save, which is read without running any
    code; how its weights were found (prefixes, what lay beside them) is said in the net's `notes`,
    and so is its SHA-256, unless FILE.sha256 beside it says it: then it must be that.
    A function that gives a Classifier has its own mean and std; for a plain module without any the
    `notes` say so. Raises ZooError, saying which of import, call, and weights went wrong, and where
    mean and std are said twice.
    """
    net = _build(where)
    if isinstance(net, Classifier) and not mean is std is None:
        raise ZooError(f"{where} gives a Classifier, which has its own mean and std; drop yours")
    inner = net.module if isinstance(net, Classifier) else net
    try:
        notes = () if weights is None else _fill_from(inner, Path(weights).expanduser())
    except foreign.WeightsError as e:
        raise ZooError(str(e)) from e
    if not isinstance(net, Classifier):
        numbers = 0.0 if mean is None else mean, 1.0 if std is None else std
        net = Classifier(net, *numbers, shape=shape, output=output, name=where)
        if mean is std is None:
            notes += (NOT_NORMALISED.format(where=where),)
    net.notes = notes
    # whatever that function began with, it alone knows what it made of it
    net.code, net.network = where, ""
    return net.eval()


def _fill_from(module: nn.Module, file: Path) -> tuple[str, ...]:
    """Loads a checkpoint; what there is to say of it, and of its SHA-256 where none was known."""
    told = foreign.hash_of(file)
    return foreign.fill(module, file) + told


def written_here(where: str) -> Path | None:
    """The file under the working folder in which `package.module:function` is written, found
    without running any.

    None where a plain import would take the module from elsewhere (the standard library, an
    installed package), or where the function stands in another file and is only passed on.
    """
    module, _, function = where.partition(":")
    first, *inner = module.split(".")
    if not all(part.isidentifier() for part in (first, *inner, function)):
        return None
    look_here()
    here = Path.cwd()
    spec = importlib.util.find_spec(first)
    homes = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    if not any(
        home and Path(home) in (here / first, here / first / "__init__.py", here / f"{first}.py")
        for home in homes
    ):
        return None
    base = here.joinpath(first, *inner)
    for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if file.is_file() and _defines(file, function):
            return file
    return None


def _defines(file: Path, name: str) -> bool:
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name for node in body
    )


def _build(where: str) -> nn.Module:
    module, _, function = where.partition(":")
    if not module or not function.isidentifier():
        raise NameOfNoNetError(
            f"cannot read {quote(where)} as a net; write package.module:function, such as"
            " mynets.small:build"
        )
    builder = _find(module, function, where)
    try:
        net = builder()
    except Exception as e:
        cure = (
            "; write a function without arguments that builds it"
            if _lacks_arguments(builder)
            else ""
        )
        raise ZooError(f"{where}() raised {type(e).__name__}: {e}{cure}") from e
    if not isinstance(net, nn.Module):
        raise ZooError(
            f"{where} gave {type(net).__name__}, expected an nn.Module; let it return the net"
        )
    return net


def _find(module: str, function: str, where: str) -> Callable[[], object]:
    try:
        home = _import(module)
    except Exception as e:
        cure = (
            f"write {module[:-3]}:{function}"
            if module.endswith(".py")
            else "stand in its folder, or install it"
        )
        missing = (
            isinstance(e, ImportError) and (e.name or module).split(".")[0] == module.split(".")[0]
        )
        raise ZooError(
            f"{where}: {type(e).__name__}: {e};"
            f" {cure if missing else 'it must import as it stands'}"
        ) from e
    if not callable(getattr(home, function, None)):
        near = difflib.get_close_matches(
            function, [n for n, v in vars(home).items() if callable(v)], n=1
        )
        hint = (
            f"; did you mean {module}:{near[0]}?"
            if near
            else "; name a function or class that builds the net"
        )
        raise ZooError(f"{where}: {module} has no function {function!r}{hint}")
    builder: Callable[[], object] = getattr(home, function)
    return builder


def _lacks_arguments(builder: Callable[[], object]) -> bool:
    try:
        inspect.signature(builder).bind()
    except (TypeError, ValueError):
        return True
    return False


def _import(module: str) -> ModuleType:
    look_here()
    return importlib.import_module(module)


def look_here() -> None:
    """Modules in the folder in which the user stands can be imported, where none is called so."""
    # a console script does not have the folder the user stands in on its path; last, so that it
    # hides nothing
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _tensors(raw: bytes, where: str) -> dict[str, Tensor]:
    try:
        return foreign.tensors_in(raw, where)
    except foreign.WeightsError as e:
        raise ZooError(str(e)) from e


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    own = module.state_dict()
    wrong = [f"missing {k}" for k in own.keys() - tensors.keys()]
    wrong += [f"unknown {k}" for k in tensors.keys() - own.keys()]
    wrong += [
        f"{k} is {tuple(tensors[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if tensors[k].shape != own[k].shape
    ]
    wrong += [] if wrong else find_faults(tensors, state_of(module))
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ZooError(
            f"{where} does not fit {type(module).__name__}:"
            f" {', '.join(map(shorten, sorted(wrong)[:5]))}{more}"
        )
    module.load_state_dict(dict(tensors))


def describe(name: str) -> str:
    """One line on a net that can be loaded: its architecture, data, and measured accuracy."""
    page = entry(name)
    return (
        f"{name}: {show(_network(page).architecture)} on {page.data}, {page.accuracy:.2%} of"
        f" {page.test_n}"
    )
