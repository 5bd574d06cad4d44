"""`study --dry-run`: what a study would measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from retroact.cli.console import about_seconds, say, tell_json

if TYPE_CHECKING:
    from retroact.experiments.store import Store


def print_plan(
    paper: str,
    path: Path | None,
    facts: Path | None,
    workers: int,
    as_json: bool,
    json_out: Path | None,
    how: dict[str, Any],
) -> None:
    """What each item would measure first, and about how long that takes."""
    from retroact.experiments.cell import Cell
    from retroact.experiments.costs import passes_of, seconds_of
    from retroact.studies.study import chunk_of, plan

    with _opened_to_read(path, facts) as opened:
        planned = plan(paper, opened, **how)
    items = []
    for one in planned:
        cells = [what for what in one.lacks if isinstance(what, Cell)]
        seconds = seconds_of(passes_of(cells), chunk=chunk_of(paper)) / workers
        others = len(one.lacks) - len(cells)
        items.append(_Item(one.name, one.title, len(cells), others, round(seconds, 1)))
    if tell_json([item.said() for item in items], as_json, json_out):
        return
    for item in items:
        say(str(item))
    say(_sum_up(items), wrap=True)


def _sum_up(items: Sequence[_Item]) -> str:
    """What is forecast in all, and what is not."""
    cells, others = (sum(getattr(item, what) for item in items) for what in ("cells", "others"))
    said = []
    if cells:
        seconds = about_seconds(sum(item.seconds for item in items))
        said.append(f"these {cells} cells: {seconds} at most")
    if others:
        said.append(
            f"the {others} other measurements are not forecast: trainings, audits and what else an"
            " item measures, which may take hours"
        )
    said.append("what an item asks for after these is known when they are there")
    return "; ".join(said)


@contextmanager
def _opened_to_read(path: Path | None, facts: Path | None) -> Iterator[Store]:
    """A store from which is read alone, an empty one where there is none; with the measurements of
    the file `facts`, a copy that has them too."""
    from retroact.experiments.carried import read_json
    from retroact.experiments.merging import merge
    from retroact.experiments.store import Store

    there = path if path is not None and path.exists() else None
    if facts is None or not facts.exists():
        with Store(there, readonly=True) if there else Store(":memory:") as opened:
            yield opened
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        if there:
            merge(copy, there)
        with Store(copy) as opened:
            read_json(facts, opened)
            yield opened


@dataclass(frozen=True)
class _Item:
    """What an item of a study would measure first."""

    name: str
    title: str
    cells: int
    others: int
    seconds: float

    def said(self) -> dict[str, Any]:
        return {
            "item": self.name,
            "title": self.title,
            "cells to run first": self.cells,
            "other measurements first": self.others,
            "seconds of these cells at most, about": self.seconds,
        }

    def __str__(self) -> str:
        cells = [f"{self.cells} cells, {about_seconds(self.seconds)} at most"] if self.cells else []
        others = [f"{self.others} other measurements, not forecast"] if self.others else []
        return f"{self.name}: {' and '.join([*cells, *others]) or 'nothing is left to measure'}"
