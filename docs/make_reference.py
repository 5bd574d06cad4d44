"""Writes docs/reference.md and the lists of `retroact list` from the code: `make docs`.

A test fails where they are not up to date.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import retroact
from retroact.activations.activation import Activation
from retroact.cli.completing import LISTED
from retroact.cli.listing import KINDS, list_specs
from retroact.crafting.attack import Attack
from retroact.crafting.goals import Goal
from retroact.crafting.threat import ThreatModel
from retroact.executors import Executor
from retroact.spec import known, show

PAGE = Path(__file__).with_name("reference.md")


def rows(kind: type, attributes: tuple[str, ...] = ()) -> list[str]:
    head = ["spec", *attributes, "what"]
    found = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for cls in known(kind):
        if not cls.__module__.startswith("retroact."):
            continue
        values = [getattr(cls, a) for a in attributes]
        texts = [", ".join(v) if isinstance(v, tuple) else str(v) for v in values]
        found.append("| " + " | ".join([f"`{signature(cls)}`", *texts, first_sentence(cls)]) + " |")
    return found


def signature(cls: type) -> str:
    parts = []
    for field in dataclasses.fields(cls):
        parts.append(
            field.name
            if field.default is dataclasses.MISSING
            else f"{field.name}={show(field.default)}".replace("1e999", "∞")
        )
    return f"{cls.__name__}({', '.join(parts)})"


def first_sentence(thing: object) -> str:
    doc = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return doc.replace("|", "\\|")


def functions() -> list[str]:
    found = ["| name | what |", "|---|---|"]
    for name in retroact.__all__:
        value = getattr(retroact, name)
        if inspect.isfunction(value):
            found.append(f"| `{name}{short(value)}` | {first_sentence(value)} |")
    return found


def short(function: object) -> str:
    return f"({', '.join(inspect.signature(function).parameters)})"  # type: ignore[arg-type]


def page() -> str:
    parts = [
        "# Reference",
        "",
        (
            "Made from the code by `make docs`. Every spec prints and reads back in this form (∞:"
            " leave the field out)."
        ),
        "",
        "## Attacks",
        "",
        *rows(Attack, ("norms", "needs", "kind", "paper")),
        "",
        "## Threat models",
        "",
        *rows(ThreatModel, ("norm",)),
        "",
        "## Activations",
        "",
        *rows(Activation),
        "",
        "## Goals",
        "",
        *rows(Goal),
        "",
        "## Executors",
        "",
        *rows(Executor),
        "",
        "## Functions",
        "",
        *functions(),
        "",
    ]
    return "\n".join(parts)


def listed() -> str:
    every = {what: list_specs(what) for what in KINDS}
    return json.dumps(every, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    LISTED.write_text(listed(), encoding="utf-8")
