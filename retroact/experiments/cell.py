"""A cell: everything that decides a result, as one spec. Called, it gives the Record.

    Cell(Model("lenet-mnist", activation=JumpReLU(kappa=1.0)), data="mnist[:1000]",
         attack=PGD(steps=40), threat=Linf(eps=0.3))()

`key(cell.locked())` names its result: the locked cell also carries the hashes of the weights and
of the pixels that stand behind the names, so that a retrained network or another copy of the data
never passes for the old one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from retroact import checkpoint
from retroact.activations.activation import Activation
from retroact.crafting.attack import Attack
from retroact.crafting.goals import Goal, Untargeted
from retroact.crafting.oracle import Crafting
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import evaluate_all
from retroact.evaluation.record import Record
from retroact.experiments.fields import CellFields, Knowledge
from retroact.nets.classifier import sized
from retroact.nets.data import DataSlice, Images, data, embed
from retroact.nets.sources import DataError
from retroact.parts import NOWHERE, Filed, Parts
from retroact.reading import Data, as_images
from retroact.retrofitting.surgery import retrofit
from retroact.spec import AtLeast0, Seed, SpecError, key, parse, show, spec

Dtype = Literal["own", "float32", "float64", "bfloat16", "float16"]


@spec
class Model:
    """A network by its name, file or `package.module:function`, with or without a retrofit.

    `activation` None leaves the network as it is; `sites` selects by name, glob or order, and
    `also` names kinds beyond ReLU; `file` holds the weights of a `package.module:function`, and
    `mean` and `std` normalise the pixels of one that gives a plain module (none: they stay as they
    are). `weights` is the first 16 hex digits of the weights' SHA-256, filled in by `locked`.
    """

    net: str
    activation: Activation | None = None
    sites: str = "*"
    file: str = ""
    weights: str = ""
    also: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def read(cls, text: str) -> Model:
        """The model that a text says: a network by itself, or the print of a Model."""
        return parse(text, Model) if text.startswith("Model(") else cls(text)

    @property
    def called(self) -> str:
        """What a person calls the network before its retrofit: its name, the file of its weights,
        and how its pixels are normalised where this model says it."""
        said = f"{self.net} with {self.file}" if self.file else self.net
        parts = [f"{k} {v}" for k, v in (("mean", self.mean), ("std", self.std)) if v]
        return " ".join([said, *parts])

    @property
    def plain(self) -> Model:
        """The network alone, which several models may share."""
        return Model(self.net, file=self.file, mean=self.mean, std=self.std)

    def __call__(self, shape: Sequence[int] | None = None) -> nn.Module:
        """The network, retrofitted. Raises ValueError where the weights are not those that were
        locked.

        `shape`: (c, h, w) of its images, for one of your own that does not say it.
        """
        net = self.bare(shape)
        if self.weights and self.weights != checkpoint.digest(net):
            raise ValueError(
                f"{self.net} has other weights ({checkpoint.digest(net)}) than this cell was made"
                f" for ({self.weights}); run the command again without the stored cell"
            )
        if self.activation is None:
            return net
        return retrofit(net, self.activation, sites=self.sites, also=self.also)

    def bare(self, shape: Sequence[int] | None = None) -> nn.Module:
        """The network as it is before this model's retrofit; the same object at every call, so
        leave it as it is."""
        return sized(_bare(self.plain), shape)

    def locked(self) -> Model:
        """The same model with its weights' hash."""
        plain = self.plain
        weights = remembered(("weights", plain), lambda: checkpoint.digest(_bare(plain)))
        return replace(self, weights=weights)


