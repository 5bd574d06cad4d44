"""harden: a trained network made harder to fool by learning very little of it, everything else
frozen.

What is learned (`Hardening.learn`): one *shift* per channel of every activation, ReLU(z + b), which
equals moving the biases and so folds to no cost; one *kappa* or one *slope* per activation; the
affine parameters of the batch *norms*; these and the weights of the two *ends*, the layer that sees
the image and the one that gives the logits; or *all* weights, for comparison. The logits' biases
always belong to it. The loss is half cross-entropy on clean images and half on images that a few
steps of the margin loss have moved (Madry et al. 2017, with Carlini & Wagner's loss inside). Borji
2020 closes with the guess that "elevating the bias of neurons" may do what his slopes were meant to
do; this is where that leads.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from retroact.crafting.domain import Domain
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.crafting.oracle import device_of, in_float, with_graph
from retroact.crafting.threat import ThreatModel
from retroact.doors import checked
from retroact.evaluation.evaluate import decide
from retroact.evaluation.proof import prove
from retroact.ground import neutral
from retroact.nets.classifier import sized
from retroact.nets.data import Images
from retroact.reading import Data, Said, as_images, as_module, as_threat
from retroact.retrofitting.activations import (
    Activation,
    JumpReLU,
    PerSite,
    ReLU,
    ShiftedReLU,
    SReLU,
    embed_shifts,
)
from retroact.retrofitting.installed import installed
from retroact.retrofitting.lean import in_channels_last
from retroact.retrofitting.sites import copied
from retroact.retrofitting.surgery import retrofit
from retroact.spec import AtLeast0, Count, Positive, SpecError, UnitInterval, parse, show, spec

Learn = Literal["shifts", "kappa", "slopes", "norms", "ends", "all"]

SHARPNESS = 8.0
ENDS_SHARE = 0.3
"""The weights of the first and last layer, which are small numbers and many, take this share of the
norms' rate."""
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@spec
class Hardening:
    """`steps` Adam steps of `batch` images, half of the loss clean (`clean_weight`), the rate
    falling to 0.

    The adversarial half comes from `attack_steps` steps of the margin loss at `eps_factor` times
    the threat's eps. `lr` is in units of a pre-activation for shifts and kappa, of the weights for
    the rest; 0 is what suits `learn`: 0.03 for shifts, kappa, slopes and ends (whose weights take
    0.3 of it), 0.01 for norms, 0.001 for all. `bf16`: forward passes and the adversarial images in
    bfloat16, faster on a processor that has it.
    """

    learn: Learn = "shifts"
    steps: Count = 150
    batch: Count = 200
    lr: AtLeast0 = 0.0
    attack_steps: Count = 7
    eps_factor: Positive = 1.0
    clean_weight: UnitInterval = 0.5
    bf16: bool = False

    @property
    def rate(self) -> float:
        """The rate of the first step."""
        return self.lr or {"norms": 0.01, "all": 0.001}.get(self.learn, 0.03)

    def __call__(
        self,
        net: str | PathLike[str] | nn.Module,
        train: Data,
        threat: Said[ThreatModel],
        **how: Any,
    ) -> Hardened:
        """`harden` by this recipe."""
        return harden(net, train, threat, self, **how)


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
    (1); it is empty where there were no held-out images to try them on.
    """

    net: nn.Module
    recipe: Hardening
    learned: int
    parameters: int
    dose: float
    curve: tuple[Dose, ...]
    seconds: float
    data: str

    @property
    def share(self) -> float:
        """Learned numbers over the network's parameters."""
        return self.learned / self.parameters

    def __str__(self) -> str:
        return (
            f"{self.recipe.learn}: {self.learned} numbers, {100 * self.share:.2f} % of"
            f" {self.parameters}, dose {self.dose:.2f}, {self.seconds:.0f} s"
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
    doses: Sequence[float] = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25),
    also: Iterable[str] = (),
    seed: int = 0,
    progress: Callable[[float, int], None] | None = None,
) -> Hardened:
    """A copy of `net` with a small part of it learned on `train` so that it withstands `threat`;
    `net` stays as it is.

    With `keep`, only as much of what was learned is applied as leaves that share of the plain
    network's accuracy on `held`, images that are neither trained on nor test data: the largest of
    `doses` that does. `also`: kinds beyond ReLU, such as "gelu", in whose place a ReLU is learned
    too, so that dose 0 is no longer the plain network. A half-precision network is learned in
    float32 and given back in its own dtype.

    Network, data, threat and recipe may be their texts, and data any that `as_images` reads.

    Raises ValueError for test data, for a retrofitted net, for nothing to learn, and where no dose
    keeps enough.
    """
    net, threat = as_module(net), as_threat(threat)
    train, held = as_images(train, net), None if held is None else as_images(held, net)
    seed, _, _ = checked(seed)
    _check(net, train, held, keep)
    recipe = _as_recipe(recipe)
    net = sized(net, train.images.shape[1:])
    began = time.monotonic()
    learner = _Learner(net, recipe, train, threat, tuple(also))
    _learn(learner, train, threat, recipe, seed, progress)
    curve: list[Dose] = []
    dose, made = 1.0, learner.made(1.0)
    if held is not None:
        base = _accuracy(net, held)
        curve = [Dose(0.0, base)]
        for dose in doses:
            made = learner.made(dose)
            curve.append(Dose(dose, _accuracy(made, held)))
            if curve[-1].clean >= keep * base:
                break
        else:
            best = max(point.clean for point in curve[1:])
            raise ValueError(
                f"no dose keeps {keep:.0%} of the clean accuracy of {base:.1%}, the best leaves"
                f" {best:.1%}: give a smaller keep=, more clean_weight, or a smaller eps"
            )
    total = sum(p.numel() for p in net.parameters())
    seconds = time.monotonic() - began
    return Hardened(made, recipe, learner.count, total, dose, tuple(curve), seconds, train.name)


