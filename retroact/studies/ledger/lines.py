"""The lines of the ledger: a row on a network at a value of its knob, with all that is measured of
it, as far as it is.

What is asked of a desk is asked in stages, each for all rows and networks together: radii, values
of knobs, the first look, the second where the first leaves it open, AutoAttack, and other seeds of
what came out GENUINE. So the order of rows changes nothing, and an executor has much to do at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from retroact.attacks.pgd import CLAIMED
from retroact.crafting.threat import Linf
from retroact.experiments.facts import Measurement, locked_key
from retroact.studies.desk import Desk, Facts, NotMeasuredError
from retroact.studies.ledger.judged import GENUINE, Judgement, Look, judge_all
from retroact.studies.ledger.measurements import (
    ByAutoAttack,
    RowAudit,
    Tried,
    found,
    has_own_before,
    unpack,
)
from retroact.studies.ledger.networks import NETS, Net, available, radii
from retroact.studies.ledger.rows import VERIFIED, Point, Row, choose_verified, docket
from retroact.studies.ledger.treatments import Treatment

DRAWS = 10
"""Over how many draws a randomised network is averaged, but in a full run on MNIST: there as many
as it takes."""
SECOND_SEED = 1


@dataclass(frozen=True)
class Choice:
    """A value of a knob and the rules that chose it."""

    what: Treatment
    by: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A row on a network at one value, and what is measured of it; None where nothing is yet."""

    row: Row
    net: Net
    threat: Linf | None = None
    choice: Choice | None = None
    first: Facts | None = None
    second: Facts | None = None
    auto: tuple[Facts, Facts] | None = None
    repeats: tuple[Facts, ...] = ()
    seconds: float = 0.0
    judgement: Judgement | None = field(default=None, compare=False)

    @property
    def last(self) -> Facts | None:
        """The facts of the last look."""
        return self.second or self.first

    @property
    def audit(self) -> Facts | None:
        """The same, where something was attacked."""
        return None if self.last is None or "refused" in self.last else self.last

    @property
    def auto_gain(self) -> float | None:
        """What AutoAttack leaves after less before, on the same images; None where it was not
        run."""
        if self.auto is None:
            return None
        before, after = (float(np.mean(unpack(f["robust"], f["n"]))) for f in self.auto)
        return after - before


@dataclass(frozen=True)
class Ledger:
    """All lines, those of rows that are not chosen yet among them, and how many were planned."""

    lines: tuple[Line, ...]
    planned: int

    @property
    def complete(self) -> bool:
        """Whether the first look is done on all."""
        return all(line.first is not None for line in self.lines)

    def of(self, row: Row) -> list[Line]:
        """The lines of a row."""
        return [line for line in self.lines if line.row is row]


def make_ledger(desk: Desk, rows: Sequence[Row] | None = None) -> Ledger:
    """The ledger of `rows` (None: the docket), as far as it is measured, or measured now; of the
    docket all, of some rows what needs no other one: not the second look.

    Raises NotMeasuredError for a desk that measures nothing where not even a radius is known.
    """
    every, nets = [row for _, row in docket()], available(desk)
    asked = every if rows is None else list(rows)
    at = radii(desk, nets)
    if not at:
        raise NotMeasuredError(f"{desk.store.path} lacks the radii of the ledger")
    lines = _look(desk, list(_choose(desk, asked, nets, at)))
    ledger = judge(Ledger(tuple(lines), plan(every, nets)))
    if rows is None and ledger.complete:
        ledger = judge(replace(ledger, lines=tuple(_look_again(desk, ledger.lines))))
        ledger = judge(replace(ledger, lines=tuple(_ask_autoattack(desk, ledger.lines))))
        ledger = replace(ledger, lines=tuple(_repeat(desk, ledger.lines)))
    else:
        ledger = judge(replace(ledger, lines=tuple(_ask_autoattack(desk, ledger.lines))))
    return replace(ledger, lines=tuple(_time(desk, line) for line in ledger.lines))


def plan(rows: Iterable[Row], nets: Iterable[Net] = NETS) -> int:
    """How many lines there are at most: what Holm's correction counts, measured or not."""
    asked = list(nets)
    return sum(row.most for row in rows for net in asked if row.is_on(net))


# ---------------------------------------------------------------------------------------- the knobs


