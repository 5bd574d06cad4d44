"""Files that are written whole or not at all, and what others wrote, JSON and packed files, read
within limits; everyone may use this, and it needs no torch.

with replacing("net.json") as draft:
    draft.write_text(page)
"""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGEST = 2**25
"""Bytes of a text that is read as JSON: what it becomes in memory may be thirty times as large."""

DEEPEST = 50
"""How many lists and objects may stand in one another there."""

ROOM, RATIO = 2**28, 20
"""Bytes that a packed file may always unpack to, and how many times its own size it may beyond
that: data do not shrink to a twentieth, and a megabyte of zeros that were packed is a gigabyte."""


class CheckpointError(ValueError):
    """A file that is no saved network and no checkpoint of training, or not the expected one."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to, with the same suffix; what lies there takes its place.

    It does so at once, when the block ends and the bytes are on the disk; where the block fails,
    `path` is as it was and nothing lies beside it. Raises OSError as the file system does.
    """
    path = Path(path)
    draft = path.with_name(f".{os.getpid()}-{threading.get_ident()}.{path.name}")
    try:
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def own_cache() -> Path:
    """The folder of this user for what can be made again: retroact under XDG_CACHE_HOME, or
    ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if named else Path.home() / ".cache") / "retroact"


def write(content: str | bytes, path: str | Path) -> Path:
    """Writes a text, or bytes, whole or not at all."""
    with replacing(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file of JSON holds. Raises ValueError, also for what is no file, for more
    than `LARGEST` bytes, and for what `parse_object` refuses."""
    return parse_object(read_limited(path))


def read_limited(path: Path, most: int = LARGEST) -> bytes:
    """What a file holds. Raises ValueError where it is no file, or holds more bytes than `most`."""
    if not path.is_file():  # a pipe would be waited for, for ever
        raise ValueError(f"there is no file {path}")
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"expected at most {most:,} bytes, got {size:,}")
    return path.read_bytes()


def check_unpacked(path: Path) -> None:
    """Raises ValueError where a zip file would unpack to far more than it is; others pass."""
    try:
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(info.file_size for info in packed.infolist())
    except (zipfile.BadZipFile, NotImplementedError):
        return
    most = max(ROOM, RATIO * path.stat().st_size)
    if unpacked > most:
        raise ValueError(
            f"expected at most {most:,} bytes in a file of {path.stat().st_size:,}, got"
            f" {unpacked:,}, packed; save it without"
        )


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object that a text holds as JSON. Raises ValueError for anything else."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object with names, got {type(found).__name__}")
    return found


def parse_json(text: str | bytes, most: int = LARGEST) -> Any:
    """What a text says as JSON. Raises ValueError where it says nothing, is longer than `most`, or
    deeper than `DEEPEST`."""
    if len(text) > most:
        raise ValueError(f"expected at most {most:,} characters of JSON, got {len(text):,}")
    try:
        found = json.loads(text)
    except UnicodeDecodeError as e:
        raise ValueError(f"expected JSON in UTF-8, got a byte that is none at {e.start}") from None
    except RecursionError:
        raise ValueError(f"expected JSON of at most {DEEPEST} levels, got a deeper one") from None
    except ValueError as e:
        raise ValueError(f"expected JSON, got something else: {e}") from None
    _check_depth(found)
    return found


def _check_depth(found: object) -> None:
    level = [found]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for held in level
            if isinstance(held, dict | list)
            for inner in (held.values() if isinstance(held, dict) else held)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"expected JSON of at most {DEEPEST} levels, got a deeper one")
