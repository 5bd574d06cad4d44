"""`store`: care of the file that holds finished cells."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from retroact.cli import options
from retroact.cli.codes import CODES, EPILOG, FOUND
from retroact.cli.console import note, say, tell_json
from retroact.cli.stopping import if_stopped
from retroact.spec import CallError

PathArgument = Annotated[
    Path | None, typer.Argument(help="the store; without it, --store", show_default=False)
]
OutOption = Annotated[
    Path, typer.Option("--out", help="the file to write: NAME.parquet or NAME.json")
]
IntoArgument = Annotated[Path, typer.Argument(help="the store that takes; made if it is not there")]
FromArgument = Annotated[Path, typer.Argument(help="the store that gives, and stays as it is")]
CellsOption = Annotated[str | None, typer.Option(help="what matches this glob by key or print")]
BeforeOption = Annotated[
    str | None, typer.Option(help="what was written before this date, such as 2026-01-31")
]
ImagesOption = Annotated[bool, typer.Option("--images", help="kept images alone; records stay")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="say what would go, and stop")]

ALL_OR_NOTHING = "it was done wholly or not at all; the same command finishes it"
MOST = 20  # lines of one kind on a screen

app = typer.Typer(
    help="Care of a store: check, repair, export, merge, prune.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    epilog=CODES,
)


@app.command(epilog=EPILOG)
def check(
    path: PathArgument = None,
    store: options.Store = options.STORE,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Whether every row and every byte of a store is as it was written; reads all of it.

    \b
    Example:
      retroact store check retroact.sqlite
    """
    from retroact.experiments.care import check

    found = check(path or store)
    said = {
        "path": str(found.path),
        "format": found.format,
        "cells": found.cells,
        "facts": found.facts,
        "damaged": found.damaged,
    }
    if not tell_json(said, as_json, json_out):
        _say_some(found.damaged)
        say(
            f"{found.path}: {found.cells} cells and {found.facts} facts hold" + _doubt(found.format)
        )
    if found.damaged:
        note(
            f"{len(found.damaged)} damaged: `retroact store repair {found.path}` keeps the rest,"
            " then the commands that made them run them again"
        )
        raise typer.Exit(FOUND)


@app.command(epilog=EPILOG)
def repair(
    path: PathArgument = None,
    store: options.Store = options.STORE,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Drop what is damaged and keep the rest; the file as it was stays beside it.

    \b
    Example:
      retroact store repair retroact.sqlite
    """
    from retroact.experiments.care import repair

    with if_stopped(ALL_OR_NOTHING):
        found = repair(path or store)
    kept = {"path": str(found.path), "cells": found.cells, "facts": found.facts}
    dropped = {"damaged": found.damaged, "aside": None if found.aside is None else str(found.aside)}
    if tell_json(kept | dropped, as_json, json_out):
        return
    _say_some(found.damaged)
    held = f"{found.cells} cells and {found.facts} facts hold"
    if found.aside is None:
        return say(f"{found.path}: nothing is damaged, {held}")
    say(f"{found.path}: dropped what is named above, {held}; as it was: {found.aside}")
    note("run the commands that made what was dropped again; remove the old file when you are done")


@app.command(epilog=EPILOG)
def export(
    out: OutOption,
    path: PathArgument = None,
    store: options.Store = options.STORE,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Write a store as Parquet (a row for each example) or JSON (as `study --facts` reads it).

    \b
    Example:
      retroact store export retroact.sqlite --out examples.parquet
    """
    from retroact.experiments.exported import export
    from retroact.experiments.store import Store

    options.check_folder(out)
    with Store(path or store, create=False, readonly=True, tell=note) as opened:
        count = export(opened, out)
    if not tell_json({"cells": count, "file": str(out)}, as_json, json_out):
        note(f"wrote {count} cells to {out}")


@app.command(epilog=EPILOG)
def merge(
    into: IntoArgument,
    source: FromArgument,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Put into a store what another has and it lacks; what both have stays as it is.

    \b
    Example:
      retroact store merge retroact.sqlite other.sqlite
    """
    from retroact.experiments.merging import merge

    with if_stopped(ALL_OR_NOTHING):
        merged = merge(into, source)
    said = {"added": merged.added, "there already": merged.there, "differ": merged.differ}
    if not tell_json(said, as_json, json_out):
        _say_some(merged.differ)
        say(f"{into}: {merged.added} added from {source}, {merged.there} were there already")
    if merged.differ:
        note(f"{len(merged.differ)} have other results in {source}, and stay as they are in {into}")
        raise typer.Exit(FOUND)


@app.command(epilog=EPILOG)
def prune(
    path: PathArgument = None,
    store: options.Store = options.STORE,
    cells: CellsOption = None,
    before: BeforeOption = None,
    images: ImagesOption = False,
    dry_run: DryOption = False,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Remove old cells and facts, or the images that they keep, and give the space back.

    \b
    Example:
      retroact store prune retroact.sqlite --images --dry-run
    """
    from retroact.experiments.merging import prune

    if cells is None and before is None and not images:
        raise CallError("expected what to remove: --cells GLOB, --before DATE, or --images")
    how: dict[str, Any] = {"before": _date(before), "images": images, "dry": dry_run}
    with if_stopped(ALL_OR_NOTHING):
        gone = prune(path or store, glob=cells or "*", **how)
    if tell_json({"removed": [] if dry_run else gone, "would go": gone}, as_json, json_out):
        return
    if dry_run:
        _say_some(gone)
    what = "images of cells" if images else "cells and facts"
    say(f"{path or store}: {'would remove' if dry_run else 'removed'} {len(gone)} {what}")


def _say_some(lines: list[str]) -> None:
    for line in lines[:MOST]:
        say(line)
    if len(lines) > MOST:
        say(f"and {len(lines) - MOST} more")


def _doubt(found: int) -> str:
    return "" if found > 1 else "; format 1 has no checksums, so a changed number is not seen"


def _date(text: str | None) -> str:
    try:
        return "" if text is None else datetime.fromisoformat(text).isoformat()
    except ValueError:
        raise CallError(f"expected a date such as 2026-01-31, got {text!r}") from None
