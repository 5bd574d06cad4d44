"""The report: one self-contained HTML page from a store. It reads records only, never a network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retroact.auditing.numbers import AuditNumbers
from retroact.evaluation.metrics import (
    clean_accuracy,
    mean_gradients,
    mean_queries,
    rho,
    robust_accuracy,
    zero_gradient_share,
)
from retroact.reports import plots
from retroact.reports.tables import Group, Line, group_lines, worst_cases

MOST_PICTURES = 8  # a page that loads at once; the store has the rest


def page(
    lines: Sequence[Line],
    *,
    title: str = "retroact report",
    notes: Sequence[str] = (),
    figures: Sequence[tuple[str, str]] = (),
    audits: Sequence[tuple[str, AuditNumbers]] = (),
) -> str:
    """The page as a string. `notes` are sentences for its top, `figures` further ones of `plots`
    with their captions, `audits` what was audited with the audit's numbers. Raises ValueError where
    there is nothing.
    """
    if not lines:
        raise ValueError(
            "nothing to report: the store has no such cell; run an attack or a sweep first"
        )
    return render(
        "report.html",
        title=title,
        notes=notes,
        figures=[(caption, Markup(figure)) for caption, figure in figures],
        audits=audits,
        groups=[_group(group, members) for group, members in group_lines(lines)],
        curves=_curves(lines),
        pictures=_pictures(lines),
        runs=lines,
        undrawn=any(not plots.is_image(line.record.examples[0]) for line in _select_kept(lines)),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        clean_accuracy=clean_accuracy,
        robust_accuracy=robust_accuracy,
        rho=rho,
        zero_gradient_share=zero_gradient_share,
        mean_queries=mean_queries,
        mean_gradients=mean_gradients,
    )


def render(template: str, **values: Any) -> str:
    """A template of this room with its values, all text escaped."""
    environment = Environment(
        loader=PackageLoader("retroact.reports", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def _group(group: Group, members: list[Line]) -> dict[str, Any]:
    return {
        **group._asdict(),
        "n": len(members[0].record),
        "networks": _networks(members),
        "bars": Markup(plots.bars(members)),
    }


def _networks(members: list[Line]) -> list[dict[str, Any]]:
    worst = {w.network: w for w in worst_cases(members)}
    names = dict.fromkeys(line.network for line in members)
    return [
        {
            "name": name,
            "lines": [line for line in members if line.network == name],
            "worst": worst.get(name),
        }
        for name in names
    ]


def _curves(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Accuracy against eps, where an attack was run at more than one radius."""
    by_kind: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        kind = (line.fields.data, line.fields.norm, line.fields.goal)
        by_kind.setdefault(kind, []).append(line)
    several = {k: v for k, v in by_kind.items() if len({line.fields.eps for line in v}) > 1}
    return [
        {"title": f"{d}, {n}, {g}", "figure": Markup(plots.curves(v))}
        for (d, n, g), v in several.items()
    ]


def _pictures(lines: Sequence[Line]) -> list[dict[str, Any]]:
    drawn = [line for line in _select_kept(lines) if plots.is_image(line.record.examples[0])]
    return [
        {"line": line, "figure": Markup(plots.pictures(line.record))}
        for line in drawn[:MOST_PICTURES]
    ]


def _select_kept(lines: Sequence[Line]) -> list[Any]:
    """The lines whose records kept examples."""
    return [
        line for line in lines if line.record.examples is not None and len(line.record.examples)
    ]
