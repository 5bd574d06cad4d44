"""Planted examples: whether the attacks of an audit find what is known to be there.

A truly robust network gives its attacks nothing to break, and so does one that blinds them. To tell
them apart, the last linear layer is rewritten for one image after the other, in place and on a copy
that shares all other weights, so that an adversarial example lies at a known point of the ball:
attacks that do not find it there have shown nothing where they find none (Zimmermann, Brendel,
Tramèr & Carlini 2022, arXiv:2206.13991).

Of points drawn in the ball one on its boundary, x + δ*, is planted. A readout w·f of the features f
that come to the last layer is fitted, by least squares, to how far each of the points lies in its
direction, ⟨δ, δ*⟩ / ⟨δ*, δ*⟩, without a gradient of anybody's; its bias leaves everything short of
`DEPTH` of the way on the clean side. As many points, drawn anew, are the control: what a random
search finds too is no test, and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retroact.auditing.attack_run import AttackRun, Conditions, Some
from retroact.auditing.battery import Battery
from retroact.auditing.subjects import Climb, Subject, prepare_writable
from retroact.crafting.derived import copy_sharing
from retroact.crafting.domain import domain_of
from retroact.crafting.geometry import each
from retroact.crafting.noise import normal, uniform
from retroact.crafting.oracle import Network, device_of, evaluating, in_float, modules_of
from retroact.evaluation.evaluate import decide

ENOUGH = 40
"""Images that an example is planted for."""
SHARE = 0.95
"""Of the planted examples: what an attack must find to be believed where it finds nothing."""
DRAWS = 256
"""Points of each ball that a readout is fitted to, and as many that try to find the planted one."""
DEPTH = 0.95
"""Of the way to the planted point: where the readout changes its mind."""
LOCAL = 0.6
"""Of how far features move around images that nobody knows: what they must move around the
images."""

_COMPARED, _MOVED = 16, 32  # images around which that is asked, and points around each
_MIXED = 0.6  # of an image in a mixture with the next one, or beside the rest of it
_PLANTS = 900_000_011  # streams of their own


@dataclass(frozen=True)
class Planted:
    """How many of the examples that were `planted` the attacks `found`; `easy` images were left out
    as a random search found theirs, and `hidden` ones as the network does not decide there as its
    last layer does. `why` says why none could be planted."""

    planted: int = 0
    found: int = 0
    easy: int = 0
    hidden: int = 0
    why: str = ""

    @property
    def are_found(self) -> bool:
        """Whether at least `ENOUGH` were planted and at least `SHARE` of them found."""
        return self.planted >= ENOUGH and self.found >= SHARE * self.planted

    def __str__(self) -> str:
        if self.why:
            return f"no examples can be planted: {self.why}"
        said = f"{self.found} of {self.planted} planted examples found"
        left = ((self.easy, "too easy"), (self.hidden, "not to be planted"))
        return said + "".join(f", {n} {word}" for n, word in left if n)


def seek_planted(
    subject: Subject, kernels: Sequence[str], rows: Tensor, under: Conditions, battery: Battery
) -> Planted:
    """What the untargeted and the targeted attack of `battery`, through each of the `kernels` that
    they ran through on the network, find of examples that are planted around the images `rows`
    (m,), until `ENOUGH` are planted, or so many missed that it is settled."""
    if subject.folded is not subject.net:
        return Planted(why="slopes were folded away")
    try:
        writable = Writable(subject.net.network, under.data.images[rows[:2]])
    except PlantingError as e:
        return Planted(why=str(e))
    like = prepare_writable(writable.net, subject, under.data, under.threat)
    known = [kernel for kernel in kernels if not kernel or like.source(kernel) is not None]
    climbs = [like.through(like.source(kernel)) for kernel in known]
    if not climbs:
        return Planted(why="nothing that was climbed can be rewritten")
    if compare_movement(writable.net, rows, under) < LOCAL:
        return Planted(why="the network may know these images")
    found = Planted()
    for row in rows.tolist():
        one = replace(under, data=Some.of(under, torch.tensor([row])))
        found = _count(found, writable, one, climbs, battery)
        missed = found.planted - found.found
        if found.planted >= ENOUGH or missed > (1 - SHARE) * ENOUGH:
            break
    return found


def compare_movement(network: Network, rows: Tensor, under: Conditions) -> float:
    """How far features move within the balls of the images `rows` (m,), over how far around images
    that nobody knows, the median: a network that acts near images that it knows moves less there.

    Features are what comes to the last linear layer, or the logits where there is none. Nobody
    knows mixtures of two images, nor one beside the rest of the next; the greater of the two ratios
    counts, as mixtures of black and white are grey, where a network that rounds is uneasy. Of
    networks trained in any usual way, hardened or not, it lies above .9 (docs/calibration.md).
    """
    look = _look_for(network, under.data.images[rows[:2]])
    ratios, some = [], rows[:_COMPARED]
    for row, next_row in zip(some.tolist(), some.roll(-1).tolist(), strict=True):
        one = replace(under, data=Some.of(under, torch.tensor([row])))
        x = one.data.images
        d = _draw(one, stream=1)[:_MOVED] - x
        here, *others = (
            _measure_movement(look, centre, d)
            for centre in (x, *_mix(x, under.data.images[next_row]))
        )
        # answers in steps do not move at all, near known images or others
        ratios.append(max(here / there if here > 0 and there > 0 else 1.0 for there in others))
    return float(torch.tensor(ratios or [1.0]).median())


def _mix(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """An image (1, …) mixed with another (…), and the first part of it, along its longest axis,
    beside the rest of the other."""
    axis = max(range(1, x.dim()), key=lambda i: (x.shape[i], i))
    cut = round(_MIXED * x.shape[axis])
    first, rest = x.narrow(axis, 0, cut), other[None].narrow(axis, cut, x.shape[axis] - cut)
    return _MIXED * x + (1 - _MIXED) * other, torch.cat([first, rest], dim=axis)


def _look_for(network: Network, example: Tensor) -> Callable[[Tensor], Tensor]:
    try:
        writable = Writable(network, example)
    except PlantingError:
        return lambda x: _ask(network, x).cpu()
    return lambda x: writable.look(x)[1]


def _measure_movement(look: Callable[[Tensor], Tensor], centre: Tensor, d: Tensor) -> float:
    """The mean distance of the features at `centre` (1, …) + `d` (m, …) from those at it."""
    features = look(torch.cat([centre, centre + d]))
    return float((features[1:] - features[0]).norm(dim=1).mean())


def _ask(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(network):
        return in_float(network, x.to(device_of(network)))


def _count(
    found: Planted, writable: Writable, one: Conditions, climbs: list[Climb], battery: Battery
) -> Planted:
    """What is found with one more image."""
    plot = _plant(writable, one)
    if plot is None:
        return replace(found, hidden=found.hidden + 1)
    with writable.written(plot.weight, plot.bias):
        if not _stands(writable.net, one, plot.planted):
            return replace(found, hidden=found.hidden + 1)
        if _is_easy(writable.net, one):
            return replace(found, easy=found.easy + 1)
        hit = any(_finds(writable.net, one, climb, battery) for climb in climbs)
    return replace(found, planted=found.planted + 1, found=found.found + hit)


def _finds(net: Network, one: Conditions, climb: Climb, battery: Battery) -> bool:
    run = AttackRun(net, one)
    run.attack("planted", "white box", battery.untargeted(), climb)
    run.attack("planted, targeted", "white box", battery.targeted(one.classes), climb)
    return not bool(run.robust[0])


def _stands(net: Network, one: Conditions, planted: Tensor) -> bool:
    """Whether the network itself decides the clean image rightly and the planted one wrongly, which
    lies in the ball."""
    data = one.data
    inside = bool(one.threat(planted, data.images)[0])
    clean, fooled = decide(net, data.images), decide(net, planted, attacked=True)
    return inside and int(clean) == int(data.labels) and int(fooled) not in (-1, int(data.labels))


def _is_easy(net: Network, one: Conditions) -> bool:
    """Whether one of as many points, drawn anew, fools the network as well."""
    decisions = decide(net, _draw(one, stream=2), attacked=True)
    return bool(((decisions != one.data.labels) & (decisions >= 0)).any())


# ------------------------------------------------------------------------------------- the readout


class _Plot(NamedTuple):
    """A last layer, `weight` (k, d) and `bias` (k,), and the point (1, …) that it makes
    adversarial."""

    weight: Tensor
    bias: Tensor
    planted: Tensor


def _plant(writable: Writable, one: Conditions) -> _Plot | None:
    """The readout of one image; None where its features do not tell the points apart.

    The logits of two classes, the true one and the one that was next, change places along w·f, with
    the margin that the image had before; the others stay below them.
    """
    x, label = one.data.images, int(one.data.labels)
    points = torch.cat([_draw(one, stream=1), x])
    logits, features = writable.look(points)
    margin, other = _next(logits[-1], label)
    away = (points - x).flatten(1).double()
    towards = away @ away[0] / (away[0] @ away[0]).clamp_min(1e-30)
    moved = (features - features[-1]).double()
    w = _fit(moved, towards)
    reach = moved @ w
    if not margin > 0 or not reach[0] > 0:
        return None
    # −1 at the clean image, 0 where the readout changes its mind
    w = w / (DEPTH * reach[0])
    weight = features.new_zeros(len(logits[-1]), len(w))
    bias = logits[-1].new_full((len(weight),), float(logits[-1, label] - 2 * margin))
    for cls, sign in ((label, -1), (other, 1)):
        weight[cls] = sign * margin / 2 * w
        bias[cls] = logits[-1, label] - margin / 2 - sign * margin / 2
        bias[cls] -= weight[cls].double() @ features[-1].double()
    return _Plot(weight, bias, points[:1])


def _next(logits: Tensor, label: int) -> tuple[float, int]:
    """The margin of an image's logits (k,), and the class that is next to the true one."""
    others = logits.clone()
    others[label] = -torch.inf
    return float(logits[label] - others.max()), int(others.argmax())


