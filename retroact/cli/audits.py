"""`audit`, and the audit's own test."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroact.cli import answers, options
from retroact.cli.codes import FOUND, NOT_SETTLED, worst
from retroact.cli.completing import complete_data, complete_nets, specs
from retroact.cli.console import (
    about_seconds,
    note,
    print_result,
    print_rows,
    progress_bar,
    say,
    tell_json,
)
from retroact.cli.named import Bringing, executor_of, opened, say_left_alone
from retroact.spec import CallError

if TYPE_CHECKING:
    from torch import nn

    from retroact.auditing.audit import Audit
    from retroact.auditing.evidence import Origin
    from retroact.auditing.numbers import AuditNumbers, Pair
    from retroact.auditing.selftest import Check
    from retroact.auditing.verdict import Verdict
    from retroact.auditing.verification import Verification
    from retroact.crafting.threat import ThreatModel
    from retroact.nets.data import Images
    from retroact.reports.junit import Case

NetArgument = Annotated[
    str,
    typer.Argument(
        help="the network before the change: zoo name, file, module:function",
        autocompletion=complete_nets,
    ),
]
ChangeArgument = Annotated[
    str | None,
    typer.Argument(
        help='what was changed, such as "JumpReLU(kappa=1.0)"',
        autocompletion=specs("activations"),
    ),
]
DataOption = Annotated[
    str, typer.Option(help='test data, such as "mnist[:300]"', autocompletion=complete_data)
]
AgainstOption = Annotated[
    str | None,
    typer.Option(
        help="audit this changed network instead of an activation", autocompletion=complete_nets
    ),
]
ClaimedOption = Annotated[
    str | None,
    typer.Option(
        help="the attack behind the claim (default: the papers' PGD)",
        autocompletion=specs("attacks"),
    ),
]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="the decisive attacks only, for a first answer")
]
ThoroughOption = Annotated[
    bool,
    typer.Option("--thorough", help="begin anew, with ever more steps, until nothing more falls"),
]
RejectedOption = Annotated[
    str | None,
    typer.Option(
        metavar="wrong|robust|both",
        help="what an example counts as that a network rejects (by one more class, or a flag)",
    ),
]
DrawsOption = Annotated[
    int, typer.Option(min=0, help="average a randomised network over so many draws")
]
MarginOption = Annotated[
    float, typer.Option(min=0.001, max=0.999, help="the difference of accuracy that matters")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="2: both networks at once; 0: one per core")
]
AgainstWeightsOption = Annotated[str, typer.Option(help="weights of --against, likewise")]
MdOption = Annotated[Path | None, typer.Option(help="write Markdown here")]
FailOnOption = Annotated[
    str | None,
    typer.Option(help='exit with 1 on these answers, such as "MASKED,HARMFUL", and with 4 on none'),
]
RequireOption = Annotated[
    str | None,
    typer.Option(
        metavar="not-weaker",
        help=(
            "exit with 0 only where the change is shown to cost less than --margin of verified"
            " accuracy, with 1 where it costs more, else with 4"
        ),
    ),
]
EvidenceOption = Annotated[
    Path | None,
    typer.Option(help="folder for every image that fell, page and JSON: for `retroact verify`"),
]
BaselineOption = Annotated[
    Path | None,
    typer.Option(
        help="JSON file from which the network before is read, where it is there; else written"
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(help="time box, such as 5m or 90s: takes as many examples as fit, and says so"),
]
JUnitOption = Annotated[
    Path | None,
    typer.Option("--junit", help="write what was required and found as JUnit XML here"),
]
REQUIREMENTS = ("not-weaker",)


def audit(
    net: NetArgument,
    threat: options.Threat,
    data: DataOption,
    activation: ChangeArgument = None,
    against: AgainstOption = None,
    sites: options.Sites = "*",
    also: options.Also = None,
    maps: options.Map = None,
    claimed: ClaimedOption = None,
    quick: QuickOption = False,
    thorough: ThoroughOption = False,
    rejected: RejectedOption = None,
    draws: DrawsOption = 0,
    margin: MarginOption = 0.05,
    budget: BudgetOption = None,
    workers: WorkersOption = None,
    executor: options.Executor = None,
    seed: options.Seed = 0,
    weights: options.Weights = "",
    against_weights: AgainstWeightsOption = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    html: options.Html = None,
    md: MdOption = None,
    junit: JUnitOption = None,
    fail_on: FailOnOption = None,
    require: RequireOption = None,
    evidence: EvidenceOption = None,
    baseline: BaselineOption = None,
    store: options.Parts = None,
    wait: options.Wait = False,
    fresh: options.Fresh = False,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
) -> None:
    """What a changed network is worth beside the one before: claimed, verified, and why they
    differ.

    \b
    Example:
      retroact audit digits-cnn "JumpReLU(0.5)" --threat "Linf(0.1)" --data digits
    """
    activation = options.mapped(activation, maps)
    _check(activation, against, also, quick, thorough)
    if evidence is not None and rejected is not None:
        raise CallError("expected --evidence or --rejected, got both: nothing verifies rejection")
    asked = _Asked.read(fail_on, require, margin)
    pages = {"page": html, "markdown": md}
    for path in (*pages.values(), baseline, junit):
        options.check_folder(path)
    options.check_folder(evidence, is_dir=True)
    options.check_fresh(fresh, store)
    _check_budget(budget)
    bring = Bringing.of([net, against], mean, std, shape, device)
    if not dry_run:
        answers.begin(junit, "audit", is_asked=asked.is_any, by="--require or --fail-on")

    from retroact.auditing.numbers import Pair
    from retroact.reading import as_activation, as_threat
    from retroact.reports.audited import as_json as as_text
    from retroact.retrofitting.surgery import retrofit

    images, radius = bring.read(data), as_threat(threat)
    before = bring.load(net, weights, images)
    if activation is None:
        assert against is not None
        after = bring.load(against, against_weights, images, beside=net)
    else:
        after = retrofit(before, as_activation(activation), sites=sites, also=also or ())
    say_left_alone(after)
    how: dict[str, Any] = {"battery": "quick" if quick else "thorough" if thorough else None}
    how |= {"draws": draws, "budget": budget, "executor": executor_of(executor, workers, "Threads")}
    how |= {} if claimed is None else {"claimed": claimed}
    if dry_run:
        return print_forecast(before, after, images, as_json, json_out, how)
    how |= {"margin": margin, "seed": seed, "baseline": baseline, "rejected": rejected}
    with opened(store, wait) as parts:
        how |= {"store": parts, "fresh": fresh}
        result = run_audit(before, after, images, radius, **how)
    if result.pedigree.budget:
        note(f"took {result.pedigree.budget}")
    if baseline is not None:
        note(f"the network before: {'read from' if result.before.stored else 'kept in'} {baseline}")
    # before anything is printed, so that `| head` does not cost them
    _write(result, pages, evidence)
    if evidence is not None:
        origins = _origins(net, weights, activation, sites, also, against, against_weights)
        _write_evidence(result, evidence, Pair(*map(bring.complete, origins)))
    every = [result] if result.also is None else [result, result.also]
    if not tell_json(loads(as_text(result)), as_json, json_out):
        for one in every:
            print_audit(one.numbers())
    tell = note if as_json else partial(say, wrap=True)
    codes = [asked.answer(one.verdict, tell) for one in every]
    answers.end(junit, "audit", map(asked.case, every, codes))
    raise typer.Exit(worst(codes))


def print_forecast(
    before: nn.Module,
    after: nn.Module,
    images: Images,
    as_json: bool,
    json_out: Path | None,
    how: dict[str, Any],
) -> None:
    """What an audit would take, of --dry-run."""
    from retroact.auditing.forecast import forecast
    from retroact.auditing.numbers import Pair
    from retroact.evaluation.evaluate import describe

    made = forecast(Pair(before, after), len(images), images.images.shape[1:], **how)
    cost = {
        "networks": list(dict.fromkeys(map(describe, (before, after)))),
        "examples": made.examples,
        "gradients without an alarm": made.gradients,
        "gradients at most": made.most_gradients,
        "seconds without an alarm, about": round(made.seconds, 1),
        "seconds at most, about": round(made.most, 1),
        "in words": (
            f"{about_seconds(made.seconds)} where no alarm fires, up to {about_seconds(made.most)}"
            " where alarms and doubts ask for all that they may; an example that is broken is"
            " attacked no more, so it is often less"
        ),
    }
    print_result(cost, as_json, json_out)


def _check_budget(budget: str | None) -> None:
    """Says before anything is loaded that it is no time."""
    if budget is not None:
        from retroact.durations import seconds_of

        seconds_of(budget)


SelfWorkersOption = Annotated[
    int | None, typer.Option(min=0, help="fakes at once, each in its process; 0: one per core")
]


def selftest(
    workers: SelfWorkersOption = None,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Audit fakes with known answers, on a network and data that come with the package.

    \b
    Example:
      retroact selftest
    """
    from retroact.auditing.battery import QUICK
    from retroact.auditing.mechanisms.mechanism import Given
    from retroact.auditing.selftest import selftest as run
    from retroact.crafting.threat import Linf
    from retroact.ground import one_thread
    from retroact.nets import zoo
    from retroact.nets.data import data
    from retroact.training.anew import trained_anew
    from retroact.training.hardening import Hardening, harden

    net, threat = zoo.load("digits-cnn"), Linf(0.1)
    with one_thread(), progress_bar("self-test") as progress:
        # adversarial training: it is genuine
        recipe = Hardening(learn="all", steps=80, batch=128, lr=0.003)
        robust = harden(net, train := data("digits/train"), threat, recipe).net
        # fakes of another seed, as what fools this network fools a fake of it too
        fakes = [Given(trained_anew("digits-cnn", seed=1), (net,), train, threat.eps)]
        how: dict[str, Any] = {"robust": robust, "kappa": 0.5, "battery": QUICK, "fakes": fakes}
        # audits of few small images hold Python's lock, so that threads wait for one another
        how |= {"executor": executor_of(None, workers, default=options.cores())}
        checks = run(net, data("digits[:120]"), threat, progress=progress, **how)
    _tell(checks, as_json, json_out)


