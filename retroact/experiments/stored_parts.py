"""Parts of long runs in a store: the attacks of an audit, as they are done.

They stand among the facts, so all care that a store takes of its rows is taken of them; a listing
and `--facts` files leave them out. The file is opened for each, so that they may be asked for in
any thread and process.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.numpy import load, save

from retroact.experiments import sealed
from retroact.experiments.store_file import StoreError
from retroact.parts import Arrays, Parts

BEGINS = "part: "
"""How the prints of parts begin, which no spec's does."""


class Facts(Protocol):
    """What is asked of a store."""

    def read_facts(self, key: str) -> tuple[dict[str, Any], float] | None: ...

    def put_facts(self, key: str, what: str, facts: Mapping[str, Any], seconds: float) -> None: ...


@dataclass(frozen=True)
class StoredParts:
    """The parts in the store at `path`, which `reopen` opens."""

    path: Path
    reopen: Callable[[Path], AbstractContextManager[Facts]]

    @property
    def parts(self) -> Parts:
        return self

    def find(self, key: str) -> Arrays | None:
        """Raises StoreError for a part that is damaged."""
        with self.reopen(self.path) as store:
            found = store.read_facts(key)
        return None if found is None else _unpack(found[0], key, self.path)

    def keep(self, key: str, what: str, arrays: Arrays) -> None:
        packed = sealed.pack(save(dict(arrays)))
        assert packed is not None
        facts = {"part": base64.b64encode(packed).decode("ascii")}
        with self.reopen(self.path) as store:
            store.put_facts(key, BEGINS + what, facts, 0.0)


def _unpack(facts: dict[str, Any], key: str, path: Path) -> Arrays:
    try:
        return load(sealed.unpack(base64.b64decode(facts["part"], validate=True)))
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error, SafetensorError) as e:
        raise StoreError(
            f"{key} in {path} holds no part of a run ({e}); `retroact store prune --cells {key}`"
            " drops it, then the same command makes it again"
        ) from None
