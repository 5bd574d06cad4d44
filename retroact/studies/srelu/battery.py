"""The 25 attacks of Figure 4 as specs: 21 distinct ones, natively where that gives the same result.

Foolbox runs an attack on one batch, to the end, for every eps anew, and cuts what it finds back to
the ball. Here an attack sees only the images that are right clean, drops those that have fallen,
and one run serves all eps where it can. On a straight line (to grey, to the negative, to noise)
only the levels within the largest eps are asked: beyond it every level is cut back to the same
image. Our blur differs from Foolbox's at the edges of an image, which at these radii changes no
decision, and our VirtualAdversarial keeps its direction where Foolbox's makes a NaN of it.
`bench/foolbox_battery.py` compares both, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
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
from retroact.attacks.virtual_adversarial import VirtualAdversarial
from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each
from retroact.crafting.noise import uniform
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Access, Linf, ThreatModel
from retroact.spec import AtLeast0, Count, spec

FOOLBOX = "Rauber et al. 2020, doi:10.21105/joss.02607"


@spec
class Cut(Attack):
    """What a minimum-norm attack finds, cut back to the ball where it lies beyond: so Foolbox
    judges it.

    The driver would put the clean image in its place; a cut perturbation may still fool.
    """

    attack: Any
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX
    shares_radii: ClassVar[bool] = True

    @property
    def needs(self) -> Access:  # type: ignore[override]
        needs: Access = self.attack.needs
        return needs

    @property
    def passes(self) -> int:
        return int(self.attack.passes)

    def __call__(self, scene: Scene) -> Tensor:
        return self.sweep(scene, [scene.threat])[0]

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """One run serves every eps."""
        x_adv = self.attack(scene)
        return [threat.project(x_adv, scene.x, scene.domain) for threat in threats]


@spec
class PlainDeepFool(Attack):
    """DeepFool as Foolbox 3 has it: steps of (|f_k − f_y|/‖w‖_q + 1e-4) towards the nearest class,
    1 + overshoot times their sum from the clean image; all ten classes are asked at every step.
    Judged by `Cut`.

    retroact's own `DeepFool` finds smaller perturbations; this one is here because its numbers were
    published.
    """

    steps: Count = 50
    overshoot: AtLeast0 = 0.02
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return 9 * self.steps

    def __call__(self, scene: Scene) -> Tensor:
        at, centre, threat, unbroken = scene.x, scene.x, scene.threat, Unbroken(scene)
        moved = torch.zeros_like(at)
        for _ in range(self.steps):
            graph = scene.oracle.graph(at, unbroken.rows)
            # a class less than there are: the true one is no aim
            order = graph.seen.scatter(1, unbroken.aim.labels[:, None], -torch.inf).argsort(
                1, descending=True
            )[:, :-1]
            gains = [
                partial(_gain, labels=unbroken.aim.labels, classes=order[:, k])
                for k in range(order.shape[1])
            ]
            slopes = torch.stack([graph.gradient(None, gain) for gain in gains], 1)
            gaps = torch.stack([gain(graph.seen) for gain in gains], 1).abs()
            at, gaps, slopes, centre, moved = unbroken.drop(
                at, graph.logits, gaps, slopes, centre, moved
            )
            if not len(unbroken):
                break
            far = gaps / (threat.dual_norm(slopes.flatten(0, 1)).view_as(gaps) + 1e-8)
            distance, nearest = far.min(1)
            slope = slopes[torch.arange(len(slopes)), nearest]
            moved = moved + each(distance + 1e-4, slope) * threat.steepest(slope)
            at = scene.clamp(centre + (1 + self.overshoot) * moved)
        return unbroken.finish(at)


def _gain(logits: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    return (logits.gather(1, classes[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


@spec
class Straight(Attack):
    """The first of `steps` levels that fools on the line from the image to `towards`, cut back to
    the ball (L2).

    "grey": ½ everywhere; "negative": 1 − x; "noise": the first of `draws` images of uniform noise
    that fools by itself. Levels beyond the largest eps are not asked, since all of them are cut
    back to the same image.
    """

    towards: Literal["grey", "negative", "noise"] = "grey"
    steps: Count = 1000
    draws: Count = 1000
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX
    shares_radii: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.steps + (self.draws if self.towards == "noise" else 0)

    def __call__(self, scene: Scene) -> Tensor:
        return self.sweep(scene, [scene.threat])[0]

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """One walk along the line serves every eps."""
        x, line = scene.x, self._end(scene) - scene.x
        within = max(t.eps for t in threats) / L2.size(line).clamp_min(1e-12)
        last = (within.clamp_max(1.0) * self.steps).floor()
        level, rows = torch.ones_like(last), torch.arange(len(x))
        for step in range(1, int(last.max()) + 1):
            rows = rows[last[rows] >= step]
            fooled = _is_broken(scene, x[rows] + step / self.steps * line[rows], rows)
            level[rows[fooled]] = step / self.steps
            rows = rows[~fooled]
        far = x + each(level, line) * line
        return [threat.project(far, x, scene.domain) for threat in threats]

    def _end(self, scene: Scene) -> Tensor:
        x = scene.x
        if self.towards != "noise":
            return torch.full_like(x, 0.5) if self.towards == "grey" else 1 - x
        end, rows = x.clone(), torch.arange(len(x))
        for stream in range(self.draws):
            end[rows] = uniform(scene.domain.shape, scene.index[rows], scene.seed, stream).to(x)
            rows = rows[~_is_broken(scene, end[rows], rows)]
            if not len(rows):
                break
        return end


def _is_broken(scene: Scene, x: Tensor, rows: Tensor) -> Tensor:
    return scene.is_broken(x, rows) if len(rows) else rows.bool()


@dataclass(frozen=True)
class Entry:
    """An attack of the battery: as Foolbox has it, what is run for it, the threat that has its
    norm, how often the published list has it, and the same attack up the margin loss
    where it climbs one."""

    foolbox: Foolbox
    attack: Any
    threat: type[Linf] | type[L2]
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


def _climber(
    name: str, attack: Any, make: Any, threat: type[Linf] | type[L2], times: int = 1
) -> Entry:
    return Entry(Foolbox(name), attack, threat, True, times, make(loss="margin"))


def _run(
    name: str,
    attack: Any = None,
    threat: type[Linf] | type[L2] = L2,
    *,
    gradient: bool = False,
    **how: Any,
) -> Entry:
    times = how.pop("times", 1)
    theirs = Foolbox(name, **how)
    return Entry(theirs, attack or theirs, threat, gradient, times)


_PGD, _PGD2, _BIM = partial(PGD, 40, 1 / 30), partial(PGD, 50, 0.025), partial(BIM, 10, 0.2)

BATTERY: tuple[Entry, ...] = (
    _climber("L2FastGradientAttack", FGM(), FGM, L2),
    _climber("LinfFastGradientAttack", FGSM(), FGSM, Linf),
    _climber("LinfProjectedGradientDescentAttack", _PGD(), _PGD, Linf, 2),
    _climber("LinfBasicIterativeAttack", _BIM(), _BIM, Linf, 2),
    _run("LinfAdditiveUniformNoiseAttack", AdditiveUniformNoise(), Linf, times=2),
    _run("LinfDeepFoolAttack", Cut(PlainDeepFool()), Linf, gradient=True, times=2),
    _run("VirtualAdversarialAttack", VirtualAdversarial(10), gradient=True, steps=10),
    _run("DDNAttack", gradient=True, steps=10),
    _climber("L2ProjectedGradientDescentAttack", _PGD2(), _PGD2, L2),
    _climber("L2BasicIterativeAttack", _BIM(), _BIM, L2),
    _run("L2AdditiveGaussianNoiseAttack", AdditiveGaussianNoise()),
    _run("L2AdditiveUniformNoiseAttack", AdditiveUniformNoise()),
    _run("L2RepeatedAdditiveGaussianNoiseAttack", AdditiveGaussianNoise(100)),
    _run("L2RepeatedAdditiveUniformNoiseAttack", AdditiveUniformNoise(100)),
    _run("InversionAttack", Straight("negative", steps=1)),
    _run("BinarySearchContrastReductionAttack"),
    _run("LinearSearchContrastReductionAttack", Straight("grey")),
    _run("GaussianBlurAttack", Cut(GaussianBlur())),
    _run("L2DeepFoolAttack", Cut(PlainDeepFool()), gradient=True),
    _run("SaltAndPepperNoiseAttack", Cut(SaltAndPepper())),
    _run("LinearSearchBlendedUniformNoiseAttack", Straight("noise")),
)
"""The distinct attacks in the published order; four of them stand twice in the published list."""

BY_NORM: dict[type[Linf] | type[L2], tuple[Entry, ...]] = {
    norm: tuple(e for e in BATTERY if e.threat is norm) for norm in (Linf, L2)
}
"""The same by the norm of their threat."""
