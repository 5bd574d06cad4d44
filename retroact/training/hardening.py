"""harden: a trained network made harder to fool by learning very little of it, everything else
frozen.

What is learned (`Hardening.learn`) `learnable` says. The loss is half
cross-entropy on clean examples and half on examples that a few steps of the margin loss have moved
(Madry et al. 2017, with Carlini & Wagner's loss inside). Borji 2020 closes with the guess that
"elevating the bias of neurons" may do what his slopes were meant to do; this is where that leads.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.activation import Activation
from retroact.activations.piecewise import ReLU
from retroact.checkpoint import digest
from retroact.crafting.ascent import climb
from retroact.crafting.domain import domain_of
from retroact.crafting.drawing import drawing
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.crafting.oracle import device_of, dtype_of, in_float
from retroact.crafting.threat import ThreatModel
from retroact.doors import SLACK, checked
from retroact.evaluation.accuracy import clean_accuracy_of
from retroact.evaluation.evaluate import decide
from retroact.evaluation.proof import prove
from retroact.ground import neutral
from retroact.nets.cards import Measured
from retroact.nets.classifier import Classifier, sized
from retroact.nets.data import Images, name_split
from retroact.reading import Data, Said, as_images, as_module, as_threat
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.installed import installed
from retroact.retrofitting.lean import in_channels_last
from retroact.retrofitting.surgery import retrofit
from retroact.shown import as_html, percent
from retroact.spec import (
    AtLeast0,
    CallError,
    Count,
    Positive,
    SpecError,
    UnitInterval,
    parse,
    show,
    spec,
)
from retroact.training.budget import within
from retroact.training.learnable import (
    LEARNABLE,
    Learn,
    Learnable,
    LearnedActivation,
    install_numbers,
    install_products,
)
from retroact.training.resuming import (
    FILE,
    drop_checkpoint,
    read_checkpoint,
    resume,
    write_checkpoint,
)

if TYPE_CHECKING:
    from retroact.figures import Figure

DOSES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)
"""The shares of what was learned that are tried where some clean accuracy is to be kept."""

EVERY = 10
"""Steps from one checkpoint to the next: what a kill loses at most."""


Augment = Callable[[Tensor], Tensor]
"""Makes of examples (n, …) others of the same shape, in the same box, with the same labels."""


class How(TypedDict, total=False):
    """The words of `harden` beyond network, data, threat and recipe."""

    keep: float
    held: Data | None
    doses: Sequence[float]
    also: Iterable[str]
    seed: int
    checkpoint_dir: str | PathLike[str] | None
    fresh: bool
    budget: float | str | None
    augment: Augment | None
    progress: Callable[[float, int], None] | None


@spec
class Hardening:
    """`steps` Adam steps of `batch` images, half of the loss clean (`clean_weight`), the rate
    falling to 0.

    The adversarial half comes from `attack_steps` steps of the margin loss at `eps_factor` times
    the threat's eps. `lr` is in units of a pre-activation for shifts and kappa, of the weights for
    the rest; 0 is what suits `learn`: 0.03 for shifts, kappa, slopes, early, ends and low-rank
    (whose weights take 0.3 of it), 0.01 for norms, 0.001 for all. `bf16`: forward passes and the
    adversarial images in bfloat16, faster on a processor that has it.

    Over the first `ramp` of all steps eps grows from 0. Over the last `average` of them the rate
    stays what it is by then, and the mean of what was learned after each is what is kept (Izmailov
    et al. 2018, arXiv:1803.05407). `pull` is the share of the target that is the plain network's
    own answer to the clean image, the label the rest: at 1 no labels are needed.
    """

    learn: Learn = "shifts"
    steps: Count = 150
    batch: Count = 200
    lr: AtLeast0 = 0.0
    attack_steps: Count = 7
    eps_factor: Positive = 1.0
    clean_weight: UnitInterval = 0.5
    bf16: bool = False
    ramp: UnitInterval = 0.0
    average: UnitInterval = 0.0
    pull: UnitInterval = 0.0

    @property
    def learnable(self) -> Learnable:
        """What `learn` means."""
        return LEARNABLE[self.learn]

    @property
    def rate(self) -> float:
        """The rate of the first step."""
        return self.lr or self.learnable.rate

    @property
    def averaged_from(self) -> int:
        """The step, counted from 0, after which the mean begins; `steps` where there is none."""
        return self.steps - round(self.average * self.steps)

    def rate_at(self, step: int) -> float:
        """The rate of `step`, counted from 0: half a cosine down to 0, or to where the mean
        begins."""
        at = min(step, self.averaged_from)
        return self.rate * 0.5 * (1 + math.cos(math.pi * at / self.steps))

    def share_of_eps_at(self, step: int) -> float:
        """The share of eps of `step`, counted from 0: it grows evenly to 1 over the ramp."""
        return min(1.0, (step + 1) / max(1.0, self.ramp * self.steps))

    @property
    def passes(self) -> int:
        """Of every step: forward and backward passes of its batch."""
        return self.attack_steps + sum(w > 0 for w in (self.clean_weight, 1 - self.clean_weight))

    def __call__(
        self,
        net: str | PathLike[str] | nn.Module,
        train: Data,
        threat: Said[ThreatModel],
        **how: Unpack[How],
    ) -> Hardened:
        """`harden` by this recipe."""
        return harden(net, train, threat, self, **how)


ALL = Hardening(learn="all")
"""What a budget is spent on where nobody says."""


@dataclass(frozen=True)
class Dose:
    """A point of the trade-off: how much of what was learned is applied, and the clean accuracy on
    held-out images."""

    dose: float
    clean: float


@dataclass(frozen=True, eq=False)
class Hardened:
    """The hardened network, what was learned of it (`learned` of `parameters` numbers), and at
    which cost.

    `curve` has the doses that were tried, from the plain network (0) to all of what was learned
    (1); it is empty where there were no held-out images to try them on, of which `held` is the
    number.
    """

    net: nn.Module
    recipe: Hardening
    learned: int
    parameters: int
    dose: float
    curve: tuple[Dose, ...]
    seconds: float
    data: str
    held: int = 0

    @property
    def share(self) -> float:
        """Learned numbers over the network's parameters."""
        return self.learned / self.parameters

    def __str__(self) -> str:
        return (
            f"{self.recipe.learn}: {self.learned} numbers, {100 * self.share:.2f} % of"
            f" {self.parameters}, dose {self.dose:.2f}, {self.seconds:.0f} s"
        )

    def __repr__(self) -> str:
        return f"<Hardened on {self.data}: {self}>"

    def _repr_html_(self) -> str:
        rows = [(f"{d.dose:.2f}", percent(d.clean)) for d in self.curve]
        return as_html(str(self), ("dose", "clean % of held-out images"), rows)

    def plot(self) -> Figure:
        """Clean accuracy on held-out images, with Wilson's 95 %, over the dose of what was learned;
        the dose that was taken is marked. Raises ValueError where no dose was tried."""
        from retroact.figures import Curve, curves  # and with it matplotlib

        if not self.curve:
            raise ValueError("no dose was tried, so there is nothing to draw; harden with held=")
        points = sorted(self.curve, key=lambda point: point.dose)
        doses, clean = [p.dose for p in points], [p.clean for p in points]
        return curves(
            [Curve("clean", doses, clean, n=self.held)],
            f"dose of what was learned ({self.recipe.learn})",
            "decided rightly, held-out images, %",
            marked=self.dose,
            title=f"{self.recipe.learn} learned on {self.data}, n = {self.held}",
        )


