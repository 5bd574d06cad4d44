"""The report: one self-contained HTML page from a store. It reads records only, never a network."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retroact import __version__
from retroact.evaluation.metrics import (
    clean_accuracy,
    mean_gradients,
    mean_queries,
    rho,
    robust_accuracy,
    zero_gradient_share,
)
from retroact.reports import plots
from retroact.reports.glossary import glossary
from retroact.reports.kept import kept
from retroact.reports.tables import Group, Line, group_lines, worst_cases, worst_of_each

TERMS = (
    *("clean accuracy", "worst case", "threat model", "95 % interval", "white box", "gray box"),
    *("black box", "zero gradients", "ρ₂", "queries", "retrofit", "PGD", "APGD", "kernel"),
)
"""Of the glossary, what every such page uses."""

MOST_NAMED = 3  # networks that a sentence names


def page(
    lines: Sequence[Line],
    *,
    title: str = "retroact report",
) -> str:
    """The page as a string. Raises ValueError where there is nothing."""
    if not lines:
        raise ValueError(
            "nothing to report: the store has no such cell; run an attack or a sweep first"
        )
    return render(
        "report.html",
        terms=TERMS,
        title=title,
        summary=summary(lines),
        groups=[_group(group, members) for group, members in group_lines(lines)],
        curves=_curves(lines),
        kept=kept(lines),
        runs=lines,
        clean_accuracy=clean_accuracy,
        robust_accuracy=robust_accuracy,
        rho=rho,
        zero_gradient_share=zero_gradient_share,
        mean_queries=mean_queries,
        mean_gradients=mean_gradients,
    )


def summary(lines: Sequence[Line]) -> str:
    """What the lines come to, in a sentence on the largest group, and what is to be doubted."""
    groups = group_lines(lines)
    group, members = max(groups, key=lambda found: len(found[1]))
    said = (
        f"Within {group.threat} on {group.data} (n = {len(members[0].record)}) {_say_left(members)}"
    )
    said += f"; more settings below: {len(groups) - 1}" if len(groups) > 1 else ""
    doubtful = sum(bool(line.alarms()) for line in lines)
    return said + (
        f". {doubtful} of {len(lines)} numbers are too good: their attacks were blind."
        if doubtful
        else "."
    )


def _say_left(members: Sequence[Line]) -> str:
    """What the attacks leave of the networks; a number that comes from blind attacks is not said to
    be withstood."""
    each = worst_of_each(members)
    seen = sorted((w for w in each if not w.blind), key=lambda w: w.accuracy)
    said = []
    if len(seen) == 1:
        (one,) = seen
        said = [
            f"the attacks leave {one.network} {100 * one.accuracy:.1f} % of its decisions right"
        ]
    elif seen:
        least, most = seen[0], seen[-1]
        said = [
            f"{most.network} withstands most, {100 * most.accuracy:.1f} % in the worst case of the"
            f" attacks on it, and {least.network} least, {100 * least.accuracy:.1f} %"
        ]
    blind = [w.network for w in each if w.blind]
    if blind:
        names = " and ".join(blind) if len(blind) <= MOST_NAMED else f"{len(blind)} networks"
        said.append(f"what {names} withstands is not known, for the attacks on it were blind")
    return "; ".join(said)


def render(template: str, *, terms: Sequence[str] = (), **values: Any) -> str:
    """A template of this room with its values, all text escaped, when and by which version it was
    `written`, and what these `terms` mean at its end."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    values |= {"written": f"{now} by retroact {__version__}", "terms": glossary(*terms)}
    environment = Environment(
        loader=PackageLoader("retroact.reports", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**values)


def _group(group: Group, members: list[Line]) -> dict[str, Any]:
    return {
        **group._asdict(),
        "n": len(members[0].record),
        "networks": _networks(members),
        "bars": Markup(plots.told(plots.bars(members), _say(members))),
    }


def _say(members: Sequence[Line]) -> str:
    """Each bar in words."""
    return "; ".join(
        f"{line.network} under {line.attack}: {100 * robust_accuracy(line.record):.1f} %"
        for line in members
    )


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
        {"title": f"{d}, {n}, {g}", "figure": Markup(plots.told(plots.curves(v), _say_curve(v)))}
        for (d, n, g), v in several.items()
    ]


def _say_curve(members: Sequence[Line]) -> str:
    points = "; ".join(
        f"{line.network} under {line.attack} at {line.fields.eps:.3g}:"
        f" {100 * robust_accuracy(line.record):.1f} %"
        for line in members
    )
    return f"Accuracy against eps. {points}"
