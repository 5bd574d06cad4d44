"""What is read at the end: `report`, `study`, and `demo`, which ends in a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroact.cli import options
from retroact.cli.completing import words
from retroact.cli.console import (
    note,
    print_lines,
    print_rows,
    progress_bar,
    say,
    say_indented,
    story,
    tell_json,
)
from retroact.cli.named import executor_of
from retroact.cli.planning import print_plan
from retroact.cli.stopping import if_stopped
from retroact.spec import CallError

if TYPE_CHECKING:
    from retroact.demo import Walk
    from retroact.experiments.store import Store
    from retroact.experiments.tuning import Point
    from retroact.studies.study import Study

DetailOption = Annotated[
    bool,
    typer.Option("--detail", help="with intervals, the sizes of perturbations, and JumpReLU tuned"),
]
DemoDataOption = Annotated[
    str,
    typer.Option(help="digits (embedded) or mnist", autocompletion=words("digits", "mnist")),
]
PageOption = Annotated[Path, typer.Option(help="where the report goes")]


def demo(
    data: DemoDataOption = "digits",
    report: PageOption = Path("retroact-demo.html"),
    detail: DetailOption = False,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """What two retrofits and hardening are worth, in half a minute: a small network under audit.

    \b
    Example:
      retroact demo --report demo.html
    """
    from retroact.demo import WHOSE, YOURS, run

    options.check_folder(report)
    with story("starting", quiet=as_json) as audience:
        made = run(data, report, detail=detail, audience=audience)
    if tell_json(made.to_json(), as_json, json_out):
        return
    if detail:
        _print_detail(made)
    say(f"\n{made.summary}", wrap=True)
    say(f"\nNow yours. {WHOSE}", wrap=True)
    for command in YOURS:
        say(f"  {command}")


def _print_detail(made: Walk) -> None:
    say(f"\nWith 95 % intervals, n = {made.networks[0].n}; differences in points:", wrap=True)
    print_rows([one.row() for one in made.networks])
    if made.tuning is not None:
        of = f"{made.tuning.data} (n = {made.tuning.n})"
        say(f"\nJumpReLU by tuning's own attacks on other images, {of}:", wrap=True)
        print_rows([_tuned(point) for point in made.tuning.points])
        say(made.tuned, wrap=True)


def _tuned(point: Point) -> dict[str, str]:
    shares = {"clean %": point.clean, "looks like %": point.claimed, "tuning's %": point.verified}
    return {"kappa": f"{point.knob:g}"} | {w: f"{100 * share:.1f}" for w, share in shares.items()}


CellsOption = Annotated[str, typer.Option(help="only cells whose key or print matches this glob")]
MdOption = Annotated[Path | None, typer.Option(help="write Markdown tables here")]
CsvOption = Annotated[Path | None, typer.Option(help="write one row per cell here")]
TitleOption = Annotated[str | None, typer.Option(help="of the page")]
AuditsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[AUDIT.json]...",
        help="audits to lay side by side, as `audit` wrote them, instead of a store's cells",
    ),
]


def report(
    audits: AuditsArgument = None,
    store: options.Store = options.STORE,
    cells: CellsOption = "*",
    html: options.Html = None,
    md: MdOption = None,
    csv: CsvOption = None,
    title: TitleOption = None,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Tables, curves and pictures from stored cells, or audits side by side; reads only what is
    stored.

    \b
    Example:
      retroact report --cells "*digits-cnn*" --html report.html --csv report.csv
    """
    if audits:
        return _lay_side_by_side(audits, cells, html, md, csv, title, as_json, json_out)
    from retroact.experiments.store import Store
    from retroact.files import write
    from retroact.reports.tables import as_csv, lines, markdown

    with Store(store, create=False, tell=note) as opened:
        chosen = lines(opened, cells, images=html is not None)
    if not chosen:
        raise ValueError(
            f"no cell in {store} matches {cells!r}; `retroact list store` shows what is there"
        )
    if html is not None:
        from retroact.reports.html import page  # which draws

        note(f"wrote {write(page(chosen, title=title or 'retroact report'), html)}")
    if md is not None:
        note(f"wrote {write(markdown(chosen) + chr(10), md)}")
    if csv is not None:
        note(f"wrote {write(as_csv(chosen), csv)}")
    told = tell_json([line.numbers() for line in chosen], as_json, json_out)
    if not told and html is md is csv is json_out is None:
        print_lines(chosen)