def _choose(
    desk: Desk, rows: Sequence[Row], nets: Sequence[Net], at: dict[Net, Linf]
) -> Iterable[Line]:
    """A line for every value that a rule chooses, one without a choice where that is open."""
    pairs = [(row, net) for row in rows for net in nets if row.is_on(net)]
    tuned = [(row, net) for row, net in pairs if row.tunes and net in at]
    tried = _try(desk, tuned, at)
    for row, net in pairs:
        if net not in at:
            yield Line(row, net)
            continue
        choices = choose(row, net, tried.get((row, net), []))
        yield from (Line(row, net, at[net], choice) for choice in choices)
        if not choices:
            yield Line(row, net, at[net])


def choices_of(
    desk: Desk, row: Row, nets: Sequence[Net], at: dict[Net, Linf]
) -> dict[Net, list[Choice]]:
    """What the rules of one row choose on each network where that is measured; the choice by
    verified accuracy last."""
    pairs = [(row, net) for net in nets if net in at and row.is_on(net)]
    tried = _try(desk, pairs, at)
    chosen = {net: choose(row, net, tried.get((row, net), [])) for _, net in pairs}
    return {
        net: sorted(choices, key=lambda choice: VERIFIED in choice.by)
        for net, choices in chosen.items()
        if choices
    }


def choose(row: Row, net: Net, points: Sequence[Point]) -> list[Choice]:
    """What the rules choose of a row's values on a network; nothing where it is open."""
    values = row.values_on(net)
    if row.rule is None:
        return [Choice(values[0])]
    if not row.tunes:
        return [Choice(value, (row.rule.words,)) for value in values]
    if len(points) < len(values):
        return []
    by: dict[int, list[str]] = {place: [row.rule.words] for place in row.rule(points)}
    if (best := choose_verified(points)) is not None:
        by.setdefault(best, []).append(VERIFIED)
    none = "" if best is not None else "no value keeps clean accuracy to a point"
    return [Choice(values[place], tuple(by[place]), none) for place in sorted(by)]


def _try(
    desk: Desk, pairs: Sequence[tuple[Row, Net]], at: dict[Net, Linf]
) -> dict[tuple[Row, Net], list[Point]]:
    """The points of every knob: all values clean and under the claimed attack, verified where they
    are affordable. Of a knob of which something is not measured: none."""
    asked = {
        (row, net): [_tried(desk, row, net, what, at[net]) for what in row.values_on(net)]
        for row, net in pairs
    }
    facts = found(desk, [what for several in asked.values() for what in several])
    known = {pair: several for pair, several in asked.items() if all(w in facts for w in several)}
    points = {
        pair: [Point(f["before"], f["clean"], f["claimed"]) for f in map(facts.get, several) if f]
        for pair, several in known.items()
    }
    audits = {
        (pair, i): _audit_on_held(desk, *pair, what.what, at[pair[1]])
        for pair, several in known.items()
        for i, what in enumerate(several)
        if points[pair][i].keeps(0.01)
    }
    verified = found(desk, audits.values())
    for (pair, i), what in audits.items():
        if what not in verified:
            points[pair] = []
        elif points[pair] and "refused" not in verified[what]:
            points[pair][i] = replace(points[pair][i], verified=verified[what]["verified"][1])
    return points


def _tried(desk: Desk, row: Row, net: Net, what: Treatment, threat: Linf) -> Tried:
    s = net.slices(desk)
    return Tried(net.model, what, s.held, s.train, s.whole, threat, row.claimed)


def _audit_on_held(desk: Desk, row: Row, net: Net, what: Treatment, threat: Linf) -> RowAudit:
    s = net.slices(desk)
    where = (s.held, s.held, s.train, s.whole, threat)
    return RowAudit(net.model, what, *where, CLAIMED, "quick", draws=DRAWS if row.random else 0)


# ---------------------------------------------------------------------------------------- the looks


def audit_of(
    desk: Desk,
    row: Row,
    net: Net,
    what: Treatment,
    threat: Linf,
    look: int = 0,
    seed: int = 0,
    training: int = 0,
) -> RowAudit:
    """The audit of a row on the images of a look."""
    s = net.slices(desk)
    where = (s.looks[look], s.held, s.train, s.whole, threat)
    many = row.random and (desk.quick or net.large)
    return RowAudit(
        net.model,
        what,
        *where,
        row.claimed,
        "quick" if desk.quick else "whole",
        draws=DRAWS if many else 0,
        seed=seed,
        training=training,
    )


def _asked(desk: Desk, line: Line, **how: int) -> RowAudit:
    assert line.threat is not None and line.choice is not None
    return audit_of(desk, line.row, line.net, line.choice.what, line.threat, **how)


