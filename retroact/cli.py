"""The command line: words to calls, nothing else. torch is imported only by the commands that need
it.

The notation is that of the code: `retroact attack lenet-mnist "PGD(steps=40)" --threat
"Linf(0.3)"`. Results go to stdout, everything else (progress, notes, errors) to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from retroact.experiments.cell import Cell
    from retroact.experiments.store import Store
    from retroact.reports.tables import Line

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
out = Console(emoji=False)  # mynets:x:y is a name, not a cross
err = Console(stderr=True, emoji=False)

NetArgument = Annotated[
    str, typer.Argument(help="zoo name, saved file, or package.module:function")
]
AttackArgument = Annotated[str, typer.Argument(help='such as "PGD(steps=40)"')]
ThreatOption = Annotated[
    str, typer.Option(help='such as "Linf(0.3)" or "L2(1.5)"; eps is a radius in pixels')
]
DataOption = Annotated[
    str, typer.Option(help='such as "mnist[:1000]", "cifar10/validation", "folder:PATH"')
]
ActivationOption = Annotated[
    str | None, typer.Option(help='retrofit the network first, such as "JumpReLU(kappa=1.0)"')
]
SitesOption = Annotated[
    str, typer.Option(help='which activations: names, globs, or order, such as "fc*" or "0:2"')
]
AlsoOption = Annotated[
    list[str] | None, typer.Option(help="replace this kind too, such as gelu; may be repeated")
]
WeightsOption = Annotated[
    str,
    typer.Option(
        help=(
            "weights of a package.module:function network: a checkpoint (.pth, .safetensors) or"
            " saved file"
        )
    ),
]
StoreOption = Annotated[
    Path, typer.Option(envvar="RETROACT_STORE", help="SQLite file with finished cells")
]
SeedOption = Annotated[int, typer.Option(help="fixes all noise")]
ChunkOption = Annotated[
    int | None, typer.Option(min=1, help="images per forward pass (default: the attack's own)")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")]
JsonOption = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="say what would run and what it would cost, and stop")
]

STORE = Path("retroact.sqlite")
STOPPED = 130  # what a shell expects of a program that Ctrl-C ended
BROKEN = 70  # of a program with a fault in it (sysexits.h); 1 is an answer of --fail-on


def main() -> None:
    """Runs the command line; every foreseen error is one message with its cure and exit code 2."""
    try:
        code = app(standalone_mode=False)  # typer turns Ctrl-C and Exit into what it returns
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except Exception as error:
        code = _failed(error)
    if code == STOPPED:
        err.print(
            "\nstopped; finished work is kept: run the same command again to go on", style="yellow"
        )
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: Exception) -> int:
    if os.environ.get("RETROACT_DEBUG"):
        raise error
    show = getattr(error, "show", None)  # typer's own errors know how to show themselves
    if callable(show):
        show()
        return int(getattr(error, "exit_code", 2))
    if isinstance(
        error,
        ValueError | TypeError | OSError | RuntimeError | KeyError | ArithmeticError | ImportError,
    ):
        said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        said = "; ".join((said, *getattr(error, "__notes__", ())))
        err.print(f"error: {said}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    traceback.print_exception(error)
    return BROKEN


# ------------------------------------------------------------------------------------------- demo


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="digits (embedded) or mnist")] = "digits",
    report: Annotated[Path, typer.Option(help="where the report goes")] = Path(
        "retroact-demo.html"
    ),
    store: StoreOption = Path("retroact-demo.sqlite"),
    workers: Annotated[int, typer.Option(help="processes; 0: one per core")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Retrofit, tune, attack and report on a small network, from start to end."""
    from retroact.demo import run

    with _bar("demo") as progress:
        lines, notes, page = run(
            data, store, report, workers=workers or _cores(), progress=progress
        )
    if as_json:
        return _print_json([line.numbers() for line in lines])
    _print_lines(lines)
    for note in notes:
        out.print(f"- {note}", highlight=False, markup=False)
    out.print(f"report: {page}", highlight=False, soft_wrap=True)


