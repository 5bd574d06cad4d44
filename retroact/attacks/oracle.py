"""The network as the attacker may see it.

Decisions and logits come from the network under attack; gradients may come from another one. That
is how transfer (another net's gradients), folding (the same function in a kinder parametrisation)
and smoothed backward passes (BPDA) enter, all three in the same way.

The oracle counts what every example of its chunk costs and what went wrong, refuses more than the
threat model grants, and never leaves a `.grad` on anybody's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retroact.attacks.threat import ACCESS, Access

Network = Callable[[Tensor], Tensor]

_TIED = 2  # roundings of the largest logit that logits must spread over, or they are all alike
_RESOLVED = 256  # and more of them, or an attack's small steps are lost between two numbers,
_RESOLVED_2 = 16  # though fewer of two classes, whose spread is their margin: it is small where the image is just near
_ROOM = 2.0**16  # between logits and the ends of their dtype: slopes may be as many times larger or smaller


class AccessError(PermissionError):
    """An attack asked for more than the threat model grants."""


class Oracle:
    """The network, for a chunk of `n` examples.

    `rows` in every call says which examples of the chunk the tensors stand for. Counters, all (n,):
    `queries` (points that the network under attack was shown), `gradients` (backward passes),
    `zero_gradients` (gradients that were exactly zero), `nonfinite` (bool: a NaN or infinite logit
    or gradient was seen, or logits that are not `apart`).
    """

    def __init__(
        self, network: Network, n: int, *, gradients: Network | None = None, access: Access = "gradient"
    ) -> None:
        self._network = network
        self._guide = network if gradients is None else gradients
        self.access: Access = access
        self.queries, self.gradients, self.zero_gradients = (
            torch.zeros(n, dtype=torch.int64, device="cpu") for _ in range(3)
        )
        self.nonfinite = torch.zeros(n, dtype=torch.bool, device="cpu")
        self._look: _Look | None = None

    def look(self, x: Tensor, *, for_gradient: bool) -> Tensor:
        """Logits of all n clean images: the evaluator's look, not the attacker's, so it needs no access.

        With `for_gradient`, an attack whose first gradient is at these very images gets it from this
        look's graph and saves a forward pass.
        """
        rows = torch.arange(len(x), device="cpu")
        if not for_gradient or self._guide is not self._network or self.access != "gradient":
            return self._forward(x, rows)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = in_float(self._network, leaf)
        self.queries[rows] += 1
        self._flag(rows, logits.detach())
        if logits.requires_grad:
            self._look = _Look(x, leaf, logits, rows)
        return logits.detach()

    def narrowed(self, rows: Tensor, x: Tensor) -> Oracle:
        """An oracle of its own counters for the examples `rows`, whose clean images are `x`."""
        inner = Oracle(self._network, len(rows), gradients=self._guide, access=self.access)
        if self._look is not None:
            inner._look, self._look = self._look._replace(x=x, rows=rows), None
        return inner

    def decisions(self, x: Tensor, rows: Tensor) -> Tensor:
        """The decided class of each example, int64 (m,). Needs access to decisions only."""
        return self._forward(x, rows).argmax(1)

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """Logits (m, k) without a graph. Needs access to scores."""
        self._need("score")
        return self._forward(x, rows)

    def gradient(self, x: Tensor, rows: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (m, k) of the network under attack and d objective / d x, shaped as `x`.

        `objective` takes logits and gives one number per example. Where the gradient is NaN or
        infinite the example is flagged and its gradient is zero, so that no NaN walks into an image.
        """
        logits, _, gradient = self.tangent(x, rows, objective)
        return logits, gradient

    def tangent(self, x: Tensor, rows: Tensor, objective: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`gradient`, and between its two results the logits (m, k) of the network that gave the gradient.

        A linear model of a network needs its values and its slopes from the same network; decisions
        still belong to the network under attack.
        """
        graph = self.graph(x, rows)
        gradient = graph.gradient(None, objective, last=True)
        return graph.logits, graph.seen, gradient

    def progress(self, share: float) -> None:
        """Says how much of a run is behind, from 0 to 1, to a network that wants to know: see `Annealed`."""
        for network in {id(n): n for n in (self._network, self._guide)}.values():
            told = getattr(network, "progress", None)
            if told is not None:
                told(share)

    def graph(self, x: Tensor, rows: Tensor) -> Graph:
        """A forward pass whose graph is kept, for several gradients at the same points.

        Costs each example a query; every gradient that is asked of it counts as a gradient.
        """
        self._need("gradient")
        look, self._look = self._look, None  # its graph serves one asker
        if look is not None and look.x is x:
            seen = look.logits.detach()
            seen = seen if look.rows is None else seen[look.rows]
            return Graph(self, x, rows, look, seen, seen)
        leaf, traced = self._traced(x)
        seen = logits = traced.detach()
        if self._guide is not self._network:
            logits = self._forward(x, rows)
        else:
            self.queries[rows.cpu()] += 1
            self._flag(rows, logits)
        return Graph(self, x, rows, _Look(x, leaf, traced, None), logits, seen)

    def _need(self, needed: Access) -> None:
        if ACCESS.index(needed) > ACCESS.index(self.access):
            raise AccessError(
                f"this attack needs {needed} access, the threat model grants {self.access}; "
                f'use an attack that needs less, or a threat with access="{needed}"'
            )

    @torch.no_grad()
    def _forward(self, x: Tensor, rows: Tensor) -> Tensor:
        logits = in_float(self._network, x)
        self.queries[rows.cpu()] += 1
        self._flag(rows, logits)
        return logits

    def _traced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = in_float(self._guide, leaf)
        if not logits.requires_grad:
            raise AccessError(
                "this network gives no gradient with respect to its input (it detaches, rounds or "
                "leaves torch); use an attack on scores or decisions, or pass a differentiable source="
            )
        return leaf, logits

    def _account(self, gradient: Tensor, rows: Tensor) -> Tensor:
        at = rows.cpu()
        largest = gradient.flatten(1).abs().amax(1)  # NaN and infinity come through, and zero means all zero
        finite = largest.isfinite()
        self.gradients[at] += 1
        self.zero_gradients[at] += (largest == 0).cpu()
        self.nonfinite[at] |= ~finite.cpu()
        return gradient if finite.all() else gradient.where(finite.view(-1, *[1] * (gradient.dim() - 1)), 0.0)

    def _flag(self, rows: Tensor, logits: Tensor) -> None:
        # The spread of two classes is their margin: an attack that looks for the boundary brings it to nothing.
        sound = apart(logits) if logits.shape[1] > 2 else logits.isfinite().all(1)
        self.nonfinite[rows.cpu()] |= ~sound.cpu()


class Graph:
    """The forward pass at m points, kept, so that a further gradient costs a backward pass alone.

    `logits` (m, k) are those of the network under attack, `seen` (m, k) those of the network that gives gradients.
    """

    def __init__(self, oracle: Oracle, x: Tensor, rows: Tensor, look: _Look, logits: Tensor, seen: Tensor) -> None:
        self._oracle, self._x, self._rows, self._look = oracle, x, rows, look
        self.logits, self.seen = logits, seen

    def __len__(self) -> int:
        return len(self._x)

    def gradient(self, some: Tensor | None, objective: Callable[[Tensor], Tensor], *, last: bool = False) -> Tensor:
        """d objective / d x at the points `some` (s,; None: all), shaped (s, …); the pass runs through all m points.

        `objective` takes the logits (s, k) and gives one number per point. `last` frees the graph.
        """
        look, rows = self._look, self._rows if some is None else self._rows[some]
        at = some if look.rows is None else look.rows if some is None else look.rows[some]
        with torch.enable_grad():
            value = objective(look.logits if at is None else look.logits[at]).sum()
        (gradient,) = torch.autograd.grad(value, look.leaf, retain_graph=not last)
        return self._oracle._account(gradient if at is None else gradient[at], rows)

    def narrowed(self, some: Tensor) -> Graph:
        """The graph of the points `some` alone: a forward pass, and cheaper backward passes from then on.

        It tells the attacker nothing that `logits` has not told, so it is no query: counters do not depend on
        who shares a chunk.
        """
        x = self._x[some]
        leaf, traced = self._oracle._traced(x)
        look = _Look(x, leaf, traced, None)
        return Graph(self._oracle, x, self._rows[some], look, self.logits[some], self.seen[some])


class _Look(NamedTuple):
    """The graph of a look at images: `x` as the attack knows them, rows `rows` (None: all) of `leaf`."""

    x: Tensor
    leaf: Tensor
    logits: Tensor
    rows: Tensor | None


def in_float(network: Network, x: Tensor) -> Tensor:
    """The logits of `network` in float32 or better, whatever dtype its weights have."""
    wanted = dtype_of(network)
    logits = network(x if wanted is None else x.to(wanted))
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def apart(logits: Tensor, roundings: float = _TIED) -> Tensor:
    """Bool (n,): whether the logits (n, k) of each image are finite and not all alike: they spread (largest −
    smallest) over more than so many `roundings` of the largest in magnitude."""
    low, high = logits.amin(1), logits.amax(1)
    # false for a NaN and for an infinity, which is not larger than a part of itself
    return high - low > torch.maximum(high, -low) * (roundings * torch.finfo(logits.dtype).eps)


def settled(logits: Tensor) -> Tensor:
    """Bool (n,): whether the logits (n, k) of each clean image carry a decision that can be attacked or called robust.

    They do where they are finite, spread over more than 256 roundings of the largest (two classes: 16; an offset of
    1e8 in float32 leaves no such spread), and lie far enough from the ends of their dtype for slopes to be computed.
    Of a point that an attack has found less is asked, that its logits are `apart`: at their boundary two classes are
    nearly tied.
    """
    info, largest = torch.finfo(logits.dtype), logits.abs().amax(1)
    roomy = (largest > info.tiny * _ROOM) & (largest < info.max / _ROOM)
    return roomy & apart(logits, _RESOLVED if logits.shape[1] > 2 else _RESOLVED_2)


def dtype_of(network: Network) -> torch.dtype | None:
    """The floating dtype of the network's weights, or None where it has none."""
    weights = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((w.dtype for w in weights if w.is_floating_point()), None)


def device_of(network: Network) -> torch.device:
    """The device of the network's weights; the CPU where it has none.

    Raises ValueError where they lie on several devices.
    """
    weights = network.parameters() if isinstance(network, nn.Module) else iter(())
    devices = {w.device for w in weights}
    if len(devices) > 1:
        raise ValueError(
            f"expected a network on one device, got {sorted(map(str, devices))}; call net.to(device) first"
        )
    return devices.pop() if devices else torch.device("cpu")


@contextmanager
def evaluating(*networks: Network | None) -> Iterator[None]:
    """Eval mode for the time of the block; every module's own train/eval flag afterwards as before."""
    modules = [m for net in networks if isinstance(net, nn.Module) for m in net.modules()]
    modes = [m.training for m in modules]
    try:
        for net in networks:
            if isinstance(net, nn.Module):
                net.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
