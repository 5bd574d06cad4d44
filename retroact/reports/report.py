"""report: what was found, written to a file of the kind that its name ends in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from retroact.auditing.numbers import Told
from retroact.evaluation.record import Record
from retroact.experiments.store import Store
from retroact.files import write
from retroact.reports.tables import Line, as_csv, line_of, lines, markdown

if TYPE_CHECKING:
    from retroact.reports.audited import Learning, Reported

Writers = Mapping[str, Callable[[], str | bytes]]
Several: TypeAlias = "Sequence[Line] | Sequence[Record] | Sequence[Told]"


def report(
    what: Store | Record | Several | Reported,
    path: str | Path,
    *,
    title: str | None = None,
    hardened: Learning | None = None,
) -> Path:
    """Writes what was found to `path`: .html, .md, .json, .csv or .parquet.

    A store, or lines taken from one: every cell. A record, or several: the same of it; .parquet has
    a row for each example of each. An audit: its page; .csv and .parquet have a row for each
    example, its `frame()`. Several audits, or the files that `audit --json` wrote: a row for each,
    side by side.
    `title` heads the page; that of an audit says what was learned of a `hardened` network, what
    `harden` gave. Returns the path. Raises ValueError for another suffix and for a store
    without cells.
    """
    writers = _writers(what, Path(path), title, hardened)
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise ValueError(
            f"cannot write {str(path)!r}; expected a name that ends in one of: {', '.join(writers)}"
        )
    return write(writers[suffix](), path)


def _writers(
    what: Store | Record | Several | Reported,
    path: Path,
    title: str | None,
    hardened: Learning | None,
) -> Writers:
    if isinstance(what, Store):
        return _of_cells(lines(what, images=True), title)
    if isinstance(what, Record):
        return _of_cells([line_of(what)], title)
    if not isinstance(what, Sequence):
        return _of_audit(what, title, hardened)
    cells = [line_of(w) if isinstance(w, Record) else w for w in what]
    found = [cell for cell in cells if isinstance(cell, Line)]
    if len(found) == len(cells):
        return _of_cells(found, title)
    return _of_audits([told for told in cells if not isinstance(told, Line)], path, title)


def _of_cells(cells: Sequence[Line], title: str | None) -> Writers:
    from retroact.reports import html  # which draws, and only here is anything drawn

    return {
        ".html": lambda: html.page(cells, title=title or "retroact report"),
        ".md": lambda: markdown(cells) + "\n",
        ".csv": lambda: as_csv(cells),
        ".json": lambda: (
            json.dumps([line.numbers() for line in cells], indent=2, default=str) + "\n"
        ),
        ".parquet": lambda: _as_parquet(cells),
    }


def _as_parquet(cells: Sequence[Line]) -> bytes:
    """A row for each example of each cell: the cell's fields, and the facts of its record."""
    from pandas import concat  # which `datasets` brings

    frames = [line.record.frame().assign(key=line.key, **vars(line.fields)) for line in cells]
    return bytes(concat(frames).to_parquet(index=False))


def _of_audit(audit: Reported, title: str | None, hardened: Learning | None) -> Writers:
    from retroact.reports import audited

    return {
        ".html": lambda: audited.page(audit, title=title or "retroact audit", hardened=hardened),
        ".md": lambda: audited.markdown(audit, title=title or "retroact audit"),
        ".json": lambda: audited.as_json(audit),
        ".csv": lambda: str(audit.frame().to_csv(index=False)),
        ".parquet": lambda: bytes(audit.frame().to_parquet(index=False)),
    }


def _of_audits(audits: Sequence[Told], path: Path, title: str | None) -> Writers:
    from retroact.reports import compared

    head = title or compared.TITLE
    rows = compared.rows_of(audits, path)
    return {
        ".html": lambda: compared.page(rows, title=head),
        ".md": lambda: compared.markdown(rows, title=head),
        ".csv": lambda: compared.as_csv(rows),
        ".json": lambda: compared.as_json(rows),
    }