# ------------------------------------------------------------------------------------------- list


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="nets, attacks, activations, threats, goals, data, or store")
    ] = "nets",
    detail: Annotated[
        bool, typer.Option(help="nets: layers and sites; store: every field")
    ] = False,
    store: StoreOption = STORE,
    remove: Annotated[
        str | None, typer.Option(help="store: remove what matches this glob by key or print")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What there is: networks, attacks, activations, data, finished cells."""
    lists: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "nets": lambda: _list_nets(detail),
        "attacks": lambda: _list_specs("norms", ("needs", "kind", "norms", "paper")),
        "activations": lambda: _list_specs("surrogate", ()),
        "threats": lambda: _list_specs("norm", ("norm",)),
        "goals": lambda: _list_goals(),
        "data": _list_data,
        "store": lambda: _list_store(store, remove, detail),
    }
    if what not in lists:
        raise ValueError(f"cannot list {what!r}; expected one of: {', '.join(lists)}")
    rows = lists[what]()
    if as_json:
        return _print_json(rows)
    if what == "nets" and detail:
        return _print_nets(rows)
    _print_rows(rows, empty=f"no {what} here")


def _list_nets(detail: bool) -> list[dict[str, Any]]:
    from retroact.nets import zoo

    rows = []
    for name in zoo.names():
        page = zoo.entry(name)
        row: dict[str, Any] = {
            "name": name,
            "network": page.network.removeprefix("Network(architecture=").split(", data")[0],
            "test accuracy": f"{page.accuracy:.2%} of {page.test_n}",
            "recipe": page.recipe,
            "command": page.command,
        }
        rows.append(row if detail else {k: row[k] for k in ("name", "network", "test accuracy")})
        if detail:
            from retroact.checkpoint import load
            from retroact.retrofitting.sites import sites

            net = load(name)
            rows[-1]["parameters"] = sum(p.numel() for p in net.parameters())
            rows[-1]["sites"] = ", ".join(site.name for site in sites(net))
            rows[-1]["layers"] = str(net.module)
    return rows


def _print_nets(rows: Sequence[dict[str, Any]]) -> None:
    """A block for each network: its name, what is known of it, its layers. A table would squeeze
    them all."""
    for row in rows:
        out.print(f"\n{row['name']}", style="bold", highlight=False, markup=False)
        for name in ("network", "test accuracy", "parameters", "sites", "recipe", "command"):
            out.print(f"{name}: {row[name]}", highlight=False, markup=False)
        for line in row["layers"].splitlines():
            out.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _list_specs(having: str, attributes: Sequence[str]) -> list[dict[str, Any]]:
    import dataclasses

    from retroact.spec import known

    _import_all()
    rows = []
    for cls in known(having=having):
        fields = ", ".join(f.name for f in dataclasses.fields(cls))
        about = (cls.__doc__ or "").strip().splitlines()[0]
        row: dict[str, Any] = {"name": f"{cls.__name__}({fields})"}
        for attribute in attributes:
            value = getattr(cls, attribute)
            row[attribute] = ", ".join(value) if isinstance(value, tuple) else value
        rows.append(row | {"what": about})
    return rows


def _list_goals() -> list[dict[str, Any]]:
    from retroact.spec import known

    _import_all()
    goals = [cls for cls in known() if cls.__module__ == "retroact.crafting.goals"]
    return [
        {"name": cls.__name__, "what": (cls.__doc__ or "").strip().splitlines()[0]} for cls in goals
    ]


def _list_data() -> list[dict[str, Any]]:
    from retroact.nets.data import DataError, data

    rows = []
    for name in ("digits", "mnist", "cifar10"):
        for split in ("train", "validation", "test"):
            try:
                first = data(f"{name}/{split}[:1]")
                where = first.origin
            except DataError as e:
                where = f"not here: {str(e).partition(';')[0]}"
            rows.append({"name": f"{name}/{split}" if split != "test" else name, "from": where})
    return rows


def _list_store(path: Path, remove: str | None, detail: bool) -> list[dict[str, Any]]:
    from retroact.experiments.store import Store

    with Store(path, create=False) as store:
        if remove is not None:
            err.print(f"removed {store.remove(remove)} results from {path}", highlight=False)
        rows = store.rows()
    short = ("net", "activation", "attack", "threat", "data")
    return [
        {
            "key": r.key,
            "written": r.written,
            "n": r.n,
            **{k: v for k, v in r.fields.to_json().items() if detail or k in short},
        }
        for r in rows
    ]


# ------------------------------------------------------------------------------------------ train


@app.command()
def train(
    name: Annotated[
        str, typer.Argument(help="a zoo name: `retroact list nets` has those that are trained")
    ],
    epochs: Annotated[int | None, typer.Option(min=1, help="instead of the recipe's own")] = None,
    seed: SeedOption = 0,
    data: Annotated[str | None, typer.Option(help="another training slice")] = None,
    device: DeviceOption = "cpu",
    to: Annotated[
        Path | None, typer.Option("--out", help="folder for weights and provenance (default: zoo/)")
    ] = None,
    resume: Annotated[bool, typer.Option(help="go on from the last epoch's checkpoint")] = True,
    as_json: JsonOption = False,
    dry_run: DryOption = False,
) -> None:
    """Train a network of the zoo by its recipe; goes on where it was stopped."""
    import dataclasses

    from retroact.training.recipes import RECIPES
    from retroact.training.train import train as run

    if dry_run:
        if name not in RECIPES:
            raise ValueError(f"no recipe for {name!r}; expected one of: {', '.join(RECIPES)}")
        return _print_result(
            {"name": name, "recipe": str(RECIPES[name]), "epochs": epochs}, as_json
        )
    with _bar(f"train {name}") as progress:
        page = run(
            name,
            epochs=epochs,
            seed=seed,
            data=data,
            device=device,
            out=to,
            resume=resume,
            progress=lambda p: progress(p.epoch - 1 + p.step / p.steps, p.epochs),
        )
    if as_json:
        return _print_json(dataclasses.asdict(page))
    out.print(
        f"{name}: {page.accuracy:.2%} of {page.test_n} test images, {page.seconds:.0f} s",
        highlight=False,
    )


# --------------------------------------------------------------------------------------- retrofit


@app.command()
def retrofit(
    net: NetArgument,
    activation: Annotated[str, typer.Argument(help='such as "JumpReLU(kappa=1.0)"')],
    sites: SitesOption = "*",
    also: AlsoOption = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="sites (or globs) that may stay as they are")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="save the retrofitted network here (.safetensors)")
    ] = None,
    data: Annotated[str | None, typer.Option(help="compare clean accuracies on this data")] = None,
    weights: WeightsOption = "",
    as_json: JsonOption = False,
) -> None:
    """Replace the activations of a network; say which were found and replaced."""
    from retroact import checkpoint
    from retroact.nets.data import data as read
    from retroact.retrofitting.installed import installed
    from retroact.retrofitting.sites import left_alone
    from retroact.retrofitting.sites import sites as find
    from retroact.retrofitting.surgery import retrofit as fit

    images = None if data is None else read(data)
    plain = _loaded(net, weights, images)
    hard = fit(
        plain, _spec(activation, "surrogate"), sites=sites, also=also or (), allow=allow or ()
    )
    found, replaced = find(plain, also=tuple(also or ())), installed(hard)
    result: dict[str, Any] = {
        "net": net,
        "retrofit": str(hard.retrofit),
        "found": len(found),
        "replaced": len(replaced),
        "sites": list(replaced),
        "left alone": left_alone(hard),
    }
    if images is not None:
        result |= _clean_accuracies({"before": plain, "after": hard}, images)
    if to is not None:
        result["saved"] = str(checkpoint.save(hard, to))
    _print_result(result, as_json)


def _clean_accuracies(nets: dict[str, Any], images: Any) -> dict[str, float]:
    from retroact.evaluation.evaluate import decide

    right = {
        k: (decide(net, images.images) == images.labels).float().mean() for k, net in nets.items()
    }
    return {f"clean accuracy {k}": round(float(v), 4) for k, v in right.items()}


@app.command()
def tune(
    net: NetArgument,
    kind: Annotated[
        str, typer.Argument(help="the activation to tune: JumpReLU, SReLU, BoundedReLU")
    ],
    threat: ThreatOption,
    data: Annotated[
        str, typer.Option(help='validation data, such as "mnist/validation[:500]"; never test data')
    ],
    keep: Annotated[float, typer.Option(help="share of clean accuracy to keep")] = 0.99,
    grid: Annotated[str | None, typer.Option(help='values to try, such as "0,0.5,1.0"')] = None,
    sites: SitesOption = "*",
    also: AlsoOption = None,
    seed: SeedOption = 0,
    weights: WeightsOption = "",
    as_json: JsonOption = False,
    dry_run: DryOption = False,
) -> None:
    """Accuracy against the activation's knob on validation data, and which value to take."""
    from retroact.experiments.executors import one_thread
    from retroact.experiments.tuning import tune as run
    from retroact.nets.data import data as read
    from retroact.retrofitting.surgery import retrofit as fit

    values = None if grid is None else [float(v) for v in grid.split(",")]
    cls = type(_spec(kind, "surrogate"))
    images = read(data)
    network = _loaded(net, weights, images)
    _say_left_alone(fit(network, cls(), sites=sites, also=also or ()))
    if dry_run:
        n = len(values if values is not None else cls.grid)
        return _print_result(
            {"values": n, "images": len(images), "gradients at most": n * 120 * len(images)},
            as_json,
        )
    with _bar(f"tune {kind}") as progress, one_thread():
        tuned = run(
            network,
            cls,
            images,
            _spec(threat, "norm"),
            keep=keep,
            grid=values,
            sites=sites,
            also=also or (),
            seed=seed,
            progress=progress,
        )
    if as_json:
        points = [
            {"value": p.knob, "clean": p.clean, "claimed": p.claimed, "verified": p.verified}
            for p in tuned.points
        ]
        chosen = {
            "recommended": str(tuned.activation),
            "largest": str(tuned.largest.activation),
            "gain": tuned.gain,
        }
        return _print_json(
            {
                "knob": tuned.knob,
                "points": points,
                **chosen,
                "data": tuned.data,
                "threat": tuned.threat,
            }
        )
    rows = [
        {
            tuned.knob: f"{p.knob:g}",
            **{k: f"{100 * getattr(p, k):.1f}" for k in ("clean", "claimed", "verified")},
        }
        for p in tuned.points
    ]
    _print_rows(rows, empty="")
    out.print(str(tuned), highlight=False, markup=False)


# -------------------------------------------------------------------------------- audit and harden


@app.command()
def audit(
    net: Annotated[
        str | None,
        typer.Argument(help="the network before the change: zoo name, file, module:function"),
    ] = None,
    activation: Annotated[
        str | None, typer.Argument(help='what was changed, such as "JumpReLU(kappa=1.0)"')
    ] = None,
    threat: Annotated[
        str | None, typer.Option(help='such as "Linf(0.1)" or "L2(1.5)"; eps is a radius in pixels')
    ] = None,
    data: Annotated[str | None, typer.Option(help='test data, such as "mnist[:300]"')] = None,
    against: Annotated[
        str | None, typer.Option(help="audit this changed network instead of an activation")
    ] = None,
    sites: SitesOption = "*",
    also: AlsoOption = None,
    claimed: Annotated[
        str | None, typer.Option(help="the attack behind the claim (default: the papers' PGD)")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="the decisive attacks only, for a first answer")
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough", help="begin anew, with ever more steps, until nothing more falls"
        ),
    ] = False,
    draws: Annotated[
        int, typer.Option(min=0, help="average a randomised network over so many draws")
    ] = 0,
    margin: Annotated[
        float, typer.Option(min=0.001, max=1, help="the difference of accuracy that matters")
    ] = 0.05,
    workers: Annotated[int, typer.Option(help="2: both networks at once; 0: one per core")] = 0,
    seed: SeedOption = 0,
    weights: WeightsOption = "",
    against_weights: Annotated[str, typer.Option(help="weights of --against, likewise")] = "",
    html: Annotated[Path | None, typer.Option(help="write a self-contained page here")] = None,
    md: Annotated[Path | None, typer.Option(help="write Markdown here")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="write all numbers here")] = None,
    fail_on: Annotated[
        str, typer.Option(help='exit with 1 on these answers, such as "MASKED,HARMFUL"')
    ] = "",
    selftest: Annotated[
        bool, typer.Option("--selftest", help="audit fakes with known answers; takes no network")
    ] = False,
) -> None:
    """What a changed network is worth beside the one before: claimed, verified, and why they
    differ."""
    if selftest:
        if net is not None:
            raise ValueError(f"--selftest brings its own networks and takes none, got {net!r}")
        return _selftest()
    missing = [
        name for name, v in (("NET", net), ("--threat", threat), ("--data", data)) if v is None
    ]
    if missing:
        raise ValueError(
            f"an audit needs {' and '.join(missing)}; `retroact audit --help` shows how they are"
            " written"
        )
    assert net is not None and threat is not None and data is not None
    if (activation is None) == (against is None):
        raise ValueError(
            'expected either an ACTIVATION, such as "JumpReLU(1.0)", or --against NETWORK'
        )
    _check_also(also, activation)
    if quick and thorough:
        raise ValueError("expected --quick or --thorough, got both")
    wanted = _answers(fail_on)
    writers = {"page": html, "markdown": md, "as_json": json_}
    for path in writers.values():
        _check_folder(path)

    from retroact.auditing.audit import CLAIMED
    from retroact.auditing.audit import audit as run
    from retroact.experiments.executors import one_thread
    from retroact.nets.data import data as read
    from retroact.reports import audited
    from retroact.reports.html import write
    from retroact.retrofitting.surgery import retrofit as fit

    images, attack, radius = (
        read(data),
        CLAIMED if claimed is None else _spec(claimed, "norms"),
        _spec(threat, "norm"),
    )
    twin = _loaded(net, weights, images)
    if against is None:
        assert activation is not None
        changed: Any = fit(twin, _spec(activation, "surrogate"), sites=sites, also=also or ())
    else:
        changed = _loaded(against, against_weights, images, said=net)
    _say_left_alone(changed)
    with _bar("audit") as progress, one_thread():
        made = run(
            twin,
            changed,
            images,
            radius,
            claimed=attack,
            battery="quick" if quick else "thorough" if thorough else None,
            draws=draws,
            margin=margin,
            seed=seed,
            workers=workers or _cores(),
            progress=progress,
        )
    _print_audit(made.numbers().to_json())
    for writer, path in writers.items():
        if path is not None:
            err.print(
                f"wrote {write(getattr(audited, writer)(made), path)}",
                highlight=False,
                soft_wrap=True,
            )
    if wanted & {made.verdict.effect, *made.verdict.claim.split(", ")}:
        raise typer.Exit(1)


