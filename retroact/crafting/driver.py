"""Runs an attack over a data set, chunk by chunk: the only loop over examples in the house.

    outcome = craft(PGD(steps=40), net, images, labels, index, Linf(0.1))

A chunk's result depends on its examples, the spec and the seed alone, so chunks may run in any
order, anywhere, and again after a stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from retroact.crafting.goals import Aim, Goal, Targets, goal_of
from retroact.crafting.oracle import (
    Network,
    Oracle,
    device_of,
    dtype_of,
    evaluating,
    is_out_of_memory,
    settled,
)
from retroact.crafting.threat import SLACK, Access, Norm, ThreatModel, allows
from retroact.doors import checked
from retroact.ground import neutral

T = TypeVar("T")

CHUNK = 64  # small chunks stay in a CPU's caches: 1.3-1.4 times faster than one large batch


@runtime_checkable
class Attack(Protocol):
    """A spec that turns clean images into adversarial ones.

    `norms`: the norms it serves · `needs`: the access it needs · `kind`: "budget" (best within eps)
    or "minimum-norm" (smallest perturbation) · `paper`: where it comes from · `passes`: how many
    gradients an example costs at most. An attack whose first gradient is at the clean images
    themselves may say `starts_clean = True` and gets it for the price of the backward pass; one
    that likes other chunks than CHUNK names its own as `chunk`.
    """

    norms: ClassVar[tuple[Norm, ...]]
    needs: ClassVar[Access]
    kind: ClassVar[str]
    paper: ClassVar[str]

    @property
    def passes(self) -> int: ...

    def __call__(
        self, oracle: Oracle, x: Tensor, aim: Aim, threat: ThreatModel, *, index: Tensor, seed: int
    ) -> Tensor:
        """Adversarial images, shaped as `x` (n, c, h, w), in [0, 1] and, for a budget attack, in
        the ball.

        A minimum-norm attack returns the smallest perturbation it finds in the threat's norm; the
        driver puts those beyond eps back to the clean image, so one run serves every eps. `index`
        (n,) names each example for its noise; row i of the oracle's chunk is row i of `x`.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """What crafting left behind, per example: the images and the oracle's counters. All on the CPU.

    `last` is where the attack ended: `x_adv`, but for a minimum-norm attack what it found beyond
    eps, too.
    """

    x_adv: Tensor
    last: Tensor
    targets: Tensor  # −1 where the goal has none
    queries: Tensor
    gradients: Tensor
    zero_gradients: Tensor
    nonfinite: Tensor


class Standing:
    """The examples of a chunk that the attack has not beaten yet.

    An attack keeps its tensors for the standing examples only; `drop` files the beaten ones away
    and returns the tensors of those that remain.
    """

    def __init__(self, x: Tensor, aim: Aim) -> None:
        self.x_adv = x.clone()
        self.rows = torch.arange(len(x), device=x.device)
        self.aim = aim

    def __len__(self) -> int:
        return len(self.rows)

    def drop(self, x: Tensor, logits: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Files away every example whose `x` reaches the goal; returns (x, *others) of the rest."""
        beaten = self.aim.reached(logits)
        if beaten.any():
            self.x_adv[self.rows[beaten]] = x[beaten]
            left = (~beaten).nonzero()[:, 0]
            self.rows, self.aim = self.rows[left], self.aim[left]
            x, others = x[left], tuple(o[left] for o in others)
        return x, *others

    def finish(self, x: Tensor) -> Tensor:
        """The chunk's adversarial images: the beaten ones, and `x` for those that stand to the
        end."""
        self.x_adv[self.rows] = x
        return self.x_adv


