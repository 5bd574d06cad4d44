"""Question: which backward pass sees MeanSparse's jumps?

MeanSparse jumps twice in every channel, by alpha sigma at either side of the mean. A leaderboard
attacks it through an identity in its place. Here each backward pass gets the same two attacks,
alone, at every alpha: autograd's own; the identity, where only the site's own ReLU has a slope;
kernels at both jumps; difference quotients of what leaves each activation; and the gradients of the
network before. What all of them together leave is beside what the network before withstands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal, get_args

import numpy as np
from torch import Tensor, nn

from retroact.activations.mean_sparse import MeanSparse
from retroact.activations.surrogate import WithDerivative, through
from retroact.auditing.attack_run import AttackRun, Conditions
from retroact.auditing.battery import QUICK, VERSION, Battery
from retroact.auditing.subjects import Climb, Subject, prepare
from retroact.crafting.threat import Linf, ThreatModel
from retroact.evaluation.proof import leave_as_is
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Figure, Part, Table, Text, Value
from retroact.retrofitting.copying import deep_copy
from retroact.retrofitting.installed import installed
from retroact.retrofitting.surgery import retrofit
from retroact.spec import AtLeast0, spec
from retroact.studies.desk import Desk, Facts, NotMeasuredError
from retroact.studies.ledger.measurements import found, pack, unpack
from retroact.studies.ledger.networks import Net, available, radii
from retroact.studies.ledger.treatments import calibrated
from retroact.studies.truth import BATTERIES, BatteryName

Way = Literal["autograd", "identity", "kernels", "differences", "transfer"]
WAYS: tuple[Way, ...] = get_args(Way)
ALPHAS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)


@spec
class ThroughOneWay:
    """A network with MeanSparse under the battery's two attacks along one backward pass, image by
    image; at alpha 0, the network before."""

    model: Model
    alpha: AtLeast0
    way: Way
    data: str
    train: str
    threat: ThreatModel
    battery: BatteryName = "whole"
    seed: int = 0
    version: ClassVar[int] = VERSION

    def __call__(self) -> Facts:
        before, images = self.model(), data(self.data)
        sparse = calibrated(MeanSparse(self.alpha), before, data(self.train))
        after = retrofit(before, sparse) if self.alpha else before
        subject = prepare(before, after, images, self.threat, seed=self.seed).after
        under = Conditions(images, self.threat, _classes(after, images.images[:1]), self.seed)
        run, spent = AttackRun(after, under), QUICK if self.battery == "quick" else Battery()
        for climb in _climbs(subject, after, self.way):
            run.attack("untargeted", "white box", spent.untargeted(), climb)
            run.attack("targeted", "white box", spent.targeted(under.classes), climb)
        return {"n": len(images), "clean": float(np.mean(run.clean)), "robust": pack(run.robust)}


def _classes(net: nn.Module, x: Tensor) -> int:
    return int(net(x).shape[1])


def _climbs(subject: Subject, net: nn.Module, way: Way) -> list[Climb]:
    """What an attack along a way is run on."""
    if way == "identity":
        return [Climb(subject.net, leave_as_is(with_identity(net)))]
    if way == "transfer":
        return [Climb(subject.net, subject.other)]
    sources = {"kernels": subject.sources, "differences": subject.derived}.get(way, ())
    return [subject.through(source) for source in sources] or [Climb(subject.net)]


def with_identity(net: nn.Module) -> nn.Module:
    """A copy of a network with MeanSparse whose backward pass takes the sparsification for the
    identity, as external evaluations have it."""
    copied = deep_copy(net)
    for module in installed(copied).values():
        assert isinstance(module.activation, nn.Module)  # what MeanSparse puts at a site
        module.become(Straight(module.activation))
    return copied


class Straight(nn.Module):
    """f(s(z)) with f a ReLU and s another function of z, whose backward pass is f'(s(z)): s counts
    as the identity."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        how: WithDerivative = self
        return through(how, z)

    def exact(self, z: Tensor) -> Tensor:
        """f(s(z)), as it is."""
        out: Tensor = self.inner(z.detach())
        return out

    def derivative(self, z: Tensor) -> Tensor:
        """f'(s(z)): 1 where something comes out."""
        return (self.exact(z) > 0).to(z)


