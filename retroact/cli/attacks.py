"""`attack` and `sweep`: cells, run and stored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retroact.cli import options
from retroact.cli.completing import complete_nets, specs
from retroact.cli.console import note, print_lines, print_result, progress_bar, tell_json
from retroact.cli.named import (
    Bringing,
    activation_of,
    executor_of,
    files_of,
    say_of_cells,
    say_split,
)
from retroact.cli.stopping import if_stopped, uncounted
from retroact.workers import fork_from_here

if TYPE_CHECKING:
    from retroact.executors import Executor
    from retroact.experiments.cell import Cell

AttackArgument = Annotated[
    str, typer.Argument(help='such as "PGD(steps=40)"', autocompletion=specs("attacks"))
]
SourceOption = Annotated[
    str | None,
    typer.Option(help="craft on this network's gradients (gray box)", autocompletion=complete_nets),
]
SourceActivationOption = Annotated[
    str | None,
    typer.Option(help="retrofit the source network first", autocompletion=specs("activations")),
]
SourceWeightsOption = Annotated[
    str, typer.Option(help="weights of --source (default: those of NET where it is NET, too)")
]
BetaOption = Annotated[
    float, typer.Option(help="smooth the activation's backward pass (BPDA): try 8 / kappa")
]
KernelOption = Annotated[
    str, typer.Option(help="of the smoothed backward pass: sigmoid or rectangle")
]
GoalOption = Annotated[
    str,
    typer.Option(
        help="Untargeted, Targeted(3), LeastLikely, Random(seed=0)", autocompletion=specs("goals")
    ),
]
CraftingOption = Annotated[
    str, typer.Option(help="what gradients are computed in: float32, or bfloat16 by autocast")
]
DtypeOption = Annotated[
    str, typer.Option(help="own (the network's), float32, float64, bfloat16, float16")
]

NetsOption = Annotated[
    list[str],
    typer.Option(
        help="network; may be given several times, as all below", autocompletion=complete_nets
    ),
]
AttacksOption = Annotated[
    list[str], typer.Option(help='such as "PGD(steps=40)"', autocompletion=specs("attacks"))
]
ThreatsOption = Annotated[
    list[str], typer.Option(help='such as "Linf(0.1)"', autocompletion=specs("threats"))
]
ActivationsOption = Annotated[
    list[str] | None,
    typer.Option(
        help='such as "JumpReLU(kappa=1.0)"; none: as it is', autocompletion=specs("activations")
    ),
]
SourcesOption = Annotated[
    list[str] | None,
    typer.Option(help="gray box from this network, beside white box", autocompletion=complete_nets),
]
FilesOption = Annotated[
    list[str] | None,
    typer.Option(help="weights of each --net, in their order; none: a network without"),
]
SeedsOption = Annotated[list[int] | None, typer.Option(help="seeds")]


def attack(
    net: options.Net,
    attack: AttackArgument,
    threat: options.Threat,
    data: options.Data,
    activation: options.Activation = None,
    sites: options.Sites = "*",
    also: options.Also = None,
    source: SourceOption = None,
    source_activation: SourceActivationOption = None,
    source_weights: SourceWeightsOption = "",
    beta: BetaOption = 0.0,
    kernel: KernelOption = "sigmoid",
    goal: GoalOption = "Untargeted",
    seed: options.Seed = 0,
    dtype: DtypeOption = "own",
    crafting: CraftingOption = "float32",
    chunk: options.Chunk = None,
    device: options.Device = "cpu",
    store: options.Store = options.STORE,
    wait: options.Wait = False,
    fresh: options.Fresh = False,
    keep: options.Keep = 0,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
) -> None:
    """Attack a network, retrofitted or not, and say how much of it stands.

    \b
    Example:
      retroact attack digits-cnn "PGD(steps=40)" --threat "Linf(0.1)" \\
          --data digits
    """
    from retroact.crafting.goals import Goal
    from retroact.experiments.cell import Cell
    from retroact.reading import as_attack, as_threat
    from retroact.spec import parse

    options.check_also(also, activation, source_activation)
    bring = Bringing.of([net, source], mean, std, shape)
    say_split(data)
    bring.check_shape(data)
    model = bring.model(net, weights, activation_of(activation), sites, also=also)
    climbed = None
    if source is not None:
        file = source_weights or (weights if source == net else "")
        climbed = bring.model(source, file, activation_of(source_activation), also=also, beside=net)
    cell = Cell(
        model,
        data,
        as_attack(attack),
        as_threat(threat),
        parse(goal, Goal),
        climbed,
        beta=beta,
        kernel=kernel,  # type: ignore[arg-type]  # the cell checks it
        seed=seed,
        dtype=dtype,  # type: ignore[arg-type]
        crafting=crafting,  # type: ignore[arg-type]
    )
    where = executor_of("Serial", None)
    _Run(store, wait, fresh, where, keep, chunk, device, as_json, json_out, dry_run)([cell])


def sweep(
    net: NetsOption,
    attack: AttacksOption,
    threat: ThreatsOption,
    data: options.Data,
    activation: ActivationsOption = None,
    source: SourcesOption = None,
    weights: FilesOption = None,
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    seed: SeedsOption = None,
    sites: options.Sites = "*",
    also: options.Also = None,
    crafting: CraftingOption = "float32",
    chunk: options.Chunk = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    executor: options.Executor = None,
    store: options.Store = options.STORE,
    wait: options.Wait = False,
    fresh: options.Fresh = False,
    keep: options.Keep = 0,
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
    dry_run: options.Dry = False,
) -> None:
    """Every combination of networks, activations, attacks, threats and seeds; resumes by being run
    again.

    \b
    Example:
      retroact sweep --net digits-cnn --activation none --activation "SReLU(9)" \\
          --attack FGSM --attack PGD --threat "Linf(0.1)" --data digits
    """
    # numpy starts its threads as it is imported, and a program with several is not forked
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    where = executor_of(executor, workers, default=_at_once_on(device))
    if device == "cpu" and not dry_run:
        _import_for(where)
    from retroact.experiments.sweep import grid

    options.check_also(also, *(activation or []))
    bring = Bringing.of([*net, *(source or [])], mean, std, shape)
    say_split(data)
    bring.check_shape(data)
    files = list(zip(net, files_of(net, weights or []), strict=True))
    cells = grid(
        [bring.model(*pair) for pair in files],
        [activation_of(a) for a in activation or ["none"]],
        attack,
        threat,
        data,
        sources=[None, *(bring.model(s, dict(files).get(s, "")) for s in source or [])],
        seeds=seed or [0],
        sites=sites,
        also=also or (),
        crafting=crafting,
    )
    _Run(store, wait, fresh, where, keep, chunk, device, as_json, json_out, dry_run)(cells)


def _at_once_on(device: str) -> int:
    """How many cells run at once where nobody says: one on each card; on a CPU 0, one per core."""
    from retroact.executors import cards_of

    return 0 if device == "cpu" else cards_of(device)


def _import_for(executor: Executor) -> None:
    """Imports once what all processes of a sweep need, which are then forked from here."""
    from retroact.executors import Processes

    if isinstance(executor, Processes) and executor.workers > 1:
        from retroact.experiments import sweep  # noqa: F401

        with uncounted():
            fork_from_here()


@dataclass(frozen=True)
class _Run:
    """How cells are run, and where their records go."""

    path: Path
    wait: bool
    fresh: bool
    executor: Executor
    keep: int
    chunk: int | None
    device: str
    as_json: bool
    json_out: Path | None
    dry_run: bool

    def __call__(self, cells: Sequence[Cell]) -> None:
        if self.dry_run:
            return self._estimate(cells)
        from retroact.experiments.store import Store
        from retroact.experiments.sweep import fill
        from retroact.reports.tables import lines

        say_of_cells(cells)
        what = f"{len(cells)} cells" if len(cells) > 1 else "attack"
        truth = f"what was finished is in {self.path}; the same command goes on with the rest"
        stop = if_stopped(truth, unless_noted=True)
        with Store(self.path, wait=self.wait, tell=note) as store, stop:
            with progress_bar(what) as progress:
                planned = fill(
                    cells,
                    store,
                    executor=self.executor,
                    keep=self.keep,
                    chunk=self.chunk,
                    device=self.device,
                    fresh=self.fresh,
                    progress=progress,
                )
            own = lines(store, keys=planned.cells)
        if not tell_json([line.numbers() for line in own], self.as_json, self.json_out):
            print_lines(own)

    def _estimate(self, cells: Sequence[Cell]) -> None:
        from retroact.experiments.costs import estimate

        cost = estimate(
            cells,
            self.path,
            executor=self.executor,
            keep=self.keep,
            chunk=self.chunk,
            device=self.device,
        )
        print_result(cost, self.as_json, self.json_out)
