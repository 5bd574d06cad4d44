"""Proof: attacks run on a cheaper copy of a network only where it is shown to compute the same.

    on = prove(net, images, index, threat, passes=40)
    outcome, logits = craft_on(on, attack, images, labels, index, [threat])[0]

Before anything runs on a lean form, it is compared with the network on a few images of the run,
clean and with noise of size eps: logits and gradients. What fails is not used, and the next less
lean form is tried, at the end the network itself. After an attack, what is robust is compared
again at the attack's last point, since an attack goes where no sample goes; where the two differ,
the network itself is attacked.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retroact.crafting import driver
from retroact.crafting.attack import CHUNK, Attack
from retroact.crafting.domain import Domain
from retroact.crafting.driver import Outcome, chunks, in_halves
from retroact.crafting.goals import Aim, Goal, Targets, goal_of, view_of
from retroact.crafting.noise import normal, uniform
from retroact.crafting.oracle import (
    Crafting,
    Network,
    device_of,
    dtype_of,
    evaluating,
    in_company,
    in_float,
)
from retroact.crafting.sending import Ahead, Sent
from retroact.crafting.sizing import chunk_for
from retroact.crafting.threat import ThreatModel
from retroact.ground import neutral
from retroact.parts import UNFILED, Filed
from retroact.retrofitting.lean import Folds, Form, folds_of, forms_with, same_layers
from retroact.spec import is_spec, show

IMAGES = 16
"""Images of a run on which a form is compared first, each clean and with noise."""
MORE = 64
"""Images on which it is compared where it failed on a few of the first."""
ALIKE = 0.99
"""The share of images on which a form must compute the same: a jump may flip a unit by rounding."""
LOGITS = 1e-4
"""The largest difference of a logit, as a share of that image's spread (largest − smallest
logit)."""
COSINE = 0.999
"""The smallest cosine between the gradients of the two."""

_SHARED = 0.1
_COST = 6 * IMAGES
"""What a proof costs, in gradients of one image: both networks at each point, and the copy
itself."""
_NOISE = 800_000_011  # a stream of its own


@dataclass(frozen=True, eq=False)
class Proved:
    """A network, and `lean`, what attacks run on: a form of it that was proved to compute the same,
    or it itself.

    `network` judges. `scale` is what the logits of `lean` are multiplied by to be the network's (1
    but where slopes were folded away). `instead` makes what is attacked where `lean` differs at an
    attack's last point (None: the network). `folds` are the norms that may move into layers, where
    they have been looked for.
    """

    network: Network
    lean: Network
    form: Form | None = None
    scale: float = 1.0
    instead: Callable[[], Network] | None = None
    folds: Folds | None = None

    @property
    def fallback(self) -> Network:
        """What is attacked where `lean` differs."""
        return self.network if self.instead is None else self.instead()

    def __str__(self) -> str:
        return "itself" if self.form is None else str(self.form)


def leave_as_is(network: Network) -> Proved:
    """The network as it is."""
    return Proved(network, network)


def prove(
    network: Network,
    images: Tensor,
    index: Tensor,
    threat: ThreatModel,
    *,
    passes: int,
    gradients: bool = True,
    domain: Domain | None = None,
    seed: int = 0,
    like: Proved | None = None,
) -> Proved:
    """The leanest form of `network` that computes the same on a few of `images` (n, …), clean and
    noisy, in the box `domain` ([0, 1] where none is given).

    `passes` is what the run asks of each image at most; a run that is cheaper than the proof, and a
    network that is no module, keeps the network itself. Without `gradients` only logits are
    compared. `like`: a network whose forms these may be, if its layers are the same; then
    `network` is not traced.
    """
    if not isinstance(network, nn.Module) or len(images) * passes <= _COST:
        return leave_as_is(network)
    question = _Question(network, images, index, threat, gradients, domain, seed)
    lean, form, folds = _recall(question, like)
    return Proved(network, network if lean is None else lean, form, folds=folds)


def prove_for(
    attack: Attack,
    network: Network,
    images: Tensor,
    index: Tensor,
    threats: Sequence[ThreatModel],
    *,
    domain: Domain | None = None,
    seed: int = 0,
) -> Proved:
    """`prove` for one run of `attack` under `threats`: an attack that serves several radii knows
    none, so that which of them share a run changes no bit; its noise has a tenth of the box's
    diameter."""
    threat = threats[0]
    if attack.serves_several:
        threat = threat.whole(domain or Domain(tuple(images.shape[1:])), _SHARED)
    gradients = attack.needs == "gradient"
    return prove(
        network,
        images,
        index,
        threat,
        passes=attack.passes,
        gradients=gradients,
        domain=domain,
        seed=seed,
    )


def prove_same(
    network: Network,
    other: Network,
    images: Tensor,
    index: Tensor,
    threat: ThreatModel,
    *,
    scale: float = 1.0,
    domain: Domain | None = None,
    gradients: bool = True,
) -> bool:
    """Whether `scale` times what `other` computes is what `network` does, on a few of `images`."""
    return _Question(network, images, index, threat, gradients, domain, 0).holds_for(other, scale)


# ------------------------------------------------------------------------------------- the question


class _Answers(NamedTuple):
    """Logits (m, k) and gradients of one fixed combination of them (m, …; or none), in float64 on
    the CPU."""

    logits: Tensor
    gradient: Tensor | None


class _Question:
    """What is asked of a form: the same logits and gradients as the network's at points of the
    run."""

    def __init__(
        self,
        network: nn.Module | Network,
        images: Tensor,
        index: Tensor,
        threat: ThreatModel,
        gradients: bool,
        domain: Domain | None,
        seed: int,
    ) -> None:
        self.network, self.threat, self.seed, self.gradients = network, threat, seed, gradients
        self.domain = Domain(tuple(images.shape[1:])) if domain is None else domain
        self._images, self._index = images, index
        self._answers: dict[int, _Answers] = {}

    def points(self, most: int) -> Tensor:
        """Up to `most` images, evenly spaced over the run: clean ones, then the same with noise of
        size eps."""
        rows = torch.linspace(0, len(self._images) - 1, min(most, len(self._images))).round().long()
        x, index = self._images[rows].detach(), self._index[rows]
        drawn = normal(self.domain.shape, index, self.seed, _NOISE).to(x)
        noisy = x + self.threat.eps * self.threat.steepest(drawn)
        return torch.cat([x, self.threat.project(noisy, x, self.domain)])

    def folds(self, net: nn.Module, like: Proved | None) -> Folds | None:
        """The folds of the forms that are asked; None where there are no forms."""
        other = None if like is None or like.folds is None else like.network
        if isinstance(other, nn.Module) and same_layers(net, other):
            return like.folds  # type: ignore[union-attr]
        return folds_of(net, self.points(1).to(device_of(net)))

    def holds_for(self, other: Network, scale: float = 1.0) -> bool:
        """Whether `other` computes the same; a few failures among few points ask for more
        points."""
        try:
            share = self._share_alike(other, IMAGES, scale)
            if ALIKE > share >= 0.5 and len(self._images) > IMAGES:
                share = self._share_alike(other, MORE, scale)
        except Exception:
            # whatever a stranger's network raises in another memory format, or as a copy
            return False
        return share >= ALIKE

    def _share_alike(self, other: Network, most: int, scale: float) -> float:
        points = self.points(most)
        if most not in self._answers:
            self._answers[most] = self._look(self.network, points)
        expected, given = self._answers[most], self._look(other, points)
        good = alike(expected.logits, scale * given.logits)
        if expected.gradient is not None and given.gradient is not None:
            good &= _are_parallel(expected.gradient, given.gradient)
        return float(good.double().mean())

    def _look(self, network: Network, points: Tensor) -> _Answers:
        device, wide = device_of(network), dtype_of(network) == torch.float64

        def look(rows: slice) -> _Answers:
            # some write to it
            x = points[rows].to(device, torch.float64 if wide else points.dtype, copy=True)
            if not self.gradients:
                with torch.no_grad():
                    return _Answers(in_float(network, x).double().cpu(), None)
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                logits = in_company(network, leaf)
            (gradient,) = torch.autograd.grad((logits * _weights(logits)).sum(), leaf)
            return _Answers(logits.detach().double().cpu(), gradient.double().cpu())

        with evaluating(network):
            parts = [part for rows in chunks(len(points), CHUNK) for part in in_halves(look, rows)]
        gradients = [p.gradient for p in parts if p.gradient is not None]
        return _Answers(
            torch.cat([p.logits for p in parts]), torch.cat(gradients) if gradients else None
        )

    def key(self, state: str) -> tuple[str, ...]:
        """Names the question by its content: the same question need not be asked twice."""
        sample = hashlib.sha256(self.points(IMAGES).contiguous().numpy().tobytes()).hexdigest()
        return (
            state,
            sample,
            show(self.threat) if is_spec(self.threat) else "",
            str(self.gradients),
            str(self.seed),
        )


def _weights(logits: Tensor) -> Tensor:
    """A combination of logits that no class is left out of, and whose gradient does not hang on who
    leads."""
    drawn = uniform(
        (logits.shape[1],), torch.zeros(1, dtype=torch.int64, device=logits.device), 0, _NOISE
    )[0]
    return (drawn - 0.5).to(logits)


def alike(logits: Tensor, others: Tensor) -> Tensor:
    """Whether two networks gave the same logits (m, k), bool (m,): within `LOGITS` of each image's
    spread.

    Where both are not finite they are alike: an attack sees the same.
    """
    if logits.shape != others.shape:
        return torch.zeros(len(logits), dtype=torch.bool)
    logits, others = logits.double(), others.double()
    spread = logits.amax(1) - logits.amin(1)
    near = (logits - others).abs().amax(1) <= LOGITS * spread
    return near | (~logits.isfinite().all(1) & ~others.isfinite().all(1))


def _are_parallel(one: Tensor, other: Tensor) -> Tensor:
    """Whether the gradients point the same way; two that are zero, or not finite, do."""
    one, other = (_unit(g.flatten(1)) for g in (one, other))
    same = (one * other).sum(1) >= COSINE
    return same | ((one == other) | (one.isnan() & other.isnan())).all(1)


def _unit(g: Tensor) -> Tensor:
    largest = g.abs().amax(1, keepdim=True)
    g = g / torch.where(largest > 0, largest, 1.0)
    length = g.norm(dim=1, keepdim=True)
    return g / torch.where(length > 0, length, 1.0)


# ------------------------------------------------------------------------------------- asked once


class _Answer(NamedTuple):
    lean: nn.Module | None
    form: Form | None
    folds: Folds | None


_ANSWERS: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, ...], _Answer]] = (
    weakref.WeakKeyDictionary()
)
_ASKING = threading.RLock()
_KEPT = 2  # questions per network whose answers are remembered


def _recall(question: _Question, like: Proved | None) -> _Answer:
    """The leanest form that answers the question, from memory where this very network was asked it
    before; where it was asked another one, its folds are known."""
    with _ASKING:
        net = question.network
        assert isinstance(net, nn.Module)
        state = _state_of(net)
        asked = question.key(state)
        try:
            known = _ANSWERS.setdefault(net, {})
        except TypeError:  # a module that is unhashable
            known = {}
        if asked not in known:
            before = [answer.folds for (of, *_), answer in known.items() if of == state]
            folds = before[0] if before else question.folds(net, like)
            while len(known) >= _KEPT:
                known.pop(next(iter(known)))
            known[asked] = _ask(net, question, folds)
        return known[asked]


def _ask(net: nn.Module, question: _Question, folds: Folds | None) -> _Answer:
    for form in [] if folds is None else forms_with(net, folds, question.points(1)):
        try:
            lean = form(net)
        except Exception:  # whatever a stranger's network raises when it is copied or folded
            continue
        if question.holds_for(lean):
            return _Answer(lean, form, folds)
    return _Answer(None, None, folds)


def _state_of(net: nn.Module) -> str:
    """Names what a network computes with: its modules, their attributes and specs, and the bits of
    its tensors."""
    told = hashlib.sha256()
    for path, module in net.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        mode = getattr(module, "training", None)  # a frozen script has none
        told.update(f"{path} {id(module)} {type(module).__qualname__} {mode} {hooks}".encode())
        kept = sorted((k, _tell(v)) for k, v in vars(module).items() if k not in _NAMED)
        told.update(str(kept).encode())
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        told.update(f"{name} {_bits(tensor)}".encode())
    return told.hexdigest()


def _tell(value: Any, depth: int = 0) -> str:
    if isinstance(value, bool | int | float | str | bytes | torch.dtype | None) or is_spec(value):
        return repr(value)
    if isinstance(value, Tensor):
        return _bits(value)
    if isinstance(value, list | tuple) and depth < _DEEP:
        return f"{type(value).__name__}({', '.join(_tell(v, depth + 1) for v in value)})"
    if isinstance(value, dict) and depth < _DEEP:
        return f"{id(value)}: {', '.join(f'{k!r}={_tell(v, depth + 1)}' for k, v in value.items())}"
    return str(id(value))


_NAMED = ("_parameters", "_buffers", "_modules")  # which are told by their names
_DEEP = 3  # how far into lists and dictionaries a network's state is read


def _bits(tensor: Tensor) -> str:
    said = f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device}"
    try:
        flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        return f"{said} {hashlib.sha256(flat.numpy().tobytes()).hexdigest()}"
    except (RuntimeError, TypeError, NotImplementedError):
        # sparse, quantised: no plain bits; never the same again
        return f"{said} {next(_NEVER)}"


_NEVER = itertools.count()


# ------------------------------------------------------------------------------------------ the run


@dataclass(frozen=True)
class Crafted:
    """An outcome, the logits (n, k) that the network itself gives on its images, and on how many
    images the lean form differed at the attack's last point, so that the network itself was
    attacked there."""

    outcome: Outcome
    logits: Tensor
    again: int = 0


def craft_on(
    on: Proved,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    threats: Sequence[ThreatModel],
    goal: Goal | Targets | None = None,
    *,
    source: Proved | None = None,
    domain: Domain | None = None,
    seed: int = 0,
    chunk: int | None = None,
    crafting: Crafting = "float32",
    progress: Callable[[int, int], None] | None = None,
    filed: Filed = UNFILED,
) -> list[Crafted]:
    """`driver.craft_all` on lean forms; images where one turns out to differ are attacked on the
    network itself."""
    how: dict[str, Any] = {"seed": seed, "chunk": chunk, "domain": domain, "crafting": crafting}
    goal = goal_of(goal, index)
    lean = None if source is None else source.lean
    run = (attack, on.lean, images, labels, index, threats, goal)
    filed = filed.of(str(on), str(source))  # another form is another rounding
    ours = how | {"progress": progress, "filed": filed.of("lean")}
    outcomes = driver.craft_all(*run, source=lean, **ours)
    crafted = [
        Crafted(outcome, logits_of(on.network, outcome.x_adv, chunk=chunk)) for outcome in outcomes
    ]
    if on.lean is on.network and lean is (None if source is None else source.network):
        return [_see(one, goal, labels) for one in crafted]
    rows = _find_differing(crafted, on, source, labels, chunk)
    if not len(rows):
        return [_see(one, goal, labels) for one in crafted]
    part = (attack, on.fallback, images[rows], labels[rows], index[rows], threats, goal)
    own = None if source is None else source.fallback
    anew = driver.craft_all(*part, source=own, filed=filed.of("again", rows.tolist()), **how)
    mended = (
        _mend(one, outcome, on, rows, chunk) for one, outcome in zip(crafted, anew, strict=True)
    )
    return [_see(one, goal, labels) for one in mended]


def _see(one: Crafted, goal: Goal, labels: Tensor) -> Crafted:
    """With the logits as the goal has them."""
    view = view_of(goal)
    return one if view is None else replace(one, logits=view(one.logits, labels))


def _find_differing(
    crafted: list[Crafted], on: Proved, source: Proved | None, labels: Tensor, chunk: int | None
) -> Tensor:
    """The rows robust under some threat although a lean form differs from its network there."""
    suspect = torch.zeros(len(labels), dtype=torch.bool)
    for one in crafted:
        aim = Aim(labels, one.outcome.targets if bool((one.outcome.targets >= 0).all()) else None)
        rows = (~aim.reached(one.logits)).nonzero()[:, 0]
        if not len(rows):
            continue
        last = one.outcome.last[rows]
        own = (
            one.logits[rows]
            if one.outcome.last is one.outcome.x_adv
            else logits_of(on.network, last, chunk=chunk)
        )
        lean = logits_of(on.lean, last, chunk=chunk)
        # What is broken on the form alone is robust on the network: within a rounding, yet not
        # fooled.
        suspect[rows] |= ~alike(own, on.scale * lean) | (
            aim[rows].reached(lean) & ~aim[rows].reached(own)
        )
        if source is not None and source.lean is not source.network:
            pair = (logits_of(n, last, chunk=chunk) for n in (source.network, source.lean))
            suspect[rows] |= ~alike(*pair)
    return suspect.nonzero()[:, 0]


def _mend(one: Crafted, anew: Outcome, on: Proved, rows: Tensor, chunk: int | None) -> Crafted:
    """The outcome with the rows that were attacked again; what both runs cost is counted."""
    old = one.outcome
    parts = {f.name: getattr(old, f.name).clone() for f in fields(Outcome)}
    for name in ("queries", "gradients", "zero_gradients"):
        parts[name][rows] += getattr(anew, name)
    for name in ("x_adv", "last", "targets", "nonfinite"):
        parts[name][rows] = getattr(anew, name)
    logits = one.logits.clone()
    logits[rows] = logits_of(on.network, anew.x_adv, chunk=chunk)
    return replace(one, outcome=Outcome(**parts), logits=logits, again=len(rows))


def logits_of(network: Network, images: Tensor, *, chunk: int | None = None) -> Tensor:
    """The logits (n, k) of a network in eval mode, in float32 or better, on the CPU."""
    device = device_of(network)
    chunk = chunk_for(network, images, CHUNK) if chunk is None else chunk

    ahead = Ahead(device, chunk, images)

    def run(sent: Sent, rows: slice) -> Tensor:
        return in_float(network, *sent.at(rows, device)).cpu()

    with evaluating(network), torch.no_grad():
        runs = ((partial(run, ahead.take(rows)), rows) for rows in chunks(len(images), chunk))
        return torch.cat([part for here, rows in runs for part in in_halves(here, rows)])


# ---------------------------------------------------------------------------------- without a judge


def craft(
    attack: Attack,
    network: Network,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    threat: ThreatModel,
    goal: Goal | Targets | None = None,
    **how: Any,
) -> Outcome:
    """Attacks every example of `images` (n, …) that does not already meet the goal, on a proved
    lean form.

    `how`: source=, domain=, seed=, chunk= and progress= as `craft_all` takes them. What comes
    back, and which errors are raised, is as `crafting.driver.craft` says, which runs on the network
    as it is given.
    """
    return craft_all(attack, network, images, labels, index, [threat], goal, **how)[0]


@neutral()
def craft_all(
    attack: Attack,
    network: Network,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    threats: Sequence[ThreatModel],
    goal: Goal | Targets | None = None,
    *,
    source: Network | None = None,
    domain: Domain | None = None,
    seed: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """`craft` for several threat models of one norm and access: one Outcome each."""
    on = prove_for(attack, network, images, index, threats, domain=domain, seed=seed)
    shown = (
        None
        if source is None
        else prove_for(attack, source, images, index, threats, domain=domain, seed=seed)
    )
    how: dict[str, Any] = {"source": shown, "domain": domain, "seed": seed, "chunk": chunk}
    return [
        one.outcome
        for one in craft_on(
            on, attack, images, labels, index, threats, goal, progress=progress, **how
        )
    ]
