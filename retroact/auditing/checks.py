"""Where an audit would mean nothing, it says so before it attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from retroact.auditing.numbers import Pair
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.oracle import Network, device_of, evaluating, in_float
from retroact.crafting.threat import ThreatModel
from retroact.doors import check_images, check_labels, warn_of_probabilities
from retroact.evaluation.evaluate import Examples
from retroact.spec import show

NAMES = Pair("the network before the change", "the network after the change")

_FIRST = 32  # images on which networks are asked twice


def check(nets: Pair[Network], data: Examples, threat: ThreatModel) -> int:
    """The number of classes. ValueError for networks that do not fit each other or the data, that
    decide at random, for a threat without gradients, and for a radius at which nothing survives."""
    domain = domain_of(data)
    check_images(data.images, domain.shape, domain.low, domain.high)
    if threat.access != "gradient":
        raise ValueError(f"an audit attacks with gradients, got {threat}; leave out access=")
    grey, same = threat.measure(domain) / 2, "grey one" if domain.word == "image" else "one"
    if threat.eps >= grey:
        raise ValueError(
            f"at {show(threat)} every {domain.word} can be turned into the same {same}, so nothing"
            f" can survive; expected eps below {grey:g}"
        )
    logits = [
        _settle(net, data.images[:_FIRST], name) for net, name in zip(nets, NAMES, strict=True)
    ]
    if logits[0].shape != logits[1].shape:
        raise ValueError(
            f"{NAMES.before} gives {logits[0].shape[1]} classes and the one after it"
            f" {logits[1].shape[1]}; an audit compares two networks for the same task"
        )
    classes = int(logits[0].shape[1])
    check_labels(data.labels, classes)
    warn_of_probabilities(logits[1])
    return classes


def _settle(net: Network, x: Tensor, name: str) -> Tensor:
    """Logits of a net that gives the same ones twice. ValueError for one that does not, or fails on
    these images."""
    try:
        with torch.no_grad(), evaluating(net):
            first, second = (in_float(net, x.to(device_of(net))) for _ in range(2))
    except RuntimeError as e:
        word = Domain(tuple(x.shape[1:])).word
        raise ValueError(f"{name} fails on {word}s of shape {tuple(x.shape[1:])}: {e}") from e
    spread = (first.amax(1) - first.amin(1)).nan_to_num(0.0, 0.0, 0.0)[:, None]
    same = (
        ((first - second).abs() <= 1e-3 * spread)
        | ~first.isfinite() & ~second.isfinite()
        | (first == second)
    )
    if not same.all():
        raise ValueError(
            f"{name} gives other logits each time it is asked; pass draws=20 to audit its mean over"
            " 20 draws (expectation over transformation), or fix its randomness"
        )
    return first


def check_chance(decisions: Pair[Tensor], labels: Tensor) -> None:
    """ValueError for a network that decides no better than by the commonest class."""
    most = float(labels.bincount().max()) / len(labels)
    for decided, name in zip(decisions, NAMES, strict=True):
        accuracy, shifted = (float((decided == y).float().mean()) for y in (labels, labels - 1))
        if len(labels) >= 20 and accuracy <= most + 0.02:
            cure = "check weights, labels, normalisation and the retrofit's size"
            if shifted > most + 0.02 and shifted > 0.5:
                cure = (
                    f"labels - 1 would be right for {shifted:.0%}, so they count from 1: use"
                    " labels - 1"
                )
            raise ValueError(
                f"{name} decides {accuracy:.0%} of these images rightly, and always naming the"
                f" commonest class would get {most:.0%}: there is nothing to audit; {cure}"
            )