def _answers(text: str) -> set[str]:
    """The words of --fail-on, each an effect or a claim."""
    from typing import get_args

    from retroact.auditing.verdict import Claim, Effect

    known = list(
        dict.fromkeys(
            word for said in (*get_args(Effect), *get_args(Claim)) for word in said.split(", ")
        )
    )
    words = {word.strip().upper() for word in text.split(",") if word.strip()}
    if words - set(known):
        raise ValueError(
            f"--fail-on knows no {', '.join(sorted(words - set(known)))}; expected some of:"
            f" {', '.join(known)}"
        )
    return words


def _check_folder(path: Path | None) -> None:
    """Says before the work, not after it, that a file cannot be written."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ValueError(
            f"no folder {path.absolute().parent} to write {path.name} into; make it first"
        )


def _print_audit(found: dict[str, Any]) -> None:
    low, high = (f"{100 * v:+.1f}" for v in found["interval"])
    claim = found["claim"].replace("MASKED", f"MASKED by {found['mechanism']}")
    said = (
        f"{found['effect']}; {claim} (verified"
        f" {100 * (found['verified'] - found['verified_twin']):+.1f} points "
    )
    said += f"[{low}, {high}], p = {found['p']:.2g}, n = {found['n']})"
    out.print(said, style="bold", highlight=False, markup=False)
    out.print(found["plainly"], highlight=False, markup=False)
    rows = []
    for name, suffix in ((found["twin"], "_twin"), (found["network"], "")):
        row = {
            f"{what} %": f"{100 * found[what + suffix]:.1f}"
            for what in ("clean", "claimed", "verified")
        }
        rows.append({f"{found['threat']} on {found['data']}": name, **row})
    _print_rows(rows, empty="")
    for r in found["indicators"]:
        if r["fired"]:
            seen = (
                f"! {r['title']}, a sign of {r['mechanism']}: {r['value']:.3g}, twin"
                f" {r['twin']:.3g}"
            )
            out.print(seen, style="yellow", highlight=False, markup=False)
    for doubt in found["doubts"]:
        out.print(f"? {doubt}", style="yellow", highlight=False, markup=False)


def _selftest() -> None:
    """The audit's own test on a network and data that come with the package."""
    from retroact import checkpoint
    from retroact.auditing.battery import QUICK
    from retroact.auditing.selftest import selftest
    from retroact.crafting.threat import Linf
    from retroact.experiments.executors import one_thread
    from retroact.nets.data import data
    from retroact.training.hardening import Hardening, harden

    net, threat = checkpoint.load("digits-cnn"), Linf(0.1)
    with one_thread(), _bar("self-test") as progress:
        # adversarial training: it is genuine
        trained = Hardening(learn="all", steps=80, batch=128, lr=0.003)
        robust = harden(net, data("digits/train"), threat, trained).net
        checks = selftest(
            net,
            data("digits[:120]"),
            threat,
            robust=robust,
            kappa=0.5,
            battery=QUICK,
            progress=progress,
        )
    for check in checks:
        out.print(
            str(check),
            style=None if check.passed else "red",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if not all(check.passed for check in checks):
        raise typer.Exit(1)


@app.command()
def harden(
    net: NetArgument,
    threat: ThreatOption,
    data: Annotated[
        str, typer.Option(help='training data, such as "mnist/train[:5000]"; never test data')
    ],
    held: Annotated[
        str | None,
        typer.Option(help='what --keep is measured on, such as "mnist/validation[:1000]"'),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="share of clean accuracy to keep (with --held: 0.99)")
    ] = None,
    learn: Annotated[
        str, typer.Option(help="shifts, kappa, slopes, norms, ends, or all")
    ] = "shifts",
    steps: Annotated[
        int | None, typer.Option(min=1, help="of the optimiser (default: the recipe's)")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="images per step (default: the recipe's)")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="of the optimiser (default: what suits --learn)")
    ] = None,
    clean_weight: Annotated[
        float | None, typer.Option(help="share of the loss on clean images (default: 0.5)")
    ] = None,
    eps_factor: Annotated[
        float | None, typer.Option(help="learn at so many times the threat's eps")
    ] = None,
    attack_steps: Annotated[
        int | None, typer.Option(min=1, help="of the attack in each step (default: 7)")
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="learn in bfloat16, on a processor that has it")
    ] = False,
    also: AlsoOption = None,
    seed: SeedOption = 0,
    to: Annotated[
        Path | None, typer.Option("--out", help="save the hardened network here (.safetensors)")
    ] = None,
    weights: WeightsOption = "",
    as_json: JsonOption = False,
) -> None:
    """Learn very little of a trained network, such as its activations' shifts, so that it is harder
    to fool."""
    _check_folder(to)
    if to is not None and to.suffix != ".safetensors":
        raise ValueError(f"expected a name that ends in .safetensors, got --out {to}")

    from retroact import checkpoint
    from retroact.nets.data import data as read
    from retroact.training.hardening import Hardening
    from retroact.training.hardening import harden as run

    given: dict[str, Any] = {"learn": learn, "steps": steps, "batch": batch}
    given |= {
        "lr": lr,
        "clean_weight": clean_weight,
        "eps_factor": eps_factor,
        "attack_steps": attack_steps,
    }
    recipe = Hardening(**{k: v for k, v in given.items() if v is not None}, bf16=bf16)
    share = keep if keep is not None else 0.0 if held is None else 0.99
    images, kept, radius = read(data), read(held) if held else None, _spec(threat, "norm")
    plain, kinds = _loaded(net, weights, images), also or ()
    with _bar(f"harden {net}") as progress:
        made = run(
            plain,
            images,
            radius,
            recipe,
            keep=share,
            held=kept,
            also=kinds,
            seed=seed,
            progress=progress,
        )
    _say_left_alone(made.net)
    if not as_json:
        rows = [
            {"dose": f"{p.dose:.2f}", "clean % on held-out": f"{100 * p.clean:.1f}"}
            for p in made.curve
        ]
        if held is not None:
            _print_rows(rows, empty="")
    told: dict[str, Any] = {
        "learned": f"{made.learned} of {made.parameters} numbers ({made.recipe.learn})",
        "dose": made.dose,
        "seconds": round(made.seconds, 1),
        "data": made.data,
    }
    if as_json:
        told |= {"recipe": str(recipe), "learned": made.learned, "parameters": made.parameters}
        told["curve"] = [vars(p) for p in made.curve]
    if to is not None:
        told["saved"] = str(checkpoint.save(made.net, to))
    _print_result(told, as_json)


