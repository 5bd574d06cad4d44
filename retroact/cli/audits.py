"""`audit`, and the audit's own test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroact.cli import options
from retroact.cli.console import note, print_rows, progress_bar, say
from retroact.cli.named import executor_of, load, say_left_alone

if TYPE_CHECKING:
    from torch import nn

    from retroact.auditing.audit import Audit
    from retroact.auditing.numbers import AuditNumbers
    from retroact.auditing.selftest import Check
    from retroact.crafting.threat import ThreatModel
    from retroact.nets.data import Images

NetArgument = Annotated[
    str, typer.Argument(help="the network before the change: zoo name, file, module:function")
]
ChangeArgument = Annotated[
    str | None, typer.Argument(help='what was changed, such as "JumpReLU(kappa=1.0)"')
]
DataOption = Annotated[str, typer.Option(help='test data, such as "mnist[:300]"')]
AgainstOption = Annotated[
    str | None, typer.Option(help="audit this changed network instead of an activation")
]
ClaimedOption = Annotated[
    str | None, typer.Option(help="the attack behind the claim (default: the papers' PGD)")
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="the decisive attacks only, for a first answer")
]
ThoroughOption = Annotated[
    bool,
    typer.Option("--thorough", help="begin anew, with ever more steps, until nothing more falls"),
]
DrawsOption = Annotated[
    int, typer.Option(min=0, help="average a randomised network over so many draws")
]
MarginOption = Annotated[
    float, typer.Option(min=0.001, max=1, help="the difference of accuracy that matters")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="2: both networks at once; 0: one per core")
]
AgainstWeightsOption = Annotated[str, typer.Option(help="weights of --against, likewise")]
MdOption = Annotated[Path | None, typer.Option(help="write Markdown here")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="write all numbers here")]
FailOnOption = Annotated[
    str, typer.Option(help='exit with 1 on these answers, such as "MASKED,HARMFUL"')
]


def audit(
    net: NetArgument,
    threat: options.Threat,
    data: DataOption,
    activation: ChangeArgument = None,
    against: AgainstOption = None,
    sites: options.Sites = "*",
    also: options.Also = None,
    claimed: ClaimedOption = None,
    quick: QuickOption = False,
    thorough: ThoroughOption = False,
    draws: DrawsOption = 0,
    margin: MarginOption = 0.05,
    workers: WorkersOption = None,
    executor: options.Executor = None,
    seed: options.Seed = 0,
    weights: options.Weights = "",
    against_weights: AgainstWeightsOption = "",
    html: options.Html = None,
    md: MdOption = None,
    json: JsonOption = None,
    fail_on: FailOnOption = "",
) -> None:
    """What a changed network is worth beside the one before: claimed, verified, and why they
    differ."""
    _check(activation, against, also, quick, thorough)
    answers, pages = _answers(fail_on), {"page": html, "markdown": md, "as_json": json}
    for path in pages.values():
        options.check_folder(path)

    from retroact.nets.data import data as read
    from retroact.reading import as_threat

    images, radius = read(data), as_threat(threat)
    before = load(net, weights, images)
    after = _after(before, activation, sites, also, images, against, against_weights, net)
    say_left_alone(after)
    how: dict[str, Any] = {"draws": draws, "margin": margin, "seed": seed}
    how |= {"battery": "quick" if quick else "thorough" if thorough else None}
    how |= {} if claimed is None else {"claimed": claimed}
    where = executor_of(executor, workers, "Threads")
    result = _run(before, after, images, radius, executor=where, **how)
    _print_audit(result.numbers())
    _write(result, pages)
    if answers & {result.verdict.effect, *result.verdict.words}:
        raise typer.Exit(1)


def selftest() -> None:
    """Audit fakes with known answers, on a network and data that come with the package."""
    from retroact.auditing.battery import QUICK
    from retroact.auditing.mechanisms.mechanism import Given
    from retroact.auditing.selftest import selftest as run
    from retroact.crafting.threat import Linf
    from retroact.executors import one_thread
    from retroact.nets import zoo
    from retroact.nets.data import data
    from retroact.training.anew import trained_anew
    from retroact.training.hardening import Hardening, harden

    net, threat = zoo.load("digits-cnn"), Linf(0.1)
    with one_thread(), progress_bar("self-test") as progress:
        # adversarial training: it is genuine
        recipe = Hardening(learn="all", steps=80, batch=128, lr=0.003)
        robust = harden(net, train := data("digits/train"), threat, recipe).net
        # fakes of another seed too, as what fools one seed's network hides a fake of it
        pair = net, trained_anew("digits-cnn", seed=1)
        fakes = [Given(n, tuple(o for o in pair if o is not n), train, threat.eps) for n in pair]
        how: dict[str, Any] = {"robust": robust, "kappa": 0.5, "battery": QUICK, "fakes": fakes}
        checks = run(net, data("digits[:120]"), threat, progress=progress, **how)
    _tell(checks)


def _tell(checks: Sequence[Check]) -> None:
    failed = [check for check in checks if not check.passed]
    for check in checks:
        say(str(check), style=None if check.passed else "red")
    say(f"{len(checks) - len(failed)} of {len(checks)} passed")
    if failed:
        raise typer.Exit(1)


def _check(
    activation: str | None,
    against: str | None,
    also: list[str] | None,
    quick: bool,
    thorough: bool,
) -> None:
    if (activation is None) == (against is None):
        raise ValueError(
            'expected either an ACTIVATION, such as "JumpReLU(1.0)", or --against NETWORK'
        )
    options.check_also(also, activation)
    if quick and thorough:
        raise ValueError("expected --quick or --thorough, got both")


def _answers(text: str) -> set[str]:
    """The words of --fail-on, each an effect or a claim."""
    from typing import get_args

    from retroact.auditing.verdict import Effect, Word

    answers = [*get_args(Effect), *get_args(Word)]
    words = {word.strip().upper() for word in text.split(",") if word.strip()}
    if words - set(answers):
        raise ValueError(
            f"--fail-on knows no {', '.join(sorted(words - set(answers)))}; expected some of:"
            f" {', '.join(answers)}"
        )
    return words


def _after(
    before: nn.Module,
    activation: str | None,
    sites: str,
    also: list[str] | None,
    images: Images,
    against: str | None,
    weights: str,
    net: str,
) -> nn.Module:
    """The network after the change: the one before with an activation, or another one."""
    from retroact.reading import as_activation
    from retroact.retrofitting.surgery import retrofit

    if activation is None:
        assert against is not None
        return load(against, weights, images, beside=net)
    return retrofit(before, as_activation(activation), sites=sites, also=also or ())


def _run(
    before: nn.Module, after: nn.Module, images: Images, threat: ThreatModel, **how: Any
) -> Audit:
    from retroact.auditing.audit import audit
    from retroact.executors import one_thread

    with progress_bar("audit") as progress, one_thread():
        return audit(before, after, images, threat, progress=progress, **how)


def _write(result: Audit, pages: Mapping[str, Path | None]) -> None:
    from retroact.reports import audited
    from retroact.reports.html import write

    for form, path in pages.items():
        if path is not None:
            note(f"wrote {write(getattr(audited, form)(result), path)}")


def _print_audit(numbers: AuditNumbers) -> None:
    low, high = (f"{100 * v:+.1f}" for v in numbers.interval)
    say(
        f"{numbers.effect}; {numbers.explained_claim} (verified {100 * numbers.gain:+.1f} points "
        f"[{low}, {high}], p = {numbers.p:.2g}, n = {numbers.n})",
        style="bold",
        wrap=True,
    )
    say(numbers.plainly, wrap=True)
    print_rows([_row(numbers, side) for side in (0, 1)])
    for r in numbers.indicators:
        if r.fired:
            values = f"{r.value:.3g}, before {r.before:.3g}"
            say(f"! {r.title}, a sign of {r.mechanism}: {values}", style="yellow", wrap=True)
    for doubt in numbers.doubts:
        say(f"? {doubt}", style="yellow", wrap=True)


def _row(numbers: AuditNumbers, side: int) -> dict[str, str]:
    pairs = {"clean": numbers.clean, "claimed": numbers.claimed, "verified": numbers.verified}
    shares = {f"{what} %": f"{100 * pair[side]:.1f}" for what, pair in pairs.items()}
    return {f"{numbers.threat} on {numbers.data}": numbers.names[side]} | shares
