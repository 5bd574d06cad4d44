"""Figure 4: 25 attacks of Foolbox, 21 of them distinct

foolbox 3.0.0 with default arguments, one call per attack with all eps. Every image counts as fooled
that is not decided rightly, also those that are wrong clean; accuracy is what is left. The same eps
serve as L2 radii, where they are tiny. The paper says "the first 2K images", its notebook took a
random 2000: here they are the first. An image with a NaN in it, which Foolbox counts by the class
that its NaN logits happen to name, is never counted as fooled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from importlib.util import find_spec

import numpy as np
import torch

from retroact.crafting.threat import L2
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Takeaway, Text, Value
from retroact.spec import spec
from retroact.studies.counted import Counted, Counts, counts
from retroact.studies.desk import Desk, Facts
from retroact.studies.published import published
from retroact.studies.srelu.battery import BATTERY, BY_NORM, Entry
from retroact.studies.srelu.networks import MNIST, NETS, SLOPES, Net, label
from retroact.studies.truth import answer_by_network

CIFAR_SHOWN = 4000
"""CIFAR-10 images, the published pixels first: as many as two CPU hours give both networks."""
RUINED = 2000
"""Images that Foolbox's own VirtualAdversarial gets, in one batch, as in the notebook."""
WORSE = 10.0
"""Points of accuracy that a slope must cost to make things "much worse"."""
AROUND = 2.5
"""What "around" is taken to mean, in points, where the paper says "around 15 %"."""
VAT = next(e for e in BATTERY if "Virtual" in e.name)
GROUPS = (
    ("FGSM", ("LinfFastGradient",)),
    ("PGD, BIM (L∞)", ("LinfProjectedGradientDescent", "LinfBasicIterative")),
    ("DeepFool (L∞)", ("LinfDeepFool",)),
    ("VirtualAdversarial", ("VirtualAdversarial",)),
    (
        "other gradient attacks (L2)",
        tuple(e.name for e in BATTERY if e.gradient and e.threat is L2 and e is not VAT),
    ),
    ("image degradation", tuple(e.name for e in BATTERY if not e.gradient)),
    ("all 25", tuple(e.name for e in BATTERY)),
)


def make(desk: Desk) -> Iterator[Part]:
    if not desk.stored and find_spec("foolbox") is None:
        yield Text(
            'This figure needs Foolbox, which is not installed: `pip install "retroact[foolbox]"`,'
            " then again."
        )
        return
    results = {net.key: Results(desk, net) for net in NETS}
    yield Text(_sample(desk, list(results.values())))
    yield Figure(
        "Mean accuracy (%) over the published 25 (the four doubles count twice) against eps. "
        "Thin and dashed: published, with its NaN images as Foolbox counted them.",
        panels([r.against_eps() for r in results.values()]),
    )
    yield Figure(
        "Accuracy (%) at the last eps (0.3 on MNIST, 0.1 on CIFAR-10) against slope, by kind of"
        " attack.",
        panels([r.against_slope() for r in results.values()]),
    )
    for r in results.values():
        yield Table(
            f"{r.net.title}, each attack at eps {label(r.eps[-1])}: accuracy (%)",
            r.head(),
            r.rows(),
            folded=True,
        )
    ruined = _ruin(desk, list(results.values()))
    yield from _artefact(list(results.values()), ruined)
    yield from _claims(desk, results, ruined)
    yield _much_worse(ruined)