# -------------------------------------------------------------------------------- attack and sweep


@app.command()
def attack(
    net: NetArgument,
    attack: AttackArgument,
    threat: ThreatOption,
    data: DataOption,
    activation: ActivationOption = None,
    sites: SitesOption = "*",
    also: AlsoOption = None,
    source: Annotated[
        str | None, typer.Option(help="craft on this network's gradients (gray box)")
    ] = None,
    source_activation: Annotated[
        str | None, typer.Option(help="retrofit the source network first")
    ] = None,
    source_weights: Annotated[
        str, typer.Option(help="weights of --source (default: those of NET where it is NET, too)")
    ] = "",
    beta: Annotated[
        float, typer.Option(help="smooth the activation's backward pass (BPDA): try 8 / kappa")
    ] = 0.0,
    kernel: Annotated[
        str, typer.Option(help="of the smoothed backward pass: sigmoid or rectangle")
    ] = "sigmoid",
    goal: Annotated[
        str, typer.Option(help="Untargeted, Targeted(3), LeastLikely, Random(seed=0)")
    ] = "Untargeted",
    seed: SeedOption = 0,
    dtype: Annotated[
        str, typer.Option(help="own (the network's), float32, float64, bfloat16, float16")
    ] = "own",
    chunk: ChunkOption = None,
    device: DeviceOption = "cpu",
    store: StoreOption = STORE,
    keep: Annotated[
        int, typer.Option(min=0, help="keep the images of the first so many examples")
    ] = 0,
    weights: WeightsOption = "",
    as_json: JsonOption = False,
    dry_run: DryOption = False,
) -> None:
    """Attack a network, retrofitted or not, and say how much of it stands."""
    from retroact.experiments.cell import Cell

    _check_also(also, activation, source_activation)
    of_source = source_weights or (weights if source == net else "")
    cell = Cell(
        _model(net, weights, _maybe(activation), sites, also=also),
        data,
        _spec(attack, "norms"),
        _spec(threat, "norm"),
        goal=_spec(goal),
        source=(
            None
            if source is None
            else _model(source, of_source, _maybe(source_activation), also=also, said=net)
        ),
        beta=beta,
        kernel=kernel,  # type: ignore[arg-type]
        seed=seed,
        dtype=dtype,  # type: ignore[arg-type]
    )
    _run([cell], store, 1, keep, chunk, device, as_json, dry_run)


