"""The site: `make docs` builds it into docs/_build/html, and every warning is an error."""

from __future__ import annotations

import re
from typing import Any

import retroact

project = "retroact"
author = "the retroact contributors"
copyright = "the retroact contributors"
release = version = retroact.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"retroact {release}"
html_copy_source = html_show_sourcelink = False

myst_heading_anchors = 4  # so `page.md#a-heading` is checked; the names are GitHub's

default_role = "code"
highlight_language = "none"  # commands; what is Python says so
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's own say nothing of ours


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_signs)


def keep_signs(
    _app: Any, what: str, _name: str, _it: object, _how: object, lines: list[str]
) -> None:
    """Docstrings are plain text: what is indented is a block, and | and * are a formula's."""
    told: list[str] = []
    block = False
    for line in lines if what != "module" else ():  # the module's own is the README's, shorter
        if line and line.startswith("    ") != block:
            block = not block
            told += ["", "::", ""] if block else [""]
        told.append(line if block else keep_formula(line))
    lines[:] = told


def keep_formula(line: str) -> str:
    """The line, its | and * no markup outside backticks."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"[|*]", r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)
