"""`check`: one network and a number from a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroact.cli import answers, options
from retroact.cli.audits import (
    ClaimedOption,
    DataOption,
    DrawsOption,
    JUnitOption,
    QuickOption,
    RejectedOption,
    ThoroughOption,
    print_forecast,
)
from retroact.cli.codes import FOUND, NOT_SETTLED, worst
from retroact.cli.completing import complete_nets
from retroact.cli.console import print_rows, progress_bar, say, tell_json
from retroact.cli.named import Bringing, opened
from retroact.spec import CallError

if TYPE_CHECKING:
    from retroact.auditing.claims import Check
    from retroact.reports.junit import Case

NetArgument = Annotated[
    str, typer.Argument(help="zoo name, file, module:function", autocompletion=complete_nets)
]
ReportedOption = Annotated[
    float | None, typer.Option(help="the robust accuracy that was reported, in per cent: 53.1")
]
RequireOption = Annotated[
    bool,
    typer.Option(
        "--require-stands",
        help="exit with 0 only where the claim stands, with 1 where it is too high, else with 4",
    ),
]


def check(
    net: NetArgument,
    threat: options.Threat,
    data: DataOption,
    reported: ReportedOption = None,
    claimed: ClaimedOption = None,
    quick: QuickOption = False,
    thorough: ThoroughOption = False,
    rejected: RejectedOption = None,
    draws: DrawsOption = 0,
    seed: options.Seed = 0,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    junit: JUnitOption = None,
    require_stands: RequireOption = False,
    store: options.Parts = None,
    wait: options.Wait = False,
    fresh: options.Fresh = False,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
) -> None:
    """Whether a reported robust accuracy stands, where there is no network before to compare with.

    \b
    Example:
      retroact check digits-cnn --threat "Linf(0.1)" --data digits --reported 53.1
    """
    if quick and thorough:
        raise CallError("expected --quick or --thorough, got both")
    if require_stands and reported is None:
        raise CallError("--require-stands asks about a claim: give --reported, such as 53.1")
    options.check_folder(junit)
    options.check_fresh(fresh, store)
    bring = Bringing.of([net], mean, std, shape, device)
    if not dry_run:
        answers.begin(junit, "check", is_asked=require_stands, by="--require-stands")

    from retroact.auditing.claims import check as run

    images = bring.read(data)
    network = bring.load(net, weights, images)
    how: dict[str, Any] = {"battery": "quick" if quick else "thorough" if thorough else None}
    how |= {"draws": draws} | ({} if claimed is None else {"claimed": claimed})
    if dry_run:
        return print_forecast(network, network, images, as_json, json_out, how)
    how |= {"rejected": rejected, "seed": seed}
    with opened(store, wait) as parts, progress_bar("check") as progress:
        how |= {"store": parts, "fresh": fresh}
        result = run(network, images, threat, reported, progress=progress, **how)
    every = [result] if result.also is None else [result, result.also]
    if not tell_json(result.to_json(), as_json, json_out):
        for one in every:
            _print(one, f"{threat} on {data}", net)
    codes = [_answer(one) if require_stands else 0 for one in every]
    answers.end(junit, "check", map(_case, every, codes))
    raise typer.Exit(worst(codes))


def _case(result: Check, code: int) -> Case:
    """The answer for a JUnit file."""
    name = f"{result.audit.names.after} as reported"
    return answers.case_of(result.audit.numbers(), name, str(result), code)


def _print(result: Check, where: str, net: str) -> None:
    say(str(result), style="bold", wrap=True)
    shares = {"clean": result.clean, "claimed": result.claimed, "verified": result.verified}
    print_rows([{where: net} | {f"{what} %": f"{100 * v:.1f}" for what, v in shares.items()}])
    for attack in result.audit.after.attacks:
        if attack.asked_by:
            found = f"{attack.title} broke {attack.broken} of {attack.asked}"
            say(f"! {found}, asked for by: {attack.asked_by}", style="yellow", wrap=True)


def _answer(result: Check) -> int:
    return {"STANDS": 0, "TOO HIGH": FOUND}.get(result.statement, NOT_SETTLED)