class Results:
    """What is counted of the battery on one network, by slope."""

    def __init__(self, desk: Desk, net: Net) -> None:
        self.net, self.n = net, desk.pick(50, 10_000 if net is MNIST else CIFAR_SHOWN)
        self.slopes = desk.pick((1.0, 10.0, 100.0), SLOPES)
        few = (0.1, 0.3) if net is MNIST else (0.01, 0.1)
        self.eps = desk.pick(few, tuple(e for e in net.eps if e > 0))
        self.found: dict[float, Counts] = {}
        for slope in self.slopes:  # one by one, so that a stop leaves what is counted by then
            self.found |= counts(desk, {slope: self._ask(slope)})

    def _ask(self, slope: float) -> Counted:
        groups = tuple(
            (tuple(e.attack for e in entries), tuple(threat(eps) for eps in self.eps))
            for threat, entries in BY_NORM.items()
        )
        return self.net.counted_groups(self.net.sloped(slope), groups, self.n)

    def originals(self) -> Results:
        """The same of the published pixels alone."""
        own = {slope: found.first for slope, found in self.found.items()}
        alone = copy(self)
        alone.found = {slope: first for slope, first in own.items() if first is not None}
        alone.n = self.net.original
        return alone

    def clean(self, slope: float) -> float:
        return self.found[slope].clean

    def robust(self, slope: float, name: str) -> list[float]:
        """Accuracy (%) under an attack at each eps above 0."""
        return self.found[slope].robust[self._places(name)]

    def is_ruined(self, name: str) -> bool:
        """Whether a NaN or infinite logit or gradient was seen under an attack."""
        return any(any(found.nonfinite[self._places(name)]) for found in self.found.values())

    def _places(self, name: str) -> slice:
        at = [e.name for entries in BY_NORM.values() for e in entries].index(name)
        return slice(at * len(self.eps), (at + 1) * len(self.eps))

    def mean(self, slope: float, names: Sequence[str], at: int = -1) -> float:
        """The mean accuracy (%) over the named attacks at one eps, each as often as the published
        list has it."""
        chosen = [e for e in BATTERY if e.name in names]
        values = [self.robust(slope, e.name)[at] for e in chosen]
        return float(np.average(values, weights=[e.times for e in chosen]))

    def against_eps(self) -> Panel:
        x, everything = ["0", *map(label, self.eps)], [e.name for e in BATTERY]
        drawn = []
        for i, s in enumerate(self.slopes):
            y = [self.clean(s), *(self.mean(s, everything, k) for k in range(len(self.eps)))]
            drawn.append(Series(f"slope {s:g}", x, y, colour=i))
            there = _quote_means(self.net, s)
            if there:
                drawn.append(
                    Series("published", x, [there[e] for e in x], published=True, colour=i)
                )
        return Panel(self.net.title, drawn, "eps, pixels", "mean accuracy, %")

    def against_slope(self) -> Panel:
        x = [label(s) for s in self.slopes]
        drawn = [
            Series(title, x, [self.mean(s, names) for s in self.slopes], colour=i)
            for i, (title, names) in enumerate(GROUPS)
        ]
        return Panel(self.net.title, drawn, "slope", "accuracy, %")

    def _beside(self) -> list[float]:
        return [s for s in (1.0, 10.0, 100.0) if s in self.slopes and _read_runs(self.net)]

    def head(self) -> tuple[str, ...]:
        measured = [f"slope {s:g}" for s in self.slopes]
        return ("attack", "kind", *measured, *(f"published, slope {s:g}" for s in self._beside()))

    def rows(self) -> tuple[tuple[Value, ...], ...]:
        rows = [self._row(entry) for entry in BATTERY]
        worst = [self.found[s].robust_to_all for s in self.slopes]
        said_so = [
            100 * _read_runs(self.net)[s]["worst case (best attack per-sample)"][-1]
            for s in self._beside()
        ]
        return (*rows, ("worst case, image by image", "", *worst, *said_so))

    def _row(self, entry: Entry) -> tuple[Value, ...]:
        measured = [self.robust(s, entry.name)[-1] for s in self.slopes]
        there = [100 * _quote(self.net, s, entry)[-1] for s in self._beside()]
        name = entry.name + (" (twice)" if entry.times == 2 else "")
        return (name, "gradient" if entry.gradient else "degradation", *measured, *there)

    def recovery(self, names: Sequence[str]) -> float:
        """Accuracy at slope 100 less accuracy at slope 1, in points, at the last eps."""
        return self.mean(100.0, names) - self.mean(1.0, names)


def _sample(desk: Desk, results: list[Results]) -> str:
    ruined = {e.name for r in results for e in BATTERY if r.is_ruined(e.name)}
    shown = ", ".join(f"{r.n} for {r.net.title}" for r in results)
    seen = ", ".join(sorted(ruined)) or "none"
    return (
        f"The first test images of each data set, {shown} (the paper says the first 2K; its"
        " notebook shuffled and took a random 2000). Of its 25 attacks four stand twice in the"
        " list (L∞ PGD, BIM, DeepFool and uniform noise), so 21 are distinct. Attacks on which a"
        f" NaN or infinite logit or gradient was seen: {seen}. CIFAR10-CNN2 was not published."
    )


