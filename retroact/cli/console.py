"""What a person sees: results on stdout, everything else on stderr; tables, JSON and progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from retroact.reports.tables import Line

Row = Mapping[str, object]
Progress = Callable[[float, int], None]

out = Console(emoji=False)  # mynets:x:y is a name, not a cross
err = Console(stderr=True, emoji=False)

PATIENCE = 2.0  # seconds before a progress bar shows itself


def say(text: str, *, style: str | None = None, wrap: bool = False) -> None:
    """A line of a result; `wrap` breaks prose at words where the terminal ends."""
    out.print(text, style=style, highlight=False, markup=False, soft_wrap=not wrap)


def say_indented(text: str) -> None:
    """A line that belongs to the one above it, broken at words where the terminal ends."""
    for line in Text(text).wrap(out, out.width - _INDENT):
        say(" " * _INDENT + line.plain.rstrip())


def note(text: str, *, style: str | None = None) -> None:
    """A line about the work: what was done, what was left alone, what went wrong."""
    err.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A progress bar with an ETA on stderr, which shows itself once the work takes long."""
    bar = _bar()
    task = bar.add_task(what, total=None)
    began = time.monotonic()

    def progress(done: float, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - began > PATIENCE:
            bar.start()

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


class Story:
    """Lines of a result, each above a bar that goes on; no bar where nobody sees it move."""

    def __init__(self, bar: Any, task: Any, quiet: bool) -> None:
        self._bar, self._task, self._quiet = bar, task, quiet
        self._begun, self._written, self._doing = "", "", bar.tasks[task].description
        self.go_on()

    def say(self, line: str) -> None:
        """A line of the result, or the end of the one that was begun."""
        if not self._quiet:
            self.pause()
            if self._written and line.startswith(self._written):
                say(line.removeprefix(self._written))
            else:
                self.break_off()
                say(line, wrap=True)
            self._begun = self._written = ""
            self._bar.update(self._task, description=self.described)
            self.go_on()

    def begin(self, line: str) -> None:
        """How the next line begins: beside the bar until the rest is there, and where there is
        none, at once."""
        if self._quiet or line == self._begun:
            return
        self._begun = line
        if err.is_terminal:
            self._bar.update(self._task, description=self.described)
        else:
            self.break_off()
            print(line, end="", flush=True)
            self._written = line

    def break_off(self) -> None:
        """Ends a line of which no more is known."""
        if self._written:
            print(flush=True)
        self._written = ""

    @property
    def described(self) -> str:
        """What stands beside the bar."""
        return f"{self._begun} …" if self._begun else self._doing

    def watch(self, doing: str, done: float) -> None:
        """What is being done, and the share of everything that is done, in [0, 1]."""
        self._doing = doing
        self._bar.update(self._task, description=self.described, completed=done)

    def go_on(self) -> None:
        """Shows the bar."""
        if err.is_terminal:
            self._bar.start()

    def pause(self) -> None:
        """Takes the bar off the terminal."""
        if err.is_terminal:
            self._bar.stop()


@contextmanager
def story(what: str, *, quiet: bool = False) -> Iterator[Story]:
    """A progress bar on stderr from the first moment on, with lines of a result above it on stdout,
    each as soon as it is there; no lines where it is `quiet`."""
    bar = _bar(fills=True)
    told = Story(bar, bar.add_task(what, total=1.0), quiet)
    try:
        yield told
    finally:
        told.break_off()
        told.pause()


def _bar(*, fills: bool = False) -> Any:
    """A bar of rich; one that `fills` takes what words leave of the terminal."""
    from rich import progress  # by those that work, so that help comes at once

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(None if fills else 40),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=err, transient=True, expand=fills)


def tell_json(value: object, as_json: bool, file: Path | None = None) -> bool:
    """The result as JSON: printed where that is asked for, and written into the file where there is
    one. Whether it was printed, so that nothing else is."""
    text = json.dumps(value, indent=2, default=str)
    if file is not None:
        from retroact.files import write

        note(f"wrote {write(text + chr(10), file)}")
    if as_json:
        print(text)
    return as_json


def about_seconds(seconds: float) -> str:
    """A time that is forecast, in words, rounded: "about 3 min"."""
    size, unit = next(((s, u) for s, u in _UNITS if seconds >= 2 * s), _UNITS[-1])
    return f"about {max(1, round(seconds / size))} {unit}" if seconds >= 1 else "about a second"


