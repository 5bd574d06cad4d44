"""A store's measurements as JSON, for another machine or a repository: a study goes on from there.

One line for each: facts as they are, a record as base64 of its compressed bytes, without the images
that were kept (the cells that show them are run again).
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retroact.evaluation.record import from_bytes, to_bytes
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store
from retroact.experiments.stored_parts import BEGINS


def as_json(store: Store) -> str:
    """All facts and records of the store as a JSON list, in the order of their prints."""
    return "[\n" + ",\n".join(map(json.dumps, _lines(store))) + "\n]\n"


def write_json(store: Store, path: Path) -> int:
    """The same, line by line into a file, for more than fits into memory; returns how many cells
    that were."""
    cells = 0
    with open(path, "w", encoding="utf-8") as file:
        for i, line in enumerate(_lines(store)):
            cells += "record" in line
            file.write(f"{',' if i else '['}\n{json.dumps(line)}")
        file.write("\n]\n" if file.tell() else "[\n\n]\n")
    return cells


def _lines(store: Store) -> Iterator[dict[str, Any]]:
    yield from _facts(store)
    yield from _records(store)


def read_json(path: str | Path, store: Store) -> int:
    """Puts what a file of `as_json` holds into the store where it lacks it; returns how much that
    was.

    A key names weights and pixels, so measurements of other ones stay unused. Raises ValueError for
    any other file.
    """
    try:
        new = [line for line in json.loads(Path(path).read_text("utf-8")) if _lacks(store, line)]
        rows = [_row(line) for line in new]
    except (ValueError, KeyError, TypeError, zlib.error) as e:
        raise ValueError(
            f"expected a JSON list of facts in {path}, as `--facts` writes it, got something else:"
            f" {e!r}"
        ) from e
    for line, row in zip(new, rows, strict=True):
        (store.put_facts if "facts" in line else store.put)(*row)
    return len(new)


def _facts(store: Store) -> Iterator[dict[str, Any]]:
    for name, what, seconds, facts in store.facts():
        if what.startswith(BEGINS):
            continue  # of a run, not of a study
        yield {"key": name, "what": what, "seconds": seconds, "facts": facts}


def _records(store: Store) -> Iterator[dict[str, Any]]:
    for row in sorted(store.rows(), key=lambda row: (row.cell, row.key)):
        record = base64.b64encode(zlib.compress(to_bytes(store.read(row.key)), 9)).decode()
        yield {"key": row.key, "cell": row.cell, "fields": row.fields.to_json(), "record": record}


def _lacks(store: Store, line: dict[str, Any]) -> bool:
    return store.read_facts(line["key"]) is None if "facts" in line else not store.has(line["key"])


def _row(line: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of `put_facts`, or of `put`."""
    if "facts" in line:
        return line["key"], line["what"], line["facts"], float(line["seconds"])
    record = from_bytes(zlib.decompress(base64.b64decode(line["record"], validate=True)))
    return line["key"], line["cell"], CellFields.from_json(line["fields"]), record
