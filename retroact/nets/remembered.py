"""What a slice of data holds, remembered: whoever needs no pixels need not read any."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from retroact import files
from retroact.nets import sources
from retroact.nets.data import DataSlice


@dataclass(frozen=True)
class Holding:
    """`n` examples of one `shape`, and the first 16 hex digits of the images' fingerprint."""

    n: int
    shape: tuple[int, ...]
    pixels: str


def holding(text: str) -> Holding:
    """What the slice holds that `data` reads under `text`: as it was found once, while the files of
    its data set are as they were (name, size, time of change), or read now."""
    part = DataSlice.read(text)
    state = sources.state_of(part.name)
    said = hashlib.sha256(f"{part}|{state}".encode()).hexdigest()[:32]
    path = files.own_cache() / "holdings" / f"{said}.json"
    if state:
        with suppress(ValueError, KeyError, TypeError, OSError):
            found = files.read_object(path)
            return Holding(int(found["n"]), tuple(map(int, found["shape"])), str(found["pixels"]))
    images = part()
    made = Holding(len(images), tuple(images.images.shape[1:]), images.fingerprint[:16])
    if state:
        _keep(made, path)
    return made


def _keep(made: Holding, path: Path) -> None:
    with suppress(OSError):  # a home that cannot be written to costs time alone
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(json.dumps(asdict(made)), path)
