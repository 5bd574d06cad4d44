"""Runs an attack over a data set, chunk by chunk: the only loop over examples in the house.

    outcome = craft(PGD(steps=40), net, images, labels, index, Linf(0.1))

A chunk's result depends on its examples, the spec and the seed alone, so chunks may run in any
order, anywhere, and again after a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from retroact.crafting.attack import Attack
from retroact.crafting.domain import Domain
from retroact.crafting.geometry import each
from retroact.crafting.goals import Goal, Targets, goal_of, view_of
from retroact.crafting.kept_chunks import KeptChunks
from retroact.crafting.oracle import (
    Crafting,
    Network,
    Oracle,
    device_of,
    dtype_of,
    evaluating,
    is_out_of_memory,
    settled,
)
from retroact.crafting.outcome import Outcome as Outcome
from retroact.crafting.outcome import join
from retroact.crafting.scene import Scene
from retroact.crafting.sending import Ahead, Sent
from retroact.crafting.sizing import chunk_for, stream_for
from retroact.crafting.threat import ThreatModel, allows
from retroact.doors import checked
from retroact.ground import neutral
from retroact.parts import UNFILED, Filed

T = TypeVar("T")


class Unbroken:
    """The examples of a chunk that the attack has not broken yet.

    An attack keeps its tensors for these alone; `drop` and `part` file the broken ones away and
    return the tensors of those that remain.
    """

    def __init__(self, scene: Scene) -> None:
        self.x_adv = scene.x.clone()
        self.rows = scene.rows
        self.aim = scene.aim

    def __len__(self) -> int:
        return len(self.rows)

    def drop(self, x: Tensor, logits: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """Files away every example whose `x` reaches the goal; returns (x, *others) of the rest."""
        return self.part(x, self.aim.reached(logits), *others)

    def part(self, x: Tensor, broken: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """`drop` of the examples that are `broken`, bool (m,), by whoever has judged them."""
        left = (~broken).nonzero()[:, 0]  # what a device is waited for, once in a step
        if len(left) < len(broken):
            # those that are left are written over when they are broken, or at the end
            self.x_adv.index_copy_(0, self.rows, x)
            self.rows, self.aim = self.rows[left], self.aim[left]
            x, others = x[left], tuple(o[left] for o in others)
        return x, *others

    def finish(self, x: Tensor) -> Tensor:
        """The chunk's adversarial examples: the broken ones, and `x` for those robust to the
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
    source: Network | None = None,
    domain: Domain | None = None,
    seed: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Attacks every example of `images` (n, …) that does not already meet the goal.

    Examples that meet it clean (untargeted: misclassified ones) are returned as they are, and so
    are those for which a minimum-norm attack needs more than `threat.eps`. With `source`, decisions
    come from `network` and gradients from that other network. `domain` is the box that the examples
    lie in, [0, 1] where none is given. `progress` is called with (examples done, examples in all)
    after each chunk.

    Raises ValueError for a norm or an access that the attack does not serve, and for a radius
    beyond the box (in other norms than L_inf only where the attack is not minimum-norm).
    """
    return craft_all(
        attack,
        network,
        images,
        labels,
        index,
        [threat],
        goal,
        source=source,
        domain=domain,
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
    source: Network | None = None,
    domain: Domain | None = None,
    seed: int = 0,
    chunk: int | None = None,
    crafting: Crafting = "float32",
    progress: Callable[[int, int], None] | None = None,
    filed: Filed = UNFILED,
) -> list[Outcome]:
    """`craft` for several threat models of one norm and access: one Outcome each.

    An attack that `serves_several` runs once for all of them (FGSM: one gradient serves every eps;
    every minimum-norm attack); their counters are those of that one run. Others run once for each.
    Chunks that were `filed` are not run again.
    """
    batch = chunk_for(network, images, attack.chunk) if chunk is None else chunk
    together = chunk is None and attack.streams
    seed, chunk, _ = checked(seed, stream_for(network, images, batch) if together else batch)
    assert chunk is not None
    _check_n(images, threats, chunk)
    domain = Domain(tuple(images.shape[1:])) if domain is None else domain
    _check(attack, threats, domain)
    check_crafting(crafting, network, source)
    goal = goal_of(goal, index)
    runs = apart_or_together(attack, threats)
    outcomes = []
    with evaluating(network, source):
        for turn, under in enumerate(runs):
            run = _Run(attack, network, source, domain, under, goal, seed, batch, crafting)
            seen = count_on(progress, turn, len(runs))
            kept = KeptChunks(filed.of("run", turn), chunk)
            outcomes += _craft_chunks(run, images, labels, index, chunk, seen, kept)
    return outcomes


Progress = Callable[[int, int], None]
"""`progress(done, all)`: how many of all examples are done."""


def count_on(progress: Progress | None, turn: int, turns: int) -> Progress | None:
    """`progress` of the run number `turn` as that of all `turns`."""
    return progress and (lambda done, total: progress(turn * total + done, turns * total))


def apart_or_together(attack: Attack, threats: Sequence[ThreatModel]) -> list[list[ThreatModel]]:
    """The threats of each run of the attack: all of them in one, or each in one of its own."""
    return [list(threats)] if attack.serves_several else [[threat] for threat in threats]


@dataclass(frozen=True, eq=False)
class _Run:
    """What all chunks of a run share."""

    attack: Attack
    network: Network
    source: Network | None
    domain: Domain
    threats: Sequence[ThreatModel]
    goal: Goal
    seed: int
    batch: int
    crafting: Crafting


def _craft_chunks(
    run: _Run,
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    chunk: int,
    progress: Progress | None,
    kept: KeptChunks,
) -> list[Outcome]:
    """One run over all examples: an outcome for each of its threats."""

    device = device_of(run.network)
    ahead = Ahead(device, chunk, images, labels, index)

    def craft_rows(sent: Sent, rows: slice) -> list[Outcome]:
        return _craft_chunk(run, *sent.at(rows, device))

    parts: list[Sequence[Outcome]] = []
    behind = 0
    for rows in chunks(len(images), chunk):
        if rows.start < behind:
            continue
        found = kept.find(rows.start)
        if found is None:
            halves = zip(*in_halves(partial(craft_rows, ahead.take(rows)), rows), strict=True)
            found = [join(part) for part in halves], rows.stop
            kept.add(*found)
        done, behind = found
        parts.append(done)
        if progress is not None:
            progress(behind, len(images))
    return [join(part) for part in zip(*parts, strict=True)]


def _craft_chunk(run: _Run, x: Tensor, y: Tensor, index: Tensor) -> list[Outcome]:
    given = x.dtype
    # A float64 network is attacked in float64 throughout; half floats keep their images in float32.
    x = x.to(torch.float64 if dtype_of(run.network) == torch.float64 else given)
    access, view = run.threats[0].access, view_of(run.goal)
    seen = None if view is None else lambda z, rows: view(z, y[rows])
    how: dict[str, Any] = {"source": run.source, "access": access, "view": seen, "device": x.device}
    how |= {"batch": run.batch, "crafting": run.crafting}
    whole = Oracle(run.network, len(x), **how)
    whole.progress(1.0)  # who tells no progress climbs the last form, whoever climbed it before
    clean = whole.look(x, for_gradient=run.attack.starts_clean)
    # a function may give wider logits than the weights behind it
    x = x.to(torch.promote_types(x.dtype, clean.dtype))
    aim = run.goal(y, clean, index)
    # A network that overflows on the clean image, or whose logits rounding has made alike, decides
    # nothing, so there is nothing to change.
    decides = settled(clean)
    whole.flag(~decides)
    todo = (~aim.reached(clean) & decides).nonzero()[:, 0]
    pairs = [(x, x) for _ in run.threats]
    if len(todo):
        inner = whole.narrowed(todo, start := x[todo])
        threat = max(run.threats, key=lambda t: t.eps)
        scene = Scene(inner, start, aim[todo], threat, run.domain, index[todo], run.seed)
        pairs = [_place(x, todo, pair) for pair in _attack(run.attack, scene, run.threats)]
        whole.add(inner, todo)
    targets = torch.full_like(y, -1) if aim.targets is None else aim.targets
    counts = targets, whole.queries, whole.gradients, whole.zero_gradients, whole.nonfinite
    aims, queries, gradients, zeros, unsound = torch.stack(counts).cpu()  # in one copy
    counted = aims, queries, gradients, zeros, unsound.bool()
    return [Outcome(*_bring(pair, given), *counted) for pair in pairs]


def _place(x: Tensor, rows: Tensor, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The chunk's images with the two parts of a pair at `rows`; one tensor where they are one."""
    parts = pair[:1] if pair[0] is pair[1] else pair
    placed = [_heal(x.index_copy(0, rows, part), x) for part in parts]
    return placed[0], placed[-1]


