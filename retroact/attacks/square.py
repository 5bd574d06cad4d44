"""Square: random search over square windows, on scores alone.

Each query repaints one random square window of the perturbation and keeps the result where the loss
rises; the squares shrink as the search goes on (Andriushchenko et al. 2020, algorithms 1 to 3, from
stripes for L_inf and from a grid of bumps for L2). Without gradients there is nothing to mask:
where it beats a gradient attack, that one was blinded. Examples whose goal is reached cost no
further query.

The paper's windows are squares of an image (…, h, w). Of a series (c, t) they are segments of time,
the same for all channels; of a row (d,) they are subsets of the columns: segments of an order that
is drawn anew every `BLOCK` queries.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each
from retroact.crafting.losses import Loss, loss_of
from retroact.crafting.noise import uniform
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.crafting.windows import Stroke, signs_of
from retroact.spec import Count, Within, spec

HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After how many of 10,000 queries the share of repainted pixels is halved (section 4.1 of the
paper)."""

BLOCK = 50  # queries whose random numbers are drawn together
_ORDER = 400_000_009  # a stream of its own


@spec
class Square(Attack):
    """At most `queries` looks at the logits; `p_init` is the share of pixels that the first windows
    repaint: squares of an image, segments of a series, subsets of a row's columns."""

    queries: Count = 5000
    p_init: Annotated[float, Within(0.0, 1.0, above=True)] = 0.8
    loss: Loss = "margin"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "score"
    streams: ClassVar[bool] = True
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Andriushchenko et al. 2020, arXiv:1912.00049"
    # the start of L2 has two-sided bumps, the schedule a pace of its own
    version: ClassVar[int] = 2
    # most queries look at the few examples left, so more of them share a look
    chunk: ClassVar[int] = 256

    @property
    def passes(self) -> int:
        """Queries, which cost less than the gradients that other attacks count here."""
        return self.queries

    def __call__(self, scene: Scene) -> Tensor:
        x, eps, windows = scene.x, scene.threat.eps, scene.threat.windows
        assert windows is not None  # the norm is one of `norms`
        loss, unbroken = loss_of(self.loss), Unbroken(scene)
        best, centre = windows.start(x, eps, scene.domain, scene.index, scene.seed), x
        record = x.new_full((len(x),), -math.inf)
        tried = best
        for query in range(self.queries):
            turn = query % BLOCK
            if turn == 0:
                shares = (self._share(query + 1 + k, windows.pace) for k in range(BLOCK))
                sizes = [windows.size(share, scene.domain.frame) for share in shares]
                chances = _draw(scene, unbroken.rows, sizes, stream=1 + query // BLOCK)
            logits = scene.oracle.logits(tried, unbroken.rows)
            tried, logits, best, centre, record, *chances = unbroken.drop(
                tried, logits, logits, best, centre, record, *chances
            )
            if not len(unbroken):
                break
            value = loss(logits, unbroken.aim)
            better = value > record  # false for a NaN
            best, record = tried.where(each(better, tried), best), value.where(better, record)
            corners, signs, order = chances
            stroke = Stroke(sizes[turn], corners[:, turn], signs[:, turn], order)
            tried = windows.repaint(best, centre, eps, scene.domain, stroke)
        return unbroken.finish(best)

    def _share(self, query: int, pace: float) -> float:
        """The share of pixels that this query repaints."""
        at = int(query * (10_000 / self.queries) ** pace)
        return self.p_init * 0.5 ** bisect_left(HALVED_AT, at)


def _draw(scene: Scene, rows: Tensor, sizes: list[tuple[int, int]], stream: int) -> list[Tensor]:
    """The chances of as many queries as there are `sizes`, for each of the examples `rows` (n,).

    Where the windows' upper left corners lie in a flat channel, (n, q, 2), signs for the
    orientation and each channel, (n, q, 1 + c), and the order of a row's columns, (n, d).
    """
    frame, index = scene.domain.frame, scene.index[rows]
    drawn = uniform((len(sizes), 5 + frame.channels), index, scene.seed, stream)
    places = [[frame.height - tall + 1, frame.width - wide + 1] * 2 for tall, wide in sizes]
    most = torch.tensor(places, device=scene.x.device)
    # A draw next to 1 may round up to the first place outside.
    at = (drawn[..., :4] * most).long().minimum(most - 1).view(*drawn.shape[:2], 2, 2)
    columns = (frame.width,) if frame.drawn else (0,)
    order = uniform(columns, index, scene.seed, stream + _ORDER).argsort(1)
    return [at[..., 0] * frame.width + at[..., 1], signs_of(drawn[..., 4:]), order]