def craft(
    attack: Attack,
    network: Network,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    threat: ThreatModel,
    goal: Goal | Targets | None = None,
    *,
    gradients: Network | None = None,
    seed: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Attacks every example of `images` (n, c, h, w) that does not already meet the goal.

    Examples that meet it clean (untargeted: misclassified ones) are returned as they are, and so
    are those for which a minimum-norm attack needs more than `threat.eps`. With `gradients`,
    decisions come from `network` and gradients from that other network. `progress` is called with
    (examples done, examples in all) after each chunk.

    Raises ValueError for a norm or an access that the attack does not serve, and for an L2 radius
    beyond the diagonal of the box, unless the attack is minimum-norm.
    """
    return craft_all(
        attack,
        network,
        images,
        labels,
        index,
        [threat],
        goal,
        gradients=gradients,
        seed=seed,
        chunk=chunk,
        progress=progress,
    )[0]


@neutral()
def craft_all(
    attack: Attack,
    network: Network,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    threats: Sequence[ThreatModel],
    goal: Goal | Targets | None = None,
    *,
    gradients: Network | None = None,
    seed: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Outcome]:
    """`craft` for several threat models of one norm and access: one Outcome each.

    A minimum-norm attack runs once for all of them, and so does one with a `sweep` method (FGSM:
    one gradient serves every eps); their counters are those of that one run. Others run once for
    each.
    """
    seed, chunk, _ = checked(seed, getattr(attack, "chunk", CHUNK) if chunk is None else chunk)
    assert chunk is not None
    _check(attack, threats, images, chunk)
    todo: list[list[ThreatModel]] = (
        [list(threats)] if serves_several(attack) else [[t] for t in threats]
    )
    goal = goal_of(goal, index)
    outcomes = []
    with evaluating(network, gradients):
        for turn, together in enumerate(todo):
            parts: list[list[Outcome]] = [[] for _ in together]

            def run(rows: slice, together: Sequence[ThreatModel] = together) -> list[Outcome]:
                scene = images[rows], labels[rows], index[rows]
                return _craft_chunk(attack, network, *scene, together, goal, gradients, seed)

            for rows in chunks(len(images), chunk):
                for made in in_halves(run, rows):
                    for part, outcome in zip(parts, made, strict=True):
                        part.append(outcome)
                if progress is not None:
                    progress(turn * len(images) + rows.stop, len(todo) * len(images))
            outcomes += [_join(part) for part in parts]
    return outcomes


def serves_several(attack: Attack) -> bool:
    """Whether one run of the attack serves several radii."""
    return attack.kind == "minimum-norm" or hasattr(attack, "sweep")


def _craft_chunk(
    attack: Attack,
    network: Network,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    threats: Sequence[ThreatModel],
    goal: Goal,
    gradients: Network | None,
    seed: int,
) -> list[Outcome]:
    device = device_of(network)
    # A float64 network is attacked in float64 throughout; half floats keep their images in float32.
    wide = torch.float64 if dtype_of(network) == torch.float64 else images.dtype
    x, y, index = images.to(device, wide), labels.to(device), index.to(device)
    whole = Oracle(network, len(x), gradients=gradients, access=threats[0].access)
    clean = whole.look(x, for_gradient=getattr(attack, "starts_clean", False))
    # a function may give wider logits than the weights behind it
    x = x.to(torch.promote_types(x.dtype, clean.dtype))
    aim = goal(y, clean, index)
    # A network that overflows on the clean image, or whose logits rounding has made alike, decides
    # nothing, so there is nothing to change.
    decides = settled(clean)
    whole.nonfinite |= ~decides.cpu()
    todo = (~aim.reached(clean) & decides).nonzero()[:, 0]
    made = [(x, x) for _ in threats]
    if len(todo):
        start = x[todo]
        inner = whole.narrowed(todo, start)
        found = _attacked(attack, inner, start, aim[todo], threats, index[todo], seed)
        made = [_placed(x, todo, pair) for pair in found]
        _add(whole, inner, todo.cpu())
    targets = torch.full_like(y, -1) if aim.targets is None else aim.targets
    counts = (whole.queries, whole.gradients, whole.zero_gradients, whole.nonfinite)
    return [Outcome(*_brought(pair, images), targets.cpu(), *counts) for pair in made]


def _placed(x: Tensor, rows: Tensor, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The chunk's images with the two parts of a pair at `rows`; one tensor where they are one."""
    x_adv, last = (_healed(x.index_copy(0, rows, part), x) for part in pair)
    return (x_adv, x_adv) if pair[0] is pair[1] else (x_adv, last)


def _brought(pair: tuple[Tensor, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU, in the dtype of `images`, and the caller's images not among them."""
    x_adv = pair[0].to("cpu", images.dtype, copy=True)
    return x_adv, x_adv if pair[0] is pair[1] else pair[1].to("cpu", images.dtype)


def _attacked(
    attack: Attack,
    oracle: Oracle,
    x: Tensor,
    aim: Aim,
    threats: Sequence[ThreatModel],
    index: Tensor,
    seed: int,
) -> list[tuple[Tensor, Tensor]]:
    """For each threat the adversarial images, and where the attack ended."""
    if attack.kind == "minimum-norm":
        found = attack(oracle, x, aim, max(threats, key=lambda t: t.eps), index=index, seed=seed)
        return [(_within(found, x, threat), found) for threat in threats]
    several = getattr(attack, "sweep", None)
    if several is not None:
        return [(made, made) for made in several(oracle, x, aim, threats, index=index, seed=seed)]
    made = attack(oracle, x, aim, threats[0], index=index, seed=seed)
    return [(made, made)]


def _within(found: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """`found` where it lies within the radius, the clean image elsewhere."""
    return found.where(threat(found, x).view(-1, *[1] * (x.dim() - 1)), x)


def _add(whole: Oracle, inner: Oracle, rows: Tensor) -> None:
    whole.queries[rows] += inner.queries
    whole.gradients[rows] += inner.gradients
    whole.zero_gradients[rows] += inner.zero_gradients
    whole.nonfinite[rows] |= inner.nonfinite


def _healed(x_adv: Tensor, x: Tensor) -> Tensor:
    # An image with a NaN in it is no adversarial example: such an example goes back to its clean
    # image.
    finite = x_adv.flatten(1).isfinite().all(1)
    return x_adv if finite.all() else x_adv.where(finite.view(-1, *[1] * (x.dim() - 1)), x)


def _join(parts: Sequence[Outcome]) -> Outcome:
    columns = {
        f.name: torch.cat([getattr(p, f.name) for p in parts])
        for f in fields(Outcome)
        if f.name != "last"
    }
    one = all(p.last is p.x_adv for p in parts)
    return Outcome(**columns, last=columns["x_adv"] if one else torch.cat([p.last for p in parts]))


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover n examples in order."""
    yield from (slice(i, min(i + size, n)) for i in range(0, n, size))


def in_halves(run: Callable[[slice], T], rows: slice) -> Iterator[T]:
    """`run(rows)`; where memory does not suffice, its halves, and theirs, down to single
    examples."""
    try:
        found = run(rows)
    except (RuntimeError, MemoryError) as e:
        if rows.stop - rows.start < 2 or not is_out_of_memory(e):
            raise
    else:
        yield found
        return
    half = (rows.start + rows.stop) // 2
    for part in (slice(rows.start, half), slice(half, rows.stop)):
        yield from in_halves(run, part)


def _check(attack: Attack, threats: Sequence[ThreatModel], images: Tensor, chunk: int) -> None:
    n = len(images)
    if n == 0 or chunk < 1 or not threats:
        raise ValueError(
            "expected at least one example, in chunks of at least one, and at least one threat, "
            f"got n={n}, chunk={chunk}, {len(threats)} threats"
        )
    if len({(t.norm, t.access) for t in threats}) > 1:
        raise ValueError(
            f"expected threats of one norm and access, got {', '.join(map(str, threats))}"
        )
    threat = threats[0]
    if threat.norm not in attack.norms:
        raise ValueError(
            f"{attack} serves the norms {', '.join(attack.norms)}, got {threat}; choose another"
        )
    if not allows(threat, attack.needs):
        raise ValueError(
            f"{attack} needs {attack.needs} access, got {threat}; "
            f'give access="{attack.needs}" or choose an attack that needs less'
        )
    if attack.kind == "budget" and threat.norm == "l2":
        _check_radius(max(t.eps for t in threats), tuple(images.shape[1:]))


def _check_radius(eps: float, shape: tuple[int, ...]) -> None:
    # To a minimum-norm attack a huge radius means no limit; a budget attack would steer by it.
    diagonal = math.sqrt(math.prod(shape))
    if eps > diagonal * (1 + SLACK):
        raise ValueError(
            f"expected an L2 radius of at most {diagonal:.4g}, the diagonal of the box [0,1] for"
            f" images {shape}, got {eps:g}; eps is in pixels of [0,1], so divide a radius for"
            " [0,255] by 255"
        )
