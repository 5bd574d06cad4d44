"""Checks of retroact on a device: what it finds there is what it finds on the CPU, but for
rounding.

Needs no test runner and no data set at hand: `checks(device, images)` yields a name and a function
that says what it found or raises AssertionError. The network is the packaged `cifar10-cnn1`, the
labels its own decisions, so that every image is to be attacked, whatever it shows.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retroact as ra
from retroact.crafting.noise import normal, uniform
from retroact.nets.zoo import NETWORKS
from retroact.training.fit import Progress, UnfinishedError, fit
from retroact.training.recipes import Adversarial, MixedFGSM, Standard

MOVED = 0.02
"""The share of images that rounding may lead elsewhere."""

LINF, L2 = ra.Linf(2 / 255), ra.L2(1.0)
ATTACKS: tuple[tuple[Any, Any], ...] = (
    (ra.FGSM(), LINF),
    (ra.PGD(steps=20), LINF),
    (ra.PGD(steps=20, restarts=2, loss="margin"), L2),
    (ra.APGD(steps=20), LINF),
    (ra.Momentum(steps=10, targets=3, finish=10, noise=0.7), LINF),
    (ra.Square(queries=100), LINF),
    (ra.AdditiveUniformNoise(repeats=5), LINF),
    (ra.DeepFool(), L2),
    (ra.DDN(steps=20), L2),
    (ra.FMN(steps=20), L2),
    (ra.CarliniWagner(steps=20), L2),
    (ra.TrustRegion(), LINF),
)


@dataclass(frozen=True)
class Pair:
    """The network on the CPU and its copy on the device, and images that the first one labelled."""

    here: nn.Module
    there: nn.Module
    device: str
    images: ra.Images


def checks(device: str, images: ra.Images) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each check by its name."""
    here = ra.load("cifar10-cnn1")
    with torch.no_grad():
        labels = torch.cat([here(part).argmax(1) for part in images.images.split(1000)])
    pair = Pair(here, copy.deepcopy(here).to(device), device, replace(images, labels=labels))
    yield "noise", lambda: _noise(device)
    yield "logits", lambda: _logits(pair)
    for attack, threat in ATTACKS:
        yield (
            f"{attack} under {threat}",
            lambda attack=attack, threat=threat: _attack(pair, attack, threat),
        )
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        yield f"PGD on {dtype}", lambda dtype=dtype: _dtype(pair, dtype)
    yield "audit", lambda: _audit(pair)
    yield "tune", lambda: _tune(pair)
    yield "harden", lambda: _harden(pair)
    yield "save and load", lambda: _saved(pair)
    for recipe in (Standard, MixedFGSM, Adversarial):
        yield f"train by {recipe.__name__}", lambda recipe=recipe: _train(pair, recipe)


def _noise(device: str) -> str:
    index = torch.arange(50)
    even, bell = (
        (draw((3, 32, 32), index, 7), draw((3, 32, 32), index.to(device), 7).cpu())
        for draw in (uniform, normal)
    )
    off = float((bell[0] - bell[1]).abs().max())
    assert torch.equal(*even), "uniform draws differ"
    assert off < 1e-5, f"normal draws differ by {off:.1e}"
    return f"uniform draws equal, normal ones within {off:.1e}"


def _logits(pair: Pair) -> str:
    found = []
    for activation in (None, ra.JumpReLU(0.1), ra.SReLU(2.0)):
        nets = [
            net if activation is None else ra.retrofit(net, activation)
            for net in (pair.here, pair.there)
        ]
        x = pair.images.images
        with torch.no_grad():
            here, there = nets[0](x), nets[1](x.to(pair.device)).cpu()
        # a jump may flip a unit where rounding differs
        off = (here - there).abs().amax(1) / (here.amax(1) - here.amin(1))
        share = float((off < 1e-4).float().mean())
        assert share > 1 - MOVED, (
            f"{activation}: logits within 1e-4 of their spread on {share:.1%} of the images only"
        )
        found.append(f"{share:.1%}")
    return (
        f"within 1e-4 of their spread on {', '.join(found)} of the images (plain, JumpReLU, SReLU)"
    )