@neutral()
def harden(
    net: str | PathLike[str] | nn.Module,
    train: Data,
    threat: Said[ThreatModel],
    recipe: Hardening | str | None = None,
    *,
    keep: float = 0.0,
    held: Data | None = None,
    doses: Sequence[float] = DOSES,
    also: Iterable[str] = (),
    seed: int = 0,
    checkpoint_dir: str | PathLike[str] | None = None,
    fresh: bool = False,
    budget: float | str | None = None,
    augment: Augment | None = None,
    progress: Callable[[float, int], None] | None = None,
) -> Hardened:
    """A copy of `net` with a small part of it learned on `train` so that it withstands `threat`;
    `net` stays as it is.

    With `keep`, only as much of what was learned is applied as leaves that share of the plain
    network's accuracy on `held`, examples that are neither trained on nor test data: the largest of
    `doses` that does. `also`: kinds beyond ReLU, such as "gelu", in whose place a ReLU is learned
    too, so that dose 0 is no longer the plain network. A half-precision network is learned in
    float32 and given back in its own dtype. With `checkpoint_dir` it goes on from the checkpoint
    there, with the same bits, unless it is to start `fresh`, and writes one after every `EVERY`
    steps. A `budget`, "60s" or seconds, takes as many steps as fit, of every weight where no recipe
    is given. Images without labels, a tensor (n, …), do for a recipe whose `pull` is 1. `augment`
    makes others of the examples of each step, in their own units, before they are moved; what it
    draws from torch's, numpy's or Python's generator depends on `seed` alone. Weights of a part
    that is frozen (`requires_grad` False) stay as they are, unless all of `net` is. Texts do
    for net, train, threat and recipe; data are as `as_images` has it.
    Raises ValueError for test data, a retrofitted net, nothing to learn, no dose that keeps enough,
    a budget that is too small, what is augmented out of its shape or box, and CheckpointError for a
    checkpoint of another run.
    """
    net, threat = as_module(net), as_threat(threat)
    recipe = _as_recipe(ALL if recipe is None and budget is not None else recipe)
    train, held = _as_train(train, net, recipe), None if held is None else as_images(held, net)
    seed, _, _ = checked(seed)
    check(net, train, held, keep)
    net, began = sized(net, train.images.shape[1:]), time.monotonic()
    if budget is not None:
        recipe = spent(budget, recipe, net, train, held, None if fresh else checkpoint_dir)
    learner = _Learner(net, recipe, train, threat, tuple(also), augment)
    run = _describe_run(net, train, threat, recipe, tuple(also), seed, augment)
    learner.learn(seed, _Checkpoints.of(checkpoint_dir, run, fresh), progress)
    curve: list[Dose] = []
    hardened = learner.build(1.0)
    if held is not None:
        hardened, curve = _choose_dose(learner, held, doses, keep)
        _tell(hardened, curve, held)
    dose, took = curve[-1].dose if curve else 1.0, time.monotonic() - began
    parameters = sum(p.numel() for p in net.parameters())
    count = 0 if held is None else len(held)
    how = recipe, learner.count, parameters, dose, tuple(curve), took, train.name
    return Hardened(hardened, *how, held=count)


