"""How the ledger's lines are printed: one table of all, one of what is claimed, the figure, and the
item of a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure as Canvas

from retroact.reports import plots
from retroact.reports.studied import Figure, Part, Table, Takeaway, Text
from retroact.studies.desk import Desk, Facts
from retroact.studies.ledger.judged import GENUINE
from retroact.studies.ledger.lines import Ledger, Line, make_ledger
from retroact.studies.ledger.measurements import unpack
from retroact.studies.ledger.rows import Published, Row

MISSING = "not measured yet"
HEAD = (
    "network",
    "radius",
    "change",
    "chosen",
    "published gain",
    "clean",
    "claimed here",
    "verified",
    "difference, corrected interval",
    "p, by Holm",
    "verdict",
    "the claim",
    "mechanism",
    "AutoAttack",
    "n",
    "could have shown",
    "CPU s",
)


def make_entry(row: Row) -> Callable[[Desk], Iterator[Part]]:
    """`make` of the item of a row: it measures the row's own lines, and judges them beside all
    that is measured of the others."""

    def make(desk: Desk) -> Iterator[Part]:
        yield from _introduce(row.said)
        make_ledger(desk, [row])
        whole = make_ledger(_reading(desk))
        lines = whole.of(row)
        yield Table("Measured", HEAD, tuple(tuple(cells(line)) for line in lines))
        yield from _annotate(lines)
        yield Text(f"**A reply of its authors:** {row.reply or 'none yet; it would stand here.'}")

    return make


def _reading(desk: Desk) -> Desk:
    """A desk of the same size and store that measures nothing."""
    return Desk(desk.store, quick=desk.quick, large=desk.large, stored=True)


# ------------------------------------------------------------------------------------ what is said


def _introduce(said: Published) -> Iterator[Text]:
    """What is published, what is known against it, and whether ours is their claim."""
    yield Text(f"**Published:** {said.said} ({said.source})")
    if said.against:
        yield Text(f"**Known against it:** {said.against}")
    where = " ".join(part for part in (said.ours, said.seen) if part)
    if where:
        yield Text(f"**Here:** {where}")
    if said.outside:
        yield Text(f"**Outside the claim.** To settle it on theirs: {said.settle}")


def claims_table(rows: Sequence[tuple[str, Row]]) -> Table:
    """What the authors of every row claim, as published."""
    head = (
        *("row", "published", "gain", "network", "radius", "protocol", "source"),
        *("known against it", "ours", "to settle it on theirs", "reply"),
    )
    body = []
    for name, row in rows:
        said, number = row.said, name.split("_")[1]
        where = "outside the claim: " if said.outside and said.ours else ""
        text = (said.said, gain_in_words(said), said.network, said.radius, said.protocol)
        rest = (said.source, said.against, where + said.ours, said.settle, row.reply)
        body.append((f"{number}. {row.title}", *(t or None for t in (*text, *rest))))
    return Table("What is claimed, as published", head, tuple(body), folded=True)


def gain_in_words(said: Published, net: str = "") -> str:
    """The published gain of robust accuracy, on a network where it names that."""
    gain = said.gains.get(net, said.gain)
    if gain is None:
        return ""
    return f"{gain:+g} points" if said.unit == "points" else f"{100 * gain:+.0f} %"


# ------------------------------------------------------------------------------------------ lines


def ledger_table(ledger: Ledger, rows: Sequence[tuple[str, Row]]) -> Table:
    """All lines, by row and network."""
    numbers = {row.name: name.split("_")[1] for name, row in rows}
    body = tuple(
        (f"{numbers[line.row.name]}. {line.row.title}", *cells(line)) for line in ledger.lines
    )
    return Table("All rows on all networks", ("row", *HEAD), body)


def cells(line: Line) -> list[str | None]:
    """What a line's columns say."""
    radius = None if line.threat is None else line.net.radius(line.threat)
    what = "not chosen yet" if line.choice is None else line.choice.what.knob
    by = None if line.choice is None else _chosen(line)
    start = [line.net.name, radius, what, by, gain_in_words(line.row.said, line.net.name) or None]
    return [*start, *_measured(line)]


def _chosen(line: Line) -> str | None:
    assert line.choice is not None
    return "; ".join([*line.choice.by, *([line.choice.note] if line.choice.note else [])]) or None


def _measured(line: Line) -> list[str | None]:
    facts, said = line.audit, line.judgement
    if line.first is None:
        return [None] * 5 + [MISSING] + [None] * 6
    if facts is None or said is None:
        why = "CANNOT BE TOLD: a network decides at chance, and nothing was attacked"
        return [None] * 5 + [why] + [None] * 3 + [str(line.first["n"]), None, _seconds(line)]
    gain = (facts["gained"] - facts["lost"]) / facts["n"]
    low, high = (100 * end for end in said.interval)
    visible = None if said.visible is None else f"{100 * said.visible:.1f}"
    return [
        *(_pair(facts[name]) for name in ("clean", "claimed", "verified")),
        f"{100 * gain:+.1f} ({low:+.1f} to {high:+.1f})",
        f"{said.p:.2g}",
        _verdict(line),
        said.became,
        facts["mechanism"] or None,
        _auto(line),
        str(facts["n"]),
        visible,
        _seconds(line),
    ]


def _seconds(line: Line) -> str:
    return f"{line.seconds:.0f}"


def _pair(values: Sequence[float]) -> str:
    before, after = (100 * v for v in values)
    return f"{before:.1f} → {after:.1f}"


def _auto(line: Line) -> str | None:
    if line.auto is None:
        return None
    return _pair([robust_share(facts) for facts in line.auto])


def robust_share(facts: Facts) -> float:
    """The share of images that the bits of some facts say are robust."""
    return float(unpack(facts["robust"], facts["n"]).mean())


