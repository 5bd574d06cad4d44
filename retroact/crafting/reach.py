"""What a front end can give within a ball, where it is monotone, and what withstands all of it.

    for reach in find_reaches(net, x, index, threat, domain):
        withstand(reach, labels)         # (n,): which hold in the whole box

Rounding, a table, bytes, a median: where no entry of an image falls, none of what they give does.
So all of the cube [x − ε, x + ε] is mapped into the box between what its two corners give. What
stands behind is a network like any other, whose gradient knows no steps, and an attack may move
within the box as it likes. That is more than any image of the cube can make it do: what withstands
the box withstands the cube, whatever the front end does to gradients. (Corners bound a monotone
function exactly; for linear ones this is the interval arithmetic of Gowal et al. 2018,
arXiv:1810.12715, here followed by an attack.) That a front end is monotone is not known but tried:
points are drawn in the cube, some of their entries are raised, and nothing may go the other way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retroact.crafting.domain import Domain
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.crafting.noise import normal, uniform
from retroact.crafting.oracle import device_of, dtype_of, evaluating, in_float, with_graph
from retroact.crafting.stand_ins import is_batch, patch
from retroact.crafting.threat import ThreatModel

DRAWS = 16
"""Points of each cube at which a front end is tried, half of them corners."""
TARGETS = 4
"""The classes next to the true one that are climbed to, one after the other."""
SCHEDULE = ((0.5, 10), (0.2, 15), (0.08, 15), (0.03, 10))
"""Lengths of the steps, as shares of the box's sides, and how many of each."""

_SLACK = 1e-5  # of the box's scale: what rounding may put outside it
_DEEP = 4  # places between modules that are tried, from the first on
_FEW, _PART = 8, 64
_STREAM = 950_000_017


@dataclass(frozen=True)
class Reach:
    """What stands `behind` a front end, and for each image what the front end makes `at` it,
    (n, …), and at all images of its cube: from `low` to `high`."""

    behind: nn.Module
    at: Tensor
    low: Tensor
    high: Tensor

    @property
    def radius(self) -> float:
        """Half of the longest side of a box."""
        return float((self.high - self.low).max()) / 2


def find_reaches(
    network: object, x: Tensor, index: Tensor, threat: ThreatModel, domain: Domain, seed: int = 0
) -> Iterator[Reach]:
    """The boxes of what the first modules of a network are given, at most `_DEEP`, for images `x`
    (n, …) and the cube of an L∞ threat around each.

    None where the network is no module, the threat is of another norm, the front end is seen not to
    be monotone, or what stands behind it sees the image another way too.
    """
    if not isinstance(network, nn.Module) or threat.norm != "linf" or not len(x):
        return
    with evaluating(network), torch.no_grad():
        images = x.to(device_of(network), dtype_of(network) or x.dtype)
        index = index.to(images.device)
        try:
            split = _Split(network)
            # at drawn points, as rounding leaves images as they are that are made of its steps
            few = _draw(images[:_FEW], index[:_FEW], threat, domain, seed)
            places = split.places(next(few)[0])[:_DEEP]
        except Exception:  # whatever a stranger's network raises as a copy
            return
    for place in places:
        with evaluating(network), torch.no_grad():
            try:
                points = _draw(images, index, threat, domain, seed)
                found = _bound(split, place, images, points, threat.eps, domain)
            except Exception:  # of what it is not meant to be given
                found = None
        if found is not None:
            yield found


def withstand(reach: Reach, labels: Tensor, index: Tensor, seed: int = 0) -> Tensor:
    """Bool (n,): which images are decided rightly at every point of the box that is climbed to: up
    the margin, and to each of the `TARGETS` next classes, from the image and from a point drawn in
    the box."""
    rows = torch.arange(len(labels)).split(_PART)
    return torch.cat([_hold(reach, part, labels[part], index[part], seed) for part in rows])


# ---------------------------------------------------------------------------------- what is climbed


