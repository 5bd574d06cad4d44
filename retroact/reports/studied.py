"""A study as a page and as Markdown: tables, figures and claims, each measured number beside the
published one.

What a study yields are these parts. Published numbers stand in columns called "published" and in
thin lines, nowhere else.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

from retroact.reports import plots
from retroact.reports.html import render
from retroact.reports.tables import markdown_table, plain, without_html

Answer = Literal[
    "holds",
    "holds under the paper's protocol only",
    "does not hold",
    "differs by network",
    "cannot be told",
]
TONES: dict[Answer, str] = {
    "holds": "good",
    "holds under the paper's protocol only": "warn",
    "does not hold": "bad",
    "differs by network": "warn",
    "cannot be told": "plain",
}
_TOLD_FIRST: tuple[Answer, ...] = (
    "does not hold",
    "holds under the paper's protocol only",
    "differs by network",
    "holds",
    "cannot be told",
)
UNMEASURED = "nothing that is measured here answers it"
MOST = 10
"""Lines that a page may begin with."""

TERMS = (
    *("clean accuracy", "verified accuracy", "worst case", "threat model", "retrofit", "PGD"),
    *("adaptive attack", "white box", "gray box", "black box", "margin", "saturation", "jump"),
)
"""Of the glossary, what the pages of both papers use."""

Value = str | float | None
"""What stands in a table: a text, a number, or nothing (None)."""


@dataclass(frozen=True)
class Text:
    """A paragraph; `code` between backticks, **strong** between pairs of stars."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows under a head; numbers are printed with `digits`. A `folded` one opens when it is
    clicked."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    digits: int = 1
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(
                    f"{self.title}: expected {len(self.head)} values in each row, got {row}"
                )

    def texts(self) -> list[list[str]]:
        """The rows as they are printed."""
        return [
            [self._text(name, v) for name, v in zip(self.head, row, strict=True)]
            for row in self.rows
        ]

    @property
    def words(self) -> set[int]:
        """The columns that hold words: they stand left and wrap, so that a verdict or a recipe is
        not out of sight."""
        return {0} | {
            i
            for row in self.texts()
            for i, text in enumerate(row)
            if len(text) > 20 and text[0].isalpha()
        }

    def _text(self, name: str, value: Value) -> str:
        if value is None or value != value:
            return "–"
        if isinstance(value, str):
            return value
        if isinstance(value, int):
            return str(value)
        rounded = round(value, self.digits) + 0.0  # no difference of -0.0
        return f"{rounded:{'+' if name.startswith('difference') else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Figure:
    """A figure of `plots` and what it shows."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Weighed:
    """The numbers that a verdict rests on, in their unit, and what is `asked` for of them: to lie
    between two ends, either of which may be infinite."""

    marks: tuple[plots.Mark, ...]
    unit: str
    asked: tuple[float, float] | None = None

    def __bool__(self) -> bool:
        return bool(self.marks)

    @property
    def said(self) -> str:
        """In a line how many of each kind are as asked for; where nothing is asked for, from where
        to where they lie."""
        kinds: dict[str, list[float]] = {}
        for mark in self.marks:
            kinds.setdefault(mark.what, []).append(mark.value)
        if self.asked is None:
            spans = (f"{what} {min(v):.3g} to {max(v):.3g}" for what, v in kinds.items())
            return f"{self.unit}: {', '.join(spans)}"
        low, high = self.asked
        met = {what: sum(low < v < high for v in values) for what, values in kinds.items()}
        counts = (f"{met[what]} of {len(values)} {what}" for what, values in kinds.items())
        return f"{self.unit}, asked for {_say_between(low, high)}: {', '.join(counts)}"


def _say_between(low: float, high: float) -> str:
    if math.isinf(low):
        return f"less than {high:g}"
    return f"more than {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


@dataclass(frozen=True)
class Claim:
    """What a measurement says of the claim filed under `about` in published.json; where that is
    many numbers, they are `weighed` in a figure too."""

    about: str
    answer: Answer
    because: str
    weighed: Weighed | None = None


@dataclass(frozen=True)
class Takeaway:
    """A line that the page begins with, for who reads no further; `place` orders it among the
    others. The first is the page's own count of verdicts, so places are from 2 on."""

    place: int
    text: str


Part = Text | Table | Figure | Claim | Takeaway


@dataclass(frozen=True)
class Item:
    """One table or figure of the paper, made anew: its parts, and what they were made from."""

    name: str
    title: str
    parts: tuple[Part, ...]
    command: str
    used: tuple[str, ...] = ()
    seconds: float = 0.0
    keys: frozenset[str] = frozenset()
    """Under which keys all this stands in the store."""

    @property
    def short(self) -> str:
        """What a link to it says: "Table 1", or the whole title where that has no number."""
        head = self.title.partition(":")[0]
        return head if any(sign.isdigit() for sign in head) else self.title

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What it says of the paper's claims."""
        return tuple(p for p in self.parts if isinstance(p, Claim))

    @property
    def shown(self) -> tuple[Part, ...]:
        """Everything but claims and takeaways, which stand at the top of the page."""
        return tuple(p for p in self.parts if not isinstance(p, Claim | Takeaway))

    @property
    def footnote(self) -> str:
        """The command, data, seeds and minutes of computing behind the numbers."""
        parts = [*self.used, f"{self.seconds / 60:.1f} minutes"]
        return f"`{self.command}` · {' · '.join(parts)}"