def _as_train(train: Data, net: nn.Module, recipe: Hardening) -> Images:
    """The images to learn on; where the recipe needs no labels they may have none, and the
    network's own decisions stand there."""
    if recipe.pull == 1.0 and isinstance(train, Tensor | np.ndarray):
        shape = net.shape if isinstance(net, Classifier) else None
        bare = Images.of(train, np.zeros(len(train), dtype=np.int64), shape=shape)
        return Images.of(train, decide(net, bare.images).clamp_min(0), shape=shape)
    return as_images(train, net)


def spent(
    budget: float | str,
    recipe: Hardening,
    net: nn.Module,
    train: Images,
    held: Images | None,
    folder: str | PathLike[str] | None,
) -> Hardening:
    """The recipe with as many steps as `budget` holds: those of the run that goes on from `folder`,
    where it is this one but for what the clock decides, else by a trial."""
    path = None if folder is None else Path(folder) / FILE
    if path is not None and path.exists():
        going = _read_recipe(read_checkpoint(path)[0].get("recipe", ""))
        if going and replace(going, steps=recipe.steps, batch=recipe.batch) == recipe:
            return going
    return within(net, train, recipe, budget, looks(held))


def _read_recipe(text: str) -> Hardening | None:
    """The recipe that a checkpoint names; None where it is of other training."""
    try:
        return _as_recipe(text)
    except SpecError:
        return None


