"""The application: its commands in the order of the walk, and what becomes of an error."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from retroact.cli import attacks, audits, console, listing, networks, reports

STOPPED = 130  # what a shell expects of a program that Ctrl-C ended
BROKEN = 70  # of a program with a fault in it (sysexits.h); 1 is an answer of --fail-on
FORESEEN = (
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    KeyError,
    ArithmeticError,
    ImportError,
)

app = typer.Typer(
    help=(
        "Retrofit the activations of a trained network, attack it, and say honestly what it is"
        " worth."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    reports.demo,
    listing.list_,
    networks.train,
    networks.retrofit,
    networks.tune,
    audits.audit,
    audits.selftest,
    networks.harden,
    attacks.attack,
    attacks.sweep,
    reports.report,
    reports.study,
    networks.export,
):
    app.command(command.__name__.rstrip("_"))(command)


def main() -> None:
    """Runs the command line; every foreseen error is one message with its cure and exit code 2."""
    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C and Exit into what it returns
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except Exception as error:
        code = _explain(error)
    if code == STOPPED:
        console.note(
            "\nstopped; finished work is kept: run the same command again to go on", style="yellow"
        )
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Says what went wrong and how to mend it; returns the exit code."""
    if os.environ.get("RETROACT_DEBUG"):
        raise error
    show = getattr(error, "show", None)  # typer's own errors know how to show themselves
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(error, FORESEEN):
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        cures = getattr(error, "__notes__", ())
        console.note(f"error: {'; '.join((text, *cures))}", style="red")
        return 2
    traceback.print_exception(error)
    return BROKEN
