"""A student: a network with a gradient, trained on what another one answers.

    student = train_student(teacher, other, x, index, threat, domain)
    craft(attack, teacher, ..., source=student)

Where the network under attack shows no way, a student of its answers may know one that serves on
it, too. It learns on images, on points within the ball around them, and, round by round, on its own
adversarial points, whose answers say most about where the boundary lies (Jacobian-based
augmentation, Papernot et al. 2017, arXiv:1602.02697).
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.crafting.ascent import climb
from retroact.crafting.domain import Domain
from retroact.crafting.drawing import drawing
from retroact.crafting.expectation import Expectation
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.crafting.oracle import AccessError, Network, device_of, evaluating, in_float
from retroact.crafting.threat import ThreatModel

_ROUNDS, _STEPS, _BATCH = 3, 120, 64
_RATE = 1e-3
_CLIMBED = 5  # steps to the student's own adversarial points
_STREAM = 500_000_003
_SPREAD = 3.0  # standard deviation of the logits of an answer that is learned
_HIDDEN = 32


def train_student(
    teacher: Network,
    start: Network | None,
    x: Tensor,
    index: Tensor,
    threat: ThreatModel,
    domain: Domain,
    seed: int = 0,
) -> nn.Module:
    """A network that answers as `teacher` on examples `x` (n, …) and in the balls around them.

    It minimises the cross-entropy with softmax(3 z/std(z)), z the teacher's logits of an example:
    of a bare decision that is the decision. It begins as a copy of `start` where that is a module
    with a gradient, else as a small network. The teacher is asked at most 6n points, for 3
    rounds of 120 steps of 64. What it becomes depends on `seed`, `index` and the answers alone.
    """
    x, index = x.to(device_of(teacher)), index.to(device_of(teacher))
    with drawing(seed, x.device):  # a copy of a network that draws does so, too
        asked, answers = [x], [_ask(teacher, x)]
        student = _begin(start, x, answers[0].shape[1], domain, seed)
        drawn = torch.Generator().manual_seed(seed)
        decided = Aim(answers[0].argmax(1))
        for turn in range(_ROUNDS):
            near = [threat.start(x, domain, index, seed, _STREAM + turn)]
            if turn:
                near.append(_climb(student, x, near[0], decided, threat, domain))
            asked += near
            answers += [_ask(teacher, points) for points in near]
            _learn(student, torch.cat(asked), torch.cat(answers), drawn)
    student.requires_grad_(False)
    if isinstance(start, Expectation):
        return Expectation(student, start.draws, start.seed)
    return student


def _ask(teacher: Network, x: Tensor) -> Tensor:
    """What is learned of its answers, (n, k): probabilities."""
    with torch.no_grad(), evaluating(teacher):
        z = torch.cat([in_float(teacher, part) for part in x.split(_BATCH)]).nan_to_num()
    z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True).clamp_min(1e-12)
    return F.softmax(_SPREAD * z, 1).float()


def _begin(start: Network | None, x: Tensor, classes: int, domain: Domain, seed: int) -> nn.Module:
    """A copy of `start` where its gradient is alive, else a small network."""
    net = start.net if isinstance(start, Expectation) else start
    if isinstance(net, nn.Module):
        try:
            student = copy.deepcopy(net).float().eval().requires_grad_()
            if _is_alive(student, x[:_BATCH]):
                return student
        except Exception:  # whatever a stranger's network raises as a copy, or backwards
            pass
    return _small(domain, classes).to(x.device).eval()


def _is_alive(net: nn.Module, x: Tensor) -> bool:
    leaf = x.detach().requires_grad_()
    weights = list(net.parameters())
    with torch.enable_grad():
        worst = in_float(net, leaf).amax(1).sum()
    slopes = torch.autograd.grad(worst, [leaf, *weights], allow_unused=True)
    moving = [slope is not None and bool(slope.any()) for slope in slopes]
    return moving[0] and any(moving[1:])


def _small(domain: Domain, classes: int) -> nn.Module:
    if len(domain.shape) != 3 or min(domain.shape[1:]) < 4:
        layers = [nn.Flatten(), nn.Linear(math.prod(domain.shape), 4 * _HIDDEN), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(4 * _HIDDEN, classes))
    channels, height, width = domain.shape
    return nn.Sequential(
        nn.Conv2d(channels, _HIDDEN, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(_HIDDEN * (height // 2) * (width // 2), 2 * _HIDDEN),
        nn.ReLU(),
        nn.Linear(2 * _HIDDEN, classes),
    )


def _climb(
    student: nn.Module, x: Tensor, near: Tensor, aim: Aim, threat: ThreatModel, domain: Domain
) -> Tensor:
    """The student's own adversarial points, from `near` on; `near` where it has no gradient."""
    try:
        return climb(
            student,
            near,
            x,
            threat,
            domain,
            lambda logits: margin(logits, aim),
            step=threat.eps / 2,
            steps=_CLIMBED,
        )
    except AccessError:
        return near


def _learn(student: nn.Module, x: Tensor, answers: Tensor, drawn: torch.Generator) -> None:
    weights = [p for p in student.parameters() if p.requires_grad]
    adam = torch.optim.Adam(weights, _RATE)
    with torch.enable_grad():
        for _ in range(_STEPS):
            rows = torch.randint(len(x), (_BATCH,), generator=drawn).to(x.device)
            adam.zero_grad()
            F.cross_entropy(in_float(student, x[rows]), answers[rows]).backward()
            adam.step()