# ------------------------------------------------------------------------------------ the published


def _read_runs(net: Net) -> dict[float, dict[str, list[float]]]:
    """By slope, each line of the published output: accuracies at eps 0 and above, by attack."""
    printed = published("srelu", f"figure4.{net.key}") if net.key != "cifar10_cnn2" else []
    return {
        float(run["slope"]): {name.split("Attack(")[0]: v for name, v in run["attacks"]}
        for run in printed
    }


def _quote(net: Net, slope: float, entry: Entry) -> list[float]:
    return _read_runs(net)[slope][entry.name]


def _quote_means(net: Net, slope: float) -> dict[str, float]:
    """The mean over the 25 by eps, in percent."""
    if slope not in _read_runs(net):
        return {}
    rows = [_quote(net, slope, e) for e in BATTERY]
    means = np.average(rows, axis=0, weights=[e.times for e in BATTERY])
    return {label(e): 100 * float(v) for e, v in zip(net.eps, means, strict=True)}


# --------------------------------------------------------------------------------- the NaN artefact


@spec
class RuinedImages:
    """Foolbox's VirtualAdversarial attack by itself: how many of its images are NaN at the last
    eps, and what it makes of them.

    `counted` and `kept_out` are accuracies at each eps: with NaN images judged by the class that
    NaN logits happen to name, as Foolbox does, and with the NaN images left as they were, clean.
    """

    model: Model
    data: str
    eps: tuple[float, ...]
    seed: int = 0

    def __call__(self) -> Facts:
        import foolbox

        net, images = self.model().eval(), data(self.data)
        bounded = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(self.seed)
            clean = net(images.images).argmax(1)
            attack = foolbox.attacks.VirtualAdversarialAttack(steps=10)
            with torch.enable_grad():
                _, examples, success = attack(
                    bounded, images.images, images.labels, epsilons=list(self.eps)
                )
            decided = net(examples[-1]).argmax(1)
        each = torch.stack([x.isnan().flatten(1).any(1) for x in examples])
        robust, nan = torch.where(each, clean == images.labels, ~success), each[-1]
        return {
            "n": len(images),
            "nan": int(nan.sum()),
            "as_class_0": int((decided[nan] == 0).sum()),
            "labelled_0": int((images.labels[nan] == 0).sum()),
            "counted": [100 * float(v.float().mean()) for v in ~success],
            "kept_out": [100 * float(v.float().mean()) for v in robust],
        }


def _much_worse(facts: Ruined) -> Claim:
    """Much worse: at slope 100 the accuracy at the last eps is `WORSE` points or more below that at
    slope 1, as Foolbox counts, on every network; truly: the attack itself takes so many points more
    of the clean accuracy, with the NaN images kept out."""
    keys = list(dict.fromkeys(key for key, _ in facts))
    counted = [facts[k, 100.0]["counted"][-1] - facts[k, 1.0]["counted"][-1] for k in keys]
    truly = [_cost(facts[k, 1.0]) - _cost(facts[k, 100.0]) for k in keys]
    nan, n = (sum(facts[k, 100.0][what] for k in keys) for what in ("nan", "n"))
    return Claim(
        "figure4.virtual_adversarial",
        answer_by_network([v <= -WORSE for v in counted], [v <= -WORSE for v in truly]),
        f"slope 100 against 1, points at the last eps: {_signed(counted)} as Foolbox counts; with"
        f" its NaN images kept out, which are {nan} of {n} at slope 100, what the attack takes of"
        f" the clean accuracy changes these by {_signed(truly)}; {WORSE:g} points less are asked"
        " for",
    )


def _cost(facts: Facts) -> float:
    """What the attack takes of the clean accuracy, NaN images kept out."""
    clean, *_, attacked = facts["kept_out"]
    return float(clean - attacked)


def _signed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:+.1f}" for v in values)


Ruined = dict[tuple[str, float], Facts]
"""The facts of RuinedImages by network and slope."""


def _ruin(desk: Desk, results: list[Results]) -> Ruined:
    asked = {
        (r.net.key, s): RuinedImages(
            r.net.sloped(s), r.net.slice(min(r.n, RUINED, r.net.original)), (0.0, r.net.eps[-1])
        )
        for r in results
        for s in r.slopes
    }
    return dict(zip(asked, desk.all_facts(list(asked.values())), strict=True))