def _lay_side_by_side(
    audits: list[Path],
    cells: str,
    html: Path | None,
    md: Path | None,
    csv: Path | None,
    title: str | None,
    as_json: bool,
    json_out: Path | None,
) -> None:
    if cells != "*":
        raise CallError(f"expected audits or --cells of a store, got both: {audits[0]} and {cells}")
    from retroact.files import write
    from retroact.reports import compared

    rows, head = compared.rows_of(audits, html or Path()), title or compared.TITLE
    if html is not None:
        note(f"wrote {write(compared.page(rows, title=head), html)}")
    if md is not None:
        note(f"wrote {write(compared.markdown(rows, title=head), md)}")
    if csv is not None:
        note(f"wrote {write(compared.as_csv(rows), csv)}")
    told = tell_json([row.plain() for row in rows], as_json, json_out)
    if not told and html is md is csv is json_out is None:
        say(compared.summary(rows), wrap=True)
        print_rows([row.brief() for row in rows])


PaperArgument = Annotated[
    str,
    typer.Argument(
        help="jumprelu, srelu or ledger", autocompletion=words("jumprelu", "srelu", "ledger")
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(help="one item, such as figure_2; may be given several times"),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="a few hundred images, minutes in all")]
LargeOption = Annotated[
    bool,
    typer.Option("--large", help="with --quick: WideResNet and MobileNetV2 too; hours on a CPU"),
]
FullOption = Annotated[
    list[str] | None,
    typer.Option(
        help="with --quick: make this item at full size, of all networks; may be repeated"
    ),
]
StoredOption = Annotated[
    bool,
    typer.Option(
        "--stored",
        help="print what is stored, at the largest size, and measure nothing; pictures are drawn",
    ),
]
OutOption = Annotated[
    Path, typer.Option("--out", help="folder for PAPER.html, PAPER.md and the figures")
]
FactsOption = Annotated[
    Path | None,
    typer.Option(
        help=(
            "JSON file of measurements: what the store lacks is read from it, and, but with"
            " --stored, it is written anew, what these items use and no more (with --only: beside"
            " what it has)"
        )
    ),
]


BecauseOption = Annotated[
    bool, typer.Option("--detail", help="print what each verdict rests on, too")
]


def study(
    paper: PaperArgument,
    only: OnlyOption = None,
    quick: QuickOption = False,
    large: LargeOption = False,
    full: FullOption = None,
    stored: StoredOption = False,
    out: OutOption = Path("studies"),
    store: options.Store = Path("retroact-studies.sqlite"),
    wait: options.Wait = False,
    fresh: options.Fresh = False,
    facts: FactsOption = None,
    workers: options.Workers = None,
    executor: options.Executor = None,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
    detail: BecauseOption = False,
) -> None:
    """Make a paper's tables and figures anew, beside the published numbers, with a verdict on each
    claim.

    \b
    Example:
      retroact study srelu --quick --dry-run
      retroact study srelu --quick --only figure_1
    """
    from retroact.experiments.store import Store
    from retroact.studies.study import write_pages

    where = executor_of(executor, workers)
    how: dict[str, Any] = {"only": only or (), "quick": quick, "large": large, "full": full or ()}
    if dry_run:
        if stored:
            raise CallError("expected --stored, which measures nothing, or --dry-run, got both")
        path = None if fresh else store
        return print_plan(paper, path, facts, where.workers, as_json, json_out, how)
    how |= {"fresh": fresh, "stored": stored}
    truth = f"what was measured is in {store}; the same command goes on with the rest"
    with Store(store, wait=wait, tell=note) as opened, if_stopped(truth):
        made = _make_study(paper, opened, facts, executor=where, **how)
    said = [
        {"claim": text, "answer": claim.answer, "because": claim.because}
        for text, claim, _ in made.claims
    ]
    if tell_json(said, as_json, json_out):
        return
    # before anything is printed, so that `| head` does not cost the page
    paths = write_pages(made, out)
    for text, claim, _ in made.claims:
        say(f"{claim.answer}: {text}", wrap=True)
        if detail:
            say_indented(claim.because)
    if made.claims and not detail:
        say(f"\nWhy: {paths[0]}, or --detail", wrap=True)
    for path in paths:
        note(f"wrote {path}")


def _make_study(paper: str, store: Store, facts: Path | None, **how: Any) -> Study:
    """The study; its measurements are read from the file `facts` before, and written to it
    after, but for a stored one, which measures nothing."""
    import warnings

    from retroact.experiments import carried
    from retroact.files import write
    from retroact.studies.study import study

    with progress_bar(f"study {paper}") as progress, warnings.catch_warnings():
        # of the libraries beneath; our own alarms stand in the tables
        warnings.simplefilter("ignore")
        keys: set[str] = set()
        if facts is not None and facts.exists():
            carried.read_json(facts, store)
            keys = carried.carried_keys(facts) if how["only"] else keys
        result = study(paper, store, **how, progress=progress)
        if facts is not None and not how["stored"]:
            facts.parent.mkdir(parents=True, exist_ok=True)
            keys |= {key for item in result.items for key in item.keys}
            write(carried.as_json(store, keys), facts)
    return result