@app.command()
def sweep(
    net: Annotated[
        list[str], typer.Option(help="network; may be given several times, as all below")
    ],
    attack: Annotated[list[str], typer.Option(help='such as "PGD(steps=40)"')],
    threat: Annotated[list[str], typer.Option(help='such as "Linf(0.1)"')],
    data: DataOption,
    activation: Annotated[
        list[str] | None, typer.Option(help='such as "JumpReLU(kappa=1.0)"; none: as it is')
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="gray box from this network, beside white box")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="weights of each --net, in their order; none: a network without"),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="seeds")] = None,
    sites: SitesOption = "*",
    also: AlsoOption = None,
    chunk: ChunkOption = None,
    device: DeviceOption = "cpu",
    workers: Annotated[int, typer.Option(help="processes; 0: one per core")] = 0,
    store: StoreOption = STORE,
    keep: Annotated[
        int, typer.Option(min=0, help="keep the images of the first so many examples")
    ] = 0,
    as_json: JsonOption = False,
    dry_run: DryOption = False,
) -> None:
    """Every combination of networks, activations, attacks, threats and seeds; resumes by being run
    again."""
    from retroact.experiments.sweep import grid

    _check_also(also, *(activation or []))
    files = _weights_of(net, weights or [])
    cells = grid(
        [_model(n, file) for n, file in zip(net, files, strict=True)],
        [_maybe(a) for a in activation or ["none"]],
        [_spec(a, "norms") for a in attack],
        [_spec(t, "norm") for t in threat],
        data,
        sources=[
            None,
            *(_model(s, dict(zip(net, files, strict=True)).get(s, "")) for s in source or []),
        ],
        seeds=seed or [0],
        sites=sites,
        also=also or (),
    )
    _run(cells, store, workers or _cores(), keep, chunk, device, as_json, dry_run)