@dataclass(frozen=True)
class Study:
    """A paper: its items in order, all or (`whole` is False) some of them, and what it claims, by
    the name of the claim."""

    name: str
    title: str
    source: str
    items: tuple[Item, ...]
    said: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    whole: bool = True

    @property
    def claims(self) -> list[tuple[str, Claim, Item]]:
        """What was said, the answer, and the item that gives it."""
        given = [(c, item) for item in self.items for c in item.claims]
        unknown = [c.about for c, _ in given if c.about not in self.said]
        if unknown:
            raise ValueError(
                f"no claim in published.json is called {unknown}; it has {sorted(self.said)}"
            )
        return [(self.said[c.about], c, item) for c, item in given]

    @property
    def lines(self) -> list[str]:
        """What the page begins with: how many claims have which verdict, then the items' own lines;
        where they have none, the claims that do not simply hold, and those that do.

        Raises ValueError for more than MOST.
        """
        own = [p for item in self.items for p in item.parts if isinstance(p, Takeaway)]
        lines = [t.text for t in sorted(own, key=lambda t: t.place)] or _say_answers(self)
        lines = [_count_verdicts(self), *lines] if self.said else lines
        if len(lines) > MOST:
            raise ValueError(f"expected at most {MOST} lines to begin with, got {len(lines)}")
        return lines

    @property
    def unanswered(self) -> list[str]:
        """Claims that no item of these answers; of some of the items alone that says nothing."""
        given = {c.about for _, c, _ in self.claims}
        return [name for name in self.said if self.whole and name not in given]

    @property
    def elsewhere(self) -> str:
        """Where the claims are answered that these items say nothing of; empty where all were
        made."""
        left = set(self.said) - {claim.about for _, claim, _ in self.claims}
        if self.whole or not left:
            return ""
        return (
            f"The paper's {len(left)} other claims are answered by items that were not made here:"
            f" `retroact study {self.name}`."
        )


def markdown(study: Study, folder: str) -> tuple[str, dict[str, str]]:
    """The study as Markdown, and its figures by file name; the text links them under `folder`."""
    figures: dict[str, str] = {}
    parts = [f"# {study.title}", study.source, *study.notes]
    parts += ["## In short", _number(study.lines)] if study.lines else []
    parts += ["## Claims", _claims_table(study)] if study.claims or study.unanswered else []
    parts += [study.elsewhere] if study.elsewhere else []
    for item in study.items:
        parts += [
            f"## {item.title}",
            *_markdown_parts(item, folder, figures),
            f"<sub>{without_html(item.footnote)}</sub>",
        ]
    return "\n\n".join(parts) + "\n", figures


def page(study: Study) -> str:
    """The study as one self-contained page."""
    return render(
        "study.html",
        terms=TERMS,
        title=study.title,
        study=study,
        tones=TONES,
        unmeasured=UNMEASURED,
        kind=lambda part: type(part).__name__,
        rich=_rich,
        tally=_tally(study),
        draw=lambda figure: Markup(plots.told(figure.svg, plain(figure.caption))),
        weigh=_weigh,
    )


def _weigh(told: Weighed, says: str) -> Markup:
    return Markup(plots.told(plots.weighed(told.marks, told.unit, told.asked), plain(says)))


def _number(lines: Iterable[str]) -> str:
    return "\n".join(f"{i}. {without_html(line)}" for i, line in enumerate(lines, start=1))


def _count_verdicts(study: Study) -> str:
    """How many of the paper's claims have which verdict."""
    given = _tally(study)
    counts = ", ".join(f"{n} “{answer}”" for answer, n in given.items())
    if not given:
        return f"Made anew here: {', '.join(item.short for item in study.items)}."
    made = "" if study.whole else " that these items answer"
    return f"Of {sum(given.values())} claims of the paper{made}: {counts}."


def _tally(study: Study) -> dict[Answer, int]:
    """How many claims have which verdict, in the order of TONES; none that nobody has."""
    given = Counter(claim.answer for _, claim, _ in study.claims)
    given["cannot be told"] += len(study.unanswered)
    return {answer: given[answer] for answer in TONES if given[answer]}


def _say_answers(study: Study) -> list[str]:
    """The claims with their verdicts, first those that do not hold, as many as a page may begin
    with."""
    order = list(_TOLD_FIRST)
    told = sorted(study.claims, key=lambda told: order.index(told[1].answer))
    return [f"**{c.answer}**: {said} ({item.short})" for said, c, item in told][: MOST - 1]


def _claims_table(study: Study) -> str:
    rows = [(said, f"**{c.answer}**", c.because, item.short) for said, c, item in study.claims]
    rows += [(study.said[name], "**cannot be told**", UNMEASURED, "") for name in study.unanswered]
    return markdown_table(("the paper says", "verdict", "because", "see"), rows)


def _markdown_parts(item: Item, folder: str, figures: dict[str, str]) -> Iterable[str]:
    for part in item.shown:
        if isinstance(part, Text):
            yield without_html(part.text)
        elif isinstance(part, Figure):
            name = f"{item.name}-{1 + sum(n.startswith(f'{item.name}-') for n in figures)}.svg"
            figures[name] = plots.standalone(part.svg)
            yield f"![{plain(part.caption)}]({folder}/{name})\n\n{without_html(part.caption)}"
        elif isinstance(part, Table):
            printed = markdown_table(part.head, part.texts())
            title = plain(part.title)
            heading = f"**{title}**"
            yield (
                f"<details><summary>{title}</summary>\n\n{printed}\n\n</details>"
                if part.folded
                else heading
            )
            if not part.folded:
                yield printed


def _rich(text: str) -> Markup:
    """The few signs of Markdown that a `Text` knows, as HTML; everything else escaped."""
    safe = str(Markup.escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", safe))
