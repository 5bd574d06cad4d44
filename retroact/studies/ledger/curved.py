"""Curvature Tuning with a number of its own at each site or channel, learned on training images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retroact.activations.activation import Activation
from retroact.activations.channel_shift import channel_view
from retroact.activations.curvature import CurvatureTuning
from retroact.activations.files import keep
from retroact.activations.measured import Measured, Moments
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import ReLU
from retroact.activations.site import Site
from retroact.crafting.ascent import climb
from retroact.crafting.domain import domain_of
from retroact.crafting.goals import Aim
from retroact.crafting.losses import margin
from retroact.retrofitting.surgery import retrofit
from retroact.spec import Count, Positive, show, spec
from retroact.studies.ledger.treatments import Given, Treatment, once
from retroact.training.learnable import LearnedActivation, Number, install_numbers

Per = Literal["site", "channel"]
LEAST, MOST = 0.5, 0.995


@spec
class ChannelCurvature(Measured):
    """CurvatureTuning with c = 1/2 and a beta of its own for every channel, which a file has."""

    file: str = ""
    sha256: str = ""
    what = "betas"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", self.kept.settle())

    def numbers(self, seen: Moments) -> Tensor:
        """Where learning starts."""
        return torch.full_like(seen.mean, Beta.neutral)

    def at(self, site: Site) -> nn.Module:
        return Curved(self.numbers_at(site.name))

    def __call__(self, z: Tensor) -> Tensor:
        raise TypeError(f"{show(self)} differs from site to site; retrofit a net with it")


class Curved(nn.Module):
    """CurvatureTuning of z (n, c, …) or (n, …, c) with a `beta` for each of c channels."""

    beta: Tensor

    def __init__(self, beta: Tensor) -> None:
        super().__init__()
        self.register_buffer("beta", beta, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        return curve(z, self.beta.to(z).view(channel_view(len(self.beta), z, "betas")))


def curve(z: Tensor, beta: Tensor) -> Tensor:
    """z σ(βz/(1 − β))/2 + (1 − β) softplus(z/(1 − β))/2; beta broadcasts to z."""
    width = 1.0 - beta
    return 0.5 * (z * torch.sigmoid(z * (beta / width)) + width * F.softplus(z / width))


class Beta(Number):
    """A beta for each site or channel, kept within [LEAST, MOST]."""

    neutral: ClassVar[float] = 0.9

    def __init__(self, per: Per) -> None:
        self.per = per

    def count(self, channels: int) -> int:
        return channels if self.per == "channel" else 1

    def __call__(self, inner: Activation, z: Tensor, value: Tensor) -> Tensor:
        return curve(z, value.clamp(LEAST, MOST).view(-1, *[1] * (z.dim() - 2)))

    def activation(self, values: Mapping[str, Tensor]) -> Activation:
        betas = {site: value.detach().clamp(LEAST, MOST) for site, value in values.items()}
        if self.per == "site":
            return PerSite(tuple(CurvatureTuning(float(b)) for b in betas.values()))
        return ChannelCurvature(*keep({site: b.contiguous() for site, b in betas.items()}, None))


@spec
class LearnedCurvature(Treatment):
    """The betas learned as Hardening learns its shifts: half of the cross-entropy on clean training
    images, half on those that 5 steps up the margin loss have moved; Adam from 0.9 on."""

    per: Per
    steps: Count = 150
    batch: Count = 200
    lr: Positive = 0.01

    def __call__(self, net: nn.Module, given: Given) -> nn.Module:
        return once(self, net, given, lambda: self._learn(net, given))

    def _learn(self, net: nn.Module, given: Given) -> nn.Module:
        work = retrofit(net, ReLU()).eval().requires_grad_(False)
        number = Beta(self.per)
        learned = install_numbers(work, number, given.train.images[:2])
        self._climb(work, learned, given)
        return retrofit(net, number.activation({name: a.value for name, a in learned.items()}))

    def _climb(
        self, work: nn.Module, learned: Mapping[str, LearnedActivation], given: Given
    ) -> None:
        adam = torch.optim.Adam([a.value for a in learned.values()], self.lr)
        drawn = torch.Generator().manual_seed(given.seed)
        for step in range(self.steps):
            rows = torch.randperm(len(given.train), generator=drawn)[: self.batch]
            loss = self._loss(work, given, rows, given.seed + step)
            adam.zero_grad()
            loss.backward()
            adam.step()

    def _loss(self, work: nn.Module, given: Given, rows: Tensor, seed: int) -> Tensor:
        train, threat, domain = given.train, given.threat, domain_of(given.train)
        x, y = train.images[rows], train.labels[rows]
        start = threat.start(x, domain, train.index[rows], seed)
        run: Any = (work, start, x, threat, domain, partial(margin, aim=Aim(y)))
        moved = climb(*run, step=threat.eps / 2, steps=5)
        return (F.cross_entropy(work(x), y) + F.cross_entropy(work(moved), y)) / 2

    @property
    def knob(self) -> str:
        return f"CurvatureTuning with a beta for each {self.per}, learned"
