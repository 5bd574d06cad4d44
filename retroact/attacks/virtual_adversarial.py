"""VirtualAdversarial: the direction in which a network's own probabilities change most.

With p = softmax(f(x)) and D(δ) = KL(p ‖ softmax(f(x + δ))), which is smallest at δ = 0, the first
order says nothing, and d ← ∇D(ξ d/‖d‖₂), from a random direction, walks towards the largest
eigenvector of D's Hessian; then x_adv = clip(x + eps · s(d)), s(d) = d/‖d‖₂ for L2 (Miyato et al.
2015, arXiv:1507.00677: power iteration by finite differences). No label plays a part.
As foolbox's VirtualAdversarialAttack has it, but where a gradient is exactly zero: it divides 0 by
0 there and returns NaN; here the direction stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.geometry import each
from retroact.crafting.noise import normal
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Access, ThreatModel
from retroact.spec import Count, Positive, spec


@spec
class VirtualAdversarial(Attack):
    """`steps` iterations at `xi` (L2, shares of the box's width) from the image, then one step of
    length eps. Untargeted only: raises ValueError for a target."""

    steps: Count = 10
    xi: Positive = 1e-6
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Miyato et al. 2015, arXiv:1507.00677"
    shares_radii: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.steps

    def __call__(self, scene: Scene) -> Tensor:
        return self.sweep(scene, [scene.threat])[0]

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """One direction serves every eps."""
        if scene.aim.targets is not None:
            raise ValueError(
                "VirtualAdversarial knows no classes, so it serves Untargeted() only; use PGD"
            )
        x, d = scene.x, self._walk(scene)
        scenes = [scene.under(threat) for threat in threats]
        return [s.project(x + s.push(x, d, s.threat.eps, x), x) for s in scenes]

    def _walk(self, scene: Scene) -> Tensor:
        """The direction after all iterations, of any length above 0."""
        x, rows = scene.x, scene.rows
        diverged = partial(_divergence, said=scene.oracle.logits(x, rows).softmax(1))
        d = normal(scene.domain.shape, scene.index, scene.seed).to(x)
        length = self.xi * scene.domain.width
        for _ in range(self.steps):
            _, gradient = scene.oracle.gradient(x + length * L2.steepest(d), rows, diverged)
            is_dead = ~gradient.flatten(1).any(1)
            d = d.where(each(is_dead, d), gradient)
        return d


def _divergence(logits: Tensor, said: Tensor) -> Tensor:
    """KL(said ‖ softmax(z)) but for the entropy of `said`, which does not depend on z."""
    return -(said * logits.log_softmax(1)).sum(1)