def _artefact(results: list[Results], facts: Ruined) -> Iterator[Part]:
    ruined, named = (sum(f[k] for f in facts.values()) for k in ("nan", "as_class_0"))
    yield Text(
        "**The VirtualAdversarial artefact.** The paper says that against this attack the defence"
        " made things much worse. The attack takes the gradient of a KL divergence 1e-6 away from"
        " the image. On a steep net the softmax is exactly 0 or 1 in float32, that gradient is"
        " exactly zero, and the attack divides 0 by 0: the image is NaN at every eps, at eps 0"
        " too. (Its guard compares a float32 norm with 1e-64, which float32 cannot hold.) Foolbox"
        " then takes the argmax of NaN logits, which names class 0: so all are “fooled” but the"
        f" images of class 0, about a tenth. Here {named} of {ruined} NaN images were read as class"
        " 0. With these left out, the attack does next to nothing at these radii; ours, which keeps"
        " its direction where no gradient is left, stands in the tables above."
    )
    head = (
        "network",
        "slope",
        "n",
        "NaN images",
        "of class 0",
        "eps 0, as Foolbox counts",
        "published, eps 0",
    )
    more = ("last eps, as Foolbox counts", "published, last eps", "last eps, NaN kept out")
    yield Table(
        "VirtualAdversarial, accuracy (%)",
        head + more,
        tuple(_ruin_row(r, s, facts[r.net.key, s]) for r in results for s in r.slopes),
    )


def _ruin_row(r: Results, slope: float, f: Facts) -> tuple[Value, ...]:
    there = [100 * v for v in _quote(r.net, slope, VAT)] if slope in _read_runs(r.net) else [None]
    counted = (f["counted"][0], there[0], f["counted"][-1], there[-1], f["kept_out"][-1])
    return (r.net.title, label(slope), f["n"], f["nan"], f["labelled_0"], *counted)


# --------------------------------------------------------------------------------------- the claims


def _claims(desk: Desk, results: dict[str, Results], ruined: Ruined) -> Iterator[Part]:
    recovered = {key: _counted(r, ruined) for key, r in results.items()}
    on_margin = {key: _on_margin(desk, r) for key, r in results.items()}
    truly = {
        key: float(_mean(on_margin[key][100.0]) - _mean(on_margin[key][1.0])) for key in results
    }
    yield Table(
        "Recovery at the last eps: accuracy at slope 100 less accuracy at slope 1, in points",
        (
            *(
                "network",
                "all 25, NaN as Foolbox counts",
                "published",
                "all 25, NaN kept out",
                "gradient attacks",
            ),
            *("image degradation", "all 25, NaN kept out, climbing the margin loss"),
        ),
        tuple(row for r in results.values() for row in _recovery_rows(r, ruined, truly[r.net.key])),
    )
    yield _around(
        "figure4.recovery.mnist", (15.0, 15.0), [(MNIST, recovered[MNIST.key], truly[MNIST.key])]
    )
    cifar = [(n, recovered[n.key], truly[n.key]) for n in NETS if n is not MNIST]
    yield _around("figure4.recovery.cifar10", (10.0, 15.0), cifar)
    yield _kind(results, on_margin)
    yield _say_recovery([(r.net, recovered[key], truly[key]) for key, r in results.items()])


def _recovery_rows(r: Results, ruined: Ruined, truly: float) -> Iterator[tuple[Value, ...]]:
    """A network's row, and one of the published pixels alone where it has others, too."""
    yield _recovery_row(r, r.net.title, _counted(r, ruined), truly)
    if r.net.mixed(r.n):
        own = r.originals()
        yield _recovery_row(
            own, f"{r.net.title}, first {own.n}, original", _counted(own, ruined), None
        )


def _counted(r: Results, ruined: Ruined) -> float:
    """The recovery of all 25, NaN images as Foolbox counts them."""
    return r.recovery([e.name for e in BATTERY]) + _by_nan(r.net.key, ruined)


