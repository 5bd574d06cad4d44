"""The pytest plugin: `assert_not_weaker` as a fixture, with what the whole run has in common.

`--retroact-baseline FILE` and `--retroact-budget 5m`, or `retroact_baseline` and `retroact_budget`
in the ini file. No torch until a test asks for the fixture's audit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from retroact.testing import assert_not_weaker as assert_it

OPTIONS = {
    "baseline": "file from which the network before is read, where it is there; else written",
    "budget": "time box of each audit, such as 5m: it takes as many examples as fit",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("retroact", "audits of changed networks")
    for name, help_ in OPTIONS.items():
        group.addoption(f"--retroact-{name}", metavar=name.upper(), help=help_)
        parser.addini(f"retroact_{name}", help_)


@pytest.fixture
def assert_not_weaker(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`retroact.testing.assert_not_weaker` with the run's baseline and time box; what it says goes
    into the test's JUnit properties, too."""
    said = {name: _option(request.config, name) for name in OPTIONS}
    common = {name: value for name, value in said.items() if value is not None}

    def ask(*asked: Any, **how: Any) -> Any:
        __tracebackhide__ = True
        made = assert_it(*asked, **common | how)
        request.node.user_properties.append(("retroact", str(made)))
        return made

    return ask


def _option(config: pytest.Config, name: str) -> str | None:
    """What the command line says, or else the ini file; a file there lies beside it."""
    given: str | None = config.getoption(f"--retroact-{name}")
    written: str = config.getini(f"retroact_{name}")
    if given or not written:
        return given
    return str(config.rootpath / written) if name == "baseline" else written
