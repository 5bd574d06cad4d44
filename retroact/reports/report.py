"""report: what was found, written to a file of the kind that its name ends in."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retroact.experiments.store import Store
from retroact.files import write
from retroact.reports.tables import Line, as_csv, lines, markdown

if TYPE_CHECKING:
    from retroact.reports.audited import Reported


def report(
    what: Store | Sequence[Line] | Reported, path: str | Path, *, title: str | None = None
) -> Path:
    """Writes an audit, or a store's cells (or lines taken from one), to `path`: .html, .md, .json,
    .csv; an audit also as .parquet. Of an audit both of these have a row for each example, its
    `frame()`.

    `title` heads the page. Returns the path. Raises ValueError for another suffix and for a store
    without cells.
    """
    from retroact.reports import audited, html  # which draw, and only here is anything drawn

    writers: dict[str, Callable[[], str | bytes]]
    if isinstance(what, Store | Sequence):
        cells = lines(what, images=True) if isinstance(what, Store) else what
        writers = {
            ".html": lambda: html.page(cells, title=title or "retroact report"),
            ".md": lambda: markdown(cells) + "\n",
            ".csv": lambda: as_csv(cells),
            ".json": lambda: (
                json.dumps([line.numbers() for line in cells], indent=2, default=str) + "\n"
            ),
        }
    else:
        writers = {
            ".html": lambda: audited.page(what, title=title or "retroact audit"),
            ".md": lambda: audited.markdown(what, title=title or "retroact audit"),
            ".json": lambda: audited.as_json(what),
            ".csv": lambda: str(what.frame().to_csv(index=False)),
            ".parquet": lambda: bytes(what.frame().to_parquet(index=False)),
        }
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        raise ValueError(
            f"cannot write {str(path)!r}; expected a name that ends in one of: {', '.join(writers)}"
        )
    return write(writers[suffix](), path)