# -------------------------------------------------------------------------------------------- shown


def make(desk: Desk) -> Iterator[Part]:
    nets = [net for net in available(desk) if not net.wide]
    at = radii(desk, nets)
    asked = {
        (net, alpha, way): _asked(desk, net, at[net], alpha, way)
        for net in nets
        if net in at
        for alpha in (0.0, *desk.pick((0.1, 0.3), ALPHAS))
        for way in (WAYS if alpha else WAYS[:1])
    }
    facts = found(desk, asked.values())
    told = {key: facts[what] for key, what in asked.items() if what in facts}
    if not told:
        raise NotMeasuredError("the backward passes of MeanSparse")
    for net in dict.fromkeys(key[0] for key in told):
        yield _table(net, at[net], told)
    if _measured(told):
        yield _figure(told)
    yield Text(describe([_shares(told, net, alpha) for net, alpha in _measured(told)]))


Told = Mapping[tuple[Net, float, Way], Facts]


def _asked(desk: Desk, net: Net, threat: Linf, alpha: float, way: Way) -> ThroughOneWay:
    s, battery = net.slices(desk), BATTERIES[not desk.quick]
    return ThroughOneWay(net.model, alpha, way, s.looks[0], s.train, threat, battery)


def _measured(told: Told) -> list[tuple[Net, float]]:
    """The networks and alphas of which every way is there."""
    pairs = dict.fromkeys((net, alpha) for net, alpha, _ in told if alpha)
    return [(n, a) for n, a in pairs if all((n, a, way) in told for way in WAYS)]


def _shares(told: Told, net: Net, alpha: float) -> dict[str, float]:
    """What each way leaves (%), and all together."""
    bits = {way: unpack(f["robust"], f["n"]) for way in WAYS if (f := told.get((net, alpha, way)))}
    every = np.logical_and.reduce(list(bits.values()))
    return {way: 100 * float(b.mean()) for way, b in bits.items()} | {"all": 100 * every.mean()}


def _table(net: Net, threat: Linf, told: Told) -> Table:
    plain = told.get((net, 0.0, WAYS[0]))
    rows: list[tuple[Value, ...]] = []
    if plain is not None:
        left = 100 * float(unpack(plain["robust"], plain["n"]).mean())
        rows.append(("0 (before)", str(plain["n"]), 100 * plain["clean"], left, *[None] * 4, left))
    for _, alpha in [pair for pair in _measured(told) if pair[0] is net]:
        f, shares = told[net, alpha, WAYS[0]], _shares(told, net, alpha)
        rows.append((f"{alpha:g}", str(f["n"]), 100 * f["clean"], *shares.values()))
    title = f"{net.name}, radius {net.radius(threat)}: what each backward pass leaves, %"
    return Table(title, ("alpha", "n", "clean", *WAYS, "all together"), tuple(rows))


def _figure(told: Told) -> Figure:
    shown = []
    for net in dict.fromkeys(pair[0] for pair in _measured(told)):
        alphas = [alpha for other, alpha in _measured(told) if other is net]
        curves = [_shares(told, net, alpha) for alpha in alphas]
        names = [*WAYS, "all"]
        series = [
            Series(name, alphas, [c[name] for c in curves], colour=i)
            for i, name in enumerate(names)
        ]
        shown.append(Panel(net.name, series, "alpha", "robust, %"))
    caption = "What each backward pass leaves of MeanSparse against its alpha, and all together."
    return Figure(caption, panels(shown, columns=2))


def describe(curves: Sequence[Mapping[str, float]]) -> str:
    """Whether the identity is enough, in words; `curves` have a share (%) for each way and for all
    together."""
    if not curves:
        return "No alpha is measured along all ways yet."
    short = [c["identity"] - c["all"] for c in curves]
    best = {way: sum(c[way] == min(c[w] for w in WAYS) for c in curves) for way in WAYS}
    words = ", ".join(f"{way} {count}" for way, count in best.items())
    enough = sum(gap <= 1.0 for gap in short)
    return (
        f"An identity in the place of the jumps leaves up to {max(short):.1f} points more than all"
        f" ways together; it is within a point of them on {enough} of {len(curves)} networks and"
        f" alphas. Which way alone leaves least, how often (ties count for each): {words}."
    )
