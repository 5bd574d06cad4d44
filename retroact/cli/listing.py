"""`list`: what there is."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroact.cli import options
from retroact.cli.completing import LISTED, words
from retroact.cli.console import (
    Row,
    note,
    print_json_lines,
    print_plain,
    print_rows,
    say,
    tell_json,
)
from retroact.spec import CallError, homes, known

if TYPE_CHECKING:
    from retroact.experiments.store import Row as Cell
    from retroact.nets.pages import Entry

MANY = 500  # cells: a table of more takes longer to lay out than anybody looks at it

WhatArgument = Annotated[
    str,
    typer.Argument(
        help="nets, attacks, activations, threats, goals, data, or store",
        autocompletion=words("nets", "attacks", "activations", "threats", "goals", "data", "store"),
    ),
]
DetailOption = Annotated[bool, typer.Option(help="nets: layers and sites; store: every field")]
RemoveOption = Annotated[
    str | None, typer.Option(help="store: remove what matches this glob by key or print")
]


def list_(
    what: WhatArgument = "nets",
    detail: DetailOption = False,
    store: options.Store = options.STORE,
    remove: RemoveOption = None,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """What there is: networks, attacks, activations, data, finished cells.

    \b
    Example:
      retroact list attacks
    """
    lists: dict[str, Callable[[], list[Row]]] = {
        "nets": lambda: _nets(detail),
        **{kind: partial(_specs, kind) for kind in KINDS},
        "data": list_data,
    }
    if what == "store":
        return _list_store(store, remove, detail, as_json, json_out)
    if what not in lists:
        raise CallError(f"cannot list {what!r}; expected one of: {', '.join([*lists, 'store'])}")
    rows = lists[what]()
    if tell_json(rows, as_json, json_out):
        return
    if what == "nets" and detail:
        return _print_nets(rows)
    print_rows(rows, empty=f"no {what} here")


def _nets(detail: bool) -> list[Row]:
    from retroact.nets import pages

    for name in pages.names():
        for text in pages.describe_shadow(name):
            note(text)
    every = ((name, pages.find(name)) for name in pages.names())
    return [_net(name, pages.read(at, name), detail) for name, at in every if at is not None]


def _net(name: str, page: Entry, detail: bool) -> Row:
    row = {
        "name": name,
        "network": page.network.removeprefix("Network(architecture=").split(", data")[0],
        "test accuracy": f"{page.accuracy:.2%} of {page.test_n}",
    }
    if not detail:
        return row
    from retroact.checkpoint import load
    from retroact.retrofitting.sites import sites

    net = load(name)
    return row | {
        "recipe": page.recipe,
        "command": page.command,
        "parameters": sum(p.numel() for p in net.parameters()),
        "sites": ", ".join(site.name for site in sites(net)),
        "layers": str(net.module),
    }


def _print_nets(rows: Sequence[Row]) -> None:
    """A block for each network: its name, what is known of it, its layers. A table would squeeze
    them all."""
    for row in rows:
        say(f"\n{row['name']}", style="bold", wrap=True)
        for name in ("network", "test accuracy", "parameters", "sites", "recipe", "command"):
            say(f"{name}: {row[name]}", wrap=True)
        for line in str(row["layers"]).splitlines():
            say(f"  {line}")


KINDS = {
    "attacks": ("retroact.crafting.attack", "Attack", ("needs", "kind", "norms", "paper")),
    "activations": ("retroact.activations.activation", "Activation", ()),
    "threats": ("retroact.crafting.threat", "ThreatModel", ("norm",)),
    "goals": ("retroact.crafting.goals", "Goal", ()),
}
"""What kinds of specs are listed: where the kind is, and what of its classes is shown."""


def _specs(what: str) -> list[Row]:
    """The specs of a kind, those of a module that `--import` names among them."""
    if homes():
        return list_specs(what)
    listed: dict[str, list[Row]] = json.loads(LISTED.read_text(encoding="utf-8"))
    return listed[what]


def list_specs(what: str) -> list[Row]:
    """All specs of a kind, with what their classes say."""
    home, kind, attributes = KINDS[what]
    rows: list[Row] = []
    for cls in known(getattr(importlib.import_module(home), kind)):
        names = ", ".join(f.name for f in fields(cls))
        values = {name: getattr(cls, name) for name in attributes}
        texts = {k: ", ".join(v) if isinstance(v, tuple) else v for k, v in values.items()}
        rows.append({"name": f"{cls.__name__}({names})", **texts, "what": _sentence_of(cls)})
    return rows


def _sentence_of(cls: type) -> str:
    """The first sentence of what its docstring says."""
    paragraph = " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
    ends = re.finditer(r"(?<=[.)])(?<!et al\.)\s+(?=[A-Z`])|;\s", paragraph)
    parts = (paragraph[: end.start()] for end in ends)
    return next((part for part in parts if part.count("(") <= part.count(")")), paragraph).rstrip(
        "."
    )


def list_data() -> list[Row]:
    """The named data sets, split by split, and where they come from here."""
    from retroact.nets.data import DataError, data

    rows: list[Row] = []
    for name in ("digits", "mnist", "cifar10"):
        for split in ("train", "validation", "test"):
            try:
                where = data(f"{name}/{split}[:1]").origin
            except DataError as e:
                where = f"not here: {str(e).partition(';')[0]}"
            rows.append({"name": f"{name}/{split}" if split != "test" else name, "from": where})
    return rows


def _list_store(
    path: Path, remove: str | None, detail: bool, as_json: bool, json_out: Path | None
) -> None:
    """A table; lines as they are read where there are more than anybody would look at."""
    from retroact.experiments.store import Store

    with Store(path, create=False, tell=note) as store:
        if remove is not None:
            note(f"removed {store.remove(remove)} results from {path}")
        many = len(store) > MANY
        rows = store.each() if many else store.rows()
        found: Iterable[Row] = (_cell(row, detail) for row in rows)
        if json_out is not None:
            found = list(found)
            tell_json(found, as_json=False, file=json_out)
        if as_json:
            return print_json_lines(found)
        if many:
            return print_plain(found)
        print_rows(list(found), empty="no store here")


def _cell(row: Cell, detail: bool) -> Row:
    if detail:
        return {"key": row.key, "written": row.written, "n": row.n, **row.fields.to_json()}
    said, _ = _DECODER.raw_decode(row.said)
    return {
        "key": row.key,
        "written": row.written,
        "n": row.n,
        "net": said.get("net"),
        "activation": said.get("activation"),
        "attack": said.get("attack"),
        "threat": said.get("threat"),
        "data": said.get("data"),
    }


_DECODER = json.JSONDecoder()  # json.loads asks more of each of 100,000 rows
