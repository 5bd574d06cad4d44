"""Attacks beside their peers on a device, and what an audit takes there: a stage of bench/gpu.py.

The networks have their trained weights where the zoo's files are at hand, and random ones where
not; the labels are their own decisions, so that every image is to be attacked. So seconds are
measured, and strength beside a peer's on the same images, but no network's robustness. CIFAR-10's
networks see its test images, LeNet blocks of grey.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import attacks
import torch

import retroact as ra
from retroact.nets import zoo

BUDGET = "FGSM PGD-40 PGD-10 APGD-CE-50"
NETWORKS = {
    "lenet-mnist": (0.3, f"{BUDGET} DeepFool"),
    "resnet20-cifar10": (8 / 255, f"{BUDGET} DeepFool"),
    "wideresnet-cifar10": (8 / 255, "FGSM PGD-10 APGD-CE-50 DeepFool"),
}
"""Each with the radius of its attacks, and these by the words of bench/attacks.py."""
ROWS, AUDIT = "attacks.jsonl", "audit.json"
SECONDS = 4.0
"""Of a row, about; a round that takes longer is the only one."""
RESERVE = 60.0
"""Seconds that are left for the row that runs when time is up."""
SHARE = 0.5
"""Of the time that is left, what the audit may take."""


def measure(
    device: str, test: ra.Images, out: Path, left: Callable[[], float], *, toy: bool
) -> dict[str, Any]:
    """Rows of attacks go to attacks.jsonl, which `bench/attacks.py --table` prints; returns what an
    audit of the first 1000 images took, and which peers are absent."""
    audited = _audit(device, test[: min(1000, len(test))], SHARE * left(), toy=toy)
    print(audited, flush=True)
    absent = attacks.absent_from(0.3)
    print(f"left out, as not installed: {', '.join(absent) or 'none'}", flush=True)
    skipped: list[str] = []
    for name, (eps, words) in NETWORKS.items():
        case = _case(name, eps, test[: min(4 if toy else 512, len(test))], device)
        only = "FGSM" if toy else words
        seconds = 0.2 if toy else SECONDS
        args = attacks.arguments(["--only", *only.split(), "--seconds", str(seconds)])
        for title, run in attacks.attacks_on(case, args):
            if left() < RESERVE and not toy:
                skipped.append(f"{title} on {name}")
            else:
                attacks.measured_once(case, title, run, out / ROWS)
    return {"audit": audited, "absent": absent, "no time for": skipped}


def _case(name: str, eps: float, test: ra.Images, device: str) -> attacks.Case:
    """The network on the device, with images that it decides as their labels say."""
    torch.manual_seed(0)
    try:
        net, weights = ra.load(name), "trained"
    except zoo.ZooError:
        net, weights = zoo.NETWORKS[name]().eval(), "random"
    x = test.images
    if tuple(x.shape[1:]) != net.shape:
        x = _blocks(len(test), *net.shape)
    with torch.no_grad():
        labels = torch.cat([net(part).argmax(1) for part in x.split(256)])
    images = ra.Images.of(x, labels, name=f"images, {weights} weights")
    return attacks.Case(name, net.to(device), images, eps, device)


def _blocks(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    """Images of 4 x 4 blocks, each drawn evenly."""
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return coarse.repeat_interleave(height // 4, 2).repeat_interleave(width // 4, 3)


class _TimeUpError(Exception):
    """The audit has taken what it may take."""


def _audit(device: str, images: ra.Images, seconds: float, *, toy: bool) -> dict[str, Any]:
    """What an audit with the whole battery (a toy: the quick one) takes on the packaged network; it
    is given up after so many seconds."""
    net, threat, began = ra.load("cifar10-cnn1"), ra.Linf(0.5 / 255), time.perf_counter()
    with torch.no_grad():
        own = torch.cat([net(part).argmax(1) for part in images.images.split(256)])
    images, net = replace(images, labels=own), net.to(device)

    def look(done: int, total: int) -> None:
        if time.perf_counter() - began > seconds:
            raise _TimeUpError(f"given up at {done} of {total} after {seconds:.0f} s")

    facts: dict[str, Any] = {"network": "cifar10-cnn1", "n": len(images), "threat": str(threat)}
    facts["change"], battery = str(ra.JumpReLU(0.05)), "quick" if toy else None
    try:
        after, how = ra.retrofit(net, ra.JumpReLU(0.05)), {"battery": battery, "progress": look}
        found = ra.audit(net, after, images, threat, **how)
    except _TimeUpError as e:
        return facts | {"seconds": None, "said": str(e)}
    return facts | {"seconds": round(time.perf_counter() - began, 1), "said": str(found)}