def _weights_of(nets: Sequence[str], weights: Sequence[str]) -> list[str]:
    if len(weights) not in (0, len(nets)):
        raise ValueError(
            f"expected one --weights for each of {len(nets)} --net, in their order, got"
            f" {len(weights)}"
        )
    return ["" if file.lower() == "none" else file for file in weights] or [""] * len(nets)


def _run(
    cells: Sequence[Cell],
    path: Path,
    workers: int,
    keep: int,
    chunk: int | None,
    device: str,
    as_json: bool,
    dry_run: bool,
) -> None:
    from retroact.experiments.store import Store
    from retroact.experiments.sweep import plan
    from retroact.experiments.sweep import sweep as run

    if dry_run:
        from retroact.experiments.costs import estimate

        return _print_result(
            estimate(cells, path, workers=workers, keep=keep, chunk=chunk, device=device), as_json
        )
    _say_of_cells(cells)
    with Store(path) as store:
        with _bar(f"{len(cells)} cells" if len(cells) > 1 else "attack") as progress:
            run(
                cells,
                store,
                workers=workers,
                keep=keep,
                chunk=chunk,
                device=device,
                progress=progress,
            )
        found = _lines_of(store, plan(cells, store).cells)
    if as_json:
        return _print_json([line.numbers() for line in found])
    _print_lines(found)


def _lines_of(store: Store, keys: Sequence[str] | dict[str, Any]) -> list[Line]:
    from retroact.reports.tables import lines

    return [line for line in lines(store) if line.key in keys]


# -------------------------------------------------------------------------------- report and export


