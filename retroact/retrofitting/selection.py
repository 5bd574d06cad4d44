"""Selection: which of a net's sites a text names."""

from __future__ import annotations

import fnmatch
import re

from retroact.activations.site import Site


def select(sites: tuple[Site, ...], text: str) -> tuple[Site, ...]:
    """The sites that `text` names: names, globs ("layer1.*"), orders ("0", "-1"), slices ("0:2"),
    by comma.

    A site's own name comes before its order, as the modules of an nn.Sequential are called "0",
    "1", …. Raises ValueError for a part that selects nothing.
    """
    chosen: set[str] = set()
    for part in _parts(text):
        hits = {s.name for s in _hits(sites, part)}
        if not hits:
            raise ValueError(
                f"sites={text!r}: {part!r} selects none of the {len(sites)} sites; "
                f"there are {', '.join(s.name for s in sites)}"
            )
        chosen |= hits
    return tuple(s for s in sites if s.name in chosen)


def selects_by_name(text: str, name: str) -> bool:
    """Whether a call of this name, that no survey has seen, belongs to the selection; orders never
    do."""
    return any(fnmatch.fnmatchcase(name, part) for part in _parts(text))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _hits(sites: tuple[Site, ...], part: str) -> list[Site]:
    named = [s for s in sites if s.name == part or fnmatch.fnmatchcase(s.name, part)]
    if named or not _ORDER.fullmatch(part):
        return named
    if ":" not in part:
        return list(sites[int(part) :][:1])
    start, stop = (int(end) if end else None for end in part.split(":"))
    return list(sites[start:stop])


_ORDER = re.compile(r"-?\d+|(-?\d+)?:(-?\d+)?")
