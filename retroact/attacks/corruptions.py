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
import torch.nn.functional as F
from torch import Tensor

from retroact.crafting.driver import Standing
from retroact.crafting.geometry import each, project, steepest
from retroact.crafting.goals import Aim
from retroact.crafting.noise import normal, uniform
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Access, Norm, ThreatModel
from retroact.spec import Count, spec

HALVINGS = 10  # of the interval that the scan leaves: three digits more for ten queries
FOOLBOX = "Rauber et al. 2020, doi:10.21105/joss.02607"

Path = Callable[[Tensor, Tensor], Tensor]
"""`path(rows (m,), level (m,)) -> images (m, c, h, w)`, level 0 the clean image, 1 the far end."""


@spec
class AdditiveUniformNoise:
    """Noise from [−1, 1], times eps for L_inf, scaled to the length eps for L2; `repeats` draws,
    one has to fool."""

    repeats: Count = 1
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.repeats

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
        """One direction serves every eps."""

        def draw(stream: int) -> Tensor:
            d = uniform(tuple(x.shape[1:]), index, seed, stream) * 2 - 1
            return d if threats[0].norm == "linf" else steepest(d, "l2")

        return _noised(oracle, x, aim, threats, self.repeats, draw)


@spec
class AdditiveGaussianNoise:
    """A direction drawn evenly from the sphere, eps long (L2 only); `repeats` draws, one has to
    fool."""

    repeats: Count = 1
    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.repeats

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
        """One direction serves every eps."""

        def draw(stream: int) -> Tensor:
            return steepest(normal(tuple(x.shape[1:]), index, seed, stream), "l2")

        return _noised(oracle, x, aim, threats, self.repeats, draw)


@spec
class SaltAndPepper:
    """Ever more entries at 0 or 1, half each, in an order drawn once; `steps` levels up to all of
    them."""

    steps: Count = 50
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.steps + HALVINGS

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        drawn = uniform(tuple(x.shape[1:]), index, seed)

        def path(rows: Tensor, level: Tensor) -> Tensor:
            half = each(level / 2, x)
            return x[rows].where(drawn[rows] >= half, 0.0).where(drawn[rows] <= 1 - half, 1.0)

        return _first(oracle, x, aim, path, self.steps)


@spec
class GaussianBlur:
    """A Gaussian blur, from none to a width σ as large as the image; edges weigh what is inside."""

    steps: Count = 50
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.steps + HALVINGS

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        def path(rows: Tensor, level: Tensor) -> Tensor:
            sigma = level * max(x.shape[2:])
            down, across = (_weights(size, sigma)[:, None] for size in x.shape[2:])
            return (down @ x[rows] @ across.mT).clamp(0.0, 1.0)

        return _first(oracle, x, aim, path, self.steps)


@spec
class Contrast:
    """Contrast taken away: x + level · (½ − x), from the image to plain gray."""

    steps: Count = 50
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.steps + HALVINGS

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        def path(rows: Tensor, level: Tensor) -> Tensor:
            return x[rows].lerp(torch.full_like(x[rows], 0.5), each(level, x))

        return _first(oracle, x, aim, path, self.steps)


@spec
class Inversion:
    """The negative, 1 − x (Hosseini et al. 2017): one image, no search and no query."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Hosseini et al. 2017, arXiv:1703.06857"
    passes: ClassVar[int] = 1

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        return 1 - x


@spec
class BlendedNoise:
    """x + level · (u − x) for an image u of uniform noise: the first of `draws` that fools by
    itself is blended in."""

    steps: Count = 50
    draws: Count = 50
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "decision"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = FOOLBOX

    @property
    def passes(self) -> int:
        return self.draws + self.steps + HALVINGS

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        far, rows = x.clone(), torch.arange(len(x), device=x.device)
        for stream in range(self.draws):
            noise = uniform(tuple(x.shape[1:]), index[rows], seed, stream)
            fooled = _fooled(oracle, noise, rows, aim)
            far[rows[fooled]] = noise[fooled].to(x)
            rows = rows[~fooled]
            if not len(rows):
                break

        def path(rows: Tensor, level: Tensor) -> Tensor:
            return x[rows].lerp(far[rows], each(level, x))

        return _first(oracle, x, aim, path, self.steps)


def _noised(
    oracle: Oracle,
    x: Tensor,
    aim: Aim,
    threats: Sequence[ThreatModel],
    repeats: int,
    draw: Callable[[int], Tensor],
) -> list[Tensor]:
    """x + eps · draw for each eps; with repeats, for each example the first draw that fools, else
    the last."""
    standings, last = [Standing(x, aim) for _ in threats], [x] * len(threats)
    for stream in range(repeats):
        direction = draw(stream)
        for i, (standing, threat) in enumerate(zip(standings, threats, strict=True)):
            rows = standing.rows
            last[i] = project(x[rows] + threat.eps * direction[rows], x[rows], threat)
            if len(rows) and stream + 1 < repeats:
                (last[i],) = standing.drop(last[i], _votes(oracle.decisions(last[i], rows)))
    return [standing.finish(tried) for standing, tried in zip(standings, last, strict=True)]


def _first(oracle: Oracle, x: Tensor, aim: Aim, path: Path, steps: int) -> Tensor:
    """The first image along the path that fools, of each example; the clean image where none
    does."""
    high = x.new_zeros(len(x))
    rows = torch.arange(len(x), device=x.device)
    for step in range(1, steps + 1):
        level = x.new_full((len(rows),), step / steps)
        fooled = _fooled(oracle, path(rows, level), rows, aim)
        high[rows[fooled]] = step / steps
        rows = rows[~fooled]
        if not len(rows):
            break
    rows = high.nonzero()[:, 0]
    if len(rows):
        high[rows] = _sharpened(oracle, aim, path, rows, high[rows] - 1 / steps, high[rows])
    found = x.clone()
    found[rows] = path(rows, high[rows])
    return found


def _sharpened(
    oracle: Oracle, aim: Aim, path: Path, rows: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fooled = _fooled(oracle, path(rows, middle), rows, aim)
        low, high = low.where(fooled, middle), middle.where(fooled, high)
    return high


def _fooled(oracle: Oracle, x: Tensor, rows: Tensor, aim: Aim) -> Tensor:
    return aim[rows].reached(_votes(oracle.decisions(x, rows)))


def _votes(decisions: Tensor) -> Tensor:
    """Decisions as logits that decide the same, since that is what an aim judges."""
    # one class more than were decided, for logits of a single class decide nothing
    return F.one_hot(decisions, int(decisions.max()) + 2).float()


def _weights(size: int, sigma: Tensor) -> Tensor:
    """Row-normalised Gaussian weights between the pixels of one side, (m, size, size)."""
    at = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    falls = (at[:, None] - at[None]).square() / (2 * sigma.clamp_min(1e-3)[:, None, None] ** 2)
    return torch.softmax(-falls, dim=2)
