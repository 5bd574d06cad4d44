"""Networks and activations as the words of a command name them, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from retroact.cli.console import note
from retroact.cli.options import cores, numbers_of, sizes_of
from retroact.cli.stopping import NOTHING, if_stopped
from retroact.spec import CallError

if TYPE_CHECKING:
    from torch import nn

    from retroact.activations.activation import Activation
    from retroact.auditing.evidence import Origin
    from retroact.executors import Executor
    from retroact.experiments.cell import Cell, Model
    from retroact.experiments.store import Store
    from retroact.nets.data import Images
    from retroact.nets.remembered import Holding


def import_own(module: str) -> None:
    """Imports a module of the user's own, from the folder in which he stands or as installed, so
    that its specs are known."""
    import importlib

    from retroact.nets import zoo

    zoo.look_here()
    try:
        importlib.import_module(module)
    except Exception as error:
        cure = "it must import as it stands"
        if module.endswith(".py"):
            cure = f"write {module[:-3]}"
        elif isinstance(error, ModuleNotFoundError) and (error.name or "") in module:
            cure = "stand in its folder, or install it"
        text = f"--import {module}: {type(error).__name__}: {error}; {cure}"
        raise ImportError(text) from error


@dataclass(frozen=True)
class Bringing:
    """How the networks that a command names are brought: to which `device`, and what a plain module
    of somebody's own does not say, how its pixels are normalised and of which `shape` they are."""

    device: str = "cpu"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    shape: tuple[int, ...] | None = None
    _said: set[str] = field(default_factory=set)  # notes: none twice

    @classmethod
    def of(
        cls,
        nets: Sequence[str | None],
        mean: str | None,
        std: str | None,
        shape: str | None,
        device: str = "cpu",
    ) -> Bringing:
        """As the words of a command say. CallError where none of its `nets` could be a plain
        module, which alone needs --mean and --std."""
        said = {"--mean": mean, "--std": std}
        given = [word for word, text in said.items() if text is not None]
        if given and not any(_is_code(net) for net in nets):
            named = " and ".join(dict.fromkeys(net for net in nets if net))
            goes = "goes" if len(given) == 1 else "go"
            raise CallError(
                f"{' and '.join(given)} {goes} with a package.module:function that gives a plain"
                f" module; {named} says itself how its pixels are normalised"
            )
        numbers = [
            () if text is None else tuple(numbers_of(text, word)) for word, text in said.items()
        ]
        size = None if shape is None else sizes_of(shape)
        return cls(device, mean=numbers[0], std=numbers[1], shape=size)

    def load(
        self,
        net: str,
        weights: str,
        images: Images | Holding | None = None,
        *,
        beside: str | None = None,
    ) -> nn.Module:
        """The network on that device; `images` tell it their shape where it does not say it itself,
        and `beside` is the other network that the command names."""
        from retroact import checkpoint
        from retroact.doors import check_device

        check_device(self.device)
        name, file = _name_and_file(net, weights, beside)
        mean, std = self._pixels_of(name)
        network = checkpoint.load(
            name,
            weights=file or None,
            shape=self._shape(images),
            mean=mean or None,
            std=std or None,
        )
        self._say_notes(network)
        return network.to(self.device)

    def model(
        self,
        net: str,
        weights: str,
        activation: Activation | None = None,
        sites: str = "*",
        *,
        also: Sequence[str] | None = None,
        beside: str | None = None,
    ) -> Model:
        """The network as a cell names it."""
        from retroact.experiments.cell import Model

        name, file = _name_and_file(net, weights, beside)
        kinds = () if activation is None else tuple(also or ())
        mean, std = self._pixels_of(name)
        return Model(name, activation, sites, file=file, also=kinds, mean=mean, std=std)

    def complete(self, origin: Origin) -> Origin:
        """Evidence's words for a network, with what this command says of its pixels."""
        mean, std = self._pixels_of(origin.net)
        return replace(origin, mean=mean, std=std)

    def as_said(self, origin: Origin) -> Bringing:
        """The same with what evidence says of a network's pixels, where the command says none."""
        return replace(self, mean=self.mean or origin.mean, std=self.std or origin.std)

    def read(self, data: str) -> Images:
        """The examples that are named. ValueError, before all of them are read, where --shape says
        another shape."""
        self.check_shape(data)
        return read_data(data)

    def check_shape(self, data: str) -> None:
        """ValueError where --shape and the examples differ, of which one is read."""
        if self.shape is not None:
            from retroact.nets.data import DataSlice

            self._shape(DataSlice.read(data).narrow(0, 1)())

    def _pixels_of(self, net: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std for this network: none where it says its own."""
        return (self.mean, self.std) if _is_code(net) else ((), ())

    def _shape(self, images: Images | Holding | None) -> tuple[int, ...] | None:
        if images is None:
            return self.shape
        came = images.shape if hasattr(images, "shape") else tuple(images.images.shape[1:])
        if self.shape not in (None, came):
            raise ValueError(f"--shape says {self.shape}, and the examples are of {came}; drop it")
        return came

    def _say_notes(self, net: object) -> None:
        for text in getattr(net, "notes", ()):
            if text not in self._said:
                note(text)
        self._said.update(getattr(net, "notes", ()))


def _is_code(net: str | None) -> bool:
    """Whether it names a function that builds the network."""
    return net is not None and ":" in net and Path(net).suffix != ".onnx"


@contextmanager
def opened(path: Path | None, wait: bool) -> Iterator[Store | None]:
    """The store in which a long run keeps its parts, where one is named, for this process alone;
    says what is kept where it is stopped."""
    if path is None:
        with if_stopped(f"{NOTHING}; with --store FILE each attack is kept as it is done"):
            yield None
        return
    from retroact.experiments.store import Store

    truth = f"the attacks that were done are in {path}; the same command goes on with the rest"
    with Store(path, wait=wait, tell=note) as store, store.claimed(), if_stopped(truth):
        yield store


def read_data(text: str) -> Images:
    """The examples that are named; a note says where their split was drawn from files that lack
    it."""
    from retroact.nets.data import data

    say_split(text)
    return data(text)


def say_split(text: str) -> None:
    """Says of data in files of one's own how many of them make up a split that they lack."""
    from retroact.nets.data import DataSlice

    if told := DataSlice.read(text).describe_split():
        note(told)


def activation_of(text: str | None) -> Activation | None:
    """The activation that is named; None for none."""
    from retroact.reading import as_activation

    return None if text is None or text.lower() == "none" else as_activation(text)


def executor_of(
    text: str | None,
    workers: int | None,
    several: Literal["Processes", "Threads"] = "Processes",
    *,
    default: int = 0,
) -> Executor:
    """The executor that is named, or else `several` for so many workers; 0: one per core.

    Two cores are shared by threads where nobody has said how many work: docs/performance.md.
    """
    from retroact import executors
    from retroact.spec import parse

    if text is None:
        count = (default if workers is None else workers) or cores()
        several = "Threads" if not (workers or default) and count == 2 else several
        return getattr(executors, several)(count) if count > 1 else executors.SERIAL
    if workers is not None:
        raise CallError(f"expected --workers or --executor, got both: {workers} and {text}")
    return parse(text, executors.Executor)


def files_of(nets: Sequence[str], weights: Sequence[str]) -> list[str]:
    """The file of each network's weights; "" where it has none."""
    if len(weights) not in (0, len(nets)):
        raise CallError(
            f"expected one --weights for each of {len(nets)} --net, in their order, got"
            f" {len(weights)}"
        )
    return ["" if file.lower() == "none" else file for file in weights] or [""] * len(nets)


def say_of_cells(cells: Sequence[Cell]) -> None:
    """Says of every network of the cells, once, how its weights were brought and what its retrofit
    leaves alone."""
    from retroact.nets.data import data

    models = [(m, cell) for cell in cells for m in (cell.model, cell.source) if m is not None]
    for model in dict.fromkeys(replace(m, activation=None, sites="*", also=()) for m, _ in models):
        _say_notes(model.bare())
        say_left_alone(model.bare(), model.called)
    alike = {
        (m.net, m.file, m.sites, m.also): (m, cell)
        for m, cell in models
        if m.activation is not None
    }
    for model, cell in alike.values():
        say_left_alone(model(data(cell.data).images.shape[1:]), model.called)


def say_left_alone(net: nn.Module, name: str = "") -> None:
    """Says which kinds of activations a retrofit left as they are, and how many calls."""
    from retroact.retrofitting.sites import left_alone

    kinds = left_alone(net) if getattr(net, "retrofit", None) is not None else {}
    if kinds:
        counts = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        where = f" in {name}" if name else ""
        note(f"left alone{where}: {counts} (--also replaces a kind)")


def _say_notes(net: object) -> None:
    for text in getattr(net, "notes", ()):
        note(text)


def _name_and_file(net: str, weights: str, beside: str | None) -> tuple[str, str]:
    """A network's name and weights. A saved file of somebody's own network stands for both: its
    code and itself.

    The code is run where this command names it too (`beside`), or where it is written under the
    folder in which the user stands; a line on stderr says so. Else loading the file says how to
    name it.
    """
    from retroact import checkpoint
    from retroact.nets import zoo

    code = "" if weights else checkpoint.code_of(net)
    if not code or code == beside:
        return (code, net) if code else (net, weights)
    file = zoo.written_here(code)
    if file is None:
        return net, weights
    note(f"{net} names {code}: running {file}")
    return code, net
