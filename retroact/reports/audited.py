"""The report of one audit, as a page, Markdown or JSON: from its plain numbers and the images that
fell.

Nothing of the audit is imported: what is read is `Audited`, and all numbers are those of
`numbers()`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from retroact.evaluation.metrics import wilson
from retroact.reports import plots
from retroact.reports.html import rendered
from retroact.reports.tables import left_alone, markdown_table

TONES = {"GENUINE": "good", "HARMFUL": "bad", "HONEST": "good", "MASKED": "bad"}
"""How an answer looks on the page; those that are not here are a warning."""

WHY = {
    "saturation": (
        "The change multiplies the network's scores until the usual loss is rounded flat. Its"
        " gradient vanishes or loses its direction, and the usual attack stands still; an attack"
        " whose loss does not depend on the scale moves again."
    ),
    "jump": (
        "The change makes jumps that a gradient does not show, so the usual attack walks in wrong"
        " directions; an attack that is told where the jumps are finds its way again."
    ),
}


class Shown(Protocol):
    """An example that fell: what it was before and after (…), its label, what was decided, and by
    what."""

    @property
    def row(self) -> int: ...
    @property
    def label(self) -> int: ...
    @property
    def decided(self) -> int: ...
    @property
    def image(self) -> NDArray[np.float32]: ...
    @property
    def x_adv(self) -> NDArray[np.float32]: ...
    @property
    def by(self) -> str: ...


class Boxed(Protocol):
    """What an example is called, and the box that its entries lie in."""

    @property
    def word(self) -> str: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Attacked(Protocol):
    """One side of an audit, as far as a report shows it."""

    @property
    def fallen(self) -> Sequence[Shown]: ...


class Audited(Protocol):
    """What a report needs of an audit: its plain numbers, and its two sides (twin, network) with
    what fell."""

    def numbers(self) -> dict[str, Any]: ...
    @property
    def domain(self) -> Boxed: ...
    @property
    def sides(self) -> Sequence[Attacked]: ...


def page(audit: Audited, *, title: str = "retroact audit") -> str:
    """The audit as one self-contained page."""
    found = audit.numbers()
    return rendered(
        "audit.html",
        title=title,
        found=found,
        tones=TONES,
        rows=table(found),
        bars=Markup(
            plots.claims(
                [(r["what"], (r["before"], r["after"])) for r in table(found)],
                found["n"],
                audit.domain.word,
            )
        ),
        why=why(found),
        left_alone=left_alone(found["pedigree"]),
        statistics=statistics(found, audit.domain.word),
        word=audit.domain.word,
        panels=_panels(found["curves"]),
        indicators=[_reading(r) for r in found["indicators"]],
        fallen=[
            [_fallen(f, audit.domain) for f in side.fallen]
            for side in (audit.sides[1], audit.sides[0])
        ],
        sides=[
            (who, found["attacks"][side])
            for who, side in (("after", "network"), ("before", "twin"))
        ],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def as_json(audit: Audited) -> str:
    """The audit's numbers as JSON; what is no finite number is null there."""
    return json.dumps(_finite(audit.numbers()), indent=2, allow_nan=False, default=str) + "\n"


