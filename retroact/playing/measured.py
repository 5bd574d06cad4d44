"""The curves of claimed and verified accuracy over eps, from audits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from retroact.activations.piecewise import JumpReLU, SReLU
from retroact.auditing.audit import audit
from retroact.auditing.numbers import AuditNumbers, Told, as_numbers
from retroact.crafting.threat import Linf
from retroact.nets.data import Images
from retroact.reading import as_threat

Progress = Callable[[int, int], None]


def curves_of(audits: Iterable[Told]) -> list[dict[str, Any]]:
    """One series for each changed network, its points in the order of eps; at eps = 0 all
    accuracies are the clean one. Raises ValueError for a threat that is not L-infinity."""
    series: dict[tuple[str, str], dict[str, Any]] = {}
    for told in audits:
        numbers = as_numbers(told)
        threat = as_threat(numbers.threat)
        if not isinstance(threat, Linf):
            raise ValueError(f"the page attacks within L-infinity balls; got {numbers.threat}")
        one = series.setdefault((numbers.names.after, numbers.data), _series(numbers))
        one["points"].append({"eps": threat.eps, **_accuracies(numbers)})
    for one in series.values():
        one["points"].sort(key=lambda point: point["eps"])
    return list(series.values())


def _series(numbers: AuditNumbers) -> dict[str, Any]:
    clean = {"claimed": numbers.clean.after, "verified": numbers.clean.after}
    before = {"claimed_before": numbers.clean.before, "verified_before": numbers.clean.before}
    what = numbers.names.after.rpartition(" + ")[2]
    kinds = {"JumpReLU(": "jump", "SReLU(": "slope"}
    kind = next((kind for start, kind in kinds.items() if what.startswith(start)), "hardened")
    points = [{"eps": 0.0, **clean, **before}]
    return {"name": what, "kind": kind, "n": numbers.n, "data": numbers.data, "points": points}


def _accuracies(numbers: AuditNumbers) -> dict[str, float]:
    pairs = {"claimed": numbers.claimed, "verified": numbers.verified}
    after = {name: pair.after for name, pair in pairs.items()}
    return after | {f"{name}_before": pair.before for name, pair in pairs.items()}


def measure(
    net: nn.Module,
    data: Images,
    radii: Sequence[float],
    *,
    kappa: float,
    alpha: float,
    hardened: nn.Module | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[AuditNumbers]:
    """Quick audits of `net` under JumpReLU(kappa), SReLU(alpha) and, where one is given, of its
    hardened form, at each radius."""
    changes: list[Any] = [JumpReLU(kappa), SReLU(alpha), *([] if hardened is None else [hardened])]
    tasks = [(change, eps) for change in changes for eps in radii]
    found = []
    for i, (change, eps) in enumerate(tasks):
        found.append(audit(net, change, data, Linf(eps), battery="quick", seed=seed).numbers())
        if progress is not None:
            progress(i + 1, len(tasks))
    return found
