"""DeepFool: step to the nearest boundary of the linearised network, until the decision changes.

At x, with gaps g_j = f_y − f_j and slopes w_j = ∇(f_j − f_y), the nearest linearised boundary is that of
l = argmin_j g_j / ‖w_j‖_q; r ← r + (g_l / ‖w_l‖_q) · s(w_l) and x ← clip(x_0 + (1 + overshoot) r).

Two things make it cheap. Examples leave as soon as they are beaten. And not every class is asked for
its slope: classes are ranked by g_j over the length that their slope had when it was last seen, and
those that seem farther than `_HOPELESS` times the best are not asked at all.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.attacks.geometry import dual_norm, each, inward, steepest
from retroact.attacks.goals import Aim
from retroact.attacks.oracle import Oracle
from retroact.attacks.smallest import Smallest
from retroact.attacks.threat import Access, Norm, ThreatModel
from retroact.spec import AtLeast0, Count, Within, spec

_HOPELESS = 1.5  # a class that seems this much farther than the best is not asked for its slope


@spec
class DeepFool:
    """At most `steps` steps to the nearest linearised boundary among the `candidates` likeliest classes.

    `overshoot` is added to the whole perturbation, so that it ends beyond the boundary; `probes` forward
    passes then draw the result back to it (0: the plain algorithm). Pixels at an edge of the box that
    the step would push out of it do not count in its slope.
    """

    steps: Count = 50
    candidates: Annotated[int, Within(2)] = 10
    overshoot: AtLeast0 = 0.02
    probes: Annotated[int, Within(0)] = 3
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Moosavi-Dezfooli et al. 2016, arXiv:1511.04599"

    @property
    def passes(self) -> int:
        return self.steps * (self.candidates - 1)

    def __call__(self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int) -> Tensor:
        found = Smallest(x, aim, threat.norm)
        rows, at, r = torch.arange(len(x), device=x.device), x, torch.zeros_like(x)
        lengths: Tensor | None = None
        for _ in range(self.steps):
            near = _Nearest(oracle, at, rows, aim[rows], threat.norm, self.candidates, lengths)
            go = near.search(~found.keep(at, near.logits, rows))
            rows, r, lengths = rows[go], r[go] + near.step(go), near.lengths[go]
            if not len(rows):
                break
            at = (x[rows] + (1 + self.overshoot) * r).clamp(0.0, 1.0)
        else:
            found.keep(at, oracle.logits(at, rows), rows)
        return found.pull(oracle, self.probes)


class _Nearest:
    """The nearest linearised boundary of each of m examples: `distance` (m,) and `slope`, shaped as `x`.

    `lengths` (m, k) remembers ‖w_j‖_q of every class whose slope has been seen, 0 of the others.
    """

    def __init__(
        self, oracle: Oracle, x: Tensor, rows: Tensor, aim: Aim, p: Norm, candidates: int, lengths: Tensor | None
    ) -> None:
        self._oracle, self._x, self._rows, self._aim, self._p, self._lengths = oracle, x, rows, aim, p, lengths
        self._candidates = candidates
        self.logits, seen, self.slope = oracle.tangent(x, rows, self._first)
        self.lengths = torch.zeros_like(seen) if lengths is None else lengths
        self._gaps = self._open(seen)
        self.distance = torch.full_like(seen[:, 0], torch.inf)
        every = torch.arange(len(x), device=x.device)
        self._learn(every, self._rank(self._gaps).argmin(1), self.slope)

    def search(self, alive: Tensor) -> Tensor:
        """Asks for the slopes of further classes until those left seem hopeless; returns the examples,
        bool (m,), that are `alive` and have a boundary to go to."""
        while True:
            rank = self._rank(self._gaps)
            ask = (alive & (rank.amin(1) < _HOPELESS * self.distance)).nonzero()[:, 0]
            if not len(ask):
                return alive & self.distance.isfinite()
            classes = rank[ask].argmin(1)
            _, _, slope = self._oracle.tangent(
                self._x[ask], self._rows[ask], lambda z, c=classes, a=ask: self._gain(z, c, self._aim[a])
            )
            self._learn(ask, classes, slope)