@app.command()
def report(
    store: StoreOption = STORE,
    cells: Annotated[
        str, typer.Option(help="only cells whose key or print matches this glob")
    ] = "*",
    html: Annotated[Path | None, typer.Option(help="write a self-contained page here")] = None,
    md: Annotated[Path | None, typer.Option(help="write Markdown tables here")] = None,
    csv: Annotated[Path | None, typer.Option(help="write one row per cell here")] = None,
    title: Annotated[str, typer.Option(help="of the page")] = "retroact report",
    as_json: JsonOption = False,
) -> None:
    """Tables, curves and pictures from stored cells; reads records only."""
    from retroact.experiments.store import Store
    from retroact.reports import html as pages
    from retroact.reports.tables import as_csv, lines, markdown

    with Store(store, create=False) as opened:
        found = lines(opened, cells, images=html is not None)
    if not found:
        raise ValueError(
            f"no cell in {store} matches {cells!r}; `retroact list store` shows what is there"
        )
    if html is not None:
        err.print(
            f"wrote {pages.write(pages.page(found, title=title), html)}",
            highlight=False,
            soft_wrap=True,
        )
    if md is not None:
        err.print(
            f"wrote {pages.write(markdown(found) + chr(10), md)}", highlight=False, soft_wrap=True
        )
    if csv is not None:
        err.print(f"wrote {pages.write(as_csv(found), csv)}", highlight=False, soft_wrap=True)
    if as_json:
        return _print_json([line.numbers() for line in found])
    if html is md is csv is None:
        _print_lines(found)


