"""The application: its commands in the order of the walk, and what becomes of an error."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from retroact import __version__, workers
from retroact.cli import (
    attacks,
    audits,
    checking,
    console,
    doctoring,
    listing,
    networks,
    playing,
    reports,
    stopping,
    stores,
)
from retroact.cli.codes import CODES, COULD_NOT_RUN, EPILOG, STOPPED, WRONG_CALL
from retroact.cli.named import import_own
from retroact.cli.stopping import NOTHING, StoppedError, ended_by_two
from retroact.spec import CallError

FORESEEN = (
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    KeyError,
    ArithmeticError,
    ImportError,
)


class ImportsAnywhere(TyperGroup):
    """`--import` is understood before the command and after it; a stop says what is kept."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell asks how words go on that are not whole yet
            return super().parse_args(ctx, args)
        _refuse_json_file(args)
        return super().parse_args(ctx, _imports_first(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        begun = [name for name in self.commands if args[0] and name.startswith(args[0])]
        if begun and args[0] not in begun and not ctx.resilient_parsing:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(begun)}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # typer would forget what it says
            raise StoppedError.of(stop) from stop
        except SystemExit as left:  # ours come before any command runs, as of --show-completion
            if isinstance(left.__context__, BrokenPipeError):
                raise
            text = f"the network's code ended the program with {left.code!r}"
            raise RuntimeError(text) from left


def _refuse_json_file(words: Sequence[str]) -> None:
    """--json is a flag; until 0.1 it took a file in two commands, whose arguments are no files."""
    if not {"audit", "check"} & set(words):
        return
    after = dict(pairwise(words)).get("--json", "")
    given = [after] if after.endswith(".json") else []
    given += [word.removeprefix("--json=") for word in words if word.startswith("--json=")]
    if given:
        raise CallError(
            f"--json prints, and takes no file: --json-out {given[0]} writes what it prints there"
        )


def _imports_first(words: Sequence[str]) -> list[str]:
    """The same words, with each `--import MODULE` at their beginning."""
    imports: list[str] = []
    others: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--import":
            module = next(left, "")
            if not module:
                raise CallError("--import needs the name of a module, such as mymodule")
            imports += [word, module]
        elif word.startswith("--import="):
            imports.append(word)
        else:
            others.append(word)
    return imports + others


ImportOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help=(
            "a module of your own, whose specs (attacks, activations, threats, executors) are then"
            " known; before the command or after it; may be repeated"
        ),
    ),
]

app = typer.Typer(
    cls=ImportsAnywhere,
    help=(
        "Retrofit the activations of a trained network, attack it, and say honestly what it is"
        " worth."
    ),
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=CODES,
)
for command in (
    reports.demo,
    listing.list_,
    networks.train,
    networks.calibrate,
    networks.change,
    networks.retrofit,
    networks.tune,
    audits.audit,
    checking.check,
    audits.verify,
    audits.selftest,
    networks.harden,
    attacks.attack,
    attacks.sweep,
    reports.report,
    reports.study,
    playing.playground,
    networks.export,
    doctoring.doctor,
):
    app.command(command.__name__.rstrip("_"), epilog=EPILOG)(command)


app.add_typer(stores.app, name="store")


def _say_version(wanted: bool) -> None:
    """The version, and those of what results hang on, as they are installed."""
    if not wanted:
        return
    others = ", ".join(f"{name} {_version_of(name)}" for name in ("torch", "numpy"))
    console.say(f"retroact {__version__} ({others}, Python {sys.version.split()[0]})")
    raise typer.Exit


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not here"


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_say_version, is_eager=True, help="say the version"),
]


@app.callback()
def application(imports: ImportOption = None, version: VersionOption = False) -> None:
    for module in imports or ():
        import_own(module)


def main() -> None:
    """Runs the command line; every foreseen error is one message with its cure, and `codes` says
    what the exit code means."""
    with ended_by_two(), warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        code = _run()
    if code == STOPPED:
        stopping.leave()
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> object:
    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C and Exit into what it returns
    except StoppedError as stopped:
        return _say_stopped(str(stopped))
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except SystemExit as left:
        # a shell has its answer, or nobody reads on, as after `| head`
        code = COULD_NOT_RUN if left.code else 0
    except Exception as error:
        code = _explain(error)
    return _say_stopped(NOTHING) if code == STOPPED else code


def _say_stopped(truth: str) -> int:
    console.note(f"\nstopped; {truth}", style="yellow")
    return STOPPED


def _show_warning(
    others: Callable[..., None], message: object, category: Any, filename: str, *more: Any
) -> None:
    """What happens to worker processes is a line for people; other warnings are as they were."""
    if filename == workers.__file__:
        return console.note(str(message), style="yellow")
    others(message, category, filename, *more)


def _explain(error: Exception) -> int:
    """Says what went wrong and how to mend it; returns the exit code."""
    if os.environ.get("RETROACT_DEBUG"):
        traceback.print_exception(error)
    show = getattr(error, "show", None)  # typer's own errors know how to show themselves
    if callable(show):
        show()
        return WRONG_CALL
    if isinstance(error, FORESEEN):
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        cures = getattr(error, "__notes__", ())
        console.note(f"error: {'; '.join((text, *cures))}", style="red")
        return WRONG_CALL if isinstance(error, CallError) else COULD_NOT_RUN
    traceback.print_exception(error)
    return COULD_NOT_RUN
