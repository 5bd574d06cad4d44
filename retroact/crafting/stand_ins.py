"""Networks whose code leaves torch, with a derivative for what no graph knows.

    for way in find_ways(net, x):        # where torch begins again, and where it ends
        StandIn(net, way)                # its values; straight through in its backward pass
        StandIn(net, way, fit_front(net, way, x, index, threat, domain))

Images that pass through numpy (bytes, JPEG, a median) come back without a graph, and logits that
pass through it lose theirs. What lies between is a network like any other. It is found by looking:
a module that is called with a tensor whose graph is cut is where torch begins again, an *entry*;
the last modules that gave as many numbers as there are classes are where it ended, *exits*. What
stands before an entry passes its values on and has the derivative of the identity (Bengio et al.
2013, arXiv:1308.3432; BPDA, Athalye et al. 2018, arXiv:1802.00420, section 4.1) or of a linear map
that was fitted to what it does within the ball. Where modules end in features, of which something
that is not torch makes the answer (the nearest neighbours, a forest), what stands behind them has
the derivative of the classes of the images whose features are near (deep nearest neighbours:
Papernot and McDaniel 2018, arXiv:1803.04765; attacked so by Sitawarin and Wagner 2019,
arXiv:1903.08333).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.crafting.domain import Domain
from retroact.crafting.drawing import drawing
from retroact.crafting.oracle import device_of, dtype_of, evaluating
from retroact.crafting.threat import ThreatModel
from retroact.doors import logits_in

_TRIES = 20  # surveys, each with fewer modules that may be entries
_DRAWS, _STREAM = 16, 400_000_007  # points around each image that a front end is fitted to
_DENSE = 256  # entries of an example up to which a linear map is fitted, beyond it a convolution
_KERNEL = 5
_RIDGE = 1e-3
_PART = 64  # images at once
_STORED = 1000  # images whose features say what stands behind them


@dataclass(frozen=True)
class Way:
    """From where to where a network is followed: the paths of its `entries`, and of its `exits`
    (none: its own answer, else the mean of theirs).

    `alike` says that the entries are given examples' own shape, `changed` that what one of them is
    given is not the images, `single` that all are given the same. `unread`: what the exits give is
    not the answer, which is read off it by what leaves torch.
    """

    entries: tuple[str, ...]
    exits: tuple[str, ...]
    alike: bool
    changed: bool
    single: bool
    unread: bool = False

    def __str__(self) -> str:
        if self.unread:
            return f"behind {' and '.join(self.exits)}"
        ends = f", logits of {' and '.join(self.exits)}" if self.exits else ""
        return f"in front of {' and '.join(self.entries)}{ends}"


class StandIn(nn.Module):
    """Answers as the network does (with exits: as it did before it left torch), with the derivative
    of `guide` (None: the identity) for all that stands before the way's entries, and by `reader` of
    what the exits give (None: their mean).

    Maps (n, …) to logits (n, k). Weights are shared, parameters take no gradients, and nothing is
    done to the network itself.
    """

    def __init__(
        self,
        network: nn.Module,
        way: Way,
        guide: nn.Module | None = None,
        reader: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.way, self.guide, self.reader = way, guide, reader
        self._made_of = (network,)  # in a tuple, so that its modules are not this one's
        self.net = patch(network, _pass)

    def __reduce__(self) -> tuple[Callable[..., StandIn], tuple[Any, ...]]:
        return StandIn, (self._made_of[0], self.way, self.guide, self.reader)

    def forward(self, x: Tensor) -> Any:
        shown = x if self.guide is None else self.guide(x)
        run = _Run(self.way, shown - shown.detach(), {}, torch.is_grad_enabled())
        before = _RUN.set(run)
        try:
            out = self.net(x.detach().clone())
        finally:
            _RUN.reset(before)
        # a network that draws may call some of them alone; where it calls none, nothing is known of
        # its derivative, which is 0
        given = [run.given[path] for path in self.way.exits if path in run.given]
        if given and self.reader is not None:
            return self.reader(_flatten(given))
        if given:
            return torch.stack(given).mean(0)
        return logits_in(out, len(x)) + 0.0 * run.slope.sum()


@dataclass(frozen=True)
class _Run:
    """One forward pass of a stand-in: `slope` is zero and has the guide's derivative."""

    way: Way
    slope: Tensor
    given: dict[str, Tensor]
    recorded: bool


_RUN: ContextVar[_Run | None] = ContextVar(
    "forward pass of a stand-in, in this thread", default=None
)


