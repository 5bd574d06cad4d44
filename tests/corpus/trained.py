"""Digits for networks of (3, 16, 16), and a training of a few seconds: what an audit needs to say
anything."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES

import retroact as ra

TRAINED = ("Skipped", "SqueezeExcite", "Attention")
"""Written by hand: residual blocks, gates that are h-sigmoids, attention. Plain convolutions are
audited all over the tests."""


@cache
def digits(notation: str) -> ra.Images:
    """Digits twice as large, in three channels."""
    known = ra.data(notation)
    large = F.interpolate(known.images, (16, 16), mode="bilinear").clamp(0, 1)
    return ra.Images.of(large.expand(-1, 3, -1, -1).contiguous(), known.labels, name=notation)


@cache
def trained(name: str) -> ra.Classifier:
    """The network after 15 epochs on a thousand digits."""
    architecture = ARCHITECTURES[name]
    net, data = architecture.fresh(), digits("digits/train[:1000]")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimiser = torch.optim.Adam(net.train().parameters(), 3e-3)
        for _ in range(15):
            for rows in torch.randperm(len(data)).split(50):
                loss = F.cross_entropy(net(data.images[rows]), data.labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return ra.Classifier(net, shape=architecture.shape, name=name)