def markdown(audit: Audited, *, title: str = "retroact audit") -> str:
    """The audit as Markdown: verdict, claimed beside verified, indicators, and what was run."""
    found, word = audit.numbers(), audit.domain.word
    readings = [_reading(r) for r in found["indicators"]]
    parts = [
        f"# {title}",
        (
            f"`{found['network']}` beside `{found['twin']}`, `{found['threat']}` on"
            f" {found['data']}, n = {found['n']}"
        ),
        f"**{found['effect']} · {found['claim']}**: {found['plainly']}",
        *(f"- Doubt: {doubt}" for doubt in found["doubts"]),
        markdown_table(
            [f"{word}s decided rightly", "before", "after", "difference"],
            [
                [r["what"], *(f"{100 * r[k]:.1f} %" for k in ("before", "after")), r["difference"]]
                for r in table(found)
            ],
        ),
        statistics(found, word),
        why(found),
        markdown_table(
            ["indicator", "a sign of", "after", "before", "fires at", ""],
            [
                [r[k] for k in ("title", "mechanism", "value", "twin", "fires", "state")]
                for r in readings
            ],
        ),
        *(
            _ran(who, found["attacks"][side])
            for who, side in (("after", "network"), ("before", "twin"))
        ),
        *(
            [f"The change leaves {kinds} as they are."]
            if (kinds := left_alone(found["pedigree"]))
            else []
        ),
        f"Seed {found['pedigree']['seed']}; {found['pedigree']['versions']}; `{found['battery']}`.",
        (
            f"Verified is the worst case over every attack that was run, {word} by {word}: an upper"
            " bound on what the network withstands, never a certificate."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Clean, claimed and verified accuracy before and after, with Wilson's 95 % intervals and the
    difference."""
    rows = []
    for what in ("clean", "claimed", "verified"):
        before, after = found[f"{what}_twin"], found[what]
        n, said = found["n"], f"{100 * (after - before):+.1f}"
        bounds = {
            f"{k}_bounds": wilson(round(v * n), n)
            for k, v in (("before", before), ("after", after))
        }
        rows.append({"what": what, "before": before, "after": after, "difference": said, **bounds})
    return rows


def statistics(found: Mapping[str, Any], word: str = "image") -> str:
    """What stands behind the verified difference, in a sentence."""
    low, high = (100 * v for v in found["interval"])
    return (
        f"Verified difference {100 * (found['verified'] - found['verified_twin']):+.1f} points, 95"
        f" % interval {low:+.1f} to {high:+.1f}; {found['gained']} of {found['n']} {word}s"
        f" withstand the attacks only after the change, {found['lost']} only before (McNemar's"
        f" exact p = {found['p']:.2g})."
    )


def why(found: Mapping[str, Any]) -> str:
    """What the indicators say, in sentences for somebody who is no expert."""
    fired = [r for r in found["indicators"] if r["fired"]]
    if not fired:
        return (
            "No indicator fired: nothing suggests that the change hides the network's weaknesses"
            " from an attack."
        )
    kinds = dict.fromkeys(r["mechanism"] for r in fired)
    said = " ".join(WHY.get(kind, "") for kind in kinds)
    if found["mechanism"]:
        return said
    return f"{said} Here, though, the usual attack promises no more than what was verified."


def _panels(curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not curves:
        return []
    before, after = curves["twin"], curves["network"]
    drawn = (
        (
            "Loss along the usual attack",
            plots.climb(before["loss"], after["loss"]),
            (
                "A healthy attack climbs. A line at 0 or far off the scale is saturation, a ragged"
                " one a jump."
            ),
        ),
        (
            "Does the gradient tell the truth?",
            plots.fidelity(before["fidelity"], after["fidelity"]),
            (
                "What a small step really changed, over what the gradient predicted; an honest"
                " gradient lies at 1. Outside the band it misleads. Values beyond the axis are cut."
            ),
        ),
        (
            "How loud is the network?",
            plots.scale(before["margin"], after["margin"]),
            (
                "The distance between the best score and the next. Louder is not safer: scores can"
                " be multiplied without any decision changing."
            ),
        ),
    )
    return [
        {"title": t, "figure": Markup(figure), "caption": caption} for t, figure, caption in drawn
    ]


def _reading(reading: Mapping[str, Any]) -> dict[str, str]:
    above = f"× {reading['threshold']:g}" if reading.get("ratio") else f"+ {reading['threshold']:g}"
    return {
        "title": reading["title"],
        "about": " ".join(reading.get("about", "").split()),
        "source": reading.get("source", ""),
        "mechanism": reading["mechanism"],
        "value": f"{reading['value']:.3g}",
        "twin": f"{reading['twin']:.3g}",
        "fires": f"> before {above}",
        "state": "fired" if reading["fired"] else "silent",
    }


def _fallen(fallen: Shown, box: Boxed) -> dict[str, Any]:
    drawn = {
        name: plots.image(pixels, box.low, box.high) if plots.is_image(pixels) else ""
        for name, pixels in (("image", fallen.image), ("x_adv", fallen.x_adv))
    }
    return {
        "row": fallen.row,
        "label": fallen.label,
        "decided": fallen.decided,
        **drawn,
        "by": fallen.by,
        "moved": f"{float(np.abs(fallen.x_adv - fallen.image).max()):.3f}",
    }


def _ran(who: str, runs: Sequence[Mapping[str, Any]]) -> str:
    head = [f"attacks on the network {who}", "", "role", "asked", "felled", "gradients", "seconds"]
    rows = [
        [
            r["title"],
            f"`{r['attack']}`",
            r["role"],
            r["asked"],
            r["felled"],
            r["gradients"],
            f"{r['seconds']:.1f}",
        ]
        for r in runs
    ]
    return markdown_table(head, rows)


def _finite(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