def _hold(reach: Reach, rows: Tensor, labels: Tensor, index: Tensor, seed: int) -> Tensor:
    """`withstand` of a few images, those of these rows."""
    at, low, high = (t[rows] for t in (reach.at, reach.low, reach.high))
    behind, y = reach.behind, labels.to(at.device)
    with evaluating(behind):
        logits = in_float(behind, at).detach()
        held = _is_right(logits, y)
        near = logits.scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
        targets = near[:, : min(TARGETS, logits.shape[1] - 1)].T
        drawn = uniform(tuple(at.shape[1:]), index, seed, _STREAM).to(at)
        for start in (at, low + drawn * (high - low)):
            for target in (None, *targets):
                held &= _climb(behind, start, low, high, Aim(y, target))
    return held.cpu()


def _climb(behind: nn.Module, u: Tensor, low: Tensor, high: Tensor, aim: Aim) -> Tensor:
    """Bool (n,): which are decided rightly all the way up the margin, or to a target, in the
    box."""
    held = torch.ones(len(u), dtype=torch.bool, device=u.device)
    for share, steps in SCHEDULE:
        for _ in range(steps):
            leaf, logits = with_graph(behind, u)
            held &= _is_right(logits.detach(), aim.labels)
            (slope,) = torch.autograd.grad(margin(logits, aim).sum(), leaf)
            u = (leaf.detach() + share * (high - low) * slope.sign()).clamp(low, high)
    with torch.no_grad():
        return held & _is_right(in_float(behind, u), aim.labels)