def _as_recipe(said: Hardening | str | None) -> Hardening:
    found = Hardening() if said is None else parse(said) if isinstance(said, str) else said
    if not isinstance(found, Hardening):
        raise SpecError(f"expected a recipe such as Hardening(learn='norms'), got {found!r}")
    return found


def _check(net: nn.Module, train: Images, held: Images | None, keep: float) -> None:
    for part in (train, held):
        if part is not None and part.split == "test":
            raise ValueError(
                f"{part.name} is test data, which nothing is learned or chosen on; use another"
                " split"
            )
    if keep and held is None:
        raise ValueError(
            "keep= is measured on images that are not trained on; give held=, a validation slice"
        )
    if not 0.0 <= keep <= 1.0:
        raise ValueError(
            f"expected keep in [0, 1], the share of clean accuracy to keep, got {keep}"
        )
    if installed(net):
        raise ValueError(
            f"the net already carries {show(getattr(net, 'retrofit', None))}; harden the net"
            " before it"
        )


# ---------------------------------------------------------------------------------- what is learned


class _Learner:
    """A working copy of a net with the few tensors that are learned, and how a net is made of them.

    `attacked` is what the adversarial images of a step are made on, in the form that was proved
    before the first.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Hardening,
        train: Images,
        threat: ThreatModel,
        also: tuple[str, ...] = (),
    ) -> None:
        self._net, self._recipe, self._also, example = (
            net,
            recipe,
            also,
            train.images[:2].to(device_of(net)),
        )
        if also and recipe.learn in ("norms", "ends", "all"):
            raise ValueError(
                f"also={also} names activations, and learn={recipe.learn!r} learns none; drop one"
                " of them"
            )
        wide = _widened(net)
        self.work = (
            wide if recipe.learn in ("norms", "ends", "all") else retrofit(wide, ReLU(), also=also)
        )
        self.work.eval().requires_grad_(False)
        self.activations: dict[str, _Learned] = {}
        if recipe.learn in ("shifts", "kappa", "slopes"):
            self.activations = _install(self.work, recipe.learn, example)
        self.weights = _weights(self.work, recipe.learn, example)
        self._before = {name: p.detach().clone() for name, p in self.weights.items()}
        if not self.tensors:
            raise ValueError(
                f"{type(net).__name__} has nothing to learn as {recipe.learn!r}; choose another"
                " `learn`"
            )
        self._form = prove(self.work, train.images, train.index, threat, passes=recipe.steps).form
        if self._form is not None and self._form.channels_last:
            in_channels_last(self.work)
        for p in self.tensors:
            p.requires_grad_(True)

    @property
    def attacked(self) -> nn.Module:
        """The net as it has become, in its lean form."""
        return self.work if self._form is None else self._form(self.work)

    @property
    def tensors(self) -> list[nn.Parameter]:
        return [a.value for a in self.activations.values()] + list(self.weights.values())

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What is learned, by the `share` of the rate that it takes."""
        slow = [
            p for name, p in self.weights.items() if self._recipe.learn == "ends" and p.dim() > 1
        ]
        fast = [p for p in self.tensors if all(p is not other for other in slow)]
        return [
            {"params": ps, "share": share} for ps, share in ((fast, 1.0), (slow, ENDS_SHARE)) if ps
        ]

    @property
    def count(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.tensors)

    def made(self, dose: float) -> nn.Module:
        """A net with `dose` times what was learned."""
        made = copied(self._net).eval()
        named = dict(made.named_parameters())
        with torch.no_grad():
            for name, learned in self.weights.items():
                before = self._before[name]
                named[name].copy_(before + dose * (learned.detach() - before))
        if not self.activations:
            return made
        values = {
            site: a.neutral + dose * (a.value.detach() - a.neutral)
            for site, a in self.activations.items()
        }
        return retrofit(made, _as_activation(self._recipe.learn, values), also=self._also)


