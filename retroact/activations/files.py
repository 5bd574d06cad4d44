"""Files that an activation names by their SHA-256, and that travel inside a saved network."""

from __future__ import annotations

import hashlib

from retroact.spec import SpecError

_EMBEDDED: dict[str, bytes] = {}
"""Contents by their SHA-256: content is its own address."""


def embed(content: bytes, sha256: str) -> None:
    """Makes a file known by its hash, with no file on disk. SpecError if the hash is another's."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SpecError(
            f"the file that was saved as {sha256} has been changed; save the network again"
        )
    _EMBEDDED[sha256] = content


def embedded(sha256: str) -> bytes | None:
    """The file of this hash, if it has been embedded."""
    return _EMBEDDED.get(sha256)
