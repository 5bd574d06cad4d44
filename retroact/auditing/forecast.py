"""What an audit would take, before it runs: gradients by its battery, seconds by a short trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from retroact.attacks.pgd import CLAIMED
from retroact.auditing.battery import Battery, Named, battery_of
from retroact.auditing.numbers import Pair
from retroact.crafting.attack import CHUNK, Attack
from retroact.crafting.oracle import device_of, in_float
from retroact.durations import seconds_of
from retroact.evaluation.trial import try_gradient
from retroact.executors import SERIAL, Executor
from retroact.ground import neutral, one_thread
from retroact.reading import Said, as_attack

_PREPARED = 3.0
"""Seconds of a network: it is traced, its forms are proved, and what traces is imported."""
_LOOKED = 110
"""Gradients' worth of each point that the indicators look at, forward passes counted in."""


@dataclass(frozen=True)
class Forecast:
    """About so many `gradients` where no alarm fires, in about so many `seconds` with what is
    prepared and looked at before; `most` seconds and `most_gradients` where alarms and doubts ask
    for all that they may. Examples leave as they fall, so that it is often less."""

    examples: int
    gradients: int
    seconds: float
    most_gradients: int
    most: float


@neutral()
@one_thread()
def forecast(
    nets: Pair[nn.Module],
    n: int,
    shape: Sequence[int],
    *,
    claimed: Said[Attack] = CLAIMED,
    battery: Battery | Named | None = None,
    draws: int = 0,
    budget: str | float | None = None,
    executor: Executor = SERIAL,
) -> Forecast:
    """What an audit of both `nets` on `n` examples of `shape` takes. No more seconds than the
    `budget`, where there is one."""
    spent, different = battery_of(battery), list(dict.fromkeys(nets))
    with torch.no_grad():
        one = torch.zeros(2, *shape, device=device_of(nets.before))
        classes = in_float(nets.before, one).shape[1]
    passes = spent.passes(as_attack(claimed), n, classes) * max(1, draws)
    more = passes + spent.more_passes(n, classes) * max(1, draws)
    looked = _LOOKED * min(n, spent.points) * max(1, draws)
    each = [try_gradient(net, shape, min(n, CHUNK)).seconds for net in different]
    at_once = min(executor.workers, len(each))
    before = _PREPARED * len(each) + looked * sum(each)  # which no executor shares out
    seconds, most = (before + count * sum(each) / at_once for count in (passes, more))
    box = most if budget is None else seconds_of(budget)
    return Forecast(n, passes * len(each), min(seconds, box), more * len(each), min(most, box))
