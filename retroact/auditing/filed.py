"""What an audit files as it is done, so that it goes on after a stop with the same bits.

Each attack's outcome, and the readings, are kept under a key of all that they depend on: the
weights of both networks, the data, the threat, the battery's version, seeds, and what was attacked
with what. Code is not in it; so a network is asked a few points first, and one that computes
otherwise by now is refused.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retroact.auditing.numbers import Curves, Pair, Reading
from retroact.crafting.domain import domain_of
from retroact.parts import Arrays, Filed, PartError
from retroact.reading import Examples

OTHERWISE = 0.1
"""Of the points on which a network is asked again: how many another processor's rounding may move
across a jump."""
_FAR, _PARALLEL = 1e-2, 0.99

Looked = tuple[tuple[Reading, ...], Pair[Curves]]


def check_answers(filed: Filed, who: str, losses: Tensor, gradients: Tensor) -> None:
    """PartError where the network that is called `who` had other losses (m,) or gradients (m, …)
    at a few points when it was last asked."""
    name, given = filed.name("answers"), (losses.cpu(), gradients.cpu())
    found = filed.find(name)
    if found is None:
        arrays = dict(zip(("losses", "gradients"), (g.numpy() for g in given), strict=True))
        return filed.keep(name, f"{who}: answers at a few points", arrays)
    losses, gradients = (torch.from_numpy(found[k].copy()) for k in ("losses", "gradients"))
    if _differ(losses, gradients, *given):
        raise PartError(
            f"{who} computes otherwise than when its attacks were filed, with the same weights"
            " and data: its code has changed; start anew with fresh=True, or --fresh"
        )


def _differ(losses: Tensor, gradients: Tensor, now: Tensor, uphill: Tensor) -> bool:
    if gradients.shape != uphill.shape:
        return True
    spread = (losses.amax() - losses.amin()).nan_to_num(0.0, 0.0, 0.0)
    near = ((losses - now).abs() <= _FAR * spread) | (losses == now) | ~losses.isfinite()
    one, other = (g.flatten(1).double() for g in (gradients, uphill))
    parallel = torch.nn.functional.cosine_similarity(one, other, dim=1, eps=1e-30) >= _PARALLEL
    same = near & (parallel | ((one == 0) & (other == 0)).all(1))
    return float((~same).double().mean()) > OTHERWISE


def fingerprint(data: Examples, rows: Tensor) -> str:
    """16 hex digits of a SHA-256 over some examples: images, labels, index and box."""
    domain, told = domain_of(data), hashlib.sha256()
    told.update(repr((domain.shape, domain.low, domain.high)).encode())
    for part in (data.images, data.labels, data.index):
        told.update(part[rows].contiguous().numpy().tobytes())
    return told.hexdigest()[:16]


def pack_looked(looked: Looked) -> Arrays:
    """Readings and curves as one array."""
    readings, curves = looked
    said = {"readings": [r.to_json() for r in readings], "curves": [c.to_json() for c in curves]}
    return {"json": np.frombuffer(json.dumps(said).encode(), dtype=np.uint8)}


def unpack_looked(arrays: Arrays) -> Looked:
    """What `pack_looked` was given, bit for bit."""
    packed: NDArray[np.uint8] = arrays["json"]
    said = json.loads(packed.tobytes())
    readings = tuple(map(Reading.from_json, said["readings"]))
    return readings, Pair(*map(Curves.from_json, said["curves"]))
