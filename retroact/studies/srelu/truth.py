"""Truth: the same networks under attacks that do not care how large the logits are

A slope multiplies the logits by alpha per sloped layer, and the cross-entropy of a sure decision
has no gradient left in float32. Four ways round it, all with the paper's attacks and eps: the
margin of the logits as the loss; the cross-entropy of the folded network, which computes the same
without the factor; the gradients of the network at slope 1; and the audit, which attacks that and
the sloped network alike and takes the worst case, example by example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from retroact.auditing.numbers import AuditNumbers
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import evaluate_all
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Figure, Part, Table, Takeaway
from retroact.retrofitting.folding import fold
from retroact.spec import spec
from retroact.studies.counted import Counted, counts
from retroact.studies.desk import Desk, Facts
from retroact.studies.srelu import CHUNK
from retroact.studies.srelu.attacks import climb, make_attack
from retroact.studies.srelu.networks import MNIST, NETS, SLOPES, Net, label
from retroact.studies.truth import BATTERIES, Audited, audits, numbers

Curves = dict[float, list[float]]
"""Accuracy in percent over the net's eps grid, by slope."""


def make(desk: Desk) -> Iterator[Part]:
    slopes = desk.pick((1.0, 10.0, 100.0), SLOPES)
    by_attack = {
        (name, net.key): _ways(desk, net, slopes, name) for name in ("FGSM", "PGD") for net in NETS
    }
    yield Table(
        "PGD at the largest eps, accuracy (%): the slope blinds one loss and nothing else",
        ("network", "slope", "clean", *by_attack["PGD", MNIST.key]),
        tuple(
            (net.title, label(s), *_ends(by_attack["PGD", net.key], s))
            for net in NETS
            for s in slopes
        ),
    )
    for name in ("FGSM", "PGD"):
        yield Figure(
            f"{name}: accuracy (%) against eps, by slope, in four ways.", _draw(by_attack, name)
        )
    yield Table(
        "Gradients of the cross-entropy at clean, rightly decided images that are exactly zero in"
        " float32 (%)",
        ("network", *(f"slope {s:g}" for s in SLOPES)),
        tuple((net.title, *_dead(desk, net)) for net in NETS),
    )
    asked = _audit(desk)
    yield audits(desk, "Audits: slope 1 → this slope, accuracies in %", asked)
    yield _say_audits([numbers(desk, what) for _, what in asked])


# -------------------------------------------------------------------------------------- four ways


@spec
class OnFolded:
    """`model` under the gradients of its folded copy, whose logits lack the factor: accuracies (%)
    at each eps."""

    model: Model
    data: str
    attack: str
    eps: tuple[float, ...]
    seed: int = 0

    def __call__(self) -> Facts:
        net, images = self.model().eval(), data(self.data)
        source = fold(net, scaled=False)
        shares: list[float] = []
        for eps in self.eps:
            scene = net, images, make_attack(self.attack, eps), [Linf(eps)]
            (record,) = evaluate_all(*scene, source=source, seed=self.seed, chunk=CHUNK)
            shares = shares or [100 * clean_accuracy(record)]
            shares.append(100 * robust_accuracy(record))
        return {"accuracy": shares}


def _ways(desk: Desk, net: Net, slopes: tuple[float, ...], name: str) -> dict[str, Curves]:
    n = desk.pick(500, 10_000) if name == "FGSM" else desk.pick(40, min(2000, net.original))
    eps = tuple(e for e in net.eps if e > 0)

    def curve(what: Callable[[float], Counted]) -> Curves:
        found = counts(desk, {s: what(s) for s in slopes})
        return {s: [f.clean, *f.robust] for s, f in found.items()}

    folded = {
        s: desk.facts(OnFolded(net.sloped(s), net.slice(n), name, eps))["accuracy"] for s in slopes
    }
    return {
        "cross-entropy, as published": curve(lambda s: climb(net, s, name, n)),
        "margin": curve(lambda s: climb(net, s, name, n, loss="margin")),
        "cross-entropy, folded": folded,
        "gradients of slope 1": curve(lambda s: climb(net, s, name, n, source=net.sloped(1.0))),
    }


def _draw(by_attack: dict[tuple[str, str], dict[str, Curves]], name: str) -> str:
    shown = []
    for way in by_attack[name, MNIST.key]:
        shown += [_panel(net, by_attack[name, net.key][way], way) for net in NETS]
    return panels(shown)


def _panel(net: Net, curves: Curves, way: str) -> Panel:
    x = [label(e) for e in net.eps]
    drawn = [Series(f"slope {s:g}", x, y, colour=i) for i, (s, y) in enumerate(curves.items())]
    return Panel(f"{net.title}: {way}", drawn, "eps, pixels", "accuracy, %")


def _ends(ways: dict[str, Curves], slope: float) -> list[float]:
    """The clean accuracy, and that at the largest eps in each way."""
    curves = [of[slope] for of in ways.values()]
    return [curves[0][0], *(values[-1] for values in curves)]


# ------------------------------------------------------------------------------ zeros, and audits


def _dead(desk: Desk, net: Net) -> list[float]:
    """The share of one FGSM's gradients that are exactly zero, in percent, per slope."""
    n = desk.pick(500, 10_000)
    found = counts(desk, {s: climb(net, s, "FGSM", n) for s in SLOPES})
    return [found[s].blind[-1] for s in SLOPES]


def _audit(desk: Desk) -> list[tuple[str, Audited]]:
    asked = []
    for net in NETS:
        images = net.slice(desk.pick(200, 1000 if net is MNIST else 500))
        threat = Linf(0.3) if net is MNIST else Linf(2 / 255)
        battery = desk.pick(*BATTERIES)
        for slope in desk.pick((10.0, 100.0), (0.5, 2.0, 5.0, 10.0, 100.0)):
            what = Audited(net.sloped(1.0), net.sloped(slope), images, threat, battery)
            asked.append((f"{net.title}, slope {slope:g}", what))
    return asked


def _say_audits(outcomes: list[AuditNumbers]) -> Takeaway:
    """What the audits say, in a line."""
    claimed = [100 * (a.claimed.after - a.claimed.before) for a in outcomes]
    gains, genuine = [100 * a.gain for a in outcomes], sum(a.effect == "GENUINE" for a in outcomes)
    return Takeaway(
        9,
        f"Of {len(outcomes)} audits of a slope beside slope 1 {genuine} call a gain genuine: under"
        f" PGD the accuracy changes by {min(claimed):+.1f} to {max(claimed):+.1f} points, and what"
        f" withstands every attack by {min(gains):+.1f} to {max(gains):+.1f}.",
    )