def _widened(net: nn.Module) -> nn.Module:
    """A copy of the net in which half floats are float32: a step of Adam would be lost in their
    rounding."""
    made = copied(net)
    return (
        made.float()
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in made.parameters())
        else made
    )


class _Learned(nn.Module):
    """An activation whose number, or one number per channel, is learned."""

    def __init__(self, kind: Learn, inner: Activation, channels: int) -> None:
        super().__init__()
        self.kind, self.inner = kind, inner
        self.neutral = 1.0 if kind == "slopes" else 0.0
        self.value = nn.Parameter(torch.full((channels if kind == "shifts" else 1,), self.neutral))

    def forward(self, z: Tensor) -> Tensor:
        if self.kind == "shifts":
            return self.inner(z + self.value.view(-1, *[1] * (z.dim() - 2)))
        if self.kind == "slopes":
            return self.value * self.inner(z)
        return _jumped(z, self.value)


def _jumped(z: Tensor, kappa: Tensor) -> Tensor:
    """JumpReLU with a straight-through gradient for kappa: that of z σ(β(z − κ)), βκ as in the
    audit's kernel."""
    kappa = kappa.clamp_min(0.0)
    beta = SHARPNESS / kappa.detach().clamp_min(0.1)
    smooth = z * torch.sigmoid(beta * (z - kappa))
    return smooth + (z * (z > kappa) - smooth).detach()


def _install(work: nn.Module, kind: Learn, example: Tensor) -> dict[str, _Learned]:
    sizes: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(
            lambda m, args, out, name=name: sizes.__setitem__(name, args[0].shape[1])
        )
        for name, module in installed(work).items()
    ]
    with torch.no_grad():
        in_float(work, example)
    for hook in hooks:
        hook.remove()
    made = {}
    for name, module in installed(work).items():
        inner = module.activation
        assert not isinstance(inner, nn.Module)
        made[name] = _Learned(kind, inner, sizes[name]).to(example.device)
        module.become(made[name])
    return made