@app.command()
def study(
    paper: Annotated[str, typer.Argument(help="jumprelu or srelu")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="one item, such as figure_2; may be given several times"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a few hundred images, minutes in all")
    ] = False,
    large: Annotated[
        bool,
        typer.Option(
            "--large", help="with --quick: WideResNet and MobileNetV2 too; hours on a CPU"
        ),
    ] = False,
    full: Annotated[
        list[str] | None,
        typer.Option(
            help="with --quick: make this item at full size, of all networks; may be repeated"
        ),
    ] = None,
    out_: Annotated[
        Path, typer.Option("--out", help="folder for PAPER.html, PAPER.md and the figures")
    ] = Path("studies"),
    store: StoreOption = Path("retroact-studies.sqlite"),
    facts: Annotated[
        Path | None,
        typer.Option(
            help=(
                "JSON file of measurements: what the store lacks is read from it, and it is written"
                " anew"
            )
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="processes; 0: one per core")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a paper's tables and figures anew, beside the published numbers, with a verdict on each
    claim."""
    import warnings

    from retroact.experiments import carried
    from retroact.experiments.store import Store
    from retroact.reports.html import write
    from retroact.studies.study import study as made_of
    from retroact.studies.study import written

    with Store(store) as opened, _bar(f"study {paper}") as progress, warnings.catch_warnings():
        # of the libraries beneath; our own alarms stand in the tables
        warnings.simplefilter("ignore")
        chosen: dict[str, Any] = {
            "only": only or (),
            "quick": quick,
            "large": large,
            "full": full or (),
        }
        if facts is not None and facts.exists():
            carried.read_json(facts, opened)
        found = made_of(paper, opened, **chosen, workers=workers or _cores(), progress=progress)
        if facts is not None:
            facts.parent.mkdir(parents=True, exist_ok=True)
            write(carried.as_json(opened), facts)
    if as_json:
        return _print_json(
            [
                {"claim": said, "answer": c.answer, "because": c.because}
                for said, c, _ in found.claims
            ]
        )
    # before anything is printed, so that `| head` does not cost the page
    paths = written(found, out_)
    for said, claim, _ in found.claims:
        out.print(
            f"{claim.answer}: {said} ({claim.because})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for path in paths:
        err.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def export(
    net: NetArgument,
    to: Annotated[Path, typer.Argument(help="FILE.onnx or FILE.pt2")],
    activation: ActivationOption = None,
    sites: SitesOption = "*",
    also: AlsoOption = None,
    weights: WeightsOption = "",
    data: Annotated[str | None, typer.Option(help="check the file on these images")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a network, retrofitted or not, as ONNX or torch.export; checked against the
    original."""
    from retroact.nets.data import data as read
    from retroact.retrofitting.export import export as write
    from retroact.retrofitting.surgery import retrofit as fit

    images, chosen = None if data is None else read(data), _maybe(activation)
    _check_also(also, activation)
    model = _loaded(net, weights, images)
    if chosen is not None:
        model = fit(model, chosen, sites=sites, also=also or ())
    _say_left_alone(model)
    checked = write(model, to, images=None if images is None else images.images)
    _print_result(vars(checked), as_json)


# --------------------------------------------------------------------- networks, as words name them


def _loaded(net: str, weights: str, images: Any = None, *, said: str | None = None) -> Any:
    """The network; `images` tell it their shape where it does not say it itself."""
    from retroact import checkpoint

    name, file = _named(net, weights, said)
    found = checkpoint.load(
        name, weights=file or None, shape=None if images is None else images.images.shape[1:]
    )
    _say_notes(found)
    return found


def _model(
    net: str,
    weights: str,
    activation: Any = None,
    sites: str = "*",
    *,
    also: Sequence[str] | None = None,
    said: str | None = None,
) -> Any:
    from retroact.experiments.cell import Model

    name, file = _named(net, weights, said)
    return Model(
        name, activation, sites, file=file, also=() if activation is None else tuple(also or ())
    )


def _check_also(also: Sequence[str] | None, *activations: str | None) -> None:
    if also and all(a is None or a.lower() == "none" for a in activations):
        raise ValueError(
            f"--also {also[0]} says what an activation replaces, and none is given; give one, or"
            " drop it"
        )


def _say_of_cells(cells: Sequence[Cell]) -> None:
    """Says of every network of the cells, once, how its weights were brought and what its retrofit
    leaves alone."""
    from dataclasses import replace

    from retroact.nets.data import data

    models = [(m, cell) for cell in cells for m in (cell.model, cell.source) if m is not None]
    for model in dict.fromkeys(replace(m, activation=None, sites="*", also=()) for m, _ in models):
        _say_notes(model.bare())
        _say_left_alone(model.bare(), model.called)
    alike = {
        (m.net, m.file, m.sites, m.also): (m, cell)
        for m, cell in models
        if m.activation is not None
    }
    for model, cell in alike.values():
        _say_left_alone(model(data(cell.data).images.shape[1:]), model.called)


def _say_notes(net: Any) -> None:
    for note in getattr(net, "notes", ()):
        err.print(note, highlight=False, markup=False, soft_wrap=True)


def _say_left_alone(net: Any, name: str = "") -> None:
    """Says which kinds of activations a retrofit left as they are, and how many calls."""
    from retroact.retrofitting.sites import left_alone

    found = left_alone(net) if getattr(net, "retrofit", None) is not None else {}
    if found:
        kinds = ", ".join(f"{n} {kind}" for kind, n in found.items())
        said = f"left alone{' in ' if name else ''}{name}: {kinds} (--also replaces a kind)"
        err.print(said, highlight=False, markup=False, soft_wrap=True)


def _named(net: str, weights: str, said: str | None) -> tuple[str, str]:
    """A network's name and weights. A saved file of somebody's own network stands for both: its
    code and itself.

    The code is run where this command names it too (`said`), or where it is written under the
    folder in which the user stands; a line on stderr says so. Else loading the file says how to
    name it.
    """
    from retroact import checkpoint
    from retroact.nets import zoo

    code = "" if weights else checkpoint.code_of(net)
    if not code or code == said:
        return (code, net) if code else (net, weights)
    file = zoo.written_here(code)
    if file is None:
        return net, weights
    err.print(f"{net} names {code}: running {file}", highlight=False, markup=False, soft_wrap=True)
    return code, net


# ----------------------------------------------------------------------------------- small services


def _spec(text: str, having: str | None = None) -> Any:
    from retroact.spec import parse

    return parse(text, having=having)


def _maybe(text: str | None) -> Any:
    return None if text is None or text.lower() == "none" else _spec(text, "surrogate")


def _import_all() -> None:
    import retroact

    for name in retroact.__all__:
        getattr(retroact, name)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _bar(what: str) -> Iterator[Callable[[float, int], None]]:
    """A progress bar with an ETA on stderr, which shows itself once two seconds have passed."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=err, transient=True)
    task = bar.add_task(what, total=None)
    began = time.monotonic()

    def progress(done: float, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - began > 2.0:
            bar.start()

    try:
        yield progress
    finally:
        if bar.live.is_started:
            bar.stop()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))


def _print_result(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return _print_json(result)
    for name, value in result.items():
        if isinstance(value, dict):
            value = [f"{n} {kind}" for kind, n in value.items()] or ["nothing"]
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        out.print(f"{name}: {shown}", highlight=False, markup=False, soft_wrap=True)


def _print_rows(rows: Sequence[dict[str, Any]], *, empty: str) -> None:
    if not rows:
        out.print(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        # Text: brackets are no markup
        table.add_row(*("" if v is None else Text(str(v)) for v in row.values()))
    out.print(table)


def _print_lines(found: Sequence[Line]) -> None:
    from retroact.reports.tables import grouped

    for (data, threat, goal), members in grouped(found):
        title = f"{threat} on {data}, {goal}, n = {len(members[0].record)}"
        out.print(f"\n{title}", style="bold", highlight=False, markup=False)
        out.print(_table_of(members))
        for line in members:
            for alarm in line.alarms():
                said = f"! {line.network}, {line.attack}: {alarm}, so this number is too good"
                out.print(said, style="yellow", highlight=False, markup=False)


def _table_of(members: Sequence[Line]) -> Table:
    from retroact.evaluation.metrics import clean_accuracy, rho, robust_accuracy
    from retroact.reports.tables import worst_cases

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("network and attack", "box"):
        table.add_column(name, overflow="fold")
    for name in ("clean %", "under attack %", "95 %", "ρ₂ %"):
        table.add_column(name, justify="right", no_wrap=True)
    worst = {w.network: w for w in worst_cases(members)}
    for network in dict.fromkeys(line.network for line in members):
        table.add_row(Text(network), style="bold cyan")
        for line in members:
            if line.network == network:
                values = (
                    clean_accuracy(line.record),
                    robust_accuracy(line.record),
                    rho(line.record),
                )
                clean, robust, noise = (f"{100 * v:.1f}" for v in values)
                box = line.fields.knowledge
                table.add_row(
                    Text(f"  {line.attack}"), box, clean, robust, _bounds(line.interval), noise
                )
        if network in worst:
            w = worst[network]
            label = f"  worst case of these {w.attacks}"
            table.add_row(
                label, "", "", f"{100 * w.accuracy:.1f}", _bounds(w.interval), "", style="bold"
            )
    return table


def _bounds(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


if __name__ == "__main__":
    main()