_UNITS = ((86400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def about_bytes(count: float) -> str:
    """Memory that is forecast, in words: "1.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(1, round(count / 1e6))} MB"


def print_json_lines(rows: Iterable[Row]) -> None:
    """A JSON list with one row a line, printed as they come: for more than fit into memory."""
    mark = "["
    for row in rows:
        sys.stdout.write(f"{mark}\n{json.dumps(row, default=str)}")
        mark = ","
    sys.stdout.write("[]\n" if mark == "[" else "\n]\n")


def print_plain(rows: Iterable[Row]) -> None:
    """Rows with tabs between their entries, printed as they come; the first line has the names."""
    for i, row in enumerate(rows):
        if i == 0:
            sys.stdout.write("\t".join(row) + "\n")
        sys.stdout.write("\t".join(["" if v is None else str(v) for v in row.values()]) + "\n")


def print_result(result: Row, as_json: bool, file: Path | None = None) -> None:
    """One line for each entry: `name: value`; or as JSON, see `tell_json`."""
    if tell_json(result, as_json, file):
        return
    for name, value in result.items():
        if isinstance(value, dict):
            value = [f"{n} {kind}" for kind, n in value.items()] or ["nothing"]
        say(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def print_rows(rows: Sequence[Row], *, empty: str = "") -> None:
    """A table with a column for each entry; a block for each row where that would
    not fit, so that no word is broken and a name can be copied."""
    if not rows:
        return out.print(empty)
    if _width_of(rows) > out.width:
        return _print_blocks(rows)
    names = _names_of(rows)
    table = _table(*names)
    for row in rows:
        # Text: brackets are no markup
        table.add_row(*(Text(_said(row.get(name))) for name in names))
    out.print(table)


def _width_of(rows: Sequence[Row]) -> int:
    """Of the table, with two spaces between columns."""
    columns = ((name, *(_said(row.get(name)) for row in rows)) for name in _names_of(rows))
    return sum(max(map(len, column)) + 2 for column in columns) - 2


def _names_of(rows: Sequence[Row]) -> list[str]:
    """Of all entries, as older rows may lack some."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _said(value: object) -> str:
    return "" if value is None else str(value)


_INDENT = 4


def _print_blocks(rows: Sequence[Row]) -> None:
    """The first entry of each row on a line of its own, and under it one line for each other; no
    blanks end a line, so that none are copied."""
    for row in rows:
        first, *others = row.items()
        say(str(first[1]), style="bold")
        for name, value in others:
            if value not in (None, ""):
                say_indented(f"{name}: {value}")


CUT = "… stands where a name is cut; a wider terminal or --json has the whole of it"
_LEAST = 12  # columns of a terminal that a name gets, however narrow it is


class _Cells(NamedTuple):
    """A row of a table: the texts of its cells, and how they look."""

    texts: Sequence[str]
    style: str | None = None


def print_lines(lines: Sequence[Line]) -> None:
    """A table for each data, threat and goal, no wider than the terminal, and the alarms of its
    lines; says where a name is cut."""
    from retroact.reports.tables import group_lines

    for (data, threat, goal), members in group_lines(lines):
        say(f"\n{threat} on {data}, {goal}, n = {len(members[0].record)}", style="bold", wrap=True)
        _print_narrow(_COLUMNS, list(_rows_of(members)))
        for line in members:
            for alarm in line.alarms():
                text = f"! {line.network}, {line.attack}: {alarm}, so this number is too good"
                say(text, style="yellow", wrap=True)


def _print_narrow(head: Sequence[str], rows: Sequence[_Cells]) -> None:
    """A table whose first column is cut to what the others leave of the terminal."""
    widths = (max(map(len, column)) for column in zip(head, *(r.texts for r in rows), strict=True))
    room = max(_LEAST, out.width - sum(w + 2 for w in list(widths)[1:]))
    table = _table(*head[:2])
    for name in head[2:]:
        table.add_column(name, justify="right", no_wrap=True)
    for (first, *others), style in rows:
        name = first if len(first) <= room else f"{first[: room - 1]}…"
        table.add_row(*map(Text, (name, *others)), style=style)
    out.print(table)
    if any(len(row.texts[0]) > room for row in rows):
        say(CUT, style="dim", wrap=True)


_COLUMNS = ("network and attack", "box", "clean %", "under attack %", "95 %", "ρ₂ %")


def _rows_of(members: Sequence[Line]) -> Iterator[_Cells]:
    from retroact.reports.tables import worst_cases

    worst = {w.network: w for w in worst_cases(members)}
    for network in dict.fromkeys(line.network for line in members):
        yield _Cells((network, "", "", "", "", ""), "bold cyan")
        yield from (_Cells(_cells_of(line)) for line in members if line.network == network)
        if network in worst:
            w = worst[network]
            label = f"  worst case of these {w.attacks}"
            known = (f"{100 * w.accuracy:.1f}", _bounds(w.interval))
            yield _Cells((label, "", "", *(("not known", "") if w.blind else known), ""), "bold")


def _cells_of(line: Line) -> tuple[str, ...]:
    from retroact.evaluation.metrics import clean_accuracy, rho, robust_accuracy

    values = clean_accuracy(line.record), robust_accuracy(line.record), rho(line.record)
    clean, robust, noise = (f"{100 * v:.1f}" for v in values)
    box = line.fields.knowledge
    return f"  {line.attack}", box, clean, robust, _bounds(line.interval), noise


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _bounds(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"
