"""Trails: the margin of a few examples along an attack, on both networks.

Once along PGD, x ← Π(x + (1 − k/STEPS)/4 · eps · s(∇_x CE)) at step k, as the usual attack climbs;
once along the straight way to the adversarial example that was found, x + k/STEPS · (x_adv − x).
What is drawn is the network's own margin z_y − max_{j≠y} z_j: an example is broken where it falls
below 0. Nothing is counted here; it is for a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retroact.auditing.attack_run import Broken, Conditions, Side
from retroact.auditing.deciding import deciding
from retroact.auditing.numbers import Pair
from retroact.auditing.subjects import Subject
from retroact.crafting.domain import domain_of
from retroact.crafting.goals import Aim
from retroact.crafting.losses import cross_entropy, margin
from retroact.crafting.oracle import AccessError, Oracle, device_of, evaluating

STEPS = 40
_FIRST = 0.25  # of eps: the length of the first step; the last is nearly 0
Margins = tuple[float, ...]


@dataclass(frozen=True)
class Trail:
    """The margins of the example `row`, STEPS + 1 of them, on the network before and after: along
    the `usual` PGD, and on the straight way to what was `found`."""

    row: int
    usual: Pair[Margins]
    found: Pair[Margins]


def follow(
    subjects: Pair[Subject], sides: Pair[Side], gain: float, under: Conditions
) -> tuple[Trail, ...]:
    """A trail of each example that decides most; none where a network gives no gradient."""
    shown: Sequence[tuple[int, Broken]] = deciding(sides, gain)
    by_row = {example.row: example for _, example in reversed(shown)}
    if not by_row:
        return ()
    rows = torch.tensor(list(by_row))
    ends = torch.stack([torch.from_numpy(example.x_adv) for example in by_row.values()])
    try:
        usual = [_climb(subject, rows, under) for subject in subjects]
    except AccessError:
        return ()
    found = [_walk(subject, rows, ends, under) for subject in subjects]
    return tuple(Trail(row, _of_row(usual, i), _of_row(found, i)) for i, row in enumerate(by_row))


def _of_row(margins: Sequence[Tensor], i: int) -> Pair[Margins]:
    return Pair(*(tuple(map(float, m[:, i])) for m in margins))


def _climb(subject: Subject, rows: Tensor, under: Conditions) -> Tensor:
    """The network's margins (STEPS + 1, m) at the points of PGD."""
    data, domain, device = under.data, domain_of(under.data), device_of(subject.net.network)
    centre, y, index = (t[rows].to(device) for t in (data.images, data.labels, data.index))
    oracle = Oracle(subject.net.network, len(y), source=subject.net.lean, device=device)
    aim, every, margins = Aim(y), torch.arange(len(y), device=device), []
    with evaluating(subject.net.network, subject.net.lean):
        x = under.threat.start(centre, domain, index, under.seed)
        for step in range(STEPS):
            logits, gradient = oracle.gradient(x, every, lambda z: cross_entropy(z, aim))
            margins.append(-margin(logits, aim))
            length = (1 - step / STEPS) * _FIRST * under.threat.eps
            x = under.threat.step(x, gradient, length, centre, domain)
        margins.append(-margin(oracle.logits(x, every), aim))
    return torch.stack(margins).cpu()


def _walk(subject: Subject, rows: Tensor, ends: Tensor, under: Conditions) -> Tensor:
    """The network's margins (STEPS + 1, m) on the straight way to `ends` (m, …)."""
    device = device_of(subject.net.network)
    x, y, ends = (t.to(device) for t in (under.data.images[rows], under.data.labels[rows], ends))
    oracle = Oracle(subject.net.network, len(y), device=device)
    aim, every, margins = Aim(y), torch.arange(len(y), device=device), []
    with evaluating(subject.net.network):
        for step in range(STEPS + 1):
            point = torch.lerp(x, ends, step / STEPS) if step < STEPS else ends
            margins.append(-margin(oracle.logits(point, every), aim))
    return torch.stack(margins).cpu()