def _is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Bool (n,): the true class is decided, by numbers."""
    return (logits.argmax(1) == labels) & logits.isfinite().all(1)


# -------------------------------------------------------------------------------- where it is split


@dataclass(frozen=True)
class _Watching:
    """A forward pass of which is noted what its modules are given."""

    n: int
    seen: list[tuple[str, Tensor]]

    def meet(self, path: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if is_batch(args, self.n):
            self.seen.append((path, args[0].detach().clone()))
        return args


@dataclass(frozen=True)
class _Giving:
    """One in which the modules at `paths` are given `u` in the place of what comes to them."""

    paths: tuple[str, ...]
    u: Tensor

    def meet(self, path: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        given = path in self.paths and is_batch(args, len(self.u))
        return (self.u, *args[1:]) if given and args[0].shape == self.u.shape else args


_RUN: ContextVar[_Watching | _Giving | None] = ContextVar("the pass of a split net", default=None)


def _meet(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    run = _RUN.get()
    if run is None:  # the network calls it in a thread of its own
        return forward(*args, **kwargs)
    args = run.meet(path, args)
    graph = isinstance(run, _Giving) and run.u.requires_grad
    with torch.set_grad_enabled(graph or torch.is_grad_enabled()):
        return forward(*args, **kwargs)


class _Split:
    """A network that can be run up to where modules are given something, and from there on."""

    def __init__(self, network: nn.Module) -> None:
        self.net = patch(network, _meet)

    def watch(self, x: Tensor) -> list[tuple[str, Tensor]]:
        """What modules are given on the way of the images `x` (n, …), in order."""
        seen: list[tuple[str, Tensor]] = []
        self._run(_Watching(len(x), seen), x)
        return seen

    def places(self, x: Tensor) -> list[tuple[str, ...]]:
        """The outermost modules that are given one and the same tensor that is not `x`, once each,
        by the order in which they are."""
        seen = self.watch(x)
        paths = [path for path, _ in seen]
        groups: list[tuple[Tensor, list[str]]] = [(x, [])]
        for path, given in seen:
            if paths.count(path) > 1:
                continue
            same = (g for g in groups if g[0].shape == given.shape and torch.equal(g[0], given))
            group = next(same, None)
            if group is None:
                groups.append((given, [path]))
            elif not any(path.startswith(f"{other}.") for other in group[1]):
                group[1].append(path)
        return [tuple(paths) for _, paths in groups[1:]]

    def give(self, place: tuple[str, ...], x: Tensor) -> Tensor:
        """What the modules of the place are given of `x` (n, …)."""
        parts = [dict(self.watch(part))[place[0]] for part in x.split(_PART)]
        return torch.cat(parts)

    def answer(self, x: Tensor) -> Tensor:
        """The logits (n, k) of the network itself."""
        return self._run(_Watching(len(x), []), x)

    def behind(self, place: tuple[str, ...], u: Tensor, example: Tensor) -> Tensor:
        """The logits (n, k) of the network whose modules of the place are given `u` (n, …)."""
        x = example.expand(len(u), *example.shape[1:]).clone()
        return self._run(_Giving(place, u), x)

    def _run(self, run: _Watching | _Giving, x: Tensor) -> Tensor:
        before = _RUN.set(run)
        try:
            return in_float(self.net, x)
        finally:
            _RUN.reset(before)


class Behind(nn.Module):
    """A network from the modules of a place on: what these are given (n, …) to logits (n, k)."""

    def __init__(self, split: _Split, place: tuple[str, ...], example: Tensor) -> None:
        super().__init__()
        self._split, self.place, self._example = split, place, example
        self.net = split.net  # whose weights are its own

    def forward(self, u: Tensor) -> Tensor:
        return self._split.behind(self.place, u, self._example)


def _bound(
    split: _Split,
    place: tuple[str, ...],
    x: Tensor,
    points: Iterator[tuple[Tensor, Tensor]],
    eps: float,
    domain: Domain,
) -> Reach | None:
    """The box of one place; None where a point of the cube gave something outside it, a raised one
    moved an entry against the way that it goes from corner to corner, or logits do not follow from
    what the place was given."""
    least, at, most = (split.give(place, domain.clamp(x + sign * eps)) for sign in (-1, 0, 1))
    low, high, way = torch.minimum(least, most), torch.maximum(least, most), (most - least).sign()
    behind = Behind(split, place, x[:1])
    slack = _SLACK * float(torch.maximum(low.abs(), high.abs()).max())
    for point, raised in ((x, x), *points):
        u, more = (split.give(place, p) for p in (point, raised))
        outside = (u < low - slack) | (u > high + slack)
        if bool((outside | (way * (more - u) < -slack)).any()):
            return None
        if not _follows(behind(u[:_FEW]), split.answer(point[:_FEW])):
            return None
    return Reach(behind, at.clamp(low, high), low, high)


def _draw(
    x: Tensor, index: Tensor, threat: ThreatModel, domain: Domain, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Points of the cube around each image, one drawn evenly, one of its corners, and so on; and
    each with half of its entries, or a few, raised. Every second pair is of bytes, as images are
    that somebody sends: a front end may be another where all pixels are."""
    for k in range(DRAWS):
        stream = _STREAM + 1 + 2 * k
        point = threat.start(x, domain, index, seed, stream).to(x)
        if k % 2:
            corner = normal(domain.shape, index, seed, stream).to(x).sign()
            point = threat.project(x + threat.eps * corner, x, domain)
        drawn = uniform(domain.shape, index, seed, stream + 1).to(x)
        higher = point + threat.eps * drawn * (drawn > (0.5 if k % 4 < 2 else 0.95))
        raised = threat.project(higher, x, domain)
        if k % 4 >= 2:
            point, raised = (_as_bytes(p, x, threat.eps, domain) for p in (point, raised))
        yield point, raised


def _as_bytes(point: Tensor, x: Tensor, eps: float, domain: Domain) -> Tensor:
    """The point with all entries on the 256 levels of the box, none further than eps from the
    image's."""
    per = 255 / domain.width
    level = ((point - domain.low) * per).round()
    away = domain.low + level / per - x
    level = level - away.sign() * (away.abs() > eps)
    return domain.low + level / per


def _follows(logits: Tensor, answer: Tensor) -> bool:
    scale = float(answer.abs().max().clamp_min(1e-6))
    return torch.allclose(logits, answer.to(logits), atol=1e-4 * scale, rtol=1e-3)