def _tell(checks: Sequence[Check], as_json: bool, json_out: Path | None) -> None:
    failed = [check for check in checks if not check.passed]
    said = [{"check": c.title, "passed": c.passed, "said": str(c)} for c in checks]
    if not tell_json(said, as_json, json_out):
        for check in checks:
            say(str(check), style=None if check.passed else "red")
        say(f"{len(checks) - len(failed)} of {len(checks)} passed")
    if failed:
        raise typer.Exit(FOUND)


def _check(
    activation: str | None,
    against: str | None,
    also: list[str] | None,
    quick: bool,
    thorough: bool,
) -> None:
    if (activation is None) == (against is None):
        raise CallError(
            'expected either an ACTIVATION, such as "JumpReLU(1.0)", or --against NETWORK; for one'
            " network and a number from a paper there is `retroact check`"
        )
    options.check_also(also, activation)
    if quick and thorough:
        raise CallError("expected --quick or --thorough, got both")


@dataclass(frozen=True)
class _Asked:
    """What a script asks of the verdict: the words that it fails on, and what it requires."""

    fail_on: frozenset[str]
    require: bool
    margin: float

    @classmethod
    def read(cls, fail_on: str | None, require: str | None, margin: float) -> _Asked:
        if require is not None and require not in REQUIREMENTS:
            raise CallError(
                f"--require knows no {require!r}; expected one of: {', '.join(REQUIREMENTS)}"
            )
        words = frozenset() if fail_on is None else _answers(fail_on)
        return cls(words, require is not None, margin)

    @property
    def is_any(self) -> bool:
        """Whether a script asks anything."""
        return self.require or bool(self.fail_on)

    def case(self, made: Audit, code: int) -> Case:
        """The answer for a JUnit file."""
        said = [str(made)]
        said = [made.verdict.explain_comparison(self.margin), *said] if self.require else said
        return answers.case_of(
            made.numbers(), " beside ".join(made.names[::-1]), "; ".join(said), code
        )

    def answer(self, verdict: Verdict, tell: Callable[[str], None] = lambda text: None) -> int:
        """The exit code; a word that is named is always found, and what is open never passes."""
        if self.fail_on & {verdict.effect, *verdict.words}:
            return FOUND
        if self.require:
            tell(verdict.explain_comparison(self.margin))
            return self._compare(verdict)
        return NOT_SETTLED if self.fail_on and verdict.effect in OPEN else 0

    def _compare(self, verdict: Verdict) -> int:
        return {"NOT WEAKER": 0, "WEAKER": FOUND, "NOT SETTLED": NOT_SETTLED}[
            verdict.compare(self.margin)
        ]


