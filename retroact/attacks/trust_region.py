"""Trust Region: DeepFool's step, no longer than the region in which the linear model is trusted.

One class is chosen on the clean image, that of the nearest ("best") or farthest ("worst")
linearised boundary. Then x ← clip(x + min(g / ‖w‖_q, radius) · s(w)), g = f_top − f_t, w = ∇(f_t −
f_top), until the goal is reached. With `adaptive` the radius follows ρ = (decrease of g) /
(decrease that the linear model promised): larger by a fifth above 0.9, smaller by a fifth below 0.5
(Yao et al. 2018, Algorithm 1).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.crafting.oracle import Graph
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import Smallest
from retroact.crafting.threat import Access
from retroact.spec import AtLeast0, Count, Positive, Within, spec

Classes = Literal["best", "worst"]
_NUDGE = 1e-3  # of the first radius, added to each step: steps from inside never quite arrive
_RANGE = 10.0  # an adaptive radius stays within this factor of the first


@spec
class TrustRegion(Attack):
    """At most `steps` steps of at most `radius` (pixels: shares of the box's width, in the threat's
    norm; None: 0.15 in L2, 0.005 in L_inf).

    `classes`: whether to go to the nearest or the farthest of the `candidates` likeliest classes;
    with "worst" nothing but a decision for that class ends the walk. `overshoot` lengthens each
    step, as in the authors' code; `probes` forward passes draw the result towards the clean image
    (0: the published end).
    """

    steps: Count = 1000
    radius: Positive | None = None
    adaptive: bool = False
    classes: Classes = "best"
    candidates: Annotated[int, Within(2)] = 10
    overshoot: AtLeast0 = 0.02
    probes: Annotated[int, Within(0)] = 2
    # in L1 its step would change one entry at a time, and that stops at kinks of the network
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Yao et al. 2018, arXiv:1812.06371"
    starts_clean: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.candidates - 1 + self.steps

    def __call__(self, scene: Scene) -> Tensor:
        x, threat = scene.x, scene.threat
        towards = Aim(scene.aim.labels, self._choose(scene))
        smallest = Smallest(replace(scene, aim=towards) if self.classes == "worst" else scene)
        rows, at, first = scene.rows, x, (self.radius or threat.region) * scene.domain.width
        radius, before, promised = x.new_full((3, len(x)), first)
        for i in range(self.steps):
            climbed = partial(margin, aim=towards[rows])
            logits, seen, slope = scene.oracle.tangent(at, rows, climbed)
            gain, length = climbed(seen), threat.dual_norm(slope)
            if self.adaptive and i > 0:
                radius = _adapt(radius, (gain - before) / promised, first)
            go = (~smallest.keep(at, logits, rows) & (length > 0)).nonzero()[:, 0]
            rows, at, slope, gain, length, radius = (
                t[go] for t in (rows, at, slope, gain, length, radius)
            )
            if len(rows) == 0:
                return smallest.pull(self.probes)
            step = torch.minimum(gain.abs() / length + _NUDGE * first, radius)
            before, promised = gain, (1 + self.overshoot) * step * length
            at = scene.clamp(at + scene.push(at, slope, (1 + self.overshoot) * step, at))
        smallest.keep(at, scene.oracle.logits(at, rows), rows)
        return smallest.pull(self.probes)

    def _choose(self, scene: Scene) -> Tensor:
        """The class to go to, (n,): the goal's own, or that of the nearest or farthest boundary."""
        aim, rows = scene.aim, scene.rows
        if aim.targets is not None:
            return aim.targets
        graph = scene.oracle.graph(scene.x, rows)
        others = graph.logits.scatter(1, aim.labels[:, None], -torch.inf)
        likely = others.topk(min(self.candidates, others.shape[1]) - 1, dim=1).indices
        each_class = (Aim(aim.labels, c) for c in likely.T)
        distances = torch.stack([_distance(scene, graph, towards) for towards in each_class], dim=1)
        chosen = distances.argmin(1) if self.classes == "best" else distances.argmax(1)
        return likely.gather(1, chosen[:, None])[:, 0]


def _distance(scene: Scene, graph: Graph, towards: Aim) -> Tensor:
    slope = graph.gradient(scene.rows, partial(margin, aim=towards))
    return margin(graph.seen, towards).abs() / scene.threat.dual_norm(slope)


def _adapt(radius: Tensor, ratio: Tensor, first: float) -> Tensor:
    grown = torch.where(ratio > 0.9, radius * 1.2, torch.where(ratio < 0.5, radius / 1.2, radius))
    return grown.clamp(first / _RANGE, first * _RANGE)
