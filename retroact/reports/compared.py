"""Audits side by side, a row each: the ledger of what changes claim and what is left of it."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from retroact.auditing.numbers import AuditNumbers, Told, as_numbers
from retroact.reports import plots
from retroact.reports.audited import TONES, as_plain, statistics
from retroact.reports.html import render
from retroact.reports.tables import markdown_table, without_html

TITLE = "Audits side by side"
TERMS = (
    *("clean accuracy", "claimed accuracy", "verified accuracy", "95 % interval", "before, after"),
    *(
        "threat model",
        "beyond the truth",
        "McNemar's p",
        "masked",
        "weak protocol",
        "honest",
        "genuine",
    ),
    *("harmful", "no effect", "inconclusive", "abstained", "too strong a threat", "retrofit"),
)
_NAMED = 30  # characters of a name in the figure


@dataclass(frozen=True)
class Row:
    """An audit as a row: its numbers, and the address of its own page, empty where there is
    none."""

    audit: AuditNumbers
    page: str = ""

    @property
    def change(self) -> str:
        """What was changed, or the network after it where the change has no name of its own."""
        before, after = self.audit.names
        return after.removeprefix(f"{before} + ") or "a change"

    @property
    def where(self) -> str:
        """What was changed where: rows that have this in common compare."""
        a = self.audit
        return f"{a.names.before}, {a.data}, {a.threat}"

    def brief(self) -> dict[str, Any]:
        """The row in the few columns that a terminal has room for."""
        a = self.audit
        return {
            "change": self.change,
            "on": self.where,
            "verdict": f"{a.effect}; {a.explained_claim}",
            "claimed points": f"{100 * a.claimed_gain:+.1f}",
            "verified points": f"{100 * a.gain:+.1f} ({_ends(a.interval)})",
            "n": a.n,
        }

    def plain(self) -> dict[str, Any]:
        """The row as plain data, for CSV and JSON."""
        a = self.audit
        accuracies = {"clean": a.clean, "claimed": a.claimed, "verified": a.verified}
        return {
            "change": self.change,
            "network": a.names.before,
            "data": a.data,
            "threat": a.threat,
            "n": a.n,
            "effect": a.effect,
            "claim": a.claim,
            "mechanism": a.mechanism,
            **{
                f"{what}_{when}": value
                for what, pair in accuracies.items()
                for when, value in zip(pair._fields, pair, strict=True)
            },
            "claimed_difference": a.claimed_gain,
            "verified_difference": a.gain,
            "verified_low": a.interval[0],
            "verified_high": a.interval[1],
            "p": a.p,
            "doubts": "; ".join(a.doubts),
            "battery": a.battery,
            "retroact": a.retroact,
        }


def page(rows: Sequence[Row], *, title: str = TITLE) -> str:
    """The rows as one self-contained page. Raises ValueError where there is none."""
    _check(rows)
    return render(
        "compared.html",
        title=title,
        rows=rows,
        tones=TONES,
        summary=summary(rows),
        unlike=unlike(rows),
        figure=_figure(rows),
        statistics=statistics,
        terms=TERMS,
    )


def markdown(rows: Sequence[Row], *, title: str = TITLE) -> str:
    """The rows as a Markdown table under the sentence that sums them up."""
    _check(rows)
    head = ["change", "on", "n", "verdict", "claim", "claimed", "verified", "difference (95 %)"]
    body = [
        [
            row.change,
            row.where,
            row.audit.n,
            row.audit.effect,
            row.audit.explained_claim,
            *(
                f"{100 * pair.before:.1f} → {100 * pair.after:.1f} %"
                for pair in (row.audit.claimed, row.audit.verified)
            ),
            f"{100 * row.audit.gain:+.1f} ({_ends(row.audit.interval)})",
        ]
        for row in rows
    ]
    parts = [f"# {title}", summary(rows), *filter(None, [unlike(rows)]), markdown_table(head, body)]
    return without_html("\n\n".join(parts)) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """The rows as CSV, accuracies and differences in [−1, 1]."""
    _check(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0].plain()))
    writer.writeheader()
    writer.writerows(row.plain() for row in rows)
    return out.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """The numbers of every audit, as a JSON list of what `audit --json` writes."""
    return as_plain([row.audit.to_json() for row in rows])


def summary(rows: Sequence[Row]) -> str:
    """What the ledger comes to, in one sentence."""
    effects = Counter(row.audit.effect for row in rows)
    masked = sum("MASKED" in row.audit.words for row in rows)
    counts = ", ".join(f"{n} {effect}" for effect, n in effects.most_common())
    highest = max(rows, key=lambda row: row.audit.mirage)
    audits = f"{len(rows)} audit{'s' if len(rows) > 1 else ''}"
    said = f"Of {audits}: {counts}; the claim is MASKED in {masked}."
    if highest.audit.mirage <= 0:
        return said
    return (
        f"{said} The claim that is farthest beyond the truth is that of {highest.change}, by"
        f" {100 * highest.audit.mirage:.1f} points."
    )


def unlike(rows: Sequence[Row]) -> str:
    """A warning where the rows are not all of one network, data and threat; else empty."""
    kinds = {row.where for row in rows}
    batteries = {(row.audit.battery, row.audit.battery_version) for row in rows}
    said = []
    if len(kinds) > 1:
        said.append(
            f"These are {len(kinds)} settings of network, data and threat: compare rows within one."
        )
    if len(batteries) > 1:
        said.append(
            f"They were run with {len(batteries)} batteries, so some verified numbers were harder"
            " to hold than others."
        )
    return " ".join(said)


def rows_of(audits: Sequence[Told], page: Path) -> list[Row]:
    """A row for each audit, its numbers, or the file that `audit --json` wrote, with a link from
    `page` to the audit's own one, where that lies beside such a file."""
    return [Row(as_numbers(told), _find_page(told, page)) for told in audits]


def _find_page(told: Told, page: Path) -> str:
    own = Path(told).with_suffix(".html") if isinstance(told, str | Path) else None
    if own is None or not own.is_file() or own.resolve() == page.resolve():
        return ""
    return quote(Path(os.path.relpath(own, page.absolute().parent)).as_posix())


def _figure(rows: Sequence[Row]) -> Markup:
    several = len({row.where for row in rows}) > 1
    names = [_shorten(r.change) for r in rows]
    if several:
        settings = (f"{r.audit.names.before}, {r.audit.threat}" for r in rows)
        names = [f"{n}: {_shorten(s)}" for n, s in zip(names, settings, strict=True)]
    drawn = [
        plots.Gain(name, r.audit.claimed_gain, r.audit.gain, r.audit.interval)
        for name, r in zip(names, rows, strict=True)
    ]
    says = "; ".join(
        f"{g.name}: claimed {100 * g.claimed:+.1f}, verified {100 * g.verified:+.1f} points"
        for g in drawn
    )
    return Markup(plots.told(plots.gains(drawn), says))


def _shorten(name: str) -> str:
    return name if len(name) <= _NAMED else f"{name[: _NAMED - 1]}…"


def _ends(interval: tuple[float, float]) -> str:
    return " to ".join(f"{100 * end:+.1f}" for end in interval)


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("no audits to compare; give what `retroact audit … --json FILE` wrote")
