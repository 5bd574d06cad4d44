"""The JUnit file of a command: there from its first moment, saying that nothing was answered, so
that no file of an earlier run passes for this one's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from retroact.cli.codes import FOUND, NOT_SETTLED
from retroact.cli.console import note
from retroact.spec import CallError

if TYPE_CHECKING:
    from retroact.auditing.numbers import AuditNumbers
    from retroact.reports.junit import Case, Outcome

OUTCOMES: dict[int, Outcome] = {0: "passed", FOUND: "failure", NOT_SETTLED: "failure"}


def begin(path: Path | None, command: str, *, is_asked: bool, by: str) -> None:
    """Writes the file with an error in it. CallError where nothing is asked, as it would say that
    all is fine."""
    if path is None:
        return
    if not is_asked:
        raise CallError(f"--junit says whether something passed: say what must, with {by}")
    from retroact.reports.junit import Case

    _write(path, command, [Case(command, "error", "it did not come to an end")])


def end(path: Path | None, command: str, cases: Iterable[Case]) -> None:
    """Writes what was answered in its place."""
    if path is not None:
        note(f"wrote {_write(path, command, list(cases))}")


def case_of(numbers: AuditNumbers, name: str, message: str, code: int) -> Case:
    """What became of a question about these numbers."""
    from retroact.reports.junit import Case

    about = {"n": str(numbers.n), "retroact": numbers.retroact, "battery": numbers.battery}
    if (run := numbers.pedigree) is not None:
        about |= {"seed": str(run.seed), "versions": run.versions}
        about |= {"budget": run.budget} if run.budget else {}
    if (prints := numbers.fingerprints) is not None:
        said = prints.to_json()
        about |= {"data": said["data"], "before": said["twin"], "after": said["network"]}
    seconds = sum(numbers.pedigree.seconds) if numbers.pedigree else 0.0
    where = f"{name}, {numbers.threat} on {numbers.data}"
    return Case(where, OUTCOMES[code], message, seconds, about)


def _write(path: Path, command: str, cases: list[Case]) -> Path:
    from retroact.files import write
    from retroact.reports.junit import junit

    return write(junit(cases, f"retroact.{command}"), path)
