"""Parts of a long run: what is kept as it is done, and found by its key when the run goes on after
a stop. Everyone may use this, and it needs no torch.

A key names all that a part depends on, as that of a cell does, so a part that is found is what the
run would have made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
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

    kept: Parts

    @property
    def parts(self) -> Parts:
        return self

    def find(self, key: str) -> Arrays | None:
        return None

    def keep(self, key: str, what: str, arrays: Arrays) -> None:
        self.kept.keep(key, what, arrays)


def name_part(said: Any) -> str:
    """The key of what is said, as JSON has it: 16 hex digits of a SHA-256."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Filed:
    """What is known of one run, in `parts`, under keys that begin with what the run depends on
    (`about`; empty: nothing is filed)."""

    parts: Parts = NOWHERE
    about: str = ""

    def named(self, about: str) -> Filed:
        """The parts of the run that a text names; of none where it is empty."""
        return replace(self, about=about and name_part([about]))

    def of(self, *said: Any) -> Filed:
        """The parts of a run within this one."""
        return replace(self, about=self.about and self.name(*said))

    def name(self, *said: Any) -> str:
        """The key of what is said of this run."""
        return name_part([self.about, *said])

    def find(self, name: str) -> Arrays | None:
        """What was filed under this key; None where nothing was."""
        return self.parts.find(name) if self.about else None

    def keep(self, name: str, what: str, arrays: Arrays) -> None:
        """Files it, where anything is filed."""
        if self.about:
            self.parts.keep(name, what, arrays)


UNFILED = Filed()
