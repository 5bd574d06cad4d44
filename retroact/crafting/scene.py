"""The scene of an attack: the network as it may be seen, the clean examples, what is wanted of
them, and within which bounds. One value, which every attack takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from retroact.crafting.domain import Domain
from retroact.crafting.goals import Aim
from retroact.crafting.oracle import Network, Oracle
from retroact.crafting.threat import ThreatModel

_TOGETHER = 32  # a pass of fewer small examples takes as long


@dataclass(frozen=True, eq=False)
class Scene:
    """The clean examples `x` (n, …) of a chunk and all that an attack on them may use.

    `oracle` shows the network, `aim` says when an example is broken, `threat` and `domain` bound
    the perturbation, `index` (n,) names each example for its noise under `seed`. Row i of the
    oracle's chunk is row i of `x`.
    """

    oracle: Oracle
    x: Tensor
    aim: Aim
    threat: ThreatModel
    domain: Domain
    index: Tensor
    seed: int

    @classmethod
    def on(
        cls,
        network: Network,
        x: Tensor,
        aim: Aim,
        threat: ThreatModel,
        *,
        domain: Domain | None = None,
        index: Tensor | None = None,
        seed: int = 0,
    ) -> Scene:
        """An attack on `network` at the examples `x` by hand: no source, nothing dropped, numbered
        from 0 and in [0, 1] where nothing else is said."""
        oracle = Oracle(network, len(x), access=threat.access, device=x.device)
        domain = Domain(tuple(x.shape[1:])) if domain is None else domain
        index = torch.arange(len(x), device=x.device) if index is None else index
        return cls(oracle, x, aim, threat, domain, index, seed)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def rows(self) -> Tensor:
        """0 to n − 1, the names of all examples for the oracle."""
        return torch.arange(len(self.x), device=self.x.device)

    def under(self, threat: ThreatModel) -> Scene:
        """The same under another threat."""
        return replace(self, threat=threat)

    def is_broken(self, x: Tensor, rows: Tensor) -> Tensor:
        """Bool (m,): whether the points `x` (m, …) of the examples `rows` reach their goal, by the
        decisions alone: a query each."""
        return self.aim[rows].met(self.oracle.decisions(x, rows))

    def wrong_classes(self, x: Tensor, rows: Tensor) -> Tensor:
        """The classes that are not the true one of each of the examples `rows`, int64 (m, k − 1),
        the likeliest at the points `x` (m, …) first."""
        ranked = self.oracle.ranked(x, rows)
        is_true = ranked == self.aim.labels[rows, None]
        # the true one to the end, all others in their order
        return ranked.gather(1, is_true.byte().argsort(dim=1, stable=True))[:, :-1]

    def at_several(
        self, ask: Callable[[Tensor, Tensor], Tensor], points: Tensor, rows: Tensor
    ) -> Tensor:
        """`ask(x, rows)`, such as `oracle.logits`, at s points (m, s, …) of each example, (m, s,
        …); as many of them at once as the scene has examples, or 32 where it has fewer."""
        flat, names = points.flatten(0, 1), rows.repeat_interleave(points.shape[1])
        together = max(len(self), _TOGETHER)
        both = zip(flat.split(together), names.split(together), strict=True)
        answers = torch.cat([ask(x, part) for x, part in both])
        return answers.view(*points.shape[:2], *answers.shape[1:])

    def clamp(self, x: Tensor) -> Tensor:
        """`x` in the box."""
        return self.domain.clamp(x)

    def project(self, x: Tensor, centre: Tensor) -> Tensor:
        """`x` in the ball around `centre`, and in the box."""
        return self.threat.project(x, centre, self.domain)

    def step(self, x: Tensor, gradient: Tensor, length: float, centre: Tensor) -> Tensor:
        """A step of PGD from `x`, of that length, in the ball around `centre` and in the box."""
        return self.threat.step(x, gradient, length, centre, self.domain)

    def push(
        self,
        x: Tensor,
        gradient: Tensor,
        length: Tensor | float,
        centre: Tensor,
        entries: Tensor | None = None,
    ) -> Tensor:
        """What a step of that length from `x` up a `gradient` adds to it; around `centre`, which is
        `x` for a single step."""
        return self.threat.push(x, gradient, length, centre, self.domain, entries)

    def start(self, rows: Tensor, stream: int = 0) -> Tensor:
        """A random point of the ball around each of the examples `rows`."""
        index = self.index[rows]
        return self.threat.start(self.x[rows], self.domain, index, self.seed, stream)
