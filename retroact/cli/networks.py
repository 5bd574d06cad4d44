"""Commands that make a network, or change one: `train`, `calibrate`, `retrofit`, `tune`, `harden`,
`export`."""

from __future__ import annotations

from collections.abc import Mapping
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroact.cli import options
from retroact.cli.audits import QuickOption, print_audit, run_audit
from retroact.cli.completing import complete_data, complete_nets, specs
from retroact.cli.console import (
    about_bytes,
    about_seconds,
    note,
    print_result,
    print_rows,
    progress_bar,
    say,
    tell_json,
)
from retroact.cli.named import Bringing, activation_of, executor_of, say_left_alone
from retroact.cli.stopping import NOTHING, if_stopped
from retroact.spec import CallError

if TYPE_CHECKING:
    from torch import nn

    from retroact.auditing.audit import Audit
    from retroact.experiments.tuning import Tuning
    from retroact.nets.data import Images
    from retroact.training.hardening import Hardened, Hardening

ZooArgument = Annotated[
    str,
    typer.Argument(
        help="a zoo name: `retroact list nets` has those that are trained",
        autocompletion=complete_nets,
    ),
]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="instead of the recipe's own")]
TrainingOption = Annotated[str | None, typer.Option(help="another training slice")]
FolderOption = Annotated[
    Path | None, typer.Option("--out", help="folder for weights and provenance (default: zoo/)")
]
ResumeOption = Annotated[bool, typer.Option(help="go on from the last epoch's checkpoint")]


def train(
    name: ZooArgument,
    epochs: EpochsOption = None,
    seed: options.Seed = 0,
    data: TrainingOption = None,
    device: options.Device = "cpu",
    out: FolderOption = None,
    resume: ResumeOption = True,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
) -> None:
    """Train a network of the zoo by its recipe; goes on where it was stopped.

    \b
    Example:
      retroact train digits-cnn --out nets
    """
    import dataclasses

    from retroact.training.recipes import RECIPES
    from retroact.training.train import train as run

    if dry_run:
        if name not in RECIPES:
            raise CallError(f"no recipe for {name!r}; expected one of: {', '.join(RECIPES)}")
        from retroact.training.forecast import forecast_training

        made = forecast_training(name, epochs=epochs, data=data)
        said = f"{made.epochs} epochs of {made.steps} steps: {about_seconds(made.seconds)}"
        plan = {"name": name, "recipe": RECIPES[name], "epochs": made.epochs}
        plan |= {"steps of an epoch": made.steps, "seconds, about": round(made.seconds, 1)}
        return print_result(plan | {"in words": said}, as_json, json_out)
    how = "the same command" if resume else "the command without --no-resume"
    truth = f"finished epochs are kept; {how} goes on after the last of them"
    with progress_bar(f"train {name}") as progress, if_stopped(truth):
        page = run(
            name,
            epochs=epochs,
            seed=seed,
            data=data,
            device=device,
            out=out,
            resume=resume,
            progress=lambda p: progress(p.epoch - 1 + p.step / p.steps, p.epochs),
        )
    if not tell_json(dataclasses.asdict(page), as_json, json_out):
        say(f"{name}: {page.accuracy:.2%} of {page.test_n} test images, {page.seconds:.0f} s")


MeasuredArgument = Annotated[
    str,
    typer.Argument(
        help='an activation with numbers to measure, such as "MeanSparse(0.2)"',
        autocompletion=specs("activations"),
    ),
]
SeenOption = Annotated[
    str,
    typer.Option(
        "--data",
        help='training data, such as "mnist/train[:2000]"; never test data',
        autocompletion=complete_data,
    ),
]
NumbersOption = Annotated[
    Path, typer.Option("--out", help="the file for the numbers (.safetensors)")
]


