"""What both studies print beside the papers' protocols: audits, and how a claim's answer follows
from numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import nn

from retroact.auditing.audit import audit
from retroact.auditing.battery import VERSION
from retroact.auditing.numbers import AuditNumbers, Json
from retroact.crafting.threat import ThreatModel
from retroact.experiments.cell import Model
from retroact.experiments.facts import Measurement
from retroact.nets.data import data
from retroact.parts import HasParts
from retroact.reports.studied import Answer, Table
from retroact.spec import spec
from retroact.studies.desk import Desk

BatteryName = Literal["quick", "whole"]
BATTERIES: tuple[BatteryName, BatteryName] = ("quick", "whole")
"""What a quick desk spends, and a full one."""


@spec
class Audited:
    """An audit's plain numbers: `defended` beside `twin` under `threat` on `data`, by the named
    battery."""

    twin: Model
    defended: Model
    data: str
    threat: ThreatModel
    battery: BatteryName = "whole"
    seed: int = 0
    version: ClassVar[int] = VERSION
    resumes: ClassVar[bool] = True

    def __call__(self, store: HasParts | None = None) -> Json:
        nets = self.twin(), self.defended()
        return audited_facts(*nets, self.data, self.threat, self.battery, self.seed, store=store)


def audited_facts(
    before: nn.Module,
    after: nn.Module,
    images: str,
    threat: ThreatModel,
    battery: BatteryName = "whole",
    seed: int = 0,
    *,
    store: HasParts | None = None,
) -> Json:
    """What a study stores of an audit: its numbers without the single attacks, which are filed in
    the `store` as they are done."""
    spent: Literal["quick"] | None = "quick" if battery == "quick" else None
    how: dict[str, Any] = {"battery": spent, "seed": seed, "store": store}
    outcome = audit(before, after, data(images), threat, **how)
    return outcome.numbers().summary().to_json()


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


def numbers(desk: Desk, what: Measurement) -> AuditNumbers:
    """The numbers of an audit, of any measurement that stores them."""
    return AuditNumbers.from_json(desk.facts(what))


def audits(desk: Desk, title: str, asked: Sequence[tuple[str, Measurement]]) -> Table:
    """The table of several audits: each accuracy (%) before → after."""
    facts = desk.all_facts([what for _, what in asked])
    rows = (
        _row(name, AuditNumbers.from_json(f)) for (name, _), f in zip(asked, facts, strict=True)
    )
    return Table(title, HEAD, tuple(rows))


def _row(name: str, audited: AuditNumbers) -> tuple[str, ...]:
    pairs = (audited.clean, audited.claimed, audited.verified)
    low, high = (100 * v for v in audited.interval)
    return (
        name,
        f"`{audited.threat}`",
        str(audited.n),
        *(f"{100 * pair.before:.1f} → {100 * pair.after:.1f}" for pair in pairs),
        f"{100 * audited.gain:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{audited.p:.2g}",
        verdict(audited),
    )


def verdict(audited: AuditNumbers) -> str:
    """An audit's verdict in a few words: what the change does, and what its claim was."""
    alone = audited.words == ("MASKED",)
    return f"{audited.effect} · {audited.explained_claim if alone else audited.claim}"


def answer_claim(protocol: bool, truth: bool | None = None) -> Answer:
    """The answer to a claim: whether its criterion is met under the paper's protocol, and in truth.

    `truth` is the same criterion on verified numbers; None where the claim is about the protocol
    alone.
    """
    if not protocol:
        return "does not hold"
    return "holds" if truth is None or truth else "holds under the paper's protocol only"


def answer_by_network(
    protocol: Sequence[bool], truth: Sequence[bool], *, missing: int = 0
) -> Answer:
    """The answer to a claim about several networks, one criterion each: where some meet it and
    others do not it "differs by network", whatever the truth is; "cannot be told" of none, and
    where those that are measured meet it and others, which are `missing`, may not."""
    if not protocol or (missing and all(protocol)):
        return "cannot be told"
    if len(set(protocol)) > 1:
        return "differs by network"
    return answer_claim(all(protocol), all(truth))
