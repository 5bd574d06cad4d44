"""Files that an activation names by their SHA-256, and that travel inside a saved network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from retroact.files import read_limited, replacing
from retroact.spec import SpecError, shorten

LARGEST = 2**28
"""Bytes of a file of numbers: one for each channel of each site, or for each entry."""

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


@dataclass(frozen=True)
class Kept:
    """The safetensors file that a spec `owner` names by `file` and `sha256`: one tensor of `what`
    under the name of each site. `maker` is the function that writes one."""

    owner: str
    what: str
    maker: str
    file: str
    sha256: str

    def settle(self) -> str:
        """The hash of the file where it is there, else the one that was said. SpecError for
        another file, for one that is not there and has no hash, and for a hash alone."""
        if not self.file and self.sha256:
            raise SpecError(
                f"{self.owner}: a sha256 without a file names nothing; give file= as well"
            )
        if embedded(self.sha256) is not None:
            return self.sha256
        if self.file and Path(self.file).is_file():
            return self._check(self._read())
        if self.file and not self.sha256:
            raise SpecError(f"{self.owner}.file: no file {self.file!r}; {self.maker} makes one")
        return self.sha256

    def content(self) -> bytes:
        """What the file holds, embedded or on disk. FileNotFoundError where it is neither,
        SpecError where another file lies there."""
        known = embedded(self.sha256)
        if known is not None:
            return known
        path = Path(self.file)
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.owner}: the file {self.file!r} is not there; put it back or run from its"
                " folder (numbers that were kept in memory are known in that process alone)"
            )
        found = self._read()
        self._check(found)
        return found

    def tensor(self, site: str) -> Tensor:
        """The tensor of a site. KeyError where it has none."""
        from safetensors.torch import load

        content = self.content()
        try:
            tensors = load(content)
        except Exception as e:  # a type that torch has not, a shape that it refuses
            raise SpecError(
                f"{self.owner}: {self.file} is truncated or no safetensors file:"
                f" {shorten(str(e))}; {self.maker} makes one"
            ) from e
        if site not in tensors:
            raise KeyError(
                f"{self.file} has no {self.what} for site {site!r}, only for"
                f" {shorten(', '.join(sorted(tensors)))}"
            )
        found = tensors[site]
        if not found.is_floating_point() or not bool(found.float().isfinite().all()):
            raise SpecError(
                f"{self.owner}: the {self.what} of site {site!r} in {self.file} are no finite"
                f" floats ({found.dtype}); {self.maker} makes others"
            )
        return found

    def _read(self) -> bytes:
        """What the file holds. SpecError for a larger one than an activation has."""
        try:
            return read_limited(Path(self.file), LARGEST)
        except ValueError as e:
            raise SpecError(f"{self.owner}: {shorten(self.file)}: {e}; give its own file") from e

    def _check(self, content: bytes) -> str:
        """The hash of a content. SpecError where it is not that of the spec."""
        sha256 = hashlib.sha256(content).hexdigest()
        if self.sha256 not in ("", sha256):
            raise SpecError(
                f"{self.owner}: {self.file} has sha256 {sha256}, expected {self.sha256}; these are"
                f" other {self.what}: bring back the file, or leave sha256 out to take these"
            )
        return sha256


def keep(tensors: Mapping[str, Tensor], file: str | Path | None = None) -> tuple[str, str]:
    """Writes one tensor per site to a safetensors file, or embeds them where there is none; gives
    the name and the hash of what holds them."""
    from safetensors.torch import save

    saved = save({site: t.detach().cpu().contiguous().clone() for site, t in tensors.items()})
    sha256 = hashlib.sha256(saved).hexdigest()
    if file is None:
        embed(saved, sha256)
        return "measured", sha256
    with replacing(file) as draft:
        draft.write_bytes(saved)
    return str(file), sha256