def _look(desk: Desk, lines: Sequence[Line]) -> list[Line]:
    """The first look, on all lines whose value is chosen."""
    asked = {i: _asked(desk, line) for i, line in enumerate(lines) if line.choice}
    facts = found(desk, asked.values())
    return [
        replace(line, first=facts.get(asked[i])) if i in asked else line
        for i, line in enumerate(lines)
    ]


def _look_again(desk: Desk, lines: Sequence[Line]) -> list[Line]:
    """The second look, on the lines that the first leaves open."""
    asked = {
        i: _asked(desk, line, look=1)
        for i, line in enumerate(lines)
        if line.judgement is not None and line.judgement.open
    }
    facts = found(desk, asked.values())
    return [
        replace(line, second=facts.get(asked[i])) if i in asked else line
        for i, line in enumerate(lines)
    ]


def _ask_autoattack(desk: Desk, lines: Sequence[Line]) -> list[Line]:
    """AutoAttack before and after, where the protocol asks for it."""
    asked = {i: _by_autoattack(desk, line) for i, line in enumerate(lines) if _wants_auto(line)}
    facts = found(desk, [what for pair in asked.values() for what in pair])
    done = {i: pair for i, pair in asked.items() if all(what in facts for what in pair)}
    return [
        replace(line, auto=(facts[done[i][0]], facts[done[i][1]])) if i in done else line
        for i, line in enumerate(lines)
    ]


def _wants_auto(line: Line) -> bool:
    if line.audit is None or line.judgement is None:
        return False
    asked = line.row.by_autoattack or line.judgement.verdict == GENUINE
    return line.net.data == "mnist" or asked


def _by_autoattack(desk: Desk, line: Line) -> tuple[ByAutoAttack, ByAutoAttack]:
    assert line.threat is not None and line.choice is not None
    s, what = line.net.slices(desk), line.choice.what
    where = (s.auto, s.held, s.train, s.whole, line.threat)
    own = what if has_own_before(what) else None
    return (
        ByAutoAttack(line.net.model, own, "before", *where),
        ByAutoAttack(line.net.model, what, "after", *where),
    )


def _repeat(desk: Desk, lines: Sequence[Line]) -> list[Line]:
    """What came out GENUINE on a network that is quickly trained: from other training seeds, and
    with a second attack seed, on the images of its last look."""
    asked = {
        i: [
            _asked(desk, line, look=int(line.second is not None), seed=seed, training=training)
            for training in (0, *line.net.seeds)
            for seed in (0, SECOND_SEED)
        ]
        for i, line in enumerate(lines)
        if line.net.seeds and line.judgement is not None and line.judgement.verdict == GENUINE
    }
    facts = found(desk, [what for several in asked.values() for what in several])
    return [
        replace(line, repeats=tuple(facts[what] for what in asked[i] if what in facts))
        if i in asked
        else line
        for i, line in enumerate(lines)
    ]


def _time(desk: Desk, line: Line) -> Line:
    """The line with the CPU seconds of its audits."""
    if line.first is None:
        return line
    looks = [_asked(desk, line)] + ([_asked(desk, line, look=1)] if line.second else [])
    return replace(line, seconds=sum(seconds_of(desk, what) for what in looks))


def seconds_of(desk: Desk, what: Measurement) -> float:
    """The CPU seconds that a measurement took; 0 where it is not there."""
    stored = desk.store.read_facts(locked_key(what))
    return 0.0 if stored is None else stored[1]


# ---------------------------------------------------------------------------------------- judgement


def judge(ledger: Ledger) -> Ledger:
    """The ledger with a judgement of every line that is measured, all of a look together."""
    looks = [_counts(line) for line in ledger.lines]
    judged = judge_all(looks, ledger.planned)
    pairs = zip(ledger.lines, judged, strict=True)
    return replace(ledger, lines=tuple(replace(line, judgement=j) for line, j in pairs))


def _counts(line: Line) -> Look | None:
    """What a judgement rests on."""
    facts = line.audit
    if facts is None:
        return None
    expected = line.row.said.expect(line.net.name, facts["verified"][0], facts["clean"][0])
    return Look(
        n=facts["n"],
        gained=facts["gained"],
        lost=facts["lost"],
        settled=facts["effect"] not in ("ABSTAINED", "TOO STRONG A THREAT"),
        doubted=bool(facts["doubts"]),
        second=line.second is not None,
        claimed=expected,
        outside=line.row.said.is_outside(line.net.name),
        auto=line.auto_gain,
    )