def _recovery_row(
    r: Results, title: str, recovered: float, truly: float | None
) -> tuple[Value, ...]:
    there = _read_runs(r.net)
    said_so = None
    if there:
        said_so = (
            _quote_means(r.net, 100.0)[label(r.net.eps[-1])]
            - _quote_means(r.net, 1.0)[label(r.net.eps[-1])]
        )
    kinds = (r.recovery(_names(True)), r.recovery(_names(False)))
    return (
        title,
        recovered,
        said_so,
        r.recovery(_names(True) + _names(False)),
        *kinds,
        truly,
    )


def _by_nan(key: str, ruined: Ruined) -> float:
    """What counting NaN images as Foolbox does adds to the recovery, in points: one attack of
    25."""
    steep, plain = (ruined[key, s] for s in (100.0, 1.0))
    return (
        float(sum(s * (f["counted"][-1] - f["kept_out"][-1]) for s, f in ((1, steep), (-1, plain))))
        / 25
    )


def _names(gradient: bool) -> list[str]:
    return [e.name for e in BATTERY if e.gradient == gradient]


def _around(
    about: str, span: tuple[float, float], recoveries: list[tuple[Net, float, float]]
) -> Claim:
    """Holds where every network's recovery is within the span, give or take AROUND; truly: on the
    margin loss and with NaN images kept out too."""

    def met(value: float) -> bool:
        return span[0] - AROUND <= value <= span[1] + AROUND

    values = "; ".join(f"{net.title} {a:.1f} points ({b:.1f})" for net, a, b in recoveries)
    return Claim(
        about,
        answer_by_network([met(a) for _, a, _ in recoveries], [met(b) for _, _, b in recoveries]),
        f"{values}, NaN images as Foolbox counts; in brackets with these kept out and the margin"
        f" loss where an attack climbs a loss; “around” taken as {span[0] - AROUND:g} to"
        f" {span[1] + AROUND:g}",
    )


def _say_recovery(recoveries: list[tuple[Net, float, float]]) -> Takeaway:
    """What all 25 attacks say, in a line."""
    told = "; ".join(f"{net.title} {a:+.1f} ({b:+.1f})" for net, a, b in recoveries)
    return Takeaway(
        4,
        "Slope 100 against 1, mean accuracy under Foolbox's 25 attacks at the last eps, points:"
        f" {told}; in brackets with NaN images kept out and the margin loss where one is climbed.",
    )


def _kind(
    results: dict[str, Results], on_margin: dict[str, dict[float, dict[str, float]]]
) -> Claim:
    """Works better: the recovery under gradient attacks exceeds that under image degradation by
    five points."""
    gains, truly = [], []
    for key, r in results.items():
        degraded = r.recovery(_names(False))
        gains.append(r.recovery(_names(True)) - degraded)
        names = _names(True)
        margin = _mean(on_margin[key][100.0], names) - _mean(on_margin[key][1.0], names)
        truly.append(margin - degraded)
    shown = "; ".join(
        f"{r.net.title} {a:+.1f} ({b:+.1f})"
        for r, a, b in zip(results.values(), gains, truly, strict=True)
    )
    return Claim(
        "figure4.kind",
        answer_by_network([v > 5 for v in gains], [v > 5 for v in truly]),
        f"recovery under gradient attacks less that under degradation, in points: {shown}; in"
        " brackets with the margin loss where an attack climbs a loss; more than 5 on every"
        " network is asked for",
    )


def _on_margin(desk: Desk, r: Results) -> dict[float, dict[str, float]]:
    """Accuracies (%) at the last eps by slope and attack, climbing the margin loss where a loss is
    climbed."""
    names = [e.name for e in BATTERY]
    slopes, eps = (1.0, 100.0), r.eps[-1]
    climbing = {norm: [e for e in es if e.margin is not None] for norm, es in BY_NORM.items()}
    groups = tuple(
        (tuple(e.margin for e in entries), (threat(eps),)) for threat, entries in climbing.items()
    )
    found = counts(desk, {s: r.net.counted_groups(r.net.sloped(s), groups, r.n) for s in slopes})
    climbed = [e.name for entries in climbing.values() for e in entries]
    return {
        s: {name: r.robust(s, name)[-1] for name in names}
        | dict(zip(climbed, found[s].robust, strict=True))
        for s in slopes
    }


def _mean(shares: dict[str, float], names: Sequence[str] = ()) -> float:
    chosen = [e for e in BATTERY if not names or e.name in names]
    return float(np.average([shares[e.name] for e in chosen], weights=[e.times for e in chosen]))
