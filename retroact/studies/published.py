"""The papers' own numbers and claims, with their source; they are only ever printed in a column of
their own."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _all() -> dict[str, Any]:
    text = files("retroact.studies").joinpath("published.json").read_text(encoding="utf-8")
    papers = json.loads(text)
    assert isinstance(papers, dict)
    return papers


def published(paper: str, *path: str) -> Any:
    """What stands under `path` for `paper` ("jumprelu" or "srelu"); None where nothing was
    published."""
    node: Any = _all()[paper]
    for step in path:
        if not isinstance(node, dict) or step not in node:
            return None
        node = node[step]
    return node


def claims(paper: str) -> dict[str, str]:
    """The paper's claims by name, each as one text that begins with what it is about: "the cost in
    clean accuracy: moderate"."""
    about = published(paper, "about")
    return {name: f"{about[name]}: {said}" for name, said in _flat(published(paper, "claims"), "")}


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in _flat(v, f"{name}.{k}" if name else k)]
    said = "; ".join(value) if isinstance(value, list) else str(value)
    return [(name, said)]