def _verdict(line: Line) -> str:
    """The verdict with what the audit says of the claimed attack, and how often a gain held."""
    assert line.judgement is not None and line.audit is not None
    said = f"{line.judgement.verdict} · {line.audit['claim']}"
    if not line.repeats:
        return said
    held = sum(f.get("effect") == "GENUINE" for f in line.repeats)
    return f"{said}; holds in {held} of {len(line.repeats)} (training and attack seeds)"


def is_genuine(line: Line) -> bool:
    """Whether a line is called GENUINE in the summary: it holds from every seed that is asked."""
    if line.judgement is None or line.judgement.verdict != GENUINE:
        return False
    if not line.net.seeds:
        return True
    asked = 2 * (1 + len(line.net.seeds))
    return len(line.repeats) == asked and all(f.get("effect") == "GENUINE" for f in line.repeats)


def _annotate(lines: Sequence[Line]) -> Iterator[Text]:
    """Doubts and kernels, line by line."""
    for line in lines:
        facts = line.last
        if facts is None or line.choice is None:
            continue
        said = [facts["refused"]] if "refused" in facts else list(facts["doubts"])
        if facts.get("kernel"):
            said.append(f"attacked through {facts['kernel']}")
        if facts.get("alarms"):
            said.append(f"alarms: {', '.join(facts['alarms'])}")
        if facts.get("draws", [0, 0])[1]:
            said.append(f"averaged over {facts['draws'][1]} draws")
        if said:
            yield Text(f"{line.net.name}, {line.choice.what.knob}: {'; '.join(said)}.")


# ---------------------------------------------------------------------------------------- summary


def summarise(ledger: Ledger) -> Iterator[Takeaway]:
    """What the page begins with."""
    told = [line for line in ledger.lines if line.judgement is not None]
    counted = Counter(line.judgement.verdict for line in told if line.judgement)
    words = ", ".join(f"{n} {word}" for word, n in counted.most_common())
    open_ = len(ledger.lines) - sum(line.first is not None for line in ledger.lines)
    rest = f"; {open_} more are not measured yet" if open_ else ""
    yield Takeaway(2, f"{len(told)} lines are judged: {words or 'none'}{rest}.")
    yield from _control(told)
    genuine = [line for line in told if is_genuine(line)]
    if genuine:
        names = "; ".join(f"{line.row.title} on {line.net.name}" for line in genuine)
        yield Takeaway(4, f"GENUINE, from every seed that was asked: {names}.")
    mirages = [(_mirage(line), line) for line in told]
    if mirages:
        most, line = max(mirages, key=lambda pair: pair[0])
        yield Takeaway(
            5,
            f"The largest gap between what a claim's attack shows here and what is verified:"
            f" {100 * most:.1f} points ({line.row.title} on {line.net.name}).",
        )


def _control(told: Sequence[Line]) -> Iterator[Takeaway]:
    """What became of the row whose truth is known."""
    for title in dict.fromkeys(line.row.title for line in told if line.row.control):
        lines = [line for line in told if line.row.control and line.row.title == title]
        wrong = [line for line in lines if line.judgement and line.judgement.verdict == GENUINE]
        said = "as it should" if not wrong else "so this page is wrong"
        count = f"GENUINE on {len(wrong)} of {len(lines)} lines"
        yield Takeaway(3, f"The control, {title}, whose truth is known, comes out {count}, {said}.")


def _mirage(line: Line) -> float:
    """What the claimed attack shows beyond what is verified, in [−2, 2]."""
    assert line.audit is not None
    claimed, verified = (line.audit[name] for name in ("claimed", "verified"))
    return float((claimed[1] - claimed[0]) - (verified[1] - verified[0]))


# ----------------------------------------------------------------------------------------- figure


def figure(ledger: Ledger) -> Figure:
    """The gain that the claimed attack shows against the one that is verified, a point for each
    line, and the diagonal on which a claim is honest."""
    canvas = Canvas(figsize=(7.2, 5.4), layout="constrained")
    axes = canvas.add_subplot()
    points = [(line, *_gains(line)) for line in ledger.lines if line.audit is not None]
    ends = [v for _, *gains in points for v in gains] + [-5.0, 5.0]
    low, high = min(ends) - 3, max(ends) + 3
    axes.plot([low, high], [low, high], color=plots.INK, linewidth=1)
    axes.axhline(0, color=plots.FAINT, linewidth=1)
    axes.axvline(0, color=plots.FAINT, linewidth=1)
    for i, name in enumerate(dict.fromkeys(line.net.name for line, *_ in points)):
        mine = [(x, y) for line, x, y in points if line.net.name == name]
        across, up = zip(*mine, strict=True)
        colour = plots.CYCLE[i % len(plots.CYCLE)]
        axes.scatter(across, up, s=22, color=colour, label=name)
    far = sorted(points, key=lambda p: -abs(p[1] - p[2]))[:6]
    for line, x, y in far:
        axes.annotate(line.row.title, (x, y), (4, 3), textcoords="offset points", fontsize=7)
    axes.set_xlabel("gain under the attack of the claim, points", fontsize=8)
    axes.set_ylabel("verified gain, points", fontsize=8)
    if points:
        axes.legend(fontsize=7, frameon=False)
    caption = (
        "What the attack of the claim shows (to the right) against what is verified (up), a point"
        " for each row and network; on the diagonal both say the same, below it the claim is more"
        " than the truth. The six farthest from it are named."
    )
    return Figure(caption, plots.svg(plots.plain(canvas, axes)))


def _gains(line: Line) -> tuple[float, float]:
    assert line.audit is not None
    claimed, verified = (line.audit[name] for name in ("claimed", "verified"))
    return 100 * (claimed[1] - claimed[0]), 100 * (verified[1] - verified[0])
