"""What both studies print beside the papers' protocols: audits, and how a claim's answer follows
from numbers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from retroact.auditing.audit import audit
from retroact.auditing.battery import VERSION
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports.studied import Answer, Table
from retroact.spec import spec
from retroact.studies.desk import Desk


@spec
class Audited:
    """An audit's plain numbers: `defended` beside `twin` under `threat` on `data`, by the named
    battery."""

    twin: Model
    defended: Model
    data: str
    threat: Any
    battery: Literal["quick", "whole"] = "whole"
    seed: int = 0
    version: ClassVar[int] = VERSION

    def __call__(self) -> dict[str, Any]:
        battery: Literal["quick"] | None = "quick" if self.battery == "quick" else None
        made = audit(
            self.twin(),
            self.defended(),
            data(self.data),
            self.threat,
            battery=battery,
            seed=self.seed,
        )
        found = made.numbers()
        return {k: v for k, v in found.items() if k not in ("curves", "attacks", "indicators")}


HEAD = (
    "network",
    "threat",
    "n",
    "clean",
    "claimed",
    "verified",
    "difference, 95 %",
    "p",
    "verdict",
)


def audits(desk: Desk, title: str, asked: list[tuple[str, Audited]]) -> Table:
    """The table of several audits: each accuracy (%) before → after."""
    found = desk.all_facts([what for _, what in asked])
    return Table(
        title, HEAD, tuple(_row(name, f) for (name, _), f in zip(asked, found, strict=True))
    )


def _row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    pairs = [
        f"{100 * found[f'{what}_twin']:.1f} → {100 * found[what]:.1f}"
        for what in ("clean", "claimed", "verified")
    ]
    low, high = (100 * v for v in found["interval"])
    difference = (
        f"{100 * (found['verified'] - found['verified_twin']):+.1f} ({low:+.1f} to {high:+.1f})"
    )
    return (
        name,
        f"`{found['threat']}`",
        str(found["n"]),
        *pairs,
        difference,
        f"{found['p']:.2g}",
        verdict(found),
    )


def verdict(found: dict[str, Any]) -> str:
    """An audit's verdict in a few words: what the change does, and what its claim was."""
    claim = f"MASKED by {found['mechanism']}" if found["claim"] == "MASKED" else found["claim"]
    return f"{found['effect']} · {claim}"


def answered(protocol: bool, truth: bool | None = None) -> Answer:
    """The answer to a claim: whether its criterion is met under the paper's protocol, and in truth.

    `truth` is the same criterion on verified numbers; None where the claim is about the protocol
    alone.
    """
    if not protocol:
        return "does not hold"
    return "holds" if truth is None or truth else "holds under the paper's protocol only"