def _pass(path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A module's call within a stand-in."""
    run = _RUN.get()
    if run is None:  # the network calls it in a thread of its own, where nobody is followed
        return forward(*args, **kwargs)
    with torch.set_grad_enabled(run.recorded or torch.is_grad_enabled()):
        if path in run.way.entries and is_batch(args, len(run.slope)):
            args = (_join(args[0], run.slope), *args[1:])
        out = forward(*args, **kwargs)
    if path in run.way.exits and isinstance(out, Tensor):
        run.given[path] = out
        return out.detach()  # what comes after is not followed, and may refuse a graph
    return out


def _join(z: Tensor, slope: Tensor) -> Tensor:
    return z + slope.to(z.dtype) if z.shape == slope.shape else z


def is_batch(args: tuple[Any, ...], n: int) -> bool:
    return (
        bool(args)
        and isinstance(args[0], Tensor)
        and args[0].is_floating_point()
        and args[0].ndim > 1
        and len(args[0]) == n
    )


def patch(
    network: nn.Module, call: Callable[..., Any], paths: Iterable[str] | None = None
) -> nn.Module:
    """A copy with the same weights whose modules, those at `paths` or all within it, are called
    through `call`."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in network.parameters()
    }
    memo.update((id(b), b) for b in network.buffers())
    patched: nn.Module = copy.deepcopy(network, memo)
    for path, module in patched.named_modules():
        if path and (paths is None or path in paths):
            with suppress(AttributeError, RuntimeError):  # a script's cannot be replaced
                module.forward = partial(call, path, module.forward)  # type: ignore[method-assign]
    return patched


# ----------------------------------------------------------------------------------- where torch is


def find_ways(network: object, x: Tensor) -> list[Way]:
    """From where to where a network that sees images like `x` (n, …) can be followed: to its own
    answer, and to what its last modules gave; none where it is no module or nothing within it has a
    graph."""
    if not isinstance(network, nn.Module) or not len(x):
        return []
    with evaluating(network), drawing(0, device_of(network)):
        try:
            images = x.to(device_of(network), dtype_of(network) or x.dtype)
            return list(_find(network, images))
        except Exception:  # whatever a stranger's network raises as a copy, or a graph in reverse
            return []


def _find(network: nn.Module, x: Tensor) -> Iterator[Way]:
    with torch.no_grad():
        answer = logits_in(network(x.clone()), len(x))
    seen = _survey(network, x, answer.shape)
    last = _last_of(seen, answer.shape)
    inner = torch.stack([out for _, out in last]).mean(0) if last else None
    if seen.out is not None:
        yield from _way(seen, seen.out, (), x)
    if inner is not None and not torch.equal(inner.to(answer), answer):
        yield from _way(seen, inner, tuple(path for path, _ in last), x)
    if inner is None and (seen.out is None or not seen.reaching(seen.out)):
        last = _last_of(seen)
        if last:
            features = _flatten([out for _, out in last])
            yield from _way(seen, features, tuple(path for path, _ in last), x, unread=True)


class _Survey:
    """The calls of a forward pass: where graphs were cut and joined again by a leaf, and what was
    given with a graph; `out` is the network's answer, None where it refused one."""

    def __init__(self, n: int, barred: frozenset[str]) -> None:
        self.n, self.barred = n, barred
        self.leaves: list[tuple[str, Tensor]] = []
        self.given: list[tuple[str, Tensor]] = []
        self.open: list[str] = []
        self.out: Tensor | None = None

    def call(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        cut = path not in self.barred and is_batch(args, self.n)
        if cut and not args[0].requires_grad:
            leaf = args[0].detach().clone().requires_grad_()
            self.leaves.append((path, leaf))
            with torch.enable_grad():  # a leaf itself may not be written to
                args = (leaf.clone(), *args[1:])
        self.open.append(path)
        with torch.enable_grad():
            out = forward(*args, **kwargs)
        self.open.pop()
        if isinstance(out, Tensor) and out.requires_grad:
            self.given.append((path, out))
        return out

    def refusing(self) -> set[str]:
        """The entries around and within the module in which the pass ended."""
        within = f"{self.open[-1]}." if self.open else ""
        paths = {path for path, _ in self.leaves}
        return {path for path in paths if path in self.open or path.startswith(within)}

    def reaching(self, end: Tensor) -> list[tuple[str, Tensor]]:
        """The leaves that `end` depends on, with a gradient that is not zero."""
        slopes = self._slopes(end, [leaf for _, leaf in self.leaves])
        pairs = zip(self.leaves, slopes, strict=True)
        return [leaf for leaf, slope in pairs if slope is not None and bool(slope.any())]

    def depends(self, end: Tensor, on: Tensor) -> bool:
        return end is on or self._slopes(end, [on])[0] is not None

    def _slopes(self, end: Tensor, on: list[Tensor]) -> tuple[Tensor | None, ...]:
        if not end.requires_grad or not on:
            return (None,) * len(on)
        weights = torch.linspace(-1, 1, end[0].numel()).to(end).view_as(end[0])
        total = (weights * end).sum()
        return torch.autograd.grad(total, on, retain_graph=True, allow_unused=True)


def _survey(network: nn.Module, x: Tensor, shape: torch.Size) -> _Survey:
    """A pass; modules that refuse a graph (they call numpy) before there were logits of that
    `shape` are asked again without one."""
    barred: frozenset[str] = frozenset()
    for _ in range(_TRIES):
        seen = _Survey(len(x), barred)
        try:
            with torch.enable_grad():
                seen.out = logits_in(patch(network, seen.call)(x.detach().clone()), len(x))
            return seen
        except Exception:
            refusing = seen.refusing()
            if not refusing or any(out.shape == shape for _, out in seen.given):
                return seen
            barred |= refusing
    return seen


def _last_of(seen: _Survey, shape: torch.Size | None = None) -> list[tuple[str, Tensor]]:
    """What was given with a graph and of this `shape`, as many numbers as there are classes (None:
    of any, for each example), and led to nothing else of that kind."""
    found = [given for given in seen.given if _fits(given[1], shape, seen.n)]
    found = [given for given in found if seen.reaching(given[1])]
    once = list(dict(found).items())  # the last call of each
    order = {id(out): i for i, (_, out) in enumerate(found)}
    once.sort(key=lambda given: order[id(given[1])])
    return [
        (path, out)
        for i, (path, out) in enumerate(once)
        if not any(seen.depends(later, out) for _, later in once[i + 1 :])
    ]


def _fits(out: Tensor, shape: torch.Size | None, n: int) -> bool:
    return out.shape == shape if shape is not None else out.ndim > 1 and len(out) == n


def _flatten(features: Sequence[Tensor]) -> Tensor:
    return torch.cat([z.flatten(1) for z in features], dim=1)


def _way(
    seen: _Survey, end: Tensor, exits: tuple[str, ...], x: Tensor, unread: bool = False
) -> Iterator[Way]:
    reaching = dict(seen.reaching(end))
    if not reaching:
        return
    given = list(reaching.values())
    yield Way(
        tuple(reaching),
        exits,
        alike=all(z.shape == x.shape for z in given),
        changed=not all(torch.equal(z, x) for z in given),
        single=all(torch.equal(z, given[0]) for z in given),
        unread=unread,
    )


# ------------------------------------------------------------------------------- what stands before


def fit_front(
    network: nn.Module,
    way: Way,
    x: Tensor,
    index: Tensor,
    threat: ThreatModel,
    domain: Domain,
    seed: int = 0,
) -> nn.Module | None:
    """A linear map with the least squared error for what stands before the entries: of what
    `x` + d gives less what `x` (n, …) gives, over `_DRAWS` points `x` + d of the ball around each.

    The map is dense for small examples, else a convolution after a change of size; None where
    neither fits its shapes. Solved in closed form, so it depends on images, `index` and `seed`
    alone.
    """
    tap = _Tap(network, way.entries[0])
    given, normal = tap(x), _Normal()
    pair = _features(x, given)
    if pair is None:
        return None
    for draw in range(_DRAWS):
        near = threat.start(x, domain, index, seed, _STREAM + draw)
        seen = _features(near - x, tap(near) - given)
        assert seen is not None
        normal.take(*seen)
    shape = tuple(given.shape[1:])
    if x[0].numel() <= _DENSE:
        return _Dense(normal.solve().float(), shape)
    channels, size = _picture(given, x)
    weight = normal.solve().float().T.reshape(channels, x.shape[1], _KERNEL, _KERNEL)
    return _Convolved(weight, size, shape)


class _Tap:
    """What the module at `path` is given last, for images."""

    def __init__(self, network: nn.Module, path: str) -> None:
        self._network, self._seen = network, list[Tensor]()
        self._net = patch(network, self._note, {path})

    def _note(self, path: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._seen.append(args[0].detach().clone())
        return forward(*args, **kwargs)

    def __call__(self, x: Tensor) -> Tensor:
        device, dtype = device_of(self._network), dtype_of(self._network) or x.dtype
        parts = []
        with evaluating(self._network, self._net), torch.no_grad(), drawing(0, device):
            for part in x.split(_PART):
                self._net(part.to(device, dtype, copy=True))
                parts.append(self._seen[-1])
                self._seen.clear()
        return torch.cat(parts).to(x)


class _Normal:
    """The normal equations of a least-squares problem, summed up part by part."""

    def __init__(self) -> None:
        self._gram: Tensor | float = 0.0
        self._cross: Tensor | float = 0.0

    def take(self, rows: Tensor, targets: Tensor) -> None:
        self._gram = self._gram + rows.T @ rows
        self._cross = self._cross + rows.T @ targets

    def solve(self) -> Tensor:
        gram, cross = self._gram, self._cross
        assert isinstance(gram, Tensor) and isinstance(cross, Tensor)
        ridge = _RIDGE * float(gram.diagonal().mean()) + 1e-30
        solved: Tensor = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), cross)
        return solved


def _features(moved: Tensor, changed: Tensor) -> tuple[Tensor, Tensor] | None:
    """The rows of a least-squares problem and what they should give, in float64: examples, or the
    windows of a picture."""
    if moved[0].numel() <= _DENSE:
        return moved.flatten(1).double(), changed.flatten(1).double()
    if moved.ndim != 4 or (changed.ndim != 4 and changed[0].numel() != moved[0].numel()):
        return None
    channels, size = _picture(changed, moved)
    windows = F.unfold(_resize(moved, size), _KERNEL, padding=_KERNEL // 2)
    target = changed.reshape(len(changed), channels, -1)
    return windows.mT.flatten(0, 1).double(), target.mT.flatten(0, 1).double()


def _picture(given: Tensor, x: Tensor) -> tuple[int, tuple[int, int]]:
    """Channels and size of what is given, as a picture: of its own form, or of the images'."""
    c, h, w = given.shape[1:] if given.ndim == 4 else x.shape[1:]
    return int(c), (int(h), int(w))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


class _Dense(nn.Module):
    """z = x · w, in the shape of what it stands for."""

    weight: Tensor

    def __init__(self, weight: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1) @ self.weight.to(x)).view(len(x), *self.shape)


class _Convolved(nn.Module):
    """A convolution of the image in another size, in the shape of what it stands for."""

    weight: Tensor

    def __init__(self, weight: Tensor, size: tuple[int, int], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.size, self.shape = size, shape
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(_resize(x, self.size), self.weight.to(x), padding=_KERNEL // 2)
        return z.view(len(x), *self.shape)


# ------------------------------------------------------------------------------- what stands behind


def learn_reader(network: nn.Module, way: Way, x: Tensor) -> nn.Module:
    """What stands behind the exits of a way, by the decisions of `network` on the first thousand of
    the images `x` (n, …).

    The logit of a class is log Σ exp(−|f − f_j|² / 2 s²) over the images j of that class, with
    features f and s² the mean squared distance of an image to the nearest other.
    """
    device, dtype = device_of(network), dtype_of(network) or x.dtype
    ends = StandIn(network, way, reader=nn.Identity())
    features, decisions = [], []
    with evaluating(network, ends), torch.no_grad(), drawing(0, device):
        for part in x[:_STORED].to(device, dtype).split(_PART):
            features.append(ends(part).float())
            logits = logits_in(network(part.clone()), len(part))
            decisions.append(logits.nan_to_num().argmax(1))
    return _Near(torch.cat(features), torch.cat(decisions), logits.shape[1])


class _Near(nn.Module):
    """Logits by the classes of the stored features that are near."""

    stored: Tensor

    def __init__(self, stored: Tensor, decided: Tensor, classes: int) -> None:
        super().__init__()
        order = decided.argsort()
        self.register_buffer("stored", stored[order])
        self.counts = torch.bincount(decided, minlength=classes).tolist()
        apart = torch.cdist(self.stored, self.stored).fill_diagonal_(torch.inf)
        self.scale = 1 / max(2 * float(apart.amin(1).square().mean()), 1e-30)

    def forward(self, features: Tensor) -> Tensor:
        near = -self.scale * torch.cdist(features.float(), self.stored).square()
        logits = [part.logsumexp(1) for part in near.split(self.counts, dim=1)]
        # a class that no image is of is further than all
        absent = near.amin(1) - 1
        return torch.stack([z.where(z.isfinite(), absent) for z in logits], dim=1)
