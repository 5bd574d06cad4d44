"""RayS: the nearest wrong decision on rays towards the corners of a cube, by decisions alone.

A ray is a sign for each entry; its radius is how far along it the decision turns. One block of
signs after the other is flipped, all of them at first, then halves, quarters and so on to single
entries, and a flip stays where the radius gets smaller by it (Chen & Gu 2020, algorithm 3). No
slope is asked for, so a network that gives away its decisions alone, or whose outputs are flat or
have stairs, is searched as any other. Every example is at a block of its own, and all examples of a
chunk are asked at once.

The paper bisects every better ray to the end; here a look asks whether a ray turns a share of the
way nearer to eps than the best one does. The share grows with each hit, on the same ray until it
misses, and shrinks with each miss, so that most looks are at new blocks. Where all blocks have had
their turn, another round has its blocks cut from an order of entries that is drawn, with the radius
let out, so that it can leave a direction in which no single flip helps; after every second round
the search begins anew from signs that are drawn.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.driver import Unbroken
from retroact.crafting.geometry import each
from retroact.crafting.noise import uniform
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access
from retroact.crafting.windows import signs_of
from retroact.spec import Count, spec

# Chosen on validation images of digits and MNIST, on three networks:
_FIRST, _AGAIN = 0.5, 0.1  # the share of the way to eps, at first and in every later round
_LONGER, _SHORTER = 2.0, 0.85  # times so much after a hit and after a miss
_LEAST = 1e-3  # of the way, however often rays miss
_LET_OUT = 2.0  # times the way to eps, at the start of a later round
_ROUNDS = 2  # from one beginning


@spec
class RayS(Attack):
    """At most `queries` decisions; an example is broken as soon as its radius is within eps."""

    queries: Count = 3000
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs: ClassVar[Access] = "decision"
    streams: ClassVar[bool] = True
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Chen & Gu 2020, arXiv:2006.12792"
    # most queries look at the few examples left, so more of them share a look
    chunk: ClassVar[int] = 256

    @property
    def passes(self) -> int:
        """Queries, which cost less than the gradients that other attacks count here."""
        return self.queries

    def __call__(self, scene: Scene) -> Tensor:
        unbroken, blocks, at = Unbroken(scene), _blocks(scene), _outset(scene)
        for _ in range(self.queries):
            tried = scene.clamp(at.centre + each(at.length, at.ray) * at.ray)
            hit = scene.is_broken(tried, unbroken.rows)
            broken = hit & (at.length <= scene.threat.eps)
            at = _judge(at, hit)
            if len((broken | _is_round_over(at, len(blocks))).nonzero()):  # one wait for both
                at = _Rays(*unbroken.part(tried, broken, *at)[1:])
                if not len(unbroken):
                    break
                at = _go_round(scene, at, unbroken.rows, len(blocks))
            at = _flip(scene, at, blocks)
        return unbroken.finish(scene.project(at.centre + scene.threat.eps * at.best, at.centre))


class _Rays(NamedTuple):
    """The search of each example around its `centre`: the `best` signs and the `radius` (m,) that
    they turn at, once a ray has been `found` that turns at all; the `ray` that is tried at a
    `length`, which is a `share` of the way from the radius to eps; whether the next look `stays` on
    this ray; the `turn`, how many blocks have been flipped; the `place` of each entry (m, d) among
    those that blocks are cut from."""

    centre: Tensor
    best: Tensor
    radius: Tensor
    found: Tensor
    ray: Tensor
    length: Tensor
    share: Tensor
    stays: Tensor
    turn: Tensor
    place: Tensor


def _outset(scene: Scene) -> _Rays:
    """All entries up, as far as the box is wide."""
    x, ones = scene.x, torch.ones_like(scene.x)
    far, off = x.new_full((len(x),), scene.domain.width), torch.zeros_like(scene.rows)
    place = torch.arange(scene.domain.entries, device=x.device).expand(len(x), -1)
    no, share = off.bool(), torch.full_like(far, _FIRST)
    return _Rays(x, ones, far, no, ones, far, share, no, off - 1, place)


def _blocks(scene: Scene) -> Tensor:
    """Where the blocks of a round begin and end, (b, 2): one, two, four and so on, down to single
    places."""
    entries, blocks, parts = scene.domain.entries, [], 1
    while True:
        size = -(-entries // parts)
        blocks += [(begin, min(begin + size, entries)) for begin in range(0, entries, size)]
        if size == 1:
            return torch.tensor(blocks, device=scene.x.device)
        parts *= 2


def _judge(at: _Rays, hit: Tensor) -> _Rays:
    """A hit is the best ray from now on, and is tried at a shorter length next; a miss gives way to
    another ray."""
    share = at.share * torch.where(hit, _LONGER, _SHORTER).to(at.share)
    return at._replace(
        best=at.ray.where(each(hit, at.ray), at.best),
        radius=at.length.where(hit, at.radius),
        share=share.clamp(_LEAST, 1.0).where(at.found, at.share),
        found=at.found | hit,
        stays=hit,
        turn=at.turn + (~hit).long(),
    )


def _is_round_over(at: _Rays, blocks: int) -> Tensor:
    """Bool (m,): whether all blocks have had their turn."""
    return ~at.stays & (at.turn > 0) & (at.turn % blocks == 0)


def _go_round(scene: Scene, at: _Rays, rows: Tensor, blocks: int) -> _Rays:
    """Where a round is over: entries in an order that is drawn, and some slack, or another
    beginning."""
    new = _is_round_over(at, blocks)
    if not new.any():
        return at
    turn, (best, place) = at.turn // blocks, (at.best.clone(), at.place.clone())
    drawn = uniform((2, *scene.domain.shape), scene.index[rows[new]], scene.seed, turn[new])
    place[new] = drawn[:, 0].flatten(1).argsort(1)
    anew = new & (turn % _ROUNDS == 0)
    best[anew] = signs_of(drawn[anew[new], 1]).to(best)
    width, wider = scene.domain.width, at.radius + _LET_OUT * (at.radius - scene.threat.eps)
    radius = wider.clamp_max(width).where(new, at.radius)
    share = torch.full_like(at.share, _AGAIN).where(new, at.share)
    return at._replace(
        best=best,
        radius=radius.masked_fill(anew, width),
        found=at.found & ~anew,
        share=share.masked_fill(anew, _FIRST),
        place=place,
    )


def _flip(scene: Scene, at: _Rays, blocks: Tensor) -> _Rays:
    """The ray and the length of the next look."""
    begin, end = blocks[at.turn.clamp_min(0) % len(blocks)].T[..., None]
    flipped = ((at.place >= begin) & (at.place < end) & ~at.stays[:, None]).view_as(at.best)
    eps = scene.threat.eps
    nearer = eps + (1 - at.share) * (at.radius - eps)  # exactly eps where the share is 1
    return at._replace(
        ray=at.best.where(~flipped, -at.best), length=nearer.where(at.found, at.radius)
    )