def _fit(moved: Tensor, towards: Tensor) -> Tensor:
    """w (d,) by which `moved` (m, d) · w is as near as may be to `towards` (m,), the shortest."""
    found = torch.linalg.lstsq(moved, towards[:, None], rcond=1e-6, driver="gelsd")
    w: Tensor = found.solution[:, 0]
    return w


def _draw(one: Conditions, stream: int) -> Tensor:
    """`DRAWS` points of the ball around the one image, the first half of them on its boundary."""
    x, threat, domain = one.data.images, one.threat, domain_of(one.data)
    index = one.data.index.expand(DRAWS)
    at = _PLANTS + 1000 * stream + torch.arange(DRAWS)
    d = threat.steepest(normal(domain.shape, index, one.seed, at).to(x))
    length = uniform((1,), index, one.seed, at + _PLANTS)[:, 0].to(x)
    length[: DRAWS // 2] = 1.0
    return threat.project(x + each(length, d) * threat.eps * d, x, domain)


# ----------------------------------------------------------------------------------- the last layer


class PlantingError(ValueError):
    """A network whose last layer cannot be rewritten."""


class Writable:
    """A copy of a network with a last linear layer of its own; all other weights are shared.

    Raises PlantingError where there is none that is called once, on one row for each image, or no
    copy.
    """

    def __init__(self, network: Network, example: Tensor) -> None:
        copied = copy_sharing(network)
        if copied is None:
            raise PlantingError("the network cannot be copied")
        self.net = copied
        self._layer = self._find_last(example)
        width = self._layer.out_features
        own, bias = self._layer.weight.detach(), self._layer.bias
        self._layer.weight = nn.Parameter(own.clone(), requires_grad=False)
        given = own.new_zeros(width) if bias is None else bias.detach().clone()
        self._layer.bias = nn.Parameter(given, requires_grad=False)

    def _find_last(self, example: Tensor) -> nn.Linear:
        called: list[tuple[nn.Linear, Tensor]] = []
        with self._watched(called):
            _ask(self.net, example)
        if not called or called[-1][0].out_features != _ask(self.net, example).shape[1]:
            raise PlantingError("it calls no linear layer that gives its classes")
        last, seen = called[-1]
        if seen.dim() != 2 or len(seen) != len(example) or [m for m, _ in called].count(last) > 1:
            raise PlantingError("its last linear layer is called more than once, or not by image")
        return last

    @contextmanager
    def _watched(self, called: list[tuple[nn.Linear, Tensor]]) -> Iterator[None]:
        layers = {m for net in modules_of(self.net) for m in net.modules()}
        hooks = [
            layer.register_forward_pre_hook(lambda m, args: called.append((m, args[0].detach())))
            for layer in layers
            if type(layer) is nn.Linear  # not one with a forward or backward pass of somebody's own
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (n, k) of the network as it was, and the features (n, d) before its last
        layer."""
        called: list[tuple[nn.Linear, Tensor]] = []
        with self._watched(called):
            logits = _ask(self.net, x)
        found = [seen for m, seen in called if m is self._layer]
        if not found:  # one that goes another way by chance
            raise PlantingError("its last linear layer is not always called")
        return logits.cpu(), found[0].float().cpu()

    @contextmanager
    def written(self, weight: Tensor, bias: Tensor) -> Iterator[None]:
        """The last layer has these weights for the time of the block; whatever was traced of the
        network sees them too."""
        places = self._layer.weight.data, self._layer.bias.data
        before = [t.clone() for t in places]
        try:
            for place, value in zip(places, (weight, bias), strict=True):
                place.copy_(value)
            yield
        finally:
            for place, value in zip(places, before, strict=True):
                place.copy_(value)
