"""What the law asks of each architecture, measured; `test_corpus.py` says what must hold.

walk = walked("Swin")       its sites, what replaced them or why nothing did, and the form that was
proved
crafted(walk)               PGD, DeepFool and Square on the network and on that form
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from architectures import ARCHITECTURES, Architecture, Made
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.attack import Attack
from retroact.crafting.driver import craft
from retroact.crafting.oracle import Oracle
from retroact.crafting.threat import Linf
from retroact.evaluation.proof import Proved, prove
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.sites import Survey, survey

JUMP = ra.JumpReLU(0.01)
PROVED_WITHIN = Linf(0.01)
LONG = 10_000
"""Passes of a run that is long enough for a proof."""


@dataclass(frozen=True)
class Walk:
    """One architecture, its network, and what became of it."""

    architecture: Architecture
    made: Made
    found: Survey
    hard: nn.Module | None
    refused: ValueError | None
    on: Proved


def slopes(net: nn.Module, images: Tensor) -> Tensor:
    """What an attack is told of d (sum of weighed logits) / d images, shaped as `images`."""
    oracle = Oracle(net, len(images))
    _, gradient = oracle.gradient(
        images, torch.arange(len(images)), lambda z: z @ torch.arange(z.shape[1]).to(z)
    )
    return gradient


@dataclass(frozen=True)
class Fate:
    """What an attack made of the images: which it `fooled`, with perturbations of what `norm`,
    ending how near to the decision boundary (`margin`: the lead of the label, as a share of the
    spread of the logits).
    """

    fooled: Tensor
    norm: Tensor
    margin: Tensor


@cache
def walked(name: str) -> Walk:
    """Builds, surveys, retrofits and proves."""
    architecture = ARCHITECTURES[name]
    made = architecture.made()
    hard, refused = None, None
    try:
        hard = ra.retrofit(made.net, JUMP, also=architecture.also)
    except ValueError as e:
        refused = e
    found = survey(made.net, also=architecture.also)
    return Walk(architecture, made, found, hard, refused, proved(made.net, made.data))


def proved(net: nn.Module, data: ra.Images) -> Proved:
    """The form that attacks run on."""
    return prove(net, data.images, data.index, PROVED_WITHIN, passes=LONG)


def crafted(walk: Walk) -> dict[str, tuple[Fate, Fate]]:
    """The fates of the images on the network itself and on its form, by attack.

    DeepFool runs in double precision, without probes: a network of random weights is rough, so that
    a rounding in float32 may grow over its steps into another path, and a probe ends on the
    boundary itself, on a side that rounding chooses. The budget of PGD is the norm that DeepFool
    needs for half of the images, that of Square three times as much.
    """
    deepfool = tuple(
        _fate(net, walk.made.data, ra.DeepFool(steps=10, probes=0), 1.0) for net in _in_double(walk)
    )
    eps = float(deepfool[0].norm.median())
    budgets = {"PGD": (ra.PGD(steps=7), eps), "Square": (ra.Square(queries=40), min(3 * eps, 1.0))}
    pair = walk.on.network, walk.on.lean
    found = {
        name: tuple(_fate(net, walk.made.data, *how) for net in pair)
        for name, how in budgets.items()
    }
    return {"DeepFool": deepfool} | found


def _in_double(walk: Walk) -> tuple[nn.Module, nn.Module]:
    net = deep_copy(walk.on.network).double()
    return net, net if walk.on.form is None else walk.on.form(net)


def _fate(net: nn.Module, data: ra.Images, attack: Attack, eps: float) -> Fate:
    wide = data.images.to(next(net.parameters()).dtype)
    x = craft(attack, net, wide, data.labels, data.index, Linf(eps)).x_adv
    with torch.no_grad():
        logits = net(x.clone())
    own = logits.gather(1, data.labels[:, None])[:, 0]
    lead = own - logits.scatter(1, data.labels[:, None], -torch.inf).amax(1)
    spread = logits.amax(1) - logits.amin(1)
    return Fate(lead < 0, (x - wide).abs().flatten(1).amax(1), lead / spread)