def _bring(pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both on the CPU, in that dtype, and the caller's images not among them."""
    x_adv = pair[0].to("cpu", dtype, copy=True)
    return x_adv, x_adv if pair[0] is pair[1] else pair[1].to("cpu", dtype)


def _attack(
    attack: Attack, scene: Scene, threats: Sequence[ThreatModel]
) -> list[tuple[Tensor, Tensor]]:
    """For each threat the adversarial examples, and where the attack ended."""
    if attack.kind == "minimum-norm":
        last = attack(scene)
        return [(_cut_back(last, scene.x, threat), last) for threat in threats]
    if attack.serves_several:
        return [(x_adv, x_adv) for x_adv in attack.sweep(scene, threats)]
    x_adv = attack(scene)
    return [(x_adv, x_adv)]


def _cut_back(x_adv: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """`x_adv` where it lies within the radius, the clean example elsewhere."""
    return x_adv.where(each(threat(x_adv, x), x), x)


def _heal(x_adv: Tensor, x: Tensor) -> Tensor:
    # An image with a NaN in it is no adversarial example: such an example goes back to its clean
    # image.
    largest = torch.linalg.vector_norm(x_adv.flatten(1), ord=torch.inf, dim=1)  # NaN comes through
    return x_adv.where(each(largest.isfinite(), x), x)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover n examples in order."""
    yield from (slice(i, min(i + size, n)) for i in range(0, n, size))


def in_halves(run: Callable[[slice], T], rows: slice) -> Iterator[T]:
    """`run(rows)`; where memory does not suffice, its halves, and theirs, down to single
    examples."""
    try:
        part = run(rows)
    except (RuntimeError, MemoryError) as e:
        if rows.stop - rows.start < 2 or not is_out_of_memory(e):
            raise
    else:
        yield part
        return
    half = (rows.start + rows.stop) // 2
    for part_rows in (slice(rows.start, half), slice(half, rows.stop)):
        yield from in_halves(run, part_rows)


def _check_n(images: Tensor, threats: Sequence[ThreatModel], chunk: int) -> None:
    n = len(images)
    if n == 0 or chunk < 1 or not threats:
        raise ValueError(
            "expected at least one example, in chunks of at least one, and at least one threat, "
            f"got n={n}, chunk={chunk}, {len(threats)} threats"
        )


def check_crafting(crafting: Crafting, *networks: Network | None) -> None:
    """Raises ValueError for a word that says nothing, and where a network cannot be asked so."""
    if crafting not in get_args(Crafting):
        raise ValueError(
            f"crafting: expected {' or '.join(map(repr, get_args(Crafting)))}, got {crafting!r}"
        )
    for network in networks if crafting == "bfloat16" else ():
        own = None if network is None else dtype_of(network)
        if own not in (None, torch.float32):
            raise ValueError(
                "expected a network of float32 to craft in bfloat16 on, as it judges, got one"
                f" of {own}; leave crafting= out"
            )


def _check(attack: Attack, threats: Sequence[ThreatModel], domain: Domain) -> None:
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
    # To a minimum-norm attack a huge radius means no limit; a budget attack would steer by it.
    widest = max(threats, key=lambda t: t.eps)
    widest.check(domain, limitless=attack.kind == "minimum-norm")
