"""DeepFool: step to the nearest boundary of the linearised network, until the decision changes.

At x, with gaps g_j = f_y − f_j and slopes w_j = ∇(f_j − f_y), the nearest linearised boundary is
that of l = argmin_j g_j / ‖w_j‖_q; r ← r + (g_l / ‖w_l‖_q) · s(w_l) and x ← clip(x_0 + (1 +
overshoot) r).

Three things make it cheap. Examples leave as soon as they are broken. Several slopes at one point
cost one forward pass. And not every class is asked for its slope: classes are ranked by g_j over
the length that their slope had when it was last seen, and those that seem much farther than the
best are not asked at all.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.geometry import put
from retroact.crafting.goals import Aim
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.oracle import Graph
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import Smallest
from retroact.crafting.threat import Access, ThreatModel
from retroact.spec import AtLeast0, Count, Within, spec

# of the perturbation so far, added to each step: steps from inside never quite arrive
_NUDGE = 0.03
_HOPELESS = 1.5  # a class that seems this much farther than the best is not asked for its slope
_SURE = 1.25  # the same, where its slope has been seen at the point before
# a smaller part of the points gets a graph of its own: a backward pass costs about two forward
# passes
_FEW = 0.5


@spec
class DeepFool(Attack):
    """At most `steps` steps to the nearest linearised boundary among the `candidates` likeliest
    classes.

    `overshoot` is added to the whole perturbation, so that it ends beyond the boundary; `probes`
    forward passes then draw the result back to it (0: the plain algorithm).
    """

    steps: Count = 50
    candidates: Annotated[int, Within(2)] = 10
    overshoot: AtLeast0 = 0.02
    probes: Annotated[int, Within(0)] = 4
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Moosavi-Dezfooli et al. 2016, arXiv:1511.04599"
    version: ClassVar[int] = 3  # four probes where there were two
    starts_clean: ClassVar[bool] = True
    # examples leave one by one: a larger chunk stays full enough for longer
    chunk: ClassVar[int] = 128

    @property
    def passes(self) -> int:
        return self.steps * (self.candidates - 1) + (self.probes > 0)  # the polish takes one

    def __call__(self, scene: Scene) -> Tensor:
        x, threat, smallest = scene.x, scene.threat, Smallest(scene)
        rows, at, r, lengths = scene.rows, x, torch.zeros_like(x), None
        for _ in range(self.steps):
            graph, aim = scene.oracle.graph(at, rows), scene.aim[rows]
            near = _Nearest(graph, at, aim, threat, self.candidates, lengths)
            go = near.search(~smallest.keep(at, near.logits, rows)).nonzero()[:, 0]
            rows, at, r, lengths = rows[go], at[go], r[go], near.lengths[go]
            if len(rows) == 0:
                break
            step = near.distance[go] + _NUDGE * threat.size(r) + 1e-6 * scene.domain.width
            r = r + scene.push(at, near.slope[go], step, at)
            at = scene.clamp(x[rows] + (1 + self.overshoot) * r)
        else:
            smallest.keep(at, scene.oracle.logits(at, rows), rows)
        smallest.pull(self.probes)
        return smallest.polish(self.probes)


class _Nearest:
    """The nearest linearised boundary of each of m examples: its `distance` (m,), infinite where
    there is none, and its `slope`, shaped as `x`; `lengths` (m, k) keeps ‖w_j‖_q as last seen, 0
    where never.
    """

    def __init__(
        self,
        graph: Graph,
        x: Tensor,
        aim: Aim,
        threat: ThreatModel,
        candidates: int,
        lengths: Tensor | None,
    ) -> None:
        self._graph, self._aim, self._threat = graph, aim, threat
        self.logits = graph.logits
        self.lengths = torch.zeros_like(self.logits) if lengths is None else lengths
        # of the classes not asked yet; infinite once asked
        self._gaps = _gaps(graph.seen, aim, candidates)
        self.distance = torch.full_like(self._gaps[:, 0], torch.inf)
        self.slope = torch.zeros_like(x)

    def search(self, alive: Tensor) -> Tensor:
        """Asks for slopes until the classes left seem hopeless; returns which examples are `alive`
        and have a boundary to go to, bool (m,)."""
        # the points of the graph
        graph, among = self._graph, torch.arange(len(alive), device=alive.device)
        while True:
            classes, ask = self._worth_asking(among, alive)
            if len(ask) == 0:
                return alive & self.distance.isfinite()
            if len(ask) < _FEW * len(among):
                graph, among, classes = graph.narrowed(ask), among[ask], classes[ask]
                ask = torch.arange(len(among), device=among.device)
            rows, classes = among[ask], classes[ask]
            gain = partial(_gain, classes=classes, aim=self._aim[rows])
            self._learn(rows, classes, graph.gradient(ask, gain))

    def _worth_asking(self, among: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """The class that seems nearest to each of the examples `among`, and the places in `among`
        of those whose class may yet turn out to be the nearest."""
        lengths = self.lengths[among]
        best, classes = _rank(self._gaps[among], lengths).min(1)
        seen = lengths.gather(1, classes[:, None])[:, 0] > 0
        far = torch.where(seen, _SURE * self.distance[among], _HOPELESS * self.distance[among])
        return classes, (alive[among] & best.isfinite() & (best < far)).nonzero()[:, 0]

    def _learn(self, rows: Tensor, classes: Tensor, slope: Tensor) -> None:
        length = self._threat.dual_norm(slope)
        distance = self._gaps[rows, classes] / length
        better = (length > 0) & (distance < self.distance[rows])
        put(self.distance, rows, distance, better)
        put(self.slope, rows, slope, better)
        self.lengths[rows, classes], self._gaps[rows, classes] = length, torch.inf


def _gaps(logits: Tensor, aim: Aim, candidates: int) -> Tensor:
    """|f_y − f_j| for each class j that may be stepped to, (m, k); infinite for the others."""
    gaps = (logits.gather(1, _leader(logits, aim)[:, None]) - logits).abs()
    if aim.targets is not None:
        return torch.full_like(gaps, torch.inf).scatter(
            1, aim.targets[:, None], gaps.gather(1, aim.targets[:, None])
        )
    gaps = gaps.scatter(1, aim.labels[:, None], torch.inf)
    if candidates - 1 < gaps.shape[1]:
        gaps = gaps.masked_fill(
            gaps > gaps.kthvalue(candidates - 1, dim=1).values[:, None], torch.inf
        )
    return gaps


def _gain(logits: Tensor, classes: Tensor, aim: Aim) -> Tensor:
    return (logits.gather(1, classes[:, None]) - logits.gather(1, _leader(logits, aim)[:, None]))[
        :, 0
    ]


def _leader(logits: Tensor, aim: Aim) -> Tensor:
    """The class to overtake: the true one untargeted, the best but the target otherwise, (m,)."""
    return (
        aim.labels
        if aim.targets is None
        else logits.scatter(1, aim.targets[:, None], -torch.inf).argmax(1)
    )


def _rank(gaps: Tensor, lengths: Tensor) -> Tensor:
    """Estimated distances (m, k): where no slope has been seen, its length is taken to be the mean
    of those seen."""
    seen = lengths > 0
    mean = lengths.sum(1) / seen.sum(1)
    return gaps / lengths.where(seen, mean.nan_to_num(1.0)[:, None])
