"""Where an audit files what it does, and what its two networks are called there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from retroact.auditing.attack_run import Conditions
from retroact.auditing.battery import VERSION
from retroact.auditing.filed import check_answers, fingerprint
from retroact.auditing.indicators import FirstLook
from retroact.auditing.numbers import Fingerprints, Pair
from retroact.auditing.subjects import Schedule, Subject
from retroact.checkpoint import digest
from retroact.crafting.domain import domain_of
from retroact.crafting.drawing import drawing
from retroact.crafting.oracle import Network, device_of
from retroact.parts import NOWHERE, Anew, HasParts, Parts
from retroact.spec import show

_ASKED = 16  # images on which a network is asked whether it is the one that was attacked


def parts_of(store: HasParts | None, fresh: bool, nets: Sequence[Network | None]) -> Parts:
    """Where parts are kept, `fresh` ones only.

    Raises ValueError for networks without weights, which nothing names.
    """
    if store is None:
        return NOWHERE
    if not all(net is None or (isinstance(net, nn.Module) and net.state_dict()) for net in nets):
        raise ValueError(
            "store= needs networks that have weights, as a module has, to know them again; leave"
            " it out"
        )
    return Anew(store.parts) if fresh else store.parts


def name_sides(
    subjects: Pair[Subject],
    under: Conditions,
    prints: Fingerprints,
    surrogate: Network | None,
    draws: Sequence[int],
    kernels: Sequence[Schedule],
) -> Pair[Subject]:
    """The subjects with the names of all that their attacks depend on."""
    rows = torch.arange(len(under.data.labels))
    guide = digest(surrogate) if isinstance(surrogate, nn.Module) else ""
    said: dict[str, Any] = {
        "weights": list(prints.weights),
        "data": fingerprint(under.data, rows),
        "threat": show(under.threat),
        "classes": under.classes,
        "past_rejection": under.past_rejection,
        "seed": under.seed,
        "chunk": under.chunk,
        "draws": list(draws),
        "kernels": show(tuple(kernels)),
        "battery_version": VERSION,
    }
    after = said | {"surrogate": guide}
    abouts = (json.dumps(["before", said]), json.dumps(["after", after]))
    return Pair(*(replace(s, about=about) for s, about in zip(subjects, abouts, strict=True)))


def check_same(subject: Subject, under: Conditions, who: str) -> None:
    """PartError where the network, or its backward pass, is not what it was when its attacks were
    filed."""
    data, rows = under.data, slice(None, _ASKED)
    x, y, index = data.images[rows], data.labels[rows], data.index[rows]
    domain, threat = domain_of(data), under.threat
    if not under.filed.about:
        return
    around = threat.start(x, domain, index, under.seed)
    with drawing(
        0, device_of(subject.net.network), subject.net.network
    ):  # some draw in their backward pass
        look = FirstLook(subject.net, around, y, index, threat, under.seed, domain)
        check_answers(under.filed, who, look.uphill.loss, look.uphill.gradient)