def _weights(work: nn.Module, kind: Learn, example: Tensor) -> dict[str, nn.Parameter]:
    named = dict(work.named_parameters())
    if kind == "all":
        return named
    layers = _layers(work, example)
    chosen = {
        f"{path}.bias" for path in layers[-1:] if isinstance(work.get_submodule(path), nn.Linear)
    }
    if kind in ("norms", "ends"):
        for path, module in work.named_modules():
            if isinstance(module, _NORMS):
                chosen |= {f"{path}.weight", f"{path}.bias"}
    if kind == "ends":
        chosen |= {
            f"{path}.{what}" for path in layers[:1] + layers[-1:] for what in ("weight", "bias")
        }
    return {name: p for name, p in named.items() if name in chosen and p is not None}


def _layers(work: nn.Module, example: Tensor) -> list[str]:
    """The paths of the layers with weights, in the order in which they run."""
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda m, args, out, path=path: ran.append(path))
        for path, module in work.named_modules()
        if isinstance(module, (nn.Linear, *_CONVS))
    ]
    with torch.no_grad():
        in_float(work, example)
    for hook in hooks:
        hook.remove()
    return ran


def _as_activation(kind: Learn, values: dict[str, Tensor]) -> Any:
    """The learned numbers as an activation spec, which prints, saves and names a network."""
    if kind == "kappa":
        return PerSite(tuple(JumpReLU(max(0.0, float(v))) for v in values.values()))
    if kind == "slopes":
        return PerSite(tuple(SReLU(max(1e-6, float(v))) for v in values.values()))
    content = to_bytes({site: v.contiguous() for site, v in values.items()})
    name = hashlib.sha256(content).hexdigest()
    embed_shifts(content, sha256=name)
    return ShiftedReLU("learned", name)


# ------------------------------------------------------------------------------------- the learning


def _learn(
    learner: _Learner,
    train: Images,
    threat: ThreatModel,
    recipe: Hardening,
    seed: int,
    progress: Callable[[float, int], None] | None,
) -> None:
    net, adam = learner.work, torch.optim.Adam(learner.groups)
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    order = _batches(len(train), recipe.batch, generator)
    reach = _scaled(threat, recipe.eps_factor)
    for step in range(recipe.steps):
        for group in adam.param_groups:
            group["lr"] = (
                group["share"] * recipe.rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            )
        rows = next(order)
        x, y = train.images[rows].to(device), train.labels[rows].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.bf16):
            x_adv = _moved(
                learner.attacked,
                x,
                y,
                train.index[rows].to(device),
                reach,
                recipe.attack_steps,
                seed + step,
            )
            halves = ((recipe.clean_weight, x), (1 - recipe.clean_weight, x_adv))
            losses = [w * F.cross_entropy(in_float(net, images), y) for w, images in halves if w]
        adam.zero_grad()
        torch.stack(losses).sum().backward()
        adam.step()
        if progress is not None:
            progress(float(step + 1), recipe.steps)


def _scaled(threat: ThreatModel, factor: float) -> ThreatModel:
    return replace(threat, eps=threat.eps * factor)  # type: ignore[type-var]


def _batches(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of shuffled rows, one shuffle after the other, without end."""
    size = min(size, n)
    while True:
        yield from torch.randperm(n, generator=generator)[: n // size * size].split(size)


def _moved(
    net: nn.Module, x: Tensor, y: Tensor, index: Tensor, threat: ThreatModel, steps: int, seed: int
) -> Tensor:
    """`steps` steps of 2.5 eps/steps up the margin loss, none saved: learning wants the worst
    image, not the first."""
    domain = Domain(tuple(x.shape[1:]))
    x_adv = threat.start(x, domain, index, seed)
    for _ in range(steps):
        leaf, logits = with_graph(net, x_adv)
        (gradient,) = torch.autograd.grad(margin(logits, Aim(y)).sum(), leaf)
        length = 2.5 * threat.eps / steps
        x_adv = threat.step(leaf.detach(), gradient, length, x, domain)
    return x_adv


def _accuracy(net: nn.Module, images: Images) -> float:
    return float((decide(net, images.images) == images.labels).float().mean())
