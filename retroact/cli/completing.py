"""What a shell completes beside commands and options: names that are known without torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

LISTED = Path(__file__).with_name("listed.json")
"""The lists of the package's own specs, written by `make docs`: they need no torch."""

Complete = Callable[[str], list[str]]


def words(*known: str) -> Complete:
    """Completes to one of these words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return complete


def specs(kind: str) -> Complete:
    """Completes to the name of one of the package's specs of a kind, such as "attacks"."""

    def complete(incomplete: str) -> list[str]:
        rows = json.loads(LISTED.read_text(encoding="utf-8"))[kind]
        return words(*(row["name"].partition("(")[0] for row in rows))(incomplete)

    return complete


def complete_nets(incomplete: str) -> list[str]:
    """Completes to the name of a network whose weights are here."""
    from retroact.nets import pages

    return words(*pages.names())(incomplete)


complete_data = words("digits", "mnist", "cifar10", "folder:", "npz:")