def _describe_run(
    net: nn.Module,
    train: Images,
    threat: ThreatModel,
    recipe: Hardening,
    also: tuple[str, ...],
    seed: int,
    augment: Augment | None,
) -> dict[str, str]:
    """All that what is learned depends on, for a checkpoint to say; of what augments its name."""
    index = hashlib.sha256(train.index.contiguous().numpy().tobytes()).hexdigest()[:16]
    data = f"{train.fingerprint[:16]}-{index}"
    said = {"net": digest(net), "data": data, "threat": show(threat), "recipe": show(recipe)}
    said |= {"also": ", ".join(also), "seed": str(seed)}
    name = getattr(augment, "__qualname__", type(augment).__qualname__)
    return said if augment is None else said | {"augment": name}


def _choose_dose(
    learner: _Learner, held: Images, doses: Sequence[float], keep: float
) -> tuple[nn.Module, list[Dose]]:
    """The network at the first of `doses` that keeps enough accuracy on `held`, and all that were
    tried."""
    plain = clean_accuracy_of(learner.net, held)
    curve = [Dose(0.0, plain)]
    for dose in doses:
        hardened = learner.build(dose)
        curve.append(Dose(dose, clean_accuracy_of(hardened, held)))
        if curve[-1].clean >= keep * plain:
            return hardened, curve
    best = max(point.clean for point in curve[1:])
    raise ValueError(
        f"no dose keeps {keep:.0%} of the clean accuracy of {plain:.1%}, the best leaves"
        f" {best:.1%}: give a smaller keep=, more clean_weight, or a smaller eps"
    )


def _tell(hardened: nn.Module, curve: Sequence[Dose], held: Images) -> None:
    """Leaves on the network what it kept of its clean accuracy, for the file it is saved in."""
    if isinstance(hardened, Classifier):
        of, words = digest(hardened), ("clean accuracy before hardening", "clean accuracy")
        hardened.measured = tuple(
            Measured(what, point.clean, held.name, len(held), of)
            for what, point in zip(words, (curve[0], curve[-1]), strict=True)
        )


def _as_recipe(said: Hardening | str | None) -> Hardening:
    recipe = Hardening() if said is None else parse(said) if isinstance(said, str) else said
    if not isinstance(recipe, Hardening):
        raise SpecError(f"expected a recipe such as Hardening(learn='norms'), got {recipe!r}")
    return recipe


def looks(held: Images | None) -> int:
    """Forward passes of one example to choose a dose, at most."""
    return 0 if held is None else len(held) * (1 + len(DOSES))


def check(net: nn.Module, train: Images, held: Images | None, keep: float) -> None:
    """Raises as `harden` does, before anything is learned."""
    _refuse_test_data(train, "train")
    _refuse_test_data(held, "validation")
    if keep and held is None:
        raise CallError(
            "keep= is measured on images that are not trained on; give held=, a validation slice"
        )
    if not 0.0 <= keep <= 1.0:
        raise CallError(f"expected keep in [0, 1], the share of clean accuracy to keep, got {keep}")
    if installed(net):
        raise ValueError(
            f"the net already carries {show(getattr(net, 'retrofit', None))}; harden the net"
            " before it"
        )


def _refuse_test_data(part: Images | None, meant: Literal["train", "validation"]) -> None:
    if part is not None and part.split == "test":
        raise ValueError(
            f"{part.name} is test data, which nothing is learned or chosen on; use"
            f" {name_split(part.name, meant)}"
        )


