"""The arguments and options that several commands share, and the checks of what they say."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from retroact.cli.completing import complete_data, complete_nets, specs, words
from retroact.spec import CallError

Net = Annotated[
    str,
    typer.Argument(
        help="zoo name, saved file, or package.module:function", autocompletion=complete_nets
    ),
]
Threat = Annotated[
    str,
    typer.Option(
        help='such as "Linf(0.3)" or "L2(1.5)"; eps is a radius in pixels',
        autocompletion=specs("threats"),
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help='such as "mnist[:1000]", "cifar10/validation", "folder:PATH", "npz:PATH"',
        autocompletion=complete_data,
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(
        help='retrofit the network first, such as "JumpReLU(kappa=1.0)"',
        autocompletion=specs("activations"),
    ),
]
Sites = Annotated[
    str, typer.Option(help='which activations: names, globs, or order, such as "fc*" or "0:2"')
]
Also = Annotated[
    list[str] | None, typer.Option(help="replace this kind too, such as gelu; may be repeated")
]
Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="KIND=ACTIVATION",
        help="put this activation where that kind is, such as gelu=relu; may be repeated",
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        help=(
            "weights of a package.module:function network: a checkpoint (.pth, .safetensors) or"
            " saved file"
        )
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBERS",
        help=(
            "normalise the pixels of a package.module:function network that is a plain module:"
            ' in [0,1], one number or one per channel, such as "0.4914,0.4822,0.4465"'
        ),
    ),
]
Std = Annotated[str | None, typer.Option(metavar="NUMBERS", help="likewise, divides")]
Shape = Annotated[
    str | None,
    typer.Option(
        metavar="C,H,W",
        help="of an example, such as 3,224,224, where neither the network nor data say it",
    ),
]
Store = Annotated[Path, typer.Option(envvar="RETROACT_STORE", help="SQLite file of finished cells")]
Wait = Annotated[
    bool, typer.Option("--wait", help="wait for another process that is filling the store")
]
Keep = Annotated[int, typer.Option(min=0, help="keep the images of the first so many examples")]
Seed = Annotated[int, typer.Option(help="fixes all noise")]
Chunk = Annotated[
    int | None, typer.Option(min=1, help="images per forward pass (default: the attack's own)")
]
Device = Annotated[
    str,
    typer.Option(help="cpu, cuda, cuda:1, mps", autocompletion=words("cpu", "cuda", "mps")),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="so many at once; 0: one per core, as without it")
]
Executor = Annotated[
    str | None, typer.Option(help='instead of --workers, such as "Processes(4)" or one of yours')
]
Html = Annotated[Path | None, typer.Option(help="write a self-contained page here")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Dry = Annotated[
    bool,
    typer.Option("--dry-run", help="say what would run and how long it would take, and stop"),
]

Parts = Annotated[
    Path | None,
    typer.Option(
        "--store",
        envvar="RETROACT_STORE",
        help="SQLite file for each attack as it is done: run again after a stop, it goes on there",
    ),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="start anew, whatever is there from an earlier run")
]

STORE = Path("retroact.sqlite")


def check_folder(path: Path | None, *, is_dir: bool = False) -> None:
    """Says before the work, not after it, that a file cannot be written."""
    if path is not None and not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"no folder {path.absolute().parent} to write {path.name} into; make it first"
        )
    if path is not None and is_dir and path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; expected a folder, or a new name for one")


def _checked(path: Path | None) -> Path | None:
    check_folder(path)
    return path


JsonOut = Annotated[
    Path | None,
    typer.Option("--json-out", help="write what --json prints into this file", callback=_checked),
]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def numbers_of(text: str, word: str) -> list[float]:
    """The numbers of a text such as "0,0.5,1.0". CallError, which names the option, for no such
    text."""
    try:
        return [float(v) for v in text.split(",")]
    except ValueError:
        raise CallError(f'{word}: expected numbers such as "0,0.5,1.0", got {text!r}') from None


def sizes_of(text: str) -> tuple[int, ...]:
    """The shape of an example that --shape says. CallError for what is none."""
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise CallError(f"--shape: expected C,H,W, such as 3,224,224, got {text!r}")
    return tuple(map(int, sizes))


def check_also(also: Sequence[str] | None, *activations: str | None) -> None:
    """Refuses --also where there is no activation that could replace that kind."""
    if also and all(a is None or a.lower() == "none" for a in activations):
        raise CallError(
            f"--also {also[0]} says what an activation replaces, and none is given; give one, or"
            " drop it"
        )


def mapped(activation: str | None, maps: Sequence[str] | None) -> str | None:
    """The activation that is named, or what --map says in the notation: ByKind(('gelu',),
    (ReLU(),)). CallError for both, and for what is no map."""
    if not maps:
        return activation
    if activation is not None:
        raise CallError(f"expected an activation or --map, got both: {activation} and {maps[0]}")
    from retroact.activations.activation import Activation
    from retroact.activations.by_kind import ByKind
    from retroact.spec import known, parse, show

    names = {cls.__name__.lower(): cls.__name__ for cls in known(Activation)}
    pairs = [text.partition("=") for text in maps]
    if any(not (kind and sign and said) for kind, sign, said in pairs):
        raise CallError(f"--map {' '.join(maps)}: expected KIND=ACTIVATION, such as gelu=relu")
    chosen = tuple(parse(names.get(said.lower(), said), Activation) for _, _, said in pairs)
    return show(ByKind(tuple(kind.lower() for kind, _, _ in pairs), chosen))


def check_fresh(fresh: bool, kept: Path | None, word: str = "--store") -> None:
    """Refuses --fresh where nothing is kept that could be started anew."""
    if fresh and kept is None:
        raise CallError(f"--fresh starts anew what {word} keeps, and none is given; drop one")
