"""Noise and corruptions: what a network should survive before anyone speaks of attacks. Decisions
only.

Additive noise is a budget attack: a random direction, as long as the radius. The others are
minimum-norm attacks along one path from the clean image to a ruined one (salt and pepper, blur,
contrast, inversion, blending with noise): a scan finds the first level that fools, bisection
sharpens it. The paths grow with the level, so the first level is the smallest perturbation on the
path. After the families of foolbox (Rauber et al. 2020), which the Sloped ReLU paper ran (Fig. 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each
from retroact.crafting.noise import normal, uniform
from retroact.crafting.norms import EVERY_NORM
from retroact.crafting.scene import Scene
from retroact.crafting.threat import L2, Access, ThreatModel
from retroact.spec import Count, spec

HALVINGS = 10  # of the interval that the scan leaves: three digits more for ten queries
FOOLBOX = "Rauber et al. 2020, doi:10.21105/joss.02607"

Path = Callable[[Tensor, Tensor], Tensor]
"""`path(rows (m,), level (m,)) -> examples (m, …)`, level 0 the clean image, 1 the far end."""


@spec
class AdditiveUniformNoise(Attack):
    """Noise from [−1, 1], times eps for L_inf, scaled to the length eps for L2; `repeats` draws,
    one has to fool."""

    repeats: Count = 1
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX
    shares_radii: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.repeats

    def __call__(self, scene: Scene) -> Tensor:
        return self.sweep(scene, [scene.threat])[0]

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """One direction serves every eps."""

        def draw(stream: int) -> Tensor:
            return scene.threat.draw(scene.domain.shape, scene.index, scene.seed, stream)

        return _add_noise(scene, threats, self.repeats, draw)


@spec
class AdditiveGaussianNoise(Attack):
    """A direction drawn evenly from the sphere, eps long (L2 only); `repeats` draws, one has to
    fool."""

    repeats: Count = 1
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX
    shares_radii: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return self.repeats

    def __call__(self, scene: Scene) -> Tensor:
        return self.sweep(scene, [scene.threat])[0]

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """One direction serves every eps."""

        def draw(stream: int) -> Tensor:
            return L2.steepest(normal(scene.domain.shape, scene.index, scene.seed, stream))

        return _add_noise(scene, threats, self.repeats, draw)


@spec
class SaltAndPepper(Attack):
    """Ever more entries at the ends of the box, half each, in an order drawn once; `steps` levels
    up to all of them."""

    steps: Count = 50
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.steps + HALVINGS

    def __call__(self, scene: Scene) -> Tensor:
        x, (low, high) = scene.x, (scene.domain.low, scene.domain.high)
        drawn = uniform(scene.domain.shape, scene.index, scene.seed)

        def path(rows: Tensor, level: Tensor) -> Tensor:
            half = each(level / 2, x)
            return x[rows].where(drawn[rows] >= half, low).where(drawn[rows] <= 1 - half, high)

        return _search(scene, path, self.steps)


@spec
class GaussianBlur(Attack):
    """A Gaussian blur, from none to a width σ as large as the image; edges weigh what is inside.

    For images only: ValueError for examples of another rank.
    """

    steps: Count = 50
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.steps + HALVINGS

    def __call__(self, scene: Scene) -> Tensor:
        _, *sides = scene.domain.image(self)

        def path(rows: Tensor, level: Tensor) -> Tensor:
            sigma = level * max(sides)
            down, across = (_weights(side, sigma)[:, None] for side in sides)
            return scene.clamp(down @ scene.x[rows] @ across.mT)

        return _search(scene, path, self.steps)


@spec
class Contrast(Attack):
    """Contrast taken away: x + level · (m − x), from the image to the middle m of the box, plain
    gray."""

    steps: Count = 50
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.steps + HALVINGS

    def __call__(self, scene: Scene) -> Tensor:
        x, gray = scene.x, scene.domain.middle

        def path(rows: Tensor, level: Tensor) -> Tensor:
            return x[rows].lerp(torch.full_like(x[rows], gray), each(level, x))

        return _search(scene, path, self.steps)


@spec
class Inversion(Attack):
    """The negative, 1 − x of pixels, low + high − x in any box (Hosseini et al. 2017): one image,
    no search and no query."""

    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Hosseini et al. 2017, arXiv:1703.06857"
    passes: ClassVar[int] = 1

    def __call__(self, scene: Scene) -> Tensor:
        return scene.domain.low + scene.domain.high - scene.x


@spec
class BlendedNoise(Attack):
    """x + level · (u − x) for an example u of uniform noise in the box: the first of `draws` that
    fools by itself is blended in."""

    steps: Count = 50
    draws: Count = 50
    norms: ClassVar[tuple[str, ...]] = EVERY_NORM
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.draws + self.steps + HALVINGS

    def __call__(self, scene: Scene) -> Tensor:
        x, domain, far, rows = scene.x, scene.domain, scene.x.clone(), scene.rows
        for stream in range(self.draws):
            drawn = uniform(domain.shape, scene.index[rows], scene.seed, stream)
            noise = domain.low + domain.width * drawn
            fooled = scene.is_broken(noise, rows)
            far[rows[fooled]] = noise[fooled].to(x)
            rows = rows[~fooled]
            if not len(rows):
                break

        def path(rows: Tensor, level: Tensor) -> Tensor:
            return x[rows].lerp(far[rows], each(level, x))

        return _search(scene, path, self.steps)


def _add_noise(
    scene: Scene, threats: Sequence[ThreatModel], repeats: int, draw: Callable[[int], Tensor]
) -> list[Tensor]:
    """x + eps · draw for each eps; with repeats, for each example the first draw that fools, else
    the last."""
    x, parts, last = scene.x, [Unbroken(scene) for _ in threats], [scene.x] * len(threats)
    for stream in range(repeats):
        direction = draw(stream)
        for i, (unbroken, threat) in enumerate(zip(parts, threats, strict=True)):
            rows = unbroken.rows
            moved = x[rows] + threat.eps * direction[rows]
            last[i] = threat.project(moved, x[rows], scene.domain)
            if len(rows) and stream + 1 < repeats:
                (last[i],) = unbroken.part(last[i], scene.is_broken(last[i], rows))
    return [unbroken.finish(tried) for unbroken, tried in zip(parts, last, strict=True)]


def _search(scene: Scene, path: Path, steps: int) -> Tensor:
    """The first example along the path that fools, of each; the clean one where none does."""
    high = scene.x.new_zeros(len(scene))
    rows = scene.rows
    for step in range(1, steps + 1):
        level = scene.x.new_full((len(rows),), step / steps)
        fooled = scene.is_broken(path(rows, level), rows)
        high[rows[fooled]] = step / steps
        rows = rows[~fooled]
        if not len(rows):
            break
    rows = high.nonzero()[:, 0]
    if len(rows):
        high[rows] = _bisect(scene, path, rows, high[rows] - 1 / steps, high[rows])
    x_adv = scene.x.clone()
    x_adv[rows] = path(rows, high[rows])
    return x_adv


def _bisect(scene: Scene, path: Path, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fooled = scene.is_broken(path(rows, middle), rows)
        low, high = low.where(fooled, middle), middle.where(fooled, high)
    return high


def _weights(size: int, sigma: Tensor) -> Tensor:
    """Row-normalised Gaussian weights between the pixels of one side, (m, size, size)."""
    at = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    falls = (at[:, None] - at[None]).square() / (2 * sigma.clamp_min(1e-3)[:, None, None] ** 2)
    return torch.softmax(-falls, dim=2)