@dataclass(frozen=True)
class _Learned:
    """What a step changes: the tensors that are learned, by name, Adam's state of each, and the
    mean of each over the last steps, where one is kept."""

    named: Mapping[str, nn.Parameter]
    adam: torch.optim.Adam
    mean: dict[str, Tensor] = field(default_factory=dict)

    def average(self, count: int) -> None:
        """Takes the tensors as they are into the mean, as the `count`-th, from 1 on."""
        for name, p in self.named.items():
            last = self.mean.get(name, p.detach())
            self.mean[name] = torch.lerp(last, p.detach(), 1 / count)

    def settle(self) -> None:
        """Puts the mean in the place of the last."""
        with torch.no_grad():
            for name, value in self.mean.items():
                self.named[name].copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, on the CPU."""
        found: dict[str, Tensor] = {f"learned.{name}": p for name, p in self.named.items()}
        found |= {f"mean.{name}": value for name, value in self.mean.items()}
        for name, p in self.named.items():
            found |= {f"adam.{part}.{name}": v for part, v in self.adam.state[p].items()}
        return {name: v.detach().cpu().contiguous() for name, v in found.items()}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes all of it from `tensors`; raises RuntimeError or KeyError where they do not fit."""
        with torch.no_grad():
            for name, p in self.named.items():
                p.copy_(tensors[f"learned.{name}"])
                if f"mean.{name}" in tensors:
                    self.mean[name] = torch.empty_like(p).copy_(tensors[f"mean.{name}"])
                parts = {part: tensors[f"adam.{part}.{name}"] for part in _ADAM}
                moved = {part: torch.empty_like(p).copy_(parts[part]) for part in _ADAM[1:]}
                self.adam.state[p] = {_ADAM[0]: parts[_ADAM[0]].clone(), **moved}


_ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class _Checkpoints:
    """Where checkpoints of a run lie, and what they say of it; nowhere without a folder."""

    folder: Path | None
    run: Mapping[str, str]

    @classmethod
    def of(
        cls, folder: str | PathLike[str] | None, run: Mapping[str, str], fresh: bool
    ) -> _Checkpoints:
        """Those in the folder; none of an earlier run where this one is `fresh`."""
        path = None if folder is None else Path(folder)
        if path is not None and fresh:
            drop_checkpoint(path)
        return cls(path, run)

    def resume(self, state: _Learned) -> int:
        """How many steps are behind; `state` is as it was after them."""
        return 0 if self.folder is None else resume(self.folder, state, self.run)

    def write(self, state: _Learned, done: int, steps: int) -> None:
        """Writes what is there after every so many steps, and after the last."""
        if self.folder is not None and (done % EVERY == 0 or done == steps):
            write_checkpoint(self.folder, state, self.run, done)