OPEN = frozenset({"INCONCLUSIVE", "ABSTAINED"})
"""The effects that leave a question of --fail-on unanswered."""


def _answers(text: str) -> frozenset[str]:
    """The words of --fail-on, each an effect or a claim."""
    from typing import get_args

    from retroact.auditing.verdict import Effect, Word

    answers = [*get_args(Effect), *get_args(Word)]
    words = {word.strip().upper() for word in text.split(",") if word.strip()}
    if not words:
        raise CallError(f"--fail-on names no answer; expected some of: {', '.join(answers)}")
    if words - set(answers):
        raise CallError(
            f"--fail-on knows no {', '.join(sorted(words - set(answers)))}; expected some of:"
            f" {', '.join(answers)}"
        )
    return frozenset(words)


def run_audit(
    before: nn.Module, after: nn.Module, images: Images, threat: ThreatModel, **how: Any
) -> Audit:
    from retroact.auditing.audit import audit

    with progress_bar("audit") as progress:
        return audit(before, after, images, threat, progress=progress, **how)


def _write(result: Audit, pages: Mapping[str, Path | None], evidence: Path | None) -> None:
    from retroact.files import write
    from retroact.reports import audited

    for form, path in pages.items():
        if path is not None:
            beside = {"evidence": os.path.relpath(evidence, path.parent)} if evidence else {}
            told = getattr(audited, form)(result, **(beside if form == "page" else {}))
            note(f"wrote {write(told, path)}")