def calibrate(
    net: options.Net,
    activation: MeasuredArgument,
    data: SeenOption,
    out: NumbersOption,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Measure the numbers that an activation needs; print the activation that has them.

    \b
    Example:
      retroact calibrate digits-cnn "MeanSparse(0.2)" --data digits/train \\
          --out means.safetensors
    """
    _check_file(out)
    from retroact.spec import show
    from retroact.training.calibrating import calibrate as run

    bring = Bringing.of([net], mean, std, shape, device)
    images = bring.read(data)
    made = run(bring.load(net, weights, images), activation, images, file=out)
    said = {"activation": show(made), "file": str(out), "data": images.name}
    if not tell_json(said, as_json, json_out):
        say(show(made))


ChangeArgument = Annotated[
    str, typer.Argument(help='such as "Pruned(0.8)", Int8, Half, "Distilled(epochs=5)"')
]
ForChangeOption = Annotated[
    str | None, typer.Option(help="training data, for what measures or learns; never test data")
]
ChangedOption = Annotated[
    Path, typer.Option("--out", help="save the changed network here (.safetensors)")
]


def change(
    net: options.Net,
    what: ChangeArgument,
    out: ChangedOption,
    data: ForChangeOption = None,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Change a whole network (prune, quantise, halve, distil) and save it; `audit --against` says
    what that costs.

    \b
    Example:
      retroact change digits-cnn "Pruned(0.8)" --out pruned.safetensors
      retroact audit digits-cnn --against pruned.safetensors \\
          --threat "Linf(0.1)" --data digits
    """
    _check_file(out)
    from retroact import checkpoint
    from retroact.training.changes import change as run

    bring = Bringing.of([net], mean, std, shape, device)
    images = None if data is None else bring.read(data)
    made = run(bring.load(net, weights, images), what, images)
    checkpoint.save(made, out)
    notes = getattr(made, "notes", ())
    result = {"net": net, "change": getattr(made, "change", ""), "saved": str(out)}
    print_result(result | {"notes": list(notes)}, as_json, json_out)  # type: ignore[arg-type]


ActivationArgument = Annotated[
    str | None,
    typer.Argument(help='such as "JumpReLU(kappa=1.0)"', autocompletion=specs("activations")),
]
AllowOption = Annotated[
    list[str] | None, typer.Option(help="sites (or globs) that may stay as they are")
]
RetrofittedOption = Annotated[
    Path | None, typer.Option("--out", help="save the retrofitted network here (.safetensors)")
]
CompareOption = Annotated[str | None, typer.Option(help="compare clean accuracies on this data")]


def retrofit(
    net: options.Net,
    activation: ActivationArgument = None,
    sites: options.Sites = "*",
    also: options.Also = None,
    maps: options.Map = None,
    allow: AllowOption = None,
    out: RetrofittedOption = None,
    data: CompareOption = None,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Replace the activations of a network; say which were found and replaced.

    \b
    Example:
      retroact retrofit digits-cnn "JumpReLU(0.5)" --data digits \\
          --out hard.safetensors
    """
    from retroact import checkpoint
    from retroact.reading import as_activation
    from retroact.retrofitting.installed import installed
    from retroact.retrofitting.sites import left_alone
    from retroact.retrofitting.sites import sites as find
    from retroact.retrofitting.surgery import Retrofit
    from retroact.retrofitting.surgery import retrofit as run

    said = options.mapped(activation, maps)
    if said is None:
        raise CallError("expected an activation or --map, such as gelu=relu; got neither")
    bring = Bringing.of([net], mean, std, shape, device)
    images = None if data is None else bring.read(data)
    before = bring.load(net, weights, images)
    after = run(before, as_activation(said), sites=sites, also=also or (), allow=allow or ())
    made = after.retrofit
    assert isinstance(made, Retrofit)
    result = {
        "net": net,
        "retrofit": str(made),
        "found": len(find(before, also=made.kinds)),
        "replaced": len(installed(after)),
        "sites": list(installed(after)),
        "left alone": left_alone(after),
    }
    if images is not None:
        result |= _clean_accuracies({"before": before, "after": after}, images)
    if out is not None:
        result["saved"] = str(checkpoint.save(after, out))
    print_result(result, as_json, json_out)


def _clean_accuracies(nets: Mapping[str, nn.Module], images: Images) -> dict[str, float]:
    from retroact.evaluation.accuracy import clean_accuracy_of

    return {
        f"clean accuracy {k}": round(clean_accuracy_of(net, images), 4) for k, net in nets.items()
    }


KindArgument = Annotated[
    str,
    typer.Argument(
        help="the activation to tune: JumpReLU, SReLU, what `calibrate` printed",
        autocompletion=specs("activations"),
    ),
]
ValidationOption = Annotated[
    str,
    typer.Option(
        help='validation data, such as "mnist/validation[:500]"; never test data',
        autocompletion=complete_data,
    ),
]
ShareOption = Annotated[float, typer.Option(help="share of clean accuracy to keep")]
WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="so many values at once (default: 1); 0: one per core")
]
GridOption = Annotated[str | None, typer.Option(help='values to try, such as "0,0.5,1.0"')]


def tune(
    net: options.Net,
    kind: KindArgument,
    threat: options.Threat,
    data: ValidationOption,
    keep: ShareOption = 0.99,
    grid: GridOption = None,
    sites: options.Sites = "*",
    also: options.Also = None,
    seed: options.Seed = 0,
    workers: WorkersOption = None,
    executor: options.Executor = None,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
) -> None:
    """Accuracy against the activation's knob on validation data, and which value to take.

    \b
    Example:
      retroact tune digits-cnn JumpReLU --threat "Linf(0.1)" \\
          --data digits/validation
    """
    from retroact.experiments.tuning import passes_of
    from retroact.experiments.tuning import tune as run
    from retroact.ground import one_thread
    from retroact.retrofitting.surgery import retrofit

    bring = Bringing.of([net], mean, std, shape, device)
    values = None if grid is None else options.numbers_of(grid, "--grid")
    tried, images = _tunable(kind), bring.read(data)
    network = bring.load(net, weights, images)
    say_left_alone(retrofit(network, tried, sites=sites, also=also or ()))
    where = executor_of(executor, workers, default=1)
    if dry_run:
        count, passes = passes_of(tried, values)
        cost = {"values": count, "images": len(images), "gradients at most": passes * len(images)}
        return _print_forecast(cost, network, images, where.workers, as_json, json_out)
    how: dict[str, Any] = {"keep": keep, "grid": values, "seed": seed}
    how |= {"sites": sites, "also": also or ()}
    how |= {"executor": where}
    with progress_bar(f"tune {kind}") as progress, one_thread():
        tuned = run(network, tried, images, threat, **how, progress=progress)
    _print_tuning(tuned, as_json, json_out)


def _print_forecast(
    cost: Mapping[str, int],
    network: nn.Module,
    images: Images,
    workers: int,
    as_json: bool,
    json_out: Path | None,
) -> None:
    """What so many gradients of this network take by a short trial."""
    from retroact.evaluation.trial import try_gradient
    from retroact.ground import one_thread

    with one_thread():
        tried = try_gradient(network, images.images.shape[1:])
    seconds = cost["gradients at most"] * tried.seconds / workers
    said = {"seconds at most, about": round(seconds, 1)}
    words = (
        f"{cost['values']} values on {cost['images']} images: {about_seconds(seconds)} at most; an"
        " example that is broken is attacked no more, so it is often less"
    )
    print_result({**cost, **said, "in words": words}, as_json, json_out)


def _tunable(kind: str) -> Any:
    """The class that a text names, or the activation itself where its numbers were measured."""
    from retroact.activations.measured import Measured
    from retroact.reading import as_activation

    said = as_activation(kind)
    return said if isinstance(said, Measured) else type(said)


def _print_tuning(tuned: Tuning, as_json: bool, json_out: Path | None) -> None:
    from retroact.experiments.tuning import TUNED

    points = [
        {"value": p.knob, "clean": p.clean, "claimed": p.claimed, "verified": p.verified}
        for p in tuned.points
    ]
    said = {
        "knob": tuned.knob,
        "points": points,
        "recommended": str(tuned.activation),
        "largest": str(tuned.largest.activation),
        "gain": tuned.gain,
        "data": tuned.data,
        "threat": tuned.threat,
    }
    if tell_json(said, as_json, json_out):
        return
    rows = [
        {tuned.knob: f"{p.knob:g}"}
        | {
            f"{words} %": f"{100 * share:.1f}"
            for words, share in zip(TUNED, (p.clean, p.claimed, p.verified), strict=True)
        }
        for p in tuned.points
    ]
    print_rows(rows)
    say(str(tuned), wrap=True)


LearningOption = Annotated[
    str,
    typer.Option(
        help='training data, such as "mnist/train[:5000]"; never test data',
        autocompletion=complete_data,
    ),
]
HeldOption = Annotated[
    str | None,
    typer.Option(help='what --keep is measured on, such as "mnist/validation[:1000]"'),
]
KeepOption = Annotated[
    float | None, typer.Option(help="share of clean accuracy to keep (with --held: 0.99)")
]
LearnOption = Annotated[
    str | None,
    typer.Option(
        help="shifts (the default), kappa, slopes, early, norms, ends, low-rank, or all (with"
        " --budget)"
    ),
]
StepsOption = Annotated[
    int | None, typer.Option(min=1, help="of the optimiser (default: the recipe's)")
]
BatchOption = Annotated[
    int | None, typer.Option(min=1, help="images per step (default: the recipe's)")
]
RateOption = Annotated[
    float | None, typer.Option(help="of the optimiser (default: what suits --learn)")
]
CleanWeightOption = Annotated[
    float | None, typer.Option(help="share of the loss on clean images (default: 0.5)")
]
FactorOption = Annotated[float | None, typer.Option(help="learn at so many times the threat's eps")]
AttackStepsOption = Annotated[
    int | None, typer.Option(min=1, help="of the attack in each step (default: 7)")
]
RampOption = Annotated[
    float | None, typer.Option(help="share of the steps over which eps grows from 0")
]
AverageOption = Annotated[
    float | None, typer.Option(help="share of the steps, the last, whose mean is kept")
]
PullOption = Annotated[
    float | None, typer.Option(help="share of the target that is the network's own answer")
]
TimeOption = Annotated[
    str | None, typer.Option("--budget", help="as many steps as this time holds, such as 60s or 5m")
]
AuditOption = Annotated[
    str | None, typer.Option("--audit", help="then audit the outcome on these test images")
]
Bf16Option = Annotated[
    bool, typer.Option("--bf16", help="learn in bfloat16, on a processor that has it")
]
HardenedOption = Annotated[
    Path | None, typer.Option("--out", help="save the hardened network here (.safetensors)")
]


def harden(
    net: options.Net,
    threat: options.Threat,
    data: LearningOption,
    held: HeldOption = None,
    keep: KeepOption = None,
    budget: TimeOption = None,
    learn: LearnOption = None,
    steps: StepsOption = None,
    batch: BatchOption = None,
    lr: RateOption = None,
    clean_weight: CleanWeightOption = None,
    eps_factor: FactorOption = None,
    attack_steps: AttackStepsOption = None,
    ramp: RampOption = None,
    average: AverageOption = None,
    pull: PullOption = None,
    bf16: Bf16Option = False,
    tried_on: AuditOption = None,
    quick: QuickOption = False,
    html: options.Html = None,
    also: options.Also = None,
    seed: options.Seed = 0,
    out: HardenedOption = None,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    fresh: options.Fresh = False,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
) -> None:
    """Learn of a trained network what makes it harder to fool: very little, such as its
    activations' shifts, or with --budget every weight for so long. With --out it goes on where it
    was stopped. What it takes is said before it begins, and --audit says what it was worth.

    \b
    Example:
      retroact harden digits-cnn --threat "Linf(0.1)" --data digits/train \\
          --held digits/validation --budget 30s --out hard.safetensors \\
          --audit digits
    """
    _check_file(out)
    options.check_folder(html)
    options.check_fresh(fresh, out, "--out")
    _check_audited(tried_on, quick, html)
    if budget is not None and steps is not None:
        raise CallError("expected --budget or --steps, got both: a budget says how many steps")
    from retroact import checkpoint
    from retroact.reading import as_threat
    from retroact.reports.report import report
    from retroact.training.hardening import harden as run
    from retroact.training.hardening import spent
    from retroact.training.resuming import drop_checkpoint

    numbers = {"steps": steps, "batch": batch, "lr": lr, "clean_weight": clean_weight}
    numbers |= {"eps_factor": eps_factor, "attack_steps": attack_steps}
    numbers |= {"ramp": ramp, "average": average, "pull": pull}
    recipe = _recipe(learn or ("shifts" if budget is None else "all"), bf16, numbers)
    share = keep if keep is not None else 0.0 if held is None else 0.99
    bring = Bringing.of([net], mean, std, shape, device)
    images, kept = bring.read(data), None if held is None else bring.read(held)
    plain = bring.load(net, weights, images)
    folder = None if out is None else out.parent / "checkpoints" / out.stem
    if budget is not None:
        recipe = spent(budget, recipe, plain, images, kept, None if fresh else folder)
    forecast = _forecast(plain, recipe, images, kept, share)
    if dry_run:
        return print_result(forecast, as_json, json_out)
    note(f"harden: {forecast['in words']}")
    how: dict[str, Any] = {"keep": share, "held": kept, "also": also or (), "seed": seed}
    how |= {"checkpoint_dir": folder, "fresh": fresh}
    truth = NOTHING
    if folder is not None:
        truth = f"all but its last 10 steps are in {folder}; the same command goes on from there"
    with if_stopped(truth), progress_bar(f"harden {net}") as progress:
        hard = run(plain, images, threat, recipe, **how, progress=progress)
    say_left_alone(hard.net)
    saved = None if out is None else checkpoint.save(hard.net, out)
    if folder is not None:
        drop_checkpoint(folder)
    made = None  # saved first: an audit that is stopped costs nothing that was learned
    if tried_on is not None:
        battery = {"battery": "quick" if quick else None}
        made = run_audit(plain, hard.net, bring.read(tried_on), as_threat(threat), **battery)
        if out is not None:
            checkpoint.save(hard.net, out, audit=made)
        if html is not None:
            note(f"wrote {report(made, html, hardened=hard)}")
    _print_hardened(hard, saved, made, as_json, json_out)


def _check_audited(data: str | None, quick: bool, html: Path | None) -> None:
    for given, flag in ((quick, "--quick"), (html is not None, "--html")):
        if given and data is None:
            raise CallError(f"{flag} is said of --audit, and no images are given for that")


def _check_file(path: Path | None) -> None:
    options.check_folder(path)
    if path is not None and path.suffix != ".safetensors":
        raise CallError(f"expected a name that ends in .safetensors, got --out {path}")


def _recipe(learn: str, bf16: bool, numbers: Mapping[str, float | None]) -> Hardening:
    """The recipe with what was given; the rest is its own."""
    from retroact.training.hardening import Hardening

    given: dict[str, Any] = {name: v for name, v in numbers.items() if v is not None}
    return Hardening(learn=learn, bf16=bf16, **given)  # type: ignore[arg-type]  # it checks


def _forecast(
    net: nn.Module, recipe: Hardening, images: Images, held: Images | None, keep: float
) -> dict[str, object]:
    """What the recipe takes, as numbers and as one line."""
    from retroact.training.forecast import forecast

    made = forecast(net, images, recipe, keep=keep, held=held)
    size = "x".join(map(str, images.images.shape[1:]))
    said = f"{made.steps} steps of {made.batch} {size} examples, {made.passes} passes each"
    return {
        "in words": f"{said}: {about_seconds(made.seconds)}, {about_bytes(made.bytes)} of memory",
        "steps": made.steps,
        "examples a step": made.batch,
        "gradients": made.gradients,
        "seconds, about": round(made.seconds, 1),
        "bytes of memory, about": made.bytes,
    }


def _print_hardened(
    hard: Hardened, saved: Path | None, audit: Audit | None, as_json: bool, json_out: Path | None
) -> None:
    from retroact.reports.audited import as_json as as_text

    if hard.curve and not as_json:
        print_rows(
            [
                {"dose": f"{p.dose:.2f}", "clean % on held-out": f"{100 * p.clean:.1f}"}
                for p in hard.curve
            ]
        )
    result: dict[str, object] = {
        "learned": f"{hard.learned} of {hard.parameters} numbers ({hard.recipe.learn})",
        "dose": hard.dose,
        "seconds": round(hard.seconds, 1),
        "data": hard.data,
    }
    numbers: dict[str, object] = {"learned": hard.learned, "parameters": hard.parameters}
    numbers |= {"recipe": str(hard.recipe), "curve": [vars(p) for p in hard.curve]}
    if saved is not None:
        result["saved"] = str(saved)
    if audit is not None:
        numbers["audit"] = loads(as_text(audit))
    if tell_json(result | numbers, as_json, json_out):
        return
    print_result(result, as_json)
    if audit is not None:
        print_audit(audit.numbers())


FileArgument = Annotated[Path, typer.Argument(help="FILE.onnx or FILE.pt2")]
ImagesOption = Annotated[str | None, typer.Option(help="check the file on these images")]


def export(
    net: options.Net,
    to: FileArgument,
    activation: options.Activation = None,
    sites: options.Sites = "*",
    also: options.Also = None,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    data: ImagesOption = None,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Write a network, retrofitted or not, as ONNX or torch.export; checked against the original.

    \b
    Example:
      retroact export digits-cnn hard.pt2 --activation "JumpReLU(0.5)"
    """
    from retroact.retrofitting.export import export as write
    from retroact.retrofitting.surgery import retrofit

    bring = Bringing.of([net], mean, std, shape, device)
    images, chosen = None if data is None else bring.read(data), activation_of(activation)
    options.check_also(also, activation)
    model = bring.load(net, weights, images)
    if chosen is not None:
        model = retrofit(model, chosen, sites=sites, also=also or ())
    say_left_alone(model)
    checked = write(model, to, images=None if images is None else images.images)
    print_result(vars(checked), as_json, json_out)
