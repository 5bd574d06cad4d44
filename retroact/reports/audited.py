"""The report of one audit, as a page, Markdown or JSON: from its numbers and the images that were
broken.

Nothing of the audit is imported but the types of its numbers: what is read is `Reported`, and all
numbers are those of `numbers()`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from markupsafe import Markup

from retroact.auditing.deciding import deciding
from retroact.auditing.numbers import (
    AttackResult,
    AuditNumbers,
    AuditPedigree,
    Curves,
    Pair,
    Reading,
)
from retroact.auditing.verdict import Mechanism
from retroact.evaluation.metrics import wilson
from retroact.figures import Figure
from retroact.reports import plots
from retroact.reports.cards import Card, apart
from retroact.reports.fallen import Case, Examined, show
from retroact.reports.html import render
from retroact.reports.tables import left_alone, markdown_table, plain, without_html

TONES = {"GENUINE": "good", "HARMFUL": "bad", "HONEST": "good", "MASKED": "bad"}
"""How an answer looks on the page; those that are not here are a warning."""

TERMS = (
    *("clean accuracy", "claimed accuracy", "verified accuracy", "95 % interval", "before, after"),
    *("threat model", "white box", "control", "margin", "PGD", "APGD", "indicator", "McNemar's p"),
    *("kernel", "zero gradients"),
)
"""Of the glossary, what every audit's page uses."""

FILES = {
    "audit.json": "all numbers of this page",
    "before.safetensors": "every image that fell on the network before, with its label and attack",
    "after.safetensors": "the same of the network after",
    "before.pt": "one tensor of the whole slice, as RobustBench takes it, before",
    "after.pt": "the same after",
    "evidence.json": "how both networks are made again, and by which commands",
}
"""What an evidence folder holds."""

WHY: dict[Mechanism, str] = {
    "saturation": (
        "The change multiplies the network's scores until the usual loss is rounded flat. Its"
        " gradient vanishes or loses its direction, and the usual attack stands still; an attack"
        " whose loss does not depend on the scale moves again."
    ),
    "jump": (
        "The change makes jumps that a gradient does not show, so the usual attack walks in wrong"
        " directions; an attack that is told where the jumps are finds its way again."
    ),
    "wrong gradient": (
        "The gradient that the network gives is not the derivative of what it computes, or there is"
        " none, or it leads to the size of the scores and not to another decision; an attack that"
        " follows the computation itself, to what decides, finds its way again."
    ),
    "steps": (
        "Something between image and scores is rounded, so a small step changes nothing and the"
        " usual attack stands still; an attack that looks a little farther moves again."
    ),
}


class Reported(Examined, Protocol):
    """What a report needs of an audit: its numbers, a data frame with a row for each example, and
    the examples that were broken before the change and after it."""

    def numbers(self) -> AuditNumbers: ...
    def frame(self) -> Any: ...