class _Learner:
    """A working copy of a net with the few tensors that are learned, and how a net is built of
    them.

    `attacked` is what the adversarial examples of a step are made on, in the form that was proved
    before the first.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Hardening,
        train: Images,
        threat: ThreatModel,
        also: tuple[str, ...] = (),
        augment: Augment | None = None,
    ) -> None:
        self.net, self._recipe, self._train, self._also = net, recipe, train, also
        self._augment = augment
        self._threat = threat.times(recipe.eps_factor)
        self._domain = domain_of(train)
        part, example = recipe.learnable, train.images[:2].to(device_of(net))
        self.work = self._prepare(part)
        self.activations: dict[str, LearnedActivation] = {}
        if part.number is not None:
            self.activations = install_numbers(self.work, part.number, example)
        frozen = _frozen(net)
        learned = part.parameters_of(self.work, example)
        self.weights = {name: p for name, p in learned.items() if name not in frozen}
        self._before = {name: p.detach().clone() for name, p in self.weights.items()}
        products = part.products_of(self.work, example, frozen) if part.most else ()
        self.products = install_products(self.work, products)
        if not self.tensors:
            raise ValueError(
                f"{type(net).__name__} has nothing to learn as {recipe.learn!r}"
                f"{' that is not frozen' if frozen else ''}; choose another `learn`"
            )
        where, domain = (train.images, train.index, threat), self._domain
        self._form = prove(self.work, *where, passes=recipe.steps, domain=domain).form
        if self._form is not None and self._form.channels_last:
            in_channels_last(self.work)
        for p in self.tensors:
            p.requires_grad_(True)
        # the backward pass of torch 2.13's GroupNorm kills the process where its input lies in
        # channels last and needs no gradient
        self._groups = any(isinstance(m, nn.GroupNorm) for m in self.work.modules())

    def _prepare(self, part: Learnable) -> nn.Module:
        """The frozen copy in which `part` is learned."""
        if self._also and part.number is None:
            raise CallError(
                f"also={self._also} names activations, and learn={self._recipe.learn!r} learns"
                " none; drop one of them"
            )
        work = _widen(self.net)
        if part.number is not None:
            work = self._retrofit(work, ReLU())
        return work.eval().requires_grad_(False)

    @property
    def attacked(self) -> nn.Module:
        """The net as it has become, in its lean form."""
        return self.work if self._form is None else self._form(self.work)

    @property
    def tensors(self) -> list[nn.Parameter]:
        return list(self._named.values())

    @property
    def _named(self) -> dict[str, nn.Parameter]:
        named = {f"{site}.number": a.value for site, a in self.activations.items()} | self.weights
        for path, product in self.products.items():
            named |= {f"{path}.a": product.a, f"{path}.b": product.b}
        return named

    @property
    def count(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.tensors)

    def build(self, dose: float) -> nn.Module:
        """A net with `dose` times what was learned."""
        built = deep_copy(self.net).eval()
        named = dict(built.named_parameters())
        with torch.no_grad():
            for name, learned in self.weights.items():
                before = self._before[name]
                named[name].copy_(before + dose * (learned.detach() - before))
            for path, product in self.products.items():
                weight = named[f"{path}.weight"]
                weight.add_(product.value.view(weight.shape), alpha=dose)
        number = self._recipe.learnable.number
        if number is None:
            return self._call(built)
        values = {site: a.dose(dose) for site, a in self.activations.items()}
        return self._retrofit(built, number.activation(values))

    def _retrofit(self, net: nn.Module, activation: Activation) -> nn.Module:
        """The net with that activation, found on training examples of its own dtype."""
        example = self._train.images[:2].to(device_of(net), dtype_of(net))
        return retrofit(net, activation, also=self._also, example=example)

    def _call(self, built: nn.Module) -> nn.Module:
        """A net of other weights is called another than the one that it was."""
        if isinstance(built, Classifier) and built.name:
            built.name = f"{built.name} hardened ({self._recipe.learn})"
        return built

    def learn(
        self,
        seed: int,
        checkpoints: _Checkpoints,
        progress: Callable[[float, int], None] | None,
    ) -> None:
        """All steps of the recipe that no checkpoint has behind."""
        recipe, shares = self._recipe, self._shares()
        adam = torch.optim.Adam([{"params": ps} for ps in shares.values()])
        state = _Learned(self._named, adam)
        done, generator = checkpoints.resume(state), torch.Generator().manual_seed(seed)
        batches = islice(_batches(len(self._train), recipe.batch, generator), done, None)
        for step in range(done, recipe.steps):
            for group, share in zip(adam.param_groups, shares, strict=True):
                group["lr"] = share * recipe.rate_at(step)
            loss = self._loss(next(batches), seed + step, recipe.share_of_eps_at(step))
            adam.zero_grad()
            loss.backward()
            adam.step()
            if step >= recipe.averaged_from:
                state.average(step + 1 - recipe.averaged_from)
            if step + 1 == recipe.steps:
                state.settle()
            checkpoints.write(state, step + 1, recipe.steps)
            if progress is not None:
                progress(float(step + 1), recipe.steps)

    def _shares(self) -> dict[float, list[nn.Parameter]]:
        """What is learned, by the share of the rate that it takes."""
        shares: dict[float, list[nn.Parameter]] = {}
        for p in self.tensors:
            shares.setdefault(self._recipe.learnable.share(p), []).append(p)
        return shares

    def _loss(self, rows: Tensor, seed: int, share: float) -> Tensor:
        """The loss of one step: of the training examples `rows` and of what an attack within that
        share of eps makes of them."""
        recipe, device, train = self._recipe, device_of(self.work), self._train
        x, y, index = (t[rows].to(device) for t in (train.images, train.labels, train.index))
        x = self._augmented(x, seed)
        target = self._target(x, y)
        threat = self._threat if share == 1.0 else self._threat.times(share)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.bf16):
            x_adv = self._attack(x, y, index, threat, seed)
            if self._groups:
                x, x_adv = x.clone().requires_grad_(), x_adv.requires_grad_()
            halves = ((recipe.clean_weight, x), (1 - recipe.clean_weight, x_adv))
            losses = [
                w * F.cross_entropy(in_float(self.work, part), target) for w, part in halves if w
            ]
        return torch.stack(losses).sum()

    def _augmented(self, x: Tensor, seed: int) -> Tensor:
        """What the user's augmentation makes of `x`, by draws that depend on the seed alone."""
        if self._augment is None:
            return x
        with drawing(seed, x.device), torch.no_grad():
            made = self._augment(x)
        if not isinstance(made, Tensor) or made.shape != x.shape:
            said = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(f"augment: expected a tensor {tuple(x.shape)}, got {said}")
        low, high = (float(end) for end in made.aminmax())
        # so that NaN is refused too
        if not (low >= self._domain.low - SLACK and high <= self._domain.high + SLACK):
            raise ValueError(
                f"augment: expected examples in [{self._domain.low:g}, {self._domain.high:g}],"
                f" got {low:g} to {high:g}; normalisation is in the classifier"
            )
        return self._domain.clamp(made)

    def _target(self, x: Tensor, y: Tensor) -> Tensor:
        """The labels, or of every class the share that it has of the target."""
        pull = self._recipe.pull
        if not pull:
            return y
        with torch.no_grad():
            own = in_float(self.net, x).softmax(1)
        return pull * own + (1 - pull) * F.one_hot(y, own.shape[1])

    def _attack(
        self, x: Tensor, y: Tensor, index: Tensor, threat: ThreatModel, seed: int
    ) -> Tensor:
        """Steps of 2.5 eps/steps up the margin loss from a random point of the ball around `x`."""
        steps, loss = self._recipe.attack_steps, partial(margin, aim=Aim(y))
        start = threat.start(x, self._domain, index, seed)
        run = (self.attacked, start, x, threat, self._domain, loss)
        return climb(*run, step=2.5 * threat.eps / steps, steps=steps)


def _frozen(net: nn.Module) -> set[str]:
    """The parameters that are to stay, by name; none where all are frozen, which is how a network
    is kept that nobody trains any more."""
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    return frozen if len(frozen) < len(list(net.parameters())) else set()


def _widen(net: nn.Module) -> nn.Module:
    """A copy of the net in which half floats are float32: a step of Adam would be lost in their
    rounding."""
    wide, halves = deep_copy(net), (torch.float16, torch.bfloat16)
    return wide.float() if any(p.dtype in halves for p in wide.parameters()) else wide


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of shuffled rows, one shuffle after the other, without end."""
    size = min(size, n)
    while True:
        yield from torch.randperm(n, generator=generator)[: n // size * size].split(size)
