"""`playground`: a network in a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retroact.cli import options
from retroact.cli.console import note, print_result, progress_bar
from retroact.cli.named import Bringing, read_data, say_left_alone
from retroact.spec import CallError

if TYPE_CHECKING:
    from torch import nn

    from retroact.auditing.numbers import AuditNumbers
    from retroact.nets.data import Images

PageOption = Annotated[Path, typer.Option("--out", help="where the page goes (.html)")]
DataOption = Annotated[
    str | None,
    typer.Option(
        help='test data, such as "mnist[:1000]" (default: what the zoo\'s network is for)'
    ),
]
HardenedOption = Annotated[
    str | None, typer.Option(help="a second network, such as what `harden --out` saved")
]
CurvesOption = Annotated[
    list[str] | None,
    typer.Option(help="what `audit --json-out` wrote; once for each radius and change"),
]
NumberOption = Annotated[
    int, typer.Option("--n", min=0, help="audit so many images now, for the curves; 0: none")
]
RadiiOption = Annotated[str, typer.Option(help="the radii of --n")]
EpsOption = Annotated[float, typer.Option(help="the radius that the page begins with")]
KappaOption = Annotated[float, typer.Option(help="kappa to begin with, and of --n")]
AlphaOption = Annotated[float, typer.Option(help="alpha to begin with, and of --n")]


def playground(
    net: options.Net,
    out: PageOption,
    data: DataOption = None,
    hardened: HardenedOption = None,
    curves: CurvesOption = None,
    n: NumberOption = 0,
    radii: RadiiOption = "0.05,0.1,0.15",
    eps: EpsOption = 0.1,
    kappa: KappaOption = 1.0,
    alpha: AlphaOption = 100.0,
    seed: options.Seed = 0,
    weights: options.Weights = "",
    mean: options.Mean = None,
    std: options.Std = None,
    shape: options.Shape = None,
    device: options.Device = "cpu",
    as_json: options.Json = False,
    json_out: options.JsonOut = None,
) -> None:
    """Write one page that holds a network, to change its activation, attack it and look, offline.

    \b
    Example:
      retroact playground lenet-mnist --out play.html
    """
    options.check_folder(out)
    if n and curves:
        raise CallError("expected --curves or --n, got both")
    from retroact.playing.playground import data_of
    from retroact.playing.playground import playground as write_page

    bring = Bringing.of([net, hardened], mean, std, shape, device)
    images = None if data is None else bring.read(data)
    plain = bring.load(net, weights, images)
    images = read_data(data_of(plain)) if images is None else images
    hard = None if hardened is None else bring.load(hardened, "", images, beside=net)
    for network in filter(None, (plain, hard)):
        say_left_alone(network)
    begin: dict[str, Any] = {"eps": eps, "kappa": kappa, "alpha": alpha}
    page = write_page(plain, out, data=images, hardened=hard, curves=curves or (), **begin)
    if n:  # the page first: what it cannot hold is said before the audits
        tried = options.numbers_of(radii, "--radii")
        found = _measure(plain, hard, images[:n], tried, kappa, alpha, seed)
        write_page(plain, out, data=images, hardened=hard, curves=found, **begin)
    note(f"wrote {page}")
    print_result({"page": str(page), "kB": round(page.stat().st_size / 1000)}, as_json, json_out)


def _measure(
    net: nn.Module,
    hard: nn.Module | None,
    images: Images,
    radii: list[float],
    kappa: float,
    alpha: float,
    seed: int,
) -> list[AuditNumbers]:
    from retroact.playing.measured import measure

    with progress_bar("audits") as progress:
        how: dict[str, Any] = {"hardened": hard, "seed": seed, "progress": progress}
        return measure(net, images, radii, kappa=kappa, alpha=alpha, **how)
