"""The fields of a cell: what stands in a store beside its record, for tables and pages. No torch
here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from retroact import __version__
from retroact.spec import quote

SCHEMA = 2
"""1: without the schema's number, the package's version and the fingerprints."""

Knowledge = Literal["white", "gray", "black"]


@dataclass(frozen=True)
class CellFields:
    """A cell as texts and numbers: the network (`net`, `activation`, `sites`, None and "*" where
    there is nothing to say), what is climbed in its place (`source`; the surrogate's `beta`, 0
    without one, and `kernel`), the attack with its threat (`norm`, `eps` in pixels) and goal.

    `weights` and `pixels` are the first 16 hex digits of the SHA-256 of the network's weights and
    of the images; `retroact` is the version of the package that ran the cell. They are empty, and
    `schema` is 1, where an older version wrote it. `crafting` is what the attack's gradients were
    computed in.
    """

    net: str = ""
    activation: str | None = None
    sites: str = "*"
    source: str | None = None
    knowledge: Knowledge = "white"
    attack: str = ""
    threat: str = ""
    norm: str = ""
    eps: float = 0.0
    goal: str = ""
    data: str = ""
    beta: float = 0.0
    kernel: str = ""
    seed: int = 0
    dtype: str = ""
    schema: int = SCHEMA
    retroact: str = __version__
    weights: str = ""
    pixels: str = ""
    crafting: str = "float32"

    @property
    def network(self) -> str:
        """The network's name and, where it was retrofitted, its activation and sites."""
        if not self.activation:
            return self.net
        return f"{self.net} + {self.activation}" + (
            f" at {self.sites}" if self.sites != "*" else ""
        )

    @property
    def attack_and_kernel(self) -> str:
        """The attack, and what its gradients went through where that is not the network itself in
        float32."""
        through = f" through {self.kernel} {self.beta:g}" if self.beta else ""
        return self.attack + through + ("" if self._plain else f" in {self.crafting}")

    @property
    def how(self) -> str:
        """The same, and whose gradients were climbed where they are another network's."""
        return self.attack_and_kernel + (f" from {self.source}" if self.source else "")

    @property
    def _plain(self) -> bool:
        return self.crafting == "float32"

    def to_json(self) -> dict[str, Any]:
        """The fields by name; those that its schema does not know are left out, and `crafting`
        where it is float32, so that cells are written as they always were."""
        left_out = {*(() if self.schema > 1 else _SINCE_2), *(("crafting",) if self._plain else ())}
        return {k: v for k, v in vars(self).items() if k not in left_out}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CellFields:
        """What `to_json` wrote, by this or an older version; names that it does not know are left
        out. Raises ValueError for what is no text or number where one belongs."""
        if stored.keys() != _NAMES:
            old: dict[str, Any] = {"schema": 1, "retroact": ""}
            stored = old | {name: v for name, v in stored.items() if name in _NAMES}
        for name, value in stored.items():
            if not isinstance(value, _KINDS[name]):
                raise ValueError(
                    f"expected the field {name} of a cell otherwise than as {quote(value)}"
                )
        return cls(**stored)


_SINCE_2 = ("schema", "retroact", "weights", "pixels")
_NAMES = {f.name for f in fields(CellFields)}
_OPTIONAL = ("activation", "source")
_KINDS: dict[str, tuple[type, ...]] = {
    f.name: (str, type(None))
    if f.name in _OPTIONAL
    else (int, float)
    if isinstance(f.default, float)
    else (type(f.default),)
    for f in fields(CellFields)
}
