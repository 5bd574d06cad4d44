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


@dataclass(frozen=True)
class Forecast:
    """At most so many `gradients`, which take about so many `seconds`: examples leave as they fall,
    and alarms and doubts may ask for more."""

    examples: int
    gradients: int
    seconds: float


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
    each = [try_gradient(net, shape, min(n, CHUNK)).seconds for net in different]
    seconds = passes * sum(each) / min(executor.workers, len(each))
    most = seconds if budget is None else min(seconds, seconds_of(budget))
    return Forecast(n, passes * len(each), most)