def _attack(pair: Pair, attack: Any, threat: Any) -> str:
    here, there = (ra.evaluate(net, pair.images, attack, threat) for net in (pair.here, pair.there))
    moved = float(((here.adversarial == here.label) != (there.adversarial == there.label)).mean())
    said = f"robust {ra.robust_accuracy(here):.1%} here, {ra.robust_accuracy(there):.1%} there"
    assert moved <= MOVED, f"{said}, {moved:.1%} of the images differ"
    assert (here.clean == there.clean).mean() >= 1 - MOVED, "clean decisions differ"
    return f"{said}, {moved:.1%} differ"


def _dtype(pair: Pair, dtype: torch.dtype) -> str:
    net = copy.deepcopy(pair.there).to(dtype)
    record = ra.evaluate(net, pair.images, ra.PGD(steps=10), LINF)
    assert not record.nonfinite.any(), "NaN or infinity"
    return f"robust {ra.robust_accuracy(record):.1%}"


def _audit(pair: Pair) -> str:
    audits = [
        ra.audit(net, ra.retrofit(net, ra.JumpReLU(0.05)), pair.images, LINF, battery="quick")
        for net in (pair.here, pair.there)
    ]
    verified = [audit.verdict.counts.verified for audit in audits]
    said = f"here {audits[0]}; there {audits[1]}"
    apart = max(abs(a - b) for a, b in zip(*verified, strict=True))
    assert apart <= MOVED + 1 / len(pair.images), (
        f"verified accuracies differ by {apart:.1%}: {said}"
    )
    return said


def _tune(pair: Pair) -> str:
    held = replace(pair.images, split="validation", name="cifar10/validation")
    found = [ra.tune(net, ra.JumpReLU, held, LINF, grid=(0.05,)) for net in (pair.here, pair.there)]
    apart = max(
        abs(a.verified - b.verified) for a, b in zip(found[0].points, found[1].points, strict=True)
    )
    assert apart <= MOVED, f"verified accuracies differ by {apart:.1%}"
    return f"verified accuracies within {apart:.1%}"


def _harden(pair: Pair) -> str:
    train = replace(pair.images, split="train", name="cifar10/train")
    said = []
    for learn in ("shifts", "all"):
        recipe = ra.Hardening(learn=learn, steps=5, batch=min(100, len(train)))
        made = [ra.harden(net, train, LINF, recipe) for net in (pair.here, pair.there)]
        assert {p.device.type for p in made[1].net.parameters()} == {torch.device(pair.device).type}
        here, there = (
            ra.robust_accuracy(ra.evaluate(m.net, train, ra.PGD(steps=10), LINF)) for m in made
        )
        assert abs(here - there) <= 3 * MOVED, f"{learn}: robust {here:.1%} here, {there:.1%} there"
        said.append(f"{learn} {here:.1%} and {there:.1%}")
    return f"robust here and there: {', '.join(said)}"


def _saved(pair: Pair) -> str:
    net = ra.retrofit(pair.there, ra.JumpReLU(0.1))
    with tempfile.TemporaryDirectory() as folder:
        ra.save(net, Path(folder) / "net.safetensors")
        again = ra.load(Path(folder) / "net.safetensors")
    weights = again.state_dict()
    assert all(torch.equal(v.cpu(), weights[k].cpu()) for k, v in net.state_dict().items()), (
        "weights differ"
    )
    return f"{len(weights)} tensors as they were"


def _train(pair: Pair, kind: type) -> str:
    """One epoch by the clock, and the others from its checkpoint."""
    images = replace(pair.images, split="train", name="cifar10/train")
    plan = Standard(
        epochs=3, lr=0.05, batch=min(50, len(images)), augment=True, bf16=True, channels_last=True
    )
    recipe = plan if kind is Standard else kind(plan)
    torch.manual_seed(0)
    told: list[Progress] = []
    with tempfile.TemporaryDirectory() as folder:
        how: dict[str, Any] = {
            "device": pair.device,
            "checkpoint_dir": folder,
            "progress": told.append,
        }
        try:
            fit(NETWORKS["cifar10-cnn1"](), images, recipe, seconds=0.0, **how)
        except UnfinishedError:
            net = fit(NETWORKS["cifar10-cnn1"](), images, recipe, **how)
    assert [p.epoch for p in told] == [1, 2, 3], f"epochs {[p.epoch for p in told]}"
    assert all(bool(p.isfinite().all()) for p in net.parameters()), "weights that are no numbers"
    return f"loss {told[0].loss:.2f}, then {told[-1].loss:.2f}"