def _origins(
    net: str,
    weights: str,
    activation: str | None,
    sites: str,
    also: list[str] | None,
    against: str | None,
    against_weights: str,
) -> Pair[Origin]:
    """How the command named both networks."""
    from retroact.auditing.evidence import Origin
    from retroact.auditing.numbers import Pair

    before = Origin(net, weights)
    if against is not None:
        return Pair(before, Origin(against, against_weights))
    return Pair(
        before, replace(before, change=activation or "", sites=sites, also=tuple(also or ()))
    )


def _write_evidence(result: Audit, folder: Path, networks: Pair[Origin]) -> None:
    from retroact.reports.evidence import write_evidence

    commands = (
        shlex.join(["retroact", *sys.argv[1:]]),
        f"retroact verify {shlex.quote(str(folder))}",
    )
    note(f"wrote {write_evidence(result, folder, networks=networks, commands=commands)}")


FolderArgument = Annotated[Path, typer.Argument(help="what `audit --evidence` wrote")]
NetOption = Annotated[
    str | None,
    typer.Option(
        help="the network before (and after, with its change), where the evidence's name is not it"
    ),
]
OtherOption = Annotated[str | None, typer.Option(help="the network after, likewise")]
OtherDataOption = Annotated[
    str | None, typer.Option("--data", help="the same images from elsewhere")
]


def verify(
    folder: FolderArgument,
    net: NetOption = None,
    against: OtherOption = None,
    data: OtherDataOption = None,
    weights: options.Weights = "",
    against_weights: AgainstWeightsOption = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Judge the adversarial images of an evidence folder again: in ball and box, decided wrongly,
    as many as the audit says.

    \b
    Example:
      retroact audit digits-cnn "SReLU(9)" --threat "Linf(0.1)" --data digits \\
          --quick --evidence evidence
      retroact verify evidence
    """
    from retroact.auditing.evidence import Evidence
    from retroact.auditing.numbers import Pair
    from retroact.auditing.verification import judge

    found = Evidence.read(folder)
    images, said = found.images(data), Pair(net, against)
    evidence = found.renamed(said, Pair(weights, against_weights))
    pairs = list(zip(found.networks, evidence.networks, strict=True))
    others = Pair(*(old.net != new.net for old, new in pairs))

    bring = Bringing.of([o.net for o in evidence.networks], mean, std, shape, device)

    def load_as_named(origin: Origin) -> nn.Module:
        return bring.as_said(origin).load(origin.net, origin.weights, images, beside=net)

    nets = (evidence.network(i, load_as_named, said) for i in range(2))
    made = judge(evidence, Pair(*nets), images, others)
    _print_verification(made, as_json, json_out)
    if not made.holds:
        raise typer.Exit(FOUND)


def _print_verification(made: Verification, as_json: bool, json_out: Path | None) -> None:
    rows = [
        {"network": who, "": what, "the audit says": said, "found": found}
        for who, what, said, found in made.table()
    ]
    findings = {"findings": made.findings, "notes": made.notes}
    said = {"holds": made.holds, "n": made.counts.n, "counts": rows} | findings
    if tell_json(said, as_json, json_out):
        return
    say(f"{made.claims.threat} on {made.claims.data}, n = {made.counts.n}", wrap=True)
    print_rows(rows)
    for text in made.notes:
        say(f"- {text}", wrap=True)
    for text in made.findings:
        say(f"! {text}", style="red", wrap=True)
    say("HOLDS" if made.holds else "DIFFERS", style="bold")


def print_audit(numbers: AuditNumbers) -> None:
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
