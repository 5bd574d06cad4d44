"""JUnit XML, as the runners of CI read it: a test case for each question that was asked of a
verdict.

No standard says what it holds; these are the elements and attributes that Jenkins' schema
(jenkinsci/xunit-plugin, junit-10.xsd) and pytest's `--junit-xml` have in common.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from xml.etree import ElementTree as Tree

Outcome = Literal["passed", "failure", "error"]
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Case:
    """A question by its `name`: passed, failure (the answer is no, or none), or error (it was not
    asked), the `message` that says so, and what else is to be known."""

    name: str
    outcome: Outcome
    message: str
    seconds: float = 0.0
    properties: Mapping[str, str] = field(default_factory=dict)


def junit(cases: Sequence[Case], suite: str) -> str:
    """The cases as one test suite."""
    root = Tree.Element("testsuites")
    counts = {f"{word}s": str(sum(c.outcome == word for c in cases)) for word in _BAD}
    spent = f"{sum(c.seconds for c in cases):.3f}"
    about = {"name": suite, "tests": str(len(cases)), **counts, "skipped": "0", "time": spent}
    inner = Tree.SubElement(root, "testsuite", about)
    for case in cases:
        _add(inner, case, suite)
    Tree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Tree.tostring(root, "unicode") + "\n"


_BAD = ("failure", "error")


def _add(suite: Tree.Element, case: Case, where: str) -> None:
    about = {"classname": where, "name": _clean(case.name), "time": f"{case.seconds:.3f}"}
    added = Tree.SubElement(suite, "testcase", about)
    if case.properties:
        said = Tree.SubElement(added, "properties")
        for name, value in case.properties.items():
            Tree.SubElement(said, "property", {"name": name, "value": _clean(value)})
    message = _clean(case.message)
    if case.outcome in _BAD:
        Tree.SubElement(added, case.outcome, {"message": message}).text = message
    else:
        Tree.SubElement(added, "system-out").text = message


def _clean(text: str) -> str:
    """Without what no XML may hold."""
    return _FORBIDDEN.sub("�", text)
