"""The network as the attacker may see it.

Decisions and logits come from the network under attack; gradients may come from another one. That
is how transfer (another net's gradients), folding (the same function in a kinder parametrisation)
and smoothed backward passes (BPDA) enter, all three in the same way.

The oracle counts what every example of its chunk costs and what went wrong, refuses more than the
threat model grants, and never leaves a `.grad` on anybody's parameters.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from retroact.crafting.float_twin import FloatTwin
from retroact.crafting.geometry import each
from retroact.crafting.threat import ACCESS, Access
from retroact.doors import SeveralPlacesError, logits_in, places, spelled, switch_to_eval
from retroact.stopping import check_wanted

Network = Callable[[Tensor], Tensor]
View = Callable[[Tensor, Tensor], Tensor]
"""What an attacker sees of logits (m, k), given the rows (m,) of the examples that they are of."""

Crafting = Literal["float32", "bfloat16"]
"""What an attack's gradients are computed in."""

_TIED = 2  # roundings of the largest logit that logits must spread over, or they are all alike
_RESOLVED = 256  # and more of them, or an attack's small steps are lost between two numbers,
# though fewer of two classes, whose spread is their margin: it is small where the image is just
# near
_RESOLVED_2 = 16
# between logits and the ends of their dtype: slopes may be as many times larger or smaller
_ROOM = 2.0**16


class AccessError(PermissionError):
    """An attack asked for more than the threat model grants."""


