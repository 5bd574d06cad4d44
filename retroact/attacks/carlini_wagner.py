"""Carlini and Wagner's L2 attack: the perturbation as the minimum of one smooth function.

min_w ‖x' − x‖₂² + c · max(confidence − m(x'), 0), x' = (tanh w + 1) / 2, m the margin (positive
where the goal is reached), by Adam, and c by search: the smallest that still succeeds (Carlini &
Wagner 2017, eq. 7, f_6).

What makes few steps enough: where the perturbation is smallest, 2‖δ‖ = c‖∇m‖, and a linear network
has ‖δ‖ = |m| / ‖∇m‖; so the search starts at c = 2|m| / ‖∇m‖², whatever the scale of the logits,
and each round goes on from the best point so far. Beyond the smallest c that succeeds a larger one
only makes Adam swing wider around the boundary, so c falls gently; and the last gradient goes to
the nearest point of the boundary's tangent, where Adam, which never stands quite still, does not
arrive by itself.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.domain import Domain
from retroact.crafting.geometry import TINY, each
from retroact.crafting.losses import margin
from retroact.crafting.scene import Scene
from retroact.crafting.smallest import Smallest, cosine
from retroact.crafting.threat import L2, Access
from retroact.spec import AtLeast0, Count, Positive, Within, spec

_DOWN, _UP = 1.5, 10.0  # between one c and the next, until it is known from both sides
_REACH = 1.0
# tanh reaches the edges of the box at infinity, and is too flat to leave them from nearby
_INNER = 0.999


@spec
class CarliniWagner(Attack):
    """`search_steps` rounds of `steps` Adam steps of length `learning_rate` (of w), each with its
    own c.

    `probes` forward passes then draw the result towards the clean image (0: the published end).
    """

    steps: Annotated[int, Within(2)] = 49
    search_steps: Count = 3
    confidence: AtLeast0 = 0.0
    learning_rate: Positive = 0.2
    probes: Annotated[int, Within(0)] = 2
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "minimum-norm"
    paper: ClassVar[str] = "Carlini & Wagner 2017, arXiv:1608.04644"
    version: ClassVar[int] = 2
    starts_clean: ClassVar[bool] = True

    @property
    def passes(self) -> int:
        return 1 + self.steps * self.search_steps

    def __call__(self, scene: Scene) -> Tensor:
        x, aim, rows = scene.x, scene.aim, scene.rows
        smallest = Smallest(scene, self.confidence)
        logits, seen, slope = scene.oracle.tangent(x, rows, partial(margin, aim=aim))
        smallest.keep(x, logits, rows)
        length = L2.dual_norm(scene.domain.inward(slope, x))
        away = (margin(seen, aim).abs() + self.confidence) / length
        # in units of 1 / length: so c and all that it is multiplied with are pixels, whatever the
        # logits
        c = 2 * away
        rows = rows[c.isfinite()]  # a dead gradient at the clean image leads nowhere
        # Adam's first steps move all of w alike: no farther than a share of the way to the
        # linearised boundary
        across = L2.size(_stretch(x, scene.domain)).clamp_min(TINY)
        rates = (_REACH * away / across).clamp_max(self.learning_rate)
        c, low, high = c[rows], torch.zeros_like(c[rows]), torch.full_like(c[rows], torch.inf)
        for left in range(self.search_steps if len(rows) else 0, 0, -1):
            descent = _Descent(scene, smallest, rows, c, length[rows], rates[rows])
            reached = self._descend(descent, last=left == 1)
            low, high = c.where(~reached, low), c.where(reached, high)
            c = torch.where(
                low == 0, high / _DOWN, torch.where(high.isinf(), low * _UP, (low * high).sqrt())
            )
        smallest.pull(self.probes)
        return smallest.polish(self.probes)

    def _descend(self, of: _Descent, *, last: bool) -> Tensor:
        """One round of Adam from the best points so far; returns which examples reached the goal in
        it, bool (m,).

        In the last round the steps grow shorter, and one gradient is left over for the polish.
        """
        domain, aim, clean = of.scene.domain, of.scene.aim[of.rows], of.scene.x[of.rows]
        w = _leave_box(of.smallest.x_adv[of.rows], domain)
        adam, reached = _Adam(w), torch.zeros_like(of.c, dtype=torch.bool)
        steps = self.steps - last
        for i in range(steps):
            at = _enter_box(w, domain)
            logits, seen, slope = of.scene.oracle.tangent(at, of.rows, partial(margin, aim=aim))
            reached |= of.smallest.keep(at, logits, of.rows)
            short = of.c.where(margin(seen, aim) < self.confidence, 0.0)
            pull = slope.mul_(each(-short / of.length, at)).add_(at - clean, alpha=2)
            rate = of.rates * (cosine(i, steps, 1.0, 0.01) if last else 1.0)
            w.sub_(adam(pull.mul_(_stretch(at, domain))).mul_(each(rate, at)))
        return reached


class _Descent(NamedTuple):
    """What one round needs of the examples `rows` (m,): their constants `c`, the `length` of their
    first slopes and the `rates` of their steps, (m,) each."""

    scene: Scene
    smallest: Smallest
    rows: Tensor
    c: Tensor
    length: Tensor
    rates: Tensor


def _leave_box(x: Tensor, domain: Domain) -> Tensor:
    """The w of x = low + (high − low) (tanh w + 1) / 2."""
    return torch.atanh(_INNER * (2 * (x - domain.low) / domain.width - 1))


def _enter_box(w: Tensor, domain: Domain) -> Tensor:
    return torch.tanh(w).add_(1).div_(2).mul_(domain.width).add_(domain.low)


def _stretch(x: Tensor, domain: Domain) -> Tensor:
    """dx/dw."""
    return 2 * (x - domain.low) * (domain.high - x) / domain.width


class _Adam:
    """The direction of Adam's step (Kingma & Ba 2015, Algorithm 1), each example for itself."""

    def __init__(self, like: Tensor) -> None:
        self._mean, self._square, self._t = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: Tensor) -> Tensor:
        self._t += 1
        self._mean.lerp_(gradient, 0.1)
        self._square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        spread = (self._square / (1 - 0.999**self._t)).sqrt_().add_(1e-8)
        return self._mean.div(spread).div_(1 - 0.9**self._t)
