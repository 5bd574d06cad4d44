"""The 25 attacks of Figure 4 as specs: 21 distinct ones, natively where that gives the same result.

Foolbox runs an attack on one batch, to the end, for every eps anew, and cuts what it finds back to
the ball. Here an attack sees only the images that are right clean, drops those that have fallen,
and one run serves all eps where it can. On a straight line (to grey, to the negative, to noise)
only the levels within the largest eps are asked: beyond it every level is cut back to the same
image. Our blur differs from Foolbox's at the edges of an image, which at these radii changes no
decision. `bench/foolbox_battery.py` compares both, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from retroact.attacks.bim import BIM
from retroact.attacks.corruptions import (
    AdditiveGaussianNoise,
    AdditiveUniformNoise,
    GaussianBlur,
    SaltAndPepper,
)
from retroact.attacks.fgm import FGM
from retroact.attacks.fgsm import FGSM
from retroact.attacks.foreign import Foolbox
from retroact.attacks.pgd import PGD
from retroact.crafting.driver import Standing
from retroact.crafting.geometry import dual_norm, each, norm, project, steepest
from retroact.crafting.goals import Aim
from retroact.crafting.noise import uniform
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import L2, Access, Linf, Norm, ThreatModel
from retroact.spec import AtLeast0, Count, spec

FOOLBOX = "Rauber et al. 2020, doi:10.21105/joss.02607"


@spec
class Cut:
    """What a minimum-norm attack finds, cut back to the ball where it lies beyond: so Foolbox
    judges it.

    The driver would put the clean image in its place; a cut perturbation may still fool.
    """

    attack: Any
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX

    @property
    def needs(self) -> Access:
        found: Access = self.attack.needs
        return found

    @property
    def passes(self) -> int:
        return int(self.attack.passes)

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        return self.sweep(oracle, x, aim, [threat], index=index, seed=seed)[0]

    def sweep(
        self,
        oracle: Oracle,
        x: Tensor,
        aim: Aim,
        threats: Sequence[ThreatModel],
        *,
        index: Tensor,
        seed: int,
    ) -> list[Tensor]:
        """One run serves every eps."""
        found = self.attack(oracle, x, aim, threats[0], index=index, seed=seed)
        return [project(found, x, threat) for threat in threats]


@spec
class PlainDeepFool:
    """DeepFool as Foolbox 3 has it: steps of (|f_k − f_y|/‖w‖_q + 1e-4) towards the nearest class,
    1 + overshoot times their sum from the clean image; all ten classes are asked at every step.
    Judged by `Cut`.

    retroact's own `DeepFool` finds smaller perturbations; this one is here because its numbers were
    published.
    """

    steps: Count = 50
    overshoot: AtLeast0 = 0.02
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return 9 * self.steps

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        standing, at, centre, moved = Standing(x, aim), x, x, torch.zeros_like(x)
        for _ in range(self.steps):
            graph = oracle.graph(at, standing.rows)
            # a class less than there are: the true one is no aim
            order = graph.seen.scatter(1, standing.aim.labels[:, None], -torch.inf).argsort(
                1, descending=True
            )[:, :-1]
            gains = [
                partial(_gain, labels=standing.aim.labels, classes=order[:, k])
                for k in range(order.shape[1])
            ]
            slopes = torch.stack([graph.gradient(None, gain) for gain in gains], 1)
            gaps = torch.stack([gain(graph.seen) for gain in gains], 1).abs()
            at, gaps, slopes, centre, moved = standing.drop(
                at, graph.logits, gaps, slopes, centre, moved
            )
            if not len(standing):
                break
            far = gaps / (dual_norm(slopes.flatten(0, 1), threat.norm).view_as(gaps) + 1e-8)
            distance, nearest = far.min(1)
            slope = slopes[torch.arange(len(slopes)), nearest]
            moved = moved + each(distance + 1e-4, slope) * steepest(slope, threat.norm)
            at = (centre + (1 + self.overshoot) * moved).clamp(0.0, 1.0)
        return standing.finish(at)


def _gain(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    return (logits.gather(1, classes[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


@spec
class Straight:
    """The first of `steps` levels that fools on the line from the image to `towards`, cut back to
    the ball (L2).

    "grey": ½ everywhere; "negative": 1 − x; "noise": the first of `draws` images of uniform noise
    that fools by itself. Levels beyond the largest eps are not asked, since all of them are cut
    back to the same image.
    """

    towards: Literal["grey", "negative", "noise"] = "grey"
    steps: Count = 1000
    draws: Count = 1000
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.steps + (self.draws if self.towards == "noise" else 0)

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        return self.sweep(oracle, x, aim, [threat], index=index, seed=seed)[0]

    def sweep(
        self,
        oracle: Oracle,
        x: Tensor,
        aim: Aim,
        threats: Sequence[ThreatModel],
        *,
        index: Tensor,
        seed: int,
    ) -> list[Tensor]:
        """One walk along the line serves every eps."""
        line = self._end(oracle, x, aim, index, seed) - x
        within = max(t.eps for t in threats) / norm(line, "l2").clamp_min(1e-12)
        last = (within.clamp_max(1.0) * self.steps).floor()
        level, rows = torch.ones_like(last), torch.arange(len(x))
        for step in range(1, int(last.max()) + 1):
            rows = rows[last[rows] >= step]
            fooled = _fooled(oracle, x[rows] + step / self.steps * line[rows], rows, aim)
            level[rows[fooled]] = step / self.steps
            rows = rows[~fooled]
        return [project(x + each(level, line) * line, x, threat) for threat in threats]

    def _end(self, oracle: Oracle, x: Tensor, aim: Aim, index: Tensor, seed: int) -> Tensor:
        if self.towards != "noise":
            return torch.full_like(x, 0.5) if self.towards == "grey" else 1 - x
        end, rows = x.clone(), torch.arange(len(x))
        for stream in range(self.draws):
            end[rows] = uniform(tuple(x.shape[1:]), index[rows], seed, stream).to(x)
            rows = rows[~_fooled(oracle, end[rows], rows, aim)]
            if not len(rows):
                break
        return end


def _fooled(oracle: Oracle, x: Tensor, rows: Tensor, aim: Aim) -> Tensor:
    if not len(rows):
        return rows.bool()
    decisions = oracle.decisions(x, rows)
    return aim[rows].reached(F.one_hot(decisions, int(decisions.max()) + 2).float())


@dataclass(frozen=True)
class Entry:
    """An attack of the battery: as Foolbox has it, what is run for it, its norm, how often the
    published list has it, and the same attack up the margin loss where it climbs one."""

    foolbox: Foolbox
    attack: Any
    norm: Norm
    gradient: bool
    times: int = 1
    margin: Any = None

    @property
    def name(self) -> str:
        return self.foolbox.name.removesuffix("Attack")

    @property
    def random(self) -> bool:
        """Whether two runs of Foolbox may differ; its DDN leaves a dead gradient for a random
        direction."""
        return any(word in self.name for word in ("Noise", "Projected", "Virtual", "DDN"))

    def threat(self, eps: float) -> ThreatModel:
        return Linf(eps) if self.norm == "linf" else L2(eps)


def _climber(name: str, attack: Any, make: Any, norm: Norm, times: int = 1) -> Entry:
    return Entry(Foolbox(name), attack, norm, True, times, make(loss="margin"))


def _found(
    name: str, attack: Any = None, norm: Norm = "l2", *, gradient: bool = False, **how: Any
) -> Entry:
    times = how.pop("times", 1)
    theirs = Foolbox(name, **how)
    return Entry(theirs, attack or theirs, norm, gradient, times)


_PGD, _PGD2, _BIM = partial(PGD, 40, 1 / 30), partial(PGD, 50, 0.025), partial(BIM, 10, 0.2)

BATTERY: tuple[Entry, ...] = (
    _climber("L2FastGradientAttack", FGM(), FGM, "l2"),
    _climber("LinfFastGradientAttack", FGSM(), FGSM, "linf"),
    _climber("LinfProjectedGradientDescentAttack", _PGD(), _PGD, "linf", 2),
    _climber("LinfBasicIterativeAttack", _BIM(), _BIM, "linf", 2),
    _found("LinfAdditiveUniformNoiseAttack", AdditiveUniformNoise(), "linf", times=2),
    _found("LinfDeepFoolAttack", Cut(PlainDeepFool()), "linf", gradient=True, times=2),
    _found("VirtualAdversarialAttack", gradient=True, steps=10),
    _found("DDNAttack", gradient=True, steps=10),
    _climber("L2ProjectedGradientDescentAttack", _PGD2(), _PGD2, "l2"),
    _climber("L2BasicIterativeAttack", _BIM(), _BIM, "l2"),
    _found("L2AdditiveGaussianNoiseAttack", AdditiveGaussianNoise()),
    _found("L2AdditiveUniformNoiseAttack", AdditiveUniformNoise()),
    _found("L2RepeatedAdditiveGaussianNoiseAttack", AdditiveGaussianNoise(100)),
    _found("L2RepeatedAdditiveUniformNoiseAttack", AdditiveUniformNoise(100)),
    _found("InversionAttack", Straight("negative", steps=1)),
    _found("BinarySearchContrastReductionAttack"),
    _found("LinearSearchContrastReductionAttack", Straight("grey")),
    _found("GaussianBlurAttack", Cut(GaussianBlur())),
    _found("L2DeepFoolAttack", Cut(PlainDeepFool()), gradient=True),
    _found("SaltAndPepperNoiseAttack", Cut(SaltAndPepper())),
    _found("LinearSearchBlendedUniformNoiseAttack", Straight("noise")),
)
"""The distinct attacks in the published order; four of them stand twice in the published list."""
