"""A store's measurements as JSON, for another machine or a repository: a study goes on from there.

One line for each: facts as they are, a record as base64 of its compressed bytes, without the images
that were kept (the cells that show them are run again). What others wrote is read within limits.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from retroact.evaluation.record import from_bytes, to_bytes
from retroact.experiments.fields import CellFields
from retroact.experiments.sealed import RECORD_LIMIT, unpack
from retroact.experiments.store import Store
from retroact.experiments.stored_parts import BEGINS
from retroact.files import LARGEST, parse_json, parse_object, read_limited
from retroact.spec import keys, parse, quote, shorten


def as_json(store: Store, keys: Container[str] | None = None) -> str:
    """All facts and records of the store as a JSON list, or those under `keys`, in the order of
    their prints."""
    return "[\n" + ",\n".join(map(json.dumps, _lines(store, keys))) + "\n]\n"


def carried_keys(path: str | Path) -> set[str]:
    """The keys of what a file of `as_json` holds. Raises ValueError for any other file."""
    return {str(line["key"]) for line in _entries(Path(path))}


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


def _lines(store: Store, keys: Container[str] | None = None) -> Iterator[dict[str, Any]]:
    yield from (line for line in _facts(store) if keys is None or line["key"] in keys)
    yield from _records(store, keys)


def read_json(path: str | Path, store: Store) -> int:
    """Puts what a file of `as_json` holds into the store where it lacks it; returns how much that
    was.

    A key names weights and pixels, so measurements of other ones stay unused. All of the file is
    looked at before any of it is put there. Raises ValueError for any other file, also where a
    record stands under another key than its cell's, or says other things of it.
    """
    path = Path(path)
    try:
        for line in _entries(path):
            if _lacks(store, line):
                _check(line)
                _row(line)
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as e:
        raise ValueError(
            f"expected a JSON list of facts in {path}, as `--facts` writes it, got something else:"
            f" {shorten(str(e)) if isinstance(e, ValueError) else shorten(repr(e))}"
        ) from e
    new = 0
    for line in _entries(path):
        if _lacks(store, line):
            (store.put_facts if "facts" in line else store.put)(*_row(line))
            new += 1
    return new


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file, one at a time where each has a line of its own; what is written
    otherwise is read whole, and must be small."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not _has_lines(path):
        found = parse_json(read_limited(path))
        if not isinstance(found, list) or not all(isinstance(line, dict) for line in found):
            raise ValueError("it is no list of objects")
        yield from found
        return
    ended = False
    with open(path, "rb") as file:
        file.readline(LARGEST)
        for raw in iter(lambda: file.readline(LARGEST), b""):
            if ended and raw.strip():
                raise ValueError("something stands behind its end")
            ended = ended or raw.strip() == b"]"
            if raw.strip() not in (b"", b"]"):
                yield parse_object(raw.strip().removesuffix(b","))
    if not ended:
        raise ValueError("it ends in the middle")


def _has_lines(path: Path) -> bool:
    with open(path, "rb") as file:
        first, second = file.readline(LARGEST), file.readline(LARGEST)
    return first.strip() == b"[" and second.lstrip().startswith(b"{") and b"}" in second[-3:]


def _facts(store: Store) -> Iterator[dict[str, Any]]:
    for name, what, seconds, facts in store.facts():
        if what.startswith(BEGINS):
            continue  # of a run, not of a study
        yield {"key": name, "what": what, "seconds": seconds, "facts": facts}


def _records(store: Store, keys: Container[str] | None) -> Iterator[dict[str, Any]]:
    rows = [row for row in store.rows() if keys is None or row.key in keys]
    for row in sorted(rows, key=lambda row: (row.cell, row.key)):
        record = base64.b64encode(zlib.compress(to_bytes(store.read(row.key)), 9)).decode()
        yield {"key": row.key, "cell": row.cell, "fields": row.fields.to_json(), "record": record}


def _lacks(store: Store, line: dict[str, Any]) -> bool:
    name = line["key"]
    if not isinstance(name, str):
        raise ValueError(f"expected keys of 16 hex digits, got {quote(name)}")
    return store.read_facts(name) is None if "facts" in line else not store.has(name)


def _check(line: dict[str, Any]) -> None:
    """Raises ValueError for an entry whose key is no key, or that of another cell, as far as the
    print can be read here; facts are held against the key when they are asked for."""
    from retroact.experiments.cell import Cell  # torch, which who writes a file can do without

    name, said = line["key"], line["what" if "facts" in line else "cell"]
    if not re.fullmatch("[0-9a-f]{16}", name):
        raise ValueError(f"expected keys of 16 hex digits, got {quote(name)}")
    if not isinstance(said, str) or not math.isfinite(float(line.get("seconds", 0.0))):
        raise ValueError(f"{name} has no print, or no seconds")
    if "facts" in line:
        if not isinstance(line["facts"], dict):
            raise ValueError(f"{name} has no facts by name")
        return
    try:
        cell = parse(said, Cell)
    except ValueError:  # of a module that is not imported here, or a file that is not there
        return
    if name not in keys(cell):
        raise ValueError(f"{name} is not the key of {shorten(said)}")
    stored = CellFields.from_json(line["fields"])
    told, own = vars(stored), vars(CellFields.from_json(vars(cell.fields())))
    # 0.1.0 called a dtype "float32" that is the network's "own"
    for field in told.keys() - _OF_THE_RUN - ({"dtype"} if stored.schema < 2 else set()):
        if told[field] != own[field]:
            raise ValueError(
                f"{name} calls its {field} {quote(told[field])}, and it is {quote(own[field])}"
            )


_OF_THE_RUN = {"schema", "retroact", "weights", "pixels"}


def _row(line: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of `put_facts`, or of `put`."""
    if "facts" in line:
        return line["key"], line["what"], line["facts"], float(line["seconds"])
    record = from_bytes(unpack(base64.b64decode(line["record"], validate=True), RECORD_LIMIT))
    return line["key"], line["cell"], CellFields.from_json(line["fields"]), record