class Learning(Protocol):
    """What `harden` gives, for the page of its audit."""

    @property
    def learned(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def data(self) -> str: ...
    @property
    def dose(self) -> float: ...
    @property
    def curve(self) -> Sequence[object]: ...
    @property
    def recipe(self) -> object: ...

    def plot(self) -> Figure: ...


def page(
    audit: Reported,
    *,
    title: str = "retroact audit",
    evidence: str = "",
    hardened: Learning | None = None,
) -> str:
    """The audit as one self-contained page, which links the files of its `evidence`, a folder as
    seen from the page, and says what was learned of a `hardened` network."""
    numbers = audit.numbers()
    rows = table(numbers)
    return render(
        "audit.html",
        title=title,
        audit=numbers,
        tones=TONES,
        rows=rows,
        bars=_bars(numbers, rows),
        floor=floor(numbers),
        evidence=quote(evidence),
        files=FILES if evidence else {},
        terms=_terms(numbers),
        why=why(numbers),
        left_alone=left_alone(_left_alone(numbers)),
        draws=list(_say_draws(numbers.pedigree)) if numbers.pedigree else [],
        statistics=statistics(numbers),
        provenance=provenance(numbers),
        word=numbers.example,
        learned=None if hardened is None else _learned(hardened),
        panels=_panels(numbers.curves, numbers.example),
        indicators=[_reading(r) for r in sorted(numbers.indicators, key=lambda r: not r.fired)],
        examples=_examples(audit, numbers),
        sides=_attacks(numbers),
    )


def as_json(audit: Reported) -> str:
    """The audit's numbers as JSON; what is no finite number is null there."""
    return as_plain(audit.numbers().to_json())


def as_plain(said: Any) -> str:
    """What `to_json` gave as JSON, null where a number is not finite."""
    return json.dumps(_finite(said), indent=2, allow_nan=False, default=str) + "\n"


def markdown(audit: Reported, *, title: str = "retroact audit") -> str:
    """The audit as Markdown: verdict, claimed beside verified, indicators, and what was run."""
    numbers = audit.numbers()
    parts = [
        f"# {title}",
        plain(
            f"`{numbers.names.after}` beside `{numbers.names.before}`, `{numbers.threat}` on"
            f" {numbers.data}, n = {numbers.n}"
        ),
        f"**{numbers.effect} · {numbers.claim}**: {numbers.plainly}",
        *(f"- Doubt: {doubt}" for doubt in numbers.doubts),
        *(f"{said}." for said in (numbers.planted, numbers.reach) if said),
        _accuracies(numbers),
        statistics(numbers),
        why(numbers),
        _indicators(numbers),
        *(_ran(who, attacks) for who, attacks in _attacks(numbers)),
        *_footnotes(numbers),
    ]
    return without_html("\n\n".join(parts)) + "\n"


def _accuracies(numbers: AuditNumbers) -> str:
    return markdown_table(
        [f"{numbers.example}s decided rightly", "before", "after", "difference"],
        [[r.what, *(f"{100 * v:.1f} %" for v in r.accuracy), r.difference] for r in table(numbers)],
    )


def _indicators(numbers: AuditNumbers) -> str:
    names = ("title", "mechanism", "value", "before", "fires", "state")
    readings = [_reading(r) for r in numbers.indicators]
    return markdown_table(
        ["indicator", "a sign of", "after", "before", "fires at", ""],
        [[r[name] for name in names] for r in readings],
    )


def _footnotes(numbers: AuditNumbers) -> Iterator[str]:
    if kinds := left_alone(_left_alone(numbers)):
        yield f"The change leaves {kinds} as they are."
    if (run := numbers.pedigree) is not None:
        yield from _say_draws(run)
        yield f"Seed {run.seed}; {run.versions}; `{numbers.battery}`."
    if said := provenance(numbers):
        yield f"Run by {said}."
    yield (
        "Verified is the worst case over every attack that was run,"
        f" {numbers.example} by {numbers.example}: an upper"
        " bound on what the network withstands, never a certificate."
    )


def _say_draws(run: AuditPedigree) -> Iterator[str]:
    """What a randomised network was averaged over, and what one draw of it is worth."""
    for word, draws, single in zip(
        ("before", "after"), run.draws or (), run.single or (), strict=False
    ):
        if draws and single:
            share, half = (100 * value for value in single)
            yield (
                f"The network {word} draws at random: the mean of {draws} draws was attacked; a"
                f" single draw decides {share:.1f} ± {half:.1f} % of what was left rightly."
            )


def _left_alone(numbers: AuditNumbers) -> Mapping[str, int]:
    return (numbers.pedigree.left_alone if numbers.pedigree else None) or {}


def _attacks(numbers: AuditNumbers) -> list[tuple[str, tuple[AttackResult, ...]]]:
    """What was run on either network, that after the change first."""
    before, after = numbers.attacks or ((), ())
    return [("after", after), ("before", before)]


@dataclass(frozen=True)
class Row:
    """An accuracy before the change and after it, each with its Wilson interval, and the difference
    in points."""

    what: str
    accuracy: Pair[float]
    bounds: Pair[tuple[float, float]]

    @property
    def difference(self) -> str:
        return f"{100 * (self.accuracy.after - self.accuracy.before):+.1f}"


def table(numbers: AuditNumbers) -> list[Row]:
    """Clean, claimed and verified accuracy before and after, with Wilson's 95 % intervals."""
    pairs = {
        "clean": numbers.clean,
        "claimed": numbers.claimed,
        "verified": numbers.verified,
    }
    n = numbers.n
    return [
        Row(what, pair, Pair(*(wilson(round(v * n), n) for v in pair)))
        for what, pair in pairs.items()
    ]


def statistics(numbers: AuditNumbers) -> str:
    """What stands behind the verified difference, in a sentence."""
    low, high = (100 * v for v in numbers.interval)
    return (
        f"Verified difference {100 * numbers.gain:+.1f} points, 95 % interval {low:+.1f} to"
        f" {high:+.1f}; {numbers.gained} of {numbers.n} {numbers.example}s withstand the attacks"
        f" only after the change, {numbers.lost} only before (McNemar's exact p = {numbers.p:.2g})."
    )


def provenance(numbers: AuditNumbers) -> str:
    """The version that ran an audit, and the fingerprints of its data and weights; empty where an
    older version did not say them."""
    said = [f"retroact {numbers.retroact}"] if numbers.retroact else []
    if (prints := numbers.fingerprints) is not None:
        named = [
            ("data", prints.data),
            *zip(("weights before", "weights after"), prints.weights, strict=True),
        ]
        known = [f"{what} {digits}" for what, digits in named if digits]
        said.append(f"SHA-256, first 16 digits: {', '.join(known)}")
    return "; ".join(said)


def why(numbers: AuditNumbers) -> str:
    """What the indicators say, in sentences for somebody who is no expert."""
    fired = [r for r in numbers.indicators if r.fired]
    if not fired:
        return (
            "No indicator fired: nothing suggests that the change hides the network's weaknesses"
            " from an attack."
        )
    said = " ".join(WHY[kind] for kind in dict.fromkeys(r.mechanism for r in fired))
    if numbers.mechanism:
        return said
    if numbers.claim == "NOT SETTLED":
        return (
            f"{said} The usual attack promises no more than what was verified, which is in doubt."
        )
    return f"{said} Here, though, the usual attack promises no more than what was verified."


def _learned(made: Learning) -> dict[str, Markup | str]:
    count, of = f"{made.learned:,}", f"{made.parameters:,}"
    numbers = f"All {of} numbers" if made.learned == made.parameters else f"{count} of {of} numbers"
    share = "all" if made.dose == 1.0 else f"{100 * made.dose:.0f} %"
    says = f"{numbers} were learned on {made.data} in {made.seconds:.0f} s; {share} of that"
    drawn = Markup(plots.told(plots.svg(made.plot()), f"{says}.")) if made.curve else ""
    return {"says": f"{says} is applied.", "curve": drawn, "recipe": str(made.recipe)}


def _panels(curves: Pair[Curves] | None, example: str) -> list[dict[str, Markup | str]]:
    if curves is None:
        return []
    before, after = curves
    drawn = (
        (
            "Loss along the usual attack",
            plots.climb(before.loss, after.loss),
            f"Mean cross-entropy from {_ends(before.loss)} before, from {_ends(after.loss)} after.",
            (
                "A healthy attack climbs. A line at 0 or far off the scale is saturation, a ragged"
                " one a jump."
            ),
        ),
        (
            "Does the gradient tell the truth?",
            plots.fidelity(before.fidelity, after.fidelity),
            (
                f"Within a factor of 2 of what the gradient predicts: {_honest(before.fidelity)}"
                f" of the {example}s before, {_honest(after.fidelity)} after."
            ),
            (
                "What a small step really changed, over what the gradient predicted; an honest"
                " gradient lies at 1. Outside the band it misleads. Values beyond the axis are cut."
            ),
        ),
        (
            "How loud is the network?",
            plots.scale(before.margin, after.margin),
            f"Median margin {before.margin:.3g} before, {after.margin:.3g} after.",
            (
                "The distance between the best score and the next. Louder is not safer: scores can"
                " be multiplied without any decision changing."
            ),
        ),
    )
    sides = ((before, "before"), (after, "after"))
    every = [*drawn, *(row for side in sides for row in _map_missing(*side, example))]
    return [
        {"title": title, "figure": Markup(plots.told(figure, says)), "caption": caption}
        for title, figure, says, caption in every
    ]


def _map_missing(curves: Curves, when: str, example: str) -> Iterator[tuple[str, str, str, str]]:
    """Where the gradient of the network `when` is missing, if it is anywhere."""
    if curves.entries is None:
        return
    missing, found = (len(e) for e in (curves.entries.missing, curves.entries.found))
    yield (
        f"Where is the gradient missing, {when} the change?",
        plots.missing(curves.entries),
        f"It is at {missing} of {missing + found} places that move the network {when} the change.",
        (
            f"Each square is a place in the {example} that was moved alone and moved the scores:"
            " red where the gradient knew nothing of it. A pattern here is the pattern of what was"
            " cut off."
        ),
    )


def _ends(values: Sequence[float]) -> str:
    return f"{values[0]:.3g} to {values[-1]:.3g}" if values else "nothing"


def _honest(ratios: Sequence[float]) -> str:
    return f"{sum(0.5 <= r <= 2 for r in ratios) / max(len(ratios), 1):.0%}"


def _state(reading: Reading) -> str:
    if reading.fired_before:
        return "fired, and before too" if reading.fired else "fired before"
    return "fired" if reading.fired else "silent"


def _reading(reading: Reading) -> dict[str, str]:
    above = f"× {reading.threshold:g}" if reading.ratio else f"+ {reading.threshold:g}"
    fires = f"> {reading.threshold:g}, on either" if reading.absolute else f"> before {above}"
    return {
        "title": reading.title,
        "about": " ".join(reading.about.split()),
        "source": reading.source,
        "mechanism": reading.mechanism,
        "value": f"{reading.value:.3g}",
        "before": f"{reading.before:.3g}",
        "fires": fires,
        "state": _state(reading),
    }


def _bars(numbers: AuditNumbers, rows: Sequence[Row]) -> Markup:
    drawn = plots.claims([(r.what, r.accuracy) for r in rows], numbers.n, numbers.example)
    said = (
        f"{r.what}: {100 * r.accuracy.before:.1f} % before, {100 * r.accuracy.after:.1f} % after"
        for r in rows
    )
    return Markup(plots.told(drawn, "; ".join(said)))


def floor(numbers: AuditNumbers) -> str:
    """What it means that hardly anything is left on either network; empty where more is."""
    if numbers.effect != "TOO STRONG A THREAT":
        return ""
    return (
        f"Both networks are at the floor: of {numbers.n} {numbers.example}s"
        f" {round(numbers.verified.before * numbers.n)} withstand before the change and"
        f" {round(numbers.verified.after * numbers.n)} after it. That is no draw: at this radius"
        " the attacks win whatever the network does, so nothing is left to compare, and the change"
        " may help or harm at a smaller one. Audit again at the radius that is named above."
    )


def _terms(numbers: AuditNumbers) -> list[str]:
    """The words that this page uses."""
    said = [word.lower() for word in (numbers.effect, *numbers.words) if word != "NOT SETTLED"]
    said += ["floor"] if numbers.effect == "TOO STRONG A THREAT" else []
    said += [word for word in ("saturation", "jump") if word in numbers.mechanisms]
    return [*TERMS, *said]


def _examples(audit: Reported, numbers: AuditNumbers) -> list[Card]:
    found = deciding(audit.sides, numbers.gain)
    return apart(show(numbers.example, Case(audit, example, side)) for side, example in found)


def _ran(who: str, attacks: Sequence[AttackResult]) -> str:
    head = [f"attacks on the network {who}", "", "role", "asked", "broken", "gradients", "seconds"]
    rows = [
        [a.title, f"`{a.attack}`", a.role, a.asked, a.broken, a.gradients, f"{a.seconds:.1f}"]
        for a in attacks
    ]
    if any(a.asked_by for a in attacks):
        head.append("asked for by")
        rows = [[*row, a.asked_by] for row, a in zip(rows, attacks, strict=True)]
    return markdown_table(head, rows)


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