@spec
class Cell:
    """One attack on one network on one slice of data; each may be given as text.

    `data` that is no notation (see `as_images`) is kept for this process under one, "yours:…", made
    of what it holds. `source` None is white box; another model's gradients make it gray. With
    `beta` > 0 the attacker climbs through the smoothed backward pass `activation.surrogate(beta,
    kernel)` of the model (BPDA). `dtype` "own" is that of the network's weights; `crafting` is what
    gradients are computed in: see `evaluate`.
    """

    model: Model
    data: Any
    attack: Attack
    threat: ThreatModel
    goal: Goal = Untargeted()
    source: Model | None = None
    beta: AtLeast0 = 0.0
    kernel: Literal["sigmoid", "rectangle"] = "sigmoid"
    seed: Seed = 0
    dtype: Dtype = "own"
    pixels: str = ""
    crafting: Crafting = "float32"
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _notation(self.data))
        if self.beta and (self.source is not None or self.model.activation is None):
            raise SpecError(
                "beta= smooths the model's own activation: give it without source=, on a retrofit"
            )

    def __call__(
        self,
        *,
        keep: int = 0,
        chunk: int | None = None,
        device: str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> Record:
        """Runs the attack and returns the Record; see `evaluate`."""
        return run_together([self], keep=keep, chunk=chunk, device=device, progress=progress)[0]

    def guide(self) -> Model | None:
        """The model whose gradients are climbed where it is not the attacked one itself."""
        if not self.beta:
            return self.source
        assert self.model.activation is not None  # as __post_init__ saw to
        smooth = self.model.activation.surrogate(self.beta, self.kernel)
        return replace(self.model, activation=smooth)

    def locked(self) -> Cell:
        """The same cell with the hashes of the weights and pixels behind its names."""
        return all_locked([self])[0]

    def fields(self) -> CellFields:
        """The cell for a table; with the fingerprints where it is `locked`."""
        return CellFields(
            net=self.model.called,
            activation=None if self.model.activation is None else show(self.model.activation),
            sites=" with ".join([self.model.sites, *self.model.also]),
            source=None if self.source is None else _called(self.source),
            knowledge=knowledge(self),
            attack=show(self.attack),
            threat=show(self.threat),
            norm=self.threat.norm,
            eps=self.threat.eps,
            goal=show(self.goal),
            data=self.data,
            beta=self.beta,
            kernel=self.kernel,
            seed=self.seed,
            dtype=self.dtype,
            weights=self.model.weights,
            pixels=self.pixels,
            crafting=self.crafting,
        )


def run_together(
    cells: Sequence[Cell],
    *,
    keep: int = 0,
    chunk: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    parts: Parts = NOWHERE,
) -> list[Record]:
    """Runs cells that differ in their threat alone (as `alike` groups them): one Record each.
    Chunks that `parts` has are not run again.

    Raises ValueError where the weights or the pixels are not those that a cell was locked to.
    """
    cell = cells[0]
    images = data(cell.data)
    if cell.pixels and cell.pixels != pixels(images):
        raise ValueError(
            f"{cell.data} has other pixels here ({pixels(images)}) than this cell was made for"
            f" ({cell.pixels})"
        )
    dtype = None if cell.dtype == "own" else getattr(torch, cell.dtype)
    shape, guide = tuple(images.images.shape[1:]), cell.guide()
    return evaluate_all(
        _bring(cell.model, device, dtype, shape),
        images,
        cell.attack,
        [c.threat for c in cells],
        goal=cell.goal,
        source=None if guide is None else _bring(guide, device, dtype, shape),
        seed=cell.seed,
        keep=keep,
        chunk=chunk,
        crafting=cell.crafting,
        progress=progress,
        filed=Filed(parts).named(" ".join(key(c) for c in cells)),
    )


def alike(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells in groups that one run of their attack serves: they differ in eps alone, and it can do
    several."""
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        first = (
            replace(cell, threat=replace(cell.threat, eps=1.0))  # type: ignore[type-var]
            if cell.attack.serves_several
            else cell
        )
        groups.setdefault(first, []).append(cell)
    return list(groups.values())


def knowledge(cell: Cell) -> Knowledge:
    """white, gray or black: derived, never declared. Another source is gray; no gradients is
    black."""
    if cell.source is not None and cell.source != cell.model:
        return "gray"
    return "white" if cell.attack.needs == "gradient" else "black"


def all_locked(
    cells: Iterable[Cell], look: Callable[[str], str] = lambda part: pixels_of(part)
) -> list[Cell]:
    """Each cell `locked`; pixels of a slice and weights that several share are hashed once. `look`
    gives the hash of a slice."""
    asked = list(cells)
    named = dict.fromkeys(m for cell in asked for m in (cell.model, cell.source) if m is not None)
    models = {model: model.locked() for model in named}
    seen = {part: look(part) for part in dict.fromkeys(cell.data for cell in asked)}
    return [
        replace(
            cell,
            model=models[cell.model],
            source=None if cell.source is None else models[cell.source],
            pixels=seen[cell.data],
        )
        for cell in asked
    ]


def pixels(images: Images) -> str:
    """The first 16 hex digits of the SHA-256 of images and labels."""
    return images.fingerprint[:16]


def pixels_of(part: str) -> str:
    """`pixels` of the slice that a text names."""
    return remembered(("pixels", part), lambda: pixels(data(part)))


_hashed: dict[Hashable, str] | None = None


@contextmanager
def hashed_once() -> Iterator[None]:
    """Within the block weights, pixels and keys are hashed once under a name: for a study, which
    names a few networks and slices some thousand times. They must stay as they are meanwhile."""
    global _hashed
    before, _hashed = _hashed, {} if _hashed is None else _hashed
    try:
        yield
    finally:
        _hashed = before


def remembered(name: Hashable, make: Callable[[], str]) -> str:
    """`make()`, which is kept under `name` within `hashed_once`."""
    if _hashed is None:
        return make()
    if name not in _hashed:
        _hashed[name] = make()
    return _hashed[name]


def _called(model: Model) -> str:
    return (
        model.called if model.activation is None else f"{model.called} + {show(model.activation)}"
    )


@lru_cache(maxsize=16)
def _bring(
    model: Model, device: str, dtype: torch.dtype | None, shape: tuple[int, ...]
) -> nn.Module:
    # a copy: the bare network is shared by all models of it
    return copy.deepcopy(model(shape)).to(device, dtype)


def _bare(plain: Model) -> nn.Module:
    return _brought[plain] if plain in _brought else _loaded(plain)


@lru_cache(maxsize=16)
def _loaded(plain: Model) -> nn.Module:
    mean, std = plain.mean or None, plain.std or None
    return checkpoint.load(plain.net, weights=plain.file or None, mean=mean, std=std)


_brought: dict[Model, nn.Module] = {}


@dataclass(frozen=True)
class Brought:
    """A network, as it is before a retrofit, for a process that may lack the file of its name."""

    plain: Model
    network: nn.Module

    @classmethod
    def of(cls, model: Model) -> Brought:
        """That of a model."""
        return cls(model.plain, _bare(model.plain))

    def __call__(self) -> None:
        """Makes it known in this process."""
        _brought.pop(self.plain, None)
        _brought[self.plain] = self.network
        while len(_brought) > 16:
            del _brought[next(iter(_brought))]


def _notation(what: Data) -> str:
    """The text by which `data` finds what was given: its own, or one under which images of one's
    own are kept."""
    if isinstance(what, str):
        return str(DataSlice.read(what))  # one slice, one key: "mnist[0:10]" is "mnist[:10]"
    images = as_images(what)
    if images.origin != "in memory":
        try:
            again = data(images.name)
        except DataError:  # a selection has a name that loads nothing
            return embed(images)
        if again.fingerprint == images.fingerprint and torch.equal(again.index, images.index):
            return images.name
    return embed(images)
