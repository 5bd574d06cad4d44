"""Parts of a long run: what is kept as it is done, and found by its key when the run goes on after
a stop. Everyone may use this, and it needs no torch.

A key names all that a part depends on, as that of a cell does, so a part that is found is what the
run would have made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class PartError(ValueError):
    """A part that is not of the run at hand; the message says what to do."""


class Parts(Protocol):
    """Where parts are kept: in a store, in a folder, nowhere. It may travel to another thread or
    process, and is asked there."""

    def find(self, key: str) -> Arrays | None:
        """The arrays of a part; None where there is none."""
        ...

    def keep(self, key: str, what: str, arrays: Arrays) -> None:
        """Keeps a part, whole or not at all; `what` says to a person what it is."""
        ...


class HasParts(Protocol):
    """What parts can be kept in, such as a store."""

    @property
    def parts(self) -> Parts: ...


@dataclass(frozen=True)
class Nowhere:
    """Keeps nothing."""

    def find(self, key: str) -> Arrays | None:
        return None

    def keep(self, key: str, what: str, arrays: Arrays) -> None:
        pass


NOWHERE = Nowhere()


@dataclass(frozen=True)
class Anew:
    """Finds nothing that was kept before, and keeps what is made."""

    parts: Parts

    def find(self, key: str) -> Arrays | None:
        return None

    def keep(self, key: str, what: str, arrays: Arrays) -> None:
        self.parts.keep(key, what, arrays)


def name_part(said: Any) -> str:
    """The key of what is said, as JSON has it: 16 hex digits of a SHA-256."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