class Oracle:
    """The network, for a chunk of `n` examples.

    `rows` in every call says which examples of the chunk the tensors stand for; where no gradient
    is asked for, several points of one example may stand in a call. Counters, all (n,) and on the
    `device` that the examples lie on, where nothing waits for them: `queries` (points that the
    network under attack was shown), `gradients` (backward passes), `zero_gradients` (gradients that
    were exactly zero), `nonfinite` (bool: a NaN or infinite logit or gradient was seen, or logits
    that are not `apart`). `view` is what is made of all logits before anybody sees them. No more
    than `batch` points at once are shown to the network, so that a call for more of them is made
    in full batches, however many examples have left. With `crafting` "bfloat16" a gradient is
    that of the network under torch's autocast, taken at the logits that it gives in float32, which
    are all that is ever seen.
    """

    def __init__(
        self,
        network: Network,
        n: int,
        *,
        source: Network | None = None,
        access: Access = "gradient",
        view: View | None = None,
        device: torch.device | str = "cpu",
        batch: int | None = None,
        crafting: Crafting = "float32",
    ) -> None:
        self._network, self._view = network, view
        self._batch, self._crafting = batch, crafting
        self._source = network if source is None else source
        self.access: Access = access
        # one tensor, so that a call is counted by one operation
        self._tally = torch.zeros(len(_TALLIED), n, dtype=torch.int64, device=device)
        self._look: _Look | None = None

    @property
    def queries(self) -> Tensor:
        """Points of each example that the network under attack was shown, int64 (n,)."""
        return self._tally[_QUERIES]

    @property
    def gradients(self) -> Tensor:
        """Backward passes for each example, int64 (n,)."""
        return self._tally[_GRADIENTS]

    @property
    def zero_gradients(self) -> Tensor:
        """Of these, gradients that were exactly zero, int64 (n,)."""
        return self._tally[_ZEROS]

    @property
    def nonfinite(self) -> Tensor:
        """Whether a NaN or infinite number, or logits that are not `apart`, were seen, bool
        (n,)."""
        return self._tally[_UNSOUND] > 0

    def flag(self, unsound: Tensor) -> None:
        """Sets `nonfinite` where `unsound`, bool (n,)."""
        self._tally[_UNSOUND] += unsound

    def forgive(self) -> None:
        """Takes all `nonfinite` flags back: what was shown were no examples."""
        self._tally[_UNSOUND] = 0

    def add(self, inner: Oracle, rows: Tensor) -> None:
        """Adds what an oracle `narrowed` to the examples `rows` has counted."""
        self._tally.index_add_(1, rows, inner._tally)

    def look(self, x: Tensor, *, for_gradient: bool) -> Tensor:
        """Logits of all n clean images: the evaluator's look, not the attacker's, so it needs no
        access.

        With `for_gradient`, an attack whose first gradient is at these very images gets it from
        this look's graph and saves a forward pass.
        """
        rows = torch.arange(len(x), device=x.device)
        asked = for_gradient and self._source is self._network and self.access == "gradient"
        if not asked or self._source_is_quantised:
            return self._forward(x, rows)
        leaf, logits = self._with_graph(x, rows)
        self._count_query(rows, logits.detach())
        self._look = _Look(x, leaf, logits, rows)
        return logits.detach()

    def narrowed(self, rows: Tensor, x: Tensor) -> Oracle:
        """An oracle of its own counters for the examples `rows`, whose clean images are `x`."""
        view, at = self._view, rows
        how: dict[str, Any] = {"source": self._source, "access": self.access, "device": x.device}
        how |= {"batch": self._batch, "crafting": self._crafting}
        inner = Oracle(self._network, len(rows), **how)
        inner._source_is_quantised = self._source_is_quantised
        inner._view = None if view is None else lambda z, some: view(z, at[some])
        if self._look is not None:
            inner._look, self._look = self._look._replace(x=x, rows=rows), None
        return inner

    def decisions(self, x: Tensor, rows: Tensor) -> Tensor:
        """The decided class of each example, int64 (m,), −1 where its logits are not `apart`. Needs
        access to decisions only."""
        logits = self._forward(x, rows)
        return torch.where(apart(logits), logits.argmax(1), -1)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Logits (m, k) without a graph. Needs access to scores."""
        self._require("score")
        return self._forward(x, rows)

    @torch.no_grad()
    def ranked(self, x: Tensor, rows: Tensor) -> Tensor:
        """The classes of each example, int64 (m, k), the likeliest first; where the network under
        attack ranks some alike, as one that gives decisions alone does, the one that gives
        gradients ranks these. Needs access to scores."""
        own = self.logits(x, rows)
        if self._source is self._network:
            return own.argsort(dim=1, descending=True, stable=True)
        parts = x.split(self._batch or len(x) or 1)
        seen = torch.cat([in_float(self._source, part) for part in parts])
        by = (seen if self._view is None else self._view(seen, rows)).argsort(
            dim=1, descending=True
        )
        return by.gather(1, own.gather(1, by).argsort(dim=1, descending=True, stable=True))

    def gradient(
        self, x: Tensor, rows: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits (m, k) of the network under attack and d objective / d x, shaped as `x`.

        `objective` takes logits and gives one number per example. Where the gradient is NaN or
        infinite the example is flagged and its gradient is zero, so that no NaN walks into an
        image.
        """
        logits, _, gradient = self.tangent(x, rows, objective)
        return logits, gradient

    def tangent(
        self, x: Tensor, rows: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`gradient`, and between its two results the logits (m, k) of the network that gave the
        gradient.

        A linear model of a network needs its values and its slopes from the same network; decisions
        still belong to the network under attack.
        """
        if self._batch is None or len(x) <= self._batch:
            return self._tangent(x, rows, objective)
        parts = torch.arange(len(x), device=x.device).split(self._batch)
        every = (self._tangent(x[p], rows[p], partial(_ask_part, objective, p, x)) for p in parts)
        logits, seen, gradient = (torch.cat(column) for column in zip(*every, strict=True))
        return logits, seen, gradient

    def _tangent(
        self, x: Tensor, rows: Tensor, objective: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        graph = self.graph(x, rows)
        gradient = graph.gradient(None, objective, last=True)
        return graph.logits, graph.seen, gradient

    def progress(self, share: float) -> None:
        """Says how much of a run is behind, from 0 to 1, to a network that wants to know: see
        `Annealed`."""
        for network in {id(n): n for n in (self._network, self._source)}.values():
            told = getattr(network, "progress", None)
            if told is not None:
                told(share)

    def graph(self, x: Tensor, rows: Tensor) -> Graph:
        """A forward pass whose graph is kept, for several gradients at the same points.

        Costs each example a query; every gradient that is asked of it counts as a gradient.
        """
        self._require("gradient")
        if self._source_is_quantised:
            raise AccessError(
                _no_gradient(
                    "quantised layers have no derivative, so one around them would mislead"
                )
            )
        look, self._look = self._look, None  # its graph serves one asker
        if look is not None and look.x is x:
            seen = look.logits.detach()
            seen = seen if look.rows is None else seen[look.rows]
            return Graph(self, x, rows, look, seen, seen)
        leaf, traced = self._with_graph(x, rows)
        seen = logits = traced.detach()
        if self._source is not self._network:
            logits = self._forward(x, rows)
        else:
            self._count_query(rows, logits)
        return Graph(self, x, rows, _Look(x, leaf, traced, None), logits, seen)

    def _with_graph(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        company = len(x) == 1 and self._source_wants_company
        with _computing_in(self._crafting, x.device):
            leaf, logits = with_graph(self._source, x, company)
        if self._crafting != "float32":
            logits = _with_values(self._source, x, logits)
        with torch.enable_grad():
            return leaf, logits if self._view is None else self._view(logits, rows)

    @cached_property
    def _source_wants_company(self) -> bool:
        return wants_company(self._source)

    @cached_property
    def _source_is_quantised(self) -> bool:
        return is_quantised(self._source)

    def _require(self, needed: Access) -> None:
        if ACCESS.index(needed) > ACCESS.index(self.access):
            raise AccessError(
                f"this attack needs {needed} access, the threat model grants {self.access}; "
                f'use an attack that needs less, or a threat with access="{needed}"'
            )

    @torch.no_grad()
    def _forward(self, x: Tensor, rows: Tensor) -> Tensor:
        parts = x.split(self._batch or len(x) or 1)
        logits = torch.cat([in_float(self._network, part) for part in parts])
        logits = logits if self._view is None else self._view(logits, rows)
        self._count_query(rows, logits)
        return logits

    def _account(self, gradient: Tensor, rows: Tensor) -> Tensor:
        # NaN and infinity come through, and zero means all zero
        largest = torch.linalg.vector_norm(gradient.flatten(1), ord=torch.inf, dim=1)
        finite = largest.isfinite()
        seen = torch.stack([torch.ones_like(finite), largest == 0, ~finite])
        self._tally[:_QUERIES].index_add_(1, rows, seen.to(self._tally.dtype))
        if gradient.is_cpu and finite.all():  # where to look stops nothing that runs ahead
            return gradient
        return _heal(gradient)

    def _count_query(self, rows: Tensor, logits: Tensor) -> None:
        # The spread of two classes is their margin: an attack that looks for the boundary brings it
        # to nothing.
        sound = apart(logits) if logits.shape[1] > 2 else logits.isfinite().all(1)
        seen = torch.stack([~sound, torch.ones_like(sound)])  # a row may stand twice
        self._tally[_UNSOUND:].index_add_(1, rows, seen.to(self._tally.dtype))


def _heal(gradient: Tensor) -> Tensor:
    """A gradient whose entries without a number are 0, and whose infinite ones, as a root has where
    it begins, point where they did with the size of the largest finite one, or 1."""
    known = gradient.nan_to_num(0.0, 0.0, 0.0)
    peak = torch.linalg.vector_norm(known.flatten(1), ord=torch.inf, dim=1)
    size = each(peak.where(peak > 0, 1.0), gradient)
    return (gradient.sign() * size).where(gradient.isinf(), known)


def _ask_part(
    objective: Callable[[Tensor], Tensor], part: Tensor, x: Tensor, logits: Tensor
) -> Tensor:
    """The `objective` of all points `x`, for the `part` of them whose logits these are: it knows
    the examples by their places."""
    every = logits.new_zeros(len(x), logits.shape[1]).index_copy(0, part, logits)
    return objective(every)[part]


# what an oracle counts, row by row: a gradient adds to the first three, a query to the last two
_TALLIED = _GRADIENTS, _ZEROS, _UNSOUND, _QUERIES = range(4)


class Graph:
    """The forward pass at m points, kept, so that a further gradient costs a backward pass alone.

    `logits` (m, k) are those of the network under attack, `seen` (m, k) those of the network that
    gives gradients.
    """

    def __init__(
        self, oracle: Oracle, x: Tensor, rows: Tensor, look: _Look, logits: Tensor, seen: Tensor
    ) -> None:
        self._oracle, self._x, self._rows, self._look = oracle, x, rows, look
        self.logits, self.seen = logits, seen
        self._serves_once = self._spent = False

    def __len__(self) -> int:
        return len(self._x)

    def gradient(
        self, some: Tensor | None, objective: Callable[[Tensor], Tensor], *, last: bool = False
    ) -> Tensor:
        """d objective / d x at the points `some` (s,; None: all), shaped (s, …); the pass runs
        through all m points.

        `objective` takes the logits (s, k) and gives one number per point. `last` frees the graph.
        Where a graph serves only once, as that of compiled code may, every gradient has a pass of
        its own.
        """
        if self._spent:
            self._look = self._look_again(self._x, self._rows)
        look, rows = self._look, self._rows if some is None else self._rows[some]
        at = some if look.rows is None else look.rows if some is None else look.rows[some]
        with torch.enable_grad():
            value = objective(look.logits if at is None else look.logits[at]).sum()
        keep = not (last or self._serves_once)
        try:
            (gradient,) = torch.autograd.grad(
                value, look.leaf, retain_graph=keep, allow_unused=True
            )
        except RuntimeError as e:
            if is_out_of_memory(e) or isinstance(e, getattr(torch, "AcceleratorError", ())):
                raise
            if not keep:
                raise AccessError(_no_gradient(e)) from e
            self._serves_once = self._spent = True
            return self.gradient(some, objective, last=last)
        if gradient is None:
            raise AccessError(_no_gradient())
        self._spent = self._serves_once
        gradient = gradient.to(self._x.dtype)
        return self._oracle._account(gradient if at is None else gradient[at], rows)

    def _look_again(self, x: Tensor, rows: Tensor) -> _Look:
        return _Look(x, *self._oracle._with_graph(x, rows), None)

    def narrowed(self, some: Tensor) -> Graph:
        """The graph of the points `some` alone: a forward pass, and cheaper backward passes from
        then on.

        It tells the attacker nothing that `logits` has not told, so it is no query: counters do not
        depend on who shares a chunk.
        """
        look = self._look_again(self._x[some], self._rows[some])
        narrow = Graph(
            self._oracle, look.x, self._rows[some], look, self.logits[some], self.seen[some]
        )
        narrow._serves_once = self._serves_once
        return narrow


@contextmanager
def _computing_in(crafting: Crafting, device: torch.device) -> Iterator[None]:
    """The layers of a network compute in bfloat16 within the block, where that is asked for."""
    if crafting == "float32":
        yield
        return
    with torch.autocast(device.type, dtype=torch.bfloat16):
        yield


def _with_values(network: Network, x: Tensor, logits: Tensor) -> Tensor:
    """The network's own logits, bit for bit, with the graph of these."""
    with torch.no_grad():
        own = in_float(network, x)
    with torch.enable_grad():
        return own + (logits - logits.detach())  # a zero that has a graph


class _Look(NamedTuple):
    """The graph of a look at images: `x` as the attack knows them, rows `rows` (None: all) of
    `leaf`."""

    x: Tensor
    leaf: Tensor
    logits: Tensor
    rows: Tensor | None


def with_graph(network: Network, x: Tensor, company: bool | None = None) -> tuple[Tensor, Tensor]:
    """A leaf at `x`, and the logits there with their graph; AccessError where the network makes
    none."""
    leaf = x.detach().requires_grad_()
    try:
        with torch.enable_grad():
            logits = in_company(network, leaf, company)
    except Exception as e:
        if is_out_of_memory(e) or not _answers(network, x):
            raise
        raise AccessError(_no_gradient(e)) from e
    if not logits.requires_grad:
        raise AccessError(_no_gradient())
    return leaf, logits


def in_company(network: Network, leaf: Tensor, company: bool | None = None) -> Tensor:
    """`in_float` of images whose gradient is wanted, where a batch of one has company if the
    network wants it.

    On a CPU, torch (2.13) gives a batch norm in eval mode a wrong gradient for a batch of one whose
    incoming gradient lies in channels last, as after flatten(2).transpose(1, 2): every stem of
    convolutions before attention. The logits are right, so nothing shows. `company` says what
    `wants_company` would, where it has been asked.
    """
    if (
        len(leaf) != 1
        or leaf.device.type != "cpu"
        or not (wants_company(network) if company is None else company)
    ):
        return in_float(network, leaf)
    return in_float(network, torch.cat([leaf, leaf.detach()]))[:1]


def wants_company(network: Network) -> bool:
    """Whether there is a batch norm in it."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return any(isinstance(m, norms) for net in modules_of(network) for m in net.modules())


def is_quantised(network: Network) -> bool:
    """Whether there are layers of integers in it, which have no derivative; a twin in floats has
    none."""
    kinds = {type(m) for net in modules_of(network) for m in net.modules()}
    homes = {kind.__module__ for kind in kinds}
    within = any(home.startswith("torch.ao.nn.") and ".quantized" in home for home in homes)
    return within and FloatTwin not in kinds


@torch.no_grad()
def _answers(network: Network, x: Tensor) -> bool:
    """Whether the network gives logits where nobody asks for gradients."""
    try:
        in_float(network, x)
    except Exception:
        return False
    return True


def _no_gradient(why: object = "it detaches, rounds, is quantised or leaves torch") -> str:
    reason = str(why).strip().partition("\n")[0] or type(why).__name__
    return (
        f"this network gives no gradient with respect to its input ({reason}); "
        "use an attack on scores or decisions, or pass a differentiable source="
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice; torch has a type for accelerators only, its CPU allocator
    raises RuntimeError, and so does oneDNN, which says no more than that it made nothing."""
    named = isinstance(error, MemoryError | torch.OutOfMemoryError)
    said = str(error) if isinstance(error, RuntimeError) else ""
    return named or any(word in said for word in _NO_ROOM)


_NO_ROOM = ("not enough memory", "can't allocate memory", "could not create a primitive")


# ------------------------------------------------------------------------------- one network, asked


def in_float(network: Network, x: Tensor) -> Tensor:
    """The logits (n, k), k ≥ 2, of `network` in float32 or better, on the device of `x`, whatever
    its weights have and wherever in its output they are: see `logits_in`.

    The network gets its own copy of `x` in the dtype of its weights, so that it may write to it,
    and what it returns is copied, so that it may keep it. Raises as `logits_in` does, and NotWanted
    where nobody wants the answer any more: every step of an attack comes by here.
    """
    try:
        return _ask(network, x)
    except SeveralPlacesError as e:
        # what does not grow with the batch, such as a constant of as many rows, belongs to no image
        try:
            return _ask(network, torch.cat([x, x[-1:]]))[:-1]
        except SeveralPlacesError:
            raise e from None


def _ask(network: Network, x: Tensor) -> Tensor:
    check_wanted()
    wanted = dtype_of(network) or x.dtype
    try:
        out = network(x.to(wanted, copy=True))
    except (AssertionError, RuntimeError):
        size = _batch_size_of(network)
        if size is None or size == len(x):
            raise
        return torch.cat([_pad(network, part, size) for part in x.split(size)])
    logits = logits_in(out, len(x)).as_subclass(Tensor)  # a subclass need not know what losses call
    return logits.to(
        x.device, torch.float32 if logits.dtype in _HALVES else logits.dtype, copy=True
    )


_HALVES = (torch.float16, torch.bfloat16)


def _pad(network: Network, x: Tensor, size: int) -> Tensor:
    """The logits of up to `size` images from a network that takes no fewer: the last image makes
    the batch full."""
    return _ask(network, torch.cat([x, x[-1:].expand(size - len(x), *x.shape[1:])]))[: len(x)]


def _batch_size_of(network: Network) -> int | None:
    """The only batch size that an exported network takes, where it was exported for one."""
    exported = (
        m for net in modules_of(network) for m in net.modules() if isinstance(m, fx.GraphModule)
    )
    inputs = (
        n.meta["val"]
        for m in exported
        for n in m.graph.nodes
        if n.op == "placeholder" and "val" in n.meta
    )
    sizes = (i.shape[0] for i in inputs if isinstance(i, Tensor) and i.ndim)
    return next((size for size in sizes if isinstance(size, int)), None)


@torch.no_grad()
def place_of(network: Network, x: Tensor) -> str:
    """Where in the network's output its logits were found, as output= of a Classifier has it; ""
    for a tensor."""
    with evaluating(network), places() as where:
        in_float(network, x.to(device_of(network)))
    return spelled(where[0]) if where else ""


def apart(logits: Tensor, roundings: float = _TIED) -> Tensor:
    """Bool (n,): whether the logits (n, k) of each image are finite and not all alike: they spread
    (largest − smallest) over more than so many `roundings` of the largest in magnitude."""
    low, high = logits.amin(1), logits.amax(1)
    # false for a NaN and for an infinity, which is not larger than a part of itself
    return high - low > torch.maximum(high, -low) * (roundings * torch.finfo(logits.dtype).eps)


def settled(logits: Tensor) -> Tensor:
    """Bool (n,): whether the logits (n, k) of each clean image carry a decision that can be
    attacked or called robust.

    They do where they are finite, spread over more than 256 roundings of the largest (two classes:
    16; an offset of 1e8 in float32 leaves no such spread), and lie far enough from the ends of
    their dtype for slopes to be computed. Of a point that an attack has found less is asked, that
    its logits are `apart`: at their boundary two classes are nearly tied.
    """
    info, largest = torch.finfo(logits.dtype), logits.abs().amax(1)
    roomy = (largest > info.tiny * _ROOM) & (largest < info.max / _ROOM)
    return roomy & apart(logits, _RESOLVED if logits.shape[1] > 2 else _RESOLVED_2)


def dtype_of(network: Network) -> torch.dtype | None:
    """The floating dtype of the network's weights, or None where it has none."""
    return next((w.dtype for w in _weights(network) if w.is_floating_point()), None)


def device_of(network: Network) -> torch.device:
    """The device of the network's weights; the CPU where it has none.

    Raises ValueError where they lie on several devices.
    """
    devices = {w.device for w in _weights(network)}
    if len(devices) > 1:
        raise ValueError(
            f"expected a network on one device, got {sorted(map(str, devices))}; call"
            " net.to(device) first"
        )
    return devices.pop() if devices else torch.device("cpu")


class _Held(threading.local):
    """The identities of the networks that this thread holds in eval mode."""

    networks: frozenset[int] = frozenset()


_HELD = _Held()


@contextmanager
def evaluating(*networks: Network | None) -> Iterator[None]:
    """Eval mode for the time of the block; every module's own train/eval flag afterwards as
    before. A block within a block of the same network, in one thread, finds it done."""
    new = [n for n in networks if n is not None and id(n) not in _HELD.networks]
    if not new:
        yield
        return
    nets = [net for network in new for net in modules_of(network)]
    # a frozen script has no mode
    modules = [m for net in nets for m in net.modules() if hasattr(m, "training")]
    modes, names = [m.training for m in modules], {id(n) for n in new}
    try:
        for net in nets:
            switch_to_eval(net)
        _HELD.networks |= names
        yield
    finally:
        _HELD.networks -= names  # and no others, as blocks of generators may end in any order
        for module, mode in zip(modules, modes, strict=True):
            if module.training != mode:
                module.training = mode


# ------------------------------------------------------------------------ what a network is made of


def modules_of(network: Any) -> Iterator[nn.Module]:
    """The modules behind a network: itself, those that a function reads, a partial or a method
    carries or an object has, and those that a module keeps in a list, where `modules()` does not
    find them; each once, the nearest first.
    """
    seen: set[int] = set()
    waiting = deque([(network, 0)])
    while waiting:
        holder, depth = waiting.popleft()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        if isinstance(holder, nn.Module):
            yield holder
            seen.update(id(m) for m in holder.modules())
        if depth < _DEEPEST:
            waiting.extend((held, depth + 1) for held in _leads_of(holder))


_DEEPEST = 6
_LEADS = (nn.Module, FunctionType, MethodType, partial)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _leads_of(holder: Any) -> Iterator[Any]:
    """What may lead from here to a module; of lists only what does, as they may be data."""
    if isinstance(holder, nn.Module):
        for module in holder.modules():
            kept = (v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE)
            yield from (v for v in kept if isinstance(v, (*_LEADS, list, tuple, dict)))
    elif isinstance(holder, partial):
        yield from (holder.func, *holder.args, *holder.keywords.values())
    elif isinstance(holder, MethodType):
        yield from (holder.__self__, holder.__func__)
    elif isinstance(holder, FunctionType):
        yield from _reads_of(holder)
    elif isinstance(holder, list | tuple | Mapping):
        inside = holder.values() if isinstance(holder, Mapping) else holder
        yield from (v for v in inside if isinstance(v, _LEADS))
    elif not isinstance(holder, type | ModuleType | Tensor):
        yield from getattr(holder, "__dict__", {}).values()


def _reads_of(function: FunctionType) -> Iterator[Any]:
    """Defaults, what the function closes over, and the globals that it names, also as attributes of
    imported files."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from (cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell))
    known = function.__globals__
    if known.get("__name__", "").split(".")[0] == "torch":
        return
    names = _names(function.__code__)
    for value in (known[name] for name in names if name in known):
        if isinstance(value, ModuleType):
            inside = (vars(value).get(name) for name in names)
            yield from (v for v in inside if isinstance(v, nn.Module | FunctionType))
        else:
            yield value


def _names(code: CodeType) -> list[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return [*code.co_names, *(name for part in inner for name in _names(part))]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _weights(network: Any) -> Iterator[Tensor]:
    """The weights of the first module behind the network that has any; none where nothing has."""
    if isinstance(network, torch.jit.ScriptFunction):
        yield from _largest_constant([network])
    for net in modules_of(network):
        for kind in (net.parameters(), _largest_constant(net.modules()), net.buffers()):
            first = next(kind, None)
            if first is not None:
                yield first
                yield from kind
                return


def _largest_constant(parts: Iterable[Any]) -> Iterator[Tensor]:
    """The largest tensor that freezing or tracing has written into a script: a weight, not a number
    beside it."""
    scripts = (p for p in parts if isinstance(p, torch.jit.ScriptModule | torch.jit.ScriptFunction))
    graphs = (getattr(script, "graph", None) for script in scripts)
    nodes = (
        node
        for graph in graphs
        if graph is not None
        for node in graph.findAllNodes("prim::Constant")
    )
    values = [n.output().toIValue() for n in nodes if n.output().type().kind() == "TensorType"]
    tensors = [v for v in values if isinstance(v, Tensor)]
    if tensors:
        yield max(tensors, key=Tensor.numel)
