"""Chunks of cells that are not finished: files beside the store, gone when the cell is there.

Any process may write them, as each has names of its own; the store has one writer. What is damaged
is as if it were not there, and what cannot be written is run again after a stop.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from retroact.experiments.sealed import checksum
from retroact.files import replacing
from retroact.parts import Arrays

_SUM = 32  # hex digits before what they are the checksum of


@dataclass(frozen=True)
class PartFiles:
    """Parts as files of a folder, which is made with the first of them."""

    folder: Path

    def find(self, key: str) -> Arrays | None:
        """The arrays of a part; None where there is none, or it is damaged."""
        try:
            content = (self.folder / key).read_bytes()
            told, packed = content[:_SUM].decode("ascii"), content[_SUM:]
            return load(packed) if checksum(packed) == told else None
        except (OSError, ValueError, SafetensorError):
            return None

    def keep(self, key: str, what: str, arrays: Arrays) -> None:
        """Writes a part, whole or not at all."""
        packed = save(dict(arrays))
        with suppress(OSError):
            self.folder.parent.mkdir(exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            with replacing(self.folder / key) as draft:
                draft.write_bytes(checksum(packed).encode("ascii") + packed)

    def drop(self) -> None:
        """Removes all of them, and the folder above where nothing else is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.parent.rmdir()
