"""The truth about a mechanism: what stands under an attack by somebody who knows it.

Along every network that such an attacker would climb: the margin loss, untargeted and towards the
three likeliest classes, steps from eps to eps/50 along half a cosine, momentum, noise. An upper
bound as well, so what any audit found is taken off it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.attacks.momentum import Momentum
from retroact.auditing.chance import Chance
from retroact.auditing.mechanisms.mechanism import Made
from retroact.crafting.attack import Attack
from retroact.crafting.driver import craft
from retroact.crafting.expectation import Expectation
from retroact.crafting.goals import Goal
from retroact.crafting.oracle import Network
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import decide
from retroact.nets.data import Images

STEPS = 60


def truth(
    made: Made,
    data: Images,
    threat: ThreatModel,
    *,
    draws: int = 0,
    transfer: Sequence[nn.Module] = (),
    steps: int = STEPS,
) -> NDArray[np.bool_]:
    """Which of the n examples are right and stand under the attack, bool (n,).

    `draws` judges the mean over so many of a random network; along `transfer`, other networks, the
    untargeted attack alone is run.
    """
    net: Network = made.judged
    judge, goal, chance = net, None, None
    if draws:
        net = mean = Expectation(made.judged, draws)
        chance = Chance.of(mean, data)
        judge, goal = chance.judge, chance.goal
    robust = (decide(judge, data.images) == data.labels).numpy()
    plain, knowing = Momentum(steps), Momentum(steps, targets=3, finish=steps, noise=0.7)
    if draws:  # its gradients are noise enough, and a lucky draw is seen only where it is judged
        knowing = Momentum(steps // 2, targets=3, finish=steps // 2)
    untargeted = [] if draws else made.climbs[:1]
    plan = [(net, plain) for net in (*untargeted, *transfer)]
    plan += [(net, knowing) for net in made.climbs]
    for source, attack in plan:
        rows = np.flatnonzero(robust)
        if len(rows):
            x_adv = _attack(net, source, attack, data, threat, rows, goal)
            robust[rows] = _withstands(chance or judge, x_adv, data, threat, rows)
    return robust


def _attack(
    net: Network,
    source: nn.Module,
    attack: Attack,
    data: Images,
    threat: ThreatModel,
    rows: NDArray[np.int64],
    goal: Goal | None,
) -> Tensor:
    at = torch.from_numpy(rows)
    examples = data.images[at], data.labels[at], data.index[at]
    return craft(attack, net, *examples, threat, goal, source=source).x_adv


def _withstands(
    judge: Network | Chance,
    x_adv: Tensor,
    data: Images,
    threat: ThreatModel,
    rows: NDArray[np.int64],
) -> NDArray[np.bool_]:
    at = torch.from_numpy(rows)
    labels, inside = data.labels[at], threat(x_adv, data.images[at])
    if isinstance(judge, Chance):
        decided = judge.decide(x_adv, labels)
    else:
        decided = decide(judge, x_adv, attacked=True)
    return ((decided == labels) | (decided < 0) | ~inside).numpy()
