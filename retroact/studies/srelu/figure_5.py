"""Figures 5 and 6: targeted FGSM, the mean and each of ten classes

x − eps sign(∇CE(z, t)), clipped. Images whose clean decision is already t are not attacked, wrong
ones are; a success is a new decision t. The rate is over all images, so that it cannot reach 100 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from retroact.attacks.fgsm import FGSM
from retroact.crafting.goals import Targeted
from retroact.crafting.losses import Loss
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import decide
from retroact.evaluation.proof import craft_all
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.reports.plots import Panel, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Takeaway, Text, Value
from retroact.spec import spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.published import published
from retroact.studies.srelu import CHUNK
from retroact.studies.srelu.networks import ABOVE_1, CNN2, MNIST, NETS, SLOPES, Net, label
from retroact.studies.srelu.panels import Curve, mean, panel, table
from retroact.studies.truth import answer_by_network

CLASSES = {
    "mnist": tuple(map(str, range(10))),
    "cifar10": ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
PART = 1000  # images in memory at once, once for each eps

HELPED = {"mnist": 6, "cifar10_cnn1": 6, "cifar10_cnn2": 4}
"""The classes that the claim counts, per network."""
LOWER = 1.0
"""Percentage points of mean success by which a slope must fall below slope 1 to "reduce" it."""
STOPPED = 0.5
"""The share of slope 1's mean success that must be left for attacks not to be "stopped"."""
SAME = 3.0
"""Percentage points of mean success that slopes above 1 may lie apart and still be "about the
same"."""


@spec
class TargetedRates:
    """How many images one step of targeted FGSM leads to each of ten classes, per eps; and its
    exactly zero gradients.

    `led[t][i]`: images with another clean decision than t whose decision is t at `eps[i]`.
    `zero[t]` of `asked[t]` gradients were exactly zero.
    """

    model: Model
    data: str
    eps: tuple[float, ...]
    loss: Loss = "cross_entropy"

    def __call__(self) -> Facts:
        net, images = self.model(), data(self.data)
        threats = [Linf(e) for e in self.eps]
        led, zero, asked = torch.zeros(10, len(threats)), torch.zeros(10), torch.zeros(10)
        for start in range(0, len(images), PART):
            part = images[start : start + PART]
            clean = decide(net, part.images)
            for t in range(10):
                scene = (part.images, part.labels, part.index)
                outcomes = craft_all(
                    FGSM(self.loss), net, *scene, threats, Targeted(t), chunk=CHUNK
                )
                led[t] += torch.tensor(
                    [((decide(net, m.x_adv) == t) & (clean != t)).sum() for m in outcomes]
                )
                zero[t] += outcomes[0].zero_gradients.sum()
                asked[t] += outcomes[0].gradients.sum()
        return {
            "n": len(images),
            "led": led.tolist(),
            "zero": zero.tolist(),
            "asked": asked.tolist(),
        }


Rates = dict[tuple[str, float], list[list[float]]]
"""Successes in percent of all images, [class][eps], by network and slope."""


def make(desk: Desk) -> Iterator[Part]:
    n, few = desk.pick(100, 10_000), desk.pick(100, 2000)
    yield Text(
        "Targeted FGSM, x − eps · sign(∇CE(z, t)), towards each of the ten classes. Images that are"
        " already decided as the target are skipped and stay in the denominator; the true label"
        " plays no part. **Lower is better for the defence.** Published counts are of 10,000 images"
        " and are shown in percent."
    )
    yield from _true_loss(desk, n)
    yield from _raw_logit(desk, n, few)
    yield from _both(desk, few)
    yield from _lowered(desk, n, few)


# --------------------------------------------------------------------------------- the three blocks


def _true_loss(desk: Desk, n: int) -> Iterator[Part]:
    yield Text(
        f"**True cross-entropy** (the current notebooks), n = {n}. Published numbers exist for"
        " MNIST, classes 0 to 6 whole and 7 in part, so there is no published mean."
    )
    rates = _rates(desk, NETS, n, "cross_entropy")
    known = {net: published("srelu", f"figure5_6.{net.key}.targeted_fgsm.count") for net in NETS}
    yield Figure(
        "Figure 5: mean success (%) over ten classes.",
        panels([_mean_panel(net, rates) for net in NETS]),
    )
    for net in NETS:
        drawn = [_class_panel(net, t, rates, known[net]) for t in range(10)]
        yield Figure(
            f"Figure 6, {net.title}: success (%) per target class.",
            panels(drawn, columns=4, height=1.9),
        )
    for net in NETS:
        yield _by_class(net, rates)
    for net in NETS:
        if known[net]:
            yield from _tables(net, rates, known[net], "true cross-entropy")
    if CNN2.mixed(n):
        yield _originals(desk, rates)
    yield _slopes_above_1(rates)
    yield _classes_helped(rates)


def _raw_logit(desk: Desk, n: int, few: int) -> Iterator[Part]:
    sizes = {net: n if net is CNN2 else few for net in NETS}
    yield Text(
        "**The raw-logit variant.** Earlier notebooks take the negative log-likelihood of logits"
        " without a log-softmax, so the attacker follows the gradient of the target's logit alone."
        " The published numbers for CIFAR10-CNN2 are of this kind. n ="
        f" {', '.join(f'{k} ({net.title})' for net, k in sizes.items())}."
    )
    rates: Rates = {}
    for net, k in sizes.items():
        rates |= _rates(desk, (net,), k, "logit")
    known = published("srelu", f"figure5_6.{CNN2.key}.targeted_fgsm.raw_logit_loss.count")
    yield Figure(
        "Mean success (%) over ten classes, raw-logit loss. Thin and dashed: published.",
        panels([_mean_panel(net, rates, known if net is CNN2 else None) for net in NETS]),
    )
    yield from _tables(CNN2, rates, known, "raw-logit loss")


def _both(desk: Desk, few: int) -> Iterator[Part]:
    rates = _rates(desk, NETS, few, "towards_and_away")
    alone = _rates(desk, NETS, few, "cross_entropy")
    yield Text(
        f"**“Or we could do both”**, n = {few}: towards the target and away from the true class in"
        " one loss, CE(z, y) − CE(z, t) = z_t − z_y, in which no softmax is left that could"
        " saturate. Mean success (%) over classes and eps, beside the target's cross-entropy alone"
        " on the same images."
    )
    yield Figure(
        "Mean success (%) over ten classes, both.",
        panels([_mean_panel(net, rates) for net in NETS]),
    )
    head = ("network", "loss", *(f"slope {label(s)}" for s in SLOPES))
    rows: list[tuple[Value, ...]] = [
        (net.title, name, *(mean(_mean(net, r, s)[1:]) for s in SLOPES))
        for net in NETS
        for name, r in (("target alone", alone), ("both", rates))
    ]
    yield Table(
        "Target alone and both: mean success (%) over classes and eps above 0", head, tuple(rows)
    )


def _lowered(desk: Desk, n: int, few: int) -> Iterator[Part]:
    rates, hard = (
        _rates(desk, NETS, n, "cross_entropy"),
        _rates(desk, NETS, few, "towards_and_away"),
    )
    yield _slope_lowers(rates, hard)
    yield _slopes_under_1(rates, hard)
    facts = desk.all_facts(_ask(NETS, n, "cross_entropy"))
    steep = [f for (_, s), f in zip(product(NETS, SLOPES), facts, strict=True) if s == 100.0]
    dead = [100 * sum(f["zero"]) / max(1, sum(f["asked"])) for f in steep]
    yield _not_stopped(rates, dead)
    yield _say_success(rates, hard)


# ------------------------------------------------------------------------------------------ numbers


def _ask(nets: tuple[Net, ...], n: int, loss: Loss) -> list[TargetedRates]:
    """By network and slope."""
    return [
        TargetedRates(net.sloped(s), net.slice(n), net.eps[1:], loss)
        for net, s in product(nets, SLOPES)
    ]


def _rates(desk: Desk, nets: tuple[Net, ...], n: int, loss: Loss) -> Rates:
    measured = desk.all_facts(_ask(nets, n, loss))
    return {
        # nothing moves at eps 0
        (net.key, s): [[0.0, *(100 * k / f["n"] for k in led)] for led in f["led"]]
        for (net, s), f in zip(product(nets, SLOPES), measured, strict=True)
    }


def _mean(net: Net, rates: Rates, slope: float) -> list[float]:
    """Over the ten classes, for each eps, 0 the first."""
    return [mean(column) for column in zip(*rates[net.key, slope], strict=True)]


def _average(net: Net, rates: Rates, t: int, slope: float) -> float:
    """Over eps above 0, for one class."""
    return mean(rates[net.key, slope][t][1:])


def _percent(known: Facts | None, t: str, slope: float) -> dict[str, float]:
    counts = (known or {}).get(t, {}).get(label(slope), {})
    return {eps: count / 100 for eps, count in counts.items()}  # of 10,000


# -------------------------------------------------------------------------------- panels and tables


def _mean_panel(net: Net, rates: Rates, known: Facts | None = None) -> Panel:
    """The mean over classes; a published one where all ten were published."""
    curves = []
    for s in SLOPES:
        each = [_percent(known, name, s) for name in CLASSES[net.data]]
        there = {e: mean([c[e] for c in each]) for e in _columns(net) if all(e in c for c in each)}
        curves.append(Curve(label(s), _mean(net, rates, s), there, what="slope"))
    return panel(net.title, _columns(net), curves, ylabel="success, %", ylim=(0, 50))


def _class_panel(net: Net, t: int, rates: Rates, known: Facts | None) -> Panel:
    name = CLASSES[net.data][t]
    curves = [
        Curve(label(s), rates[net.key, s][t], _percent(known, name, s), what="slope")
        for s in SLOPES
    ]
    return panel(
        f"to {name}", [e.removeprefix("0") or "0" for e in _columns(net)], curves, "", "", (0, 91)
    )


def _columns(net: Net) -> list[str]:
    return [label(e) for e in net.eps]


def _by_class(net: Net, rates: Rates) -> Table:
    head = ("target", *(f"slope {label(s)}" for s in SLOPES), "difference, above 1 − 1")
    rows: list[tuple[Value, ...]] = [
        (name, *(_average(net, rates, t, s) for s in SLOPES), _gain(net, rates, t))
        for t, name in enumerate(CLASSES[net.data])
    ]
    return Table(
        f"{net.title}: success (%) per class, mean over eps above 0", head, tuple(rows), folded=True
    )


def _tables(net: Net, rates: Rates, known: Facts, loss: str) -> Iterator[Table]:
    """Every number of the classes that were published."""
    for t, name in enumerate(CLASSES[net.data]):
        if name in known:
            curves = [
                Curve(label(s), rates[net.key, s][t], _percent(known, name, s)) for s in SLOPES
            ]
            yield table(
                f"{net.title}, towards {name}, {loss}: success (%)",
                "slope",
                "eps",
                _columns(net),
                curves,
            )


def _originals(desk: Desk, rates: Rates) -> Table:
    """The means over classes and eps of the original images beside those of all."""
    nets = tuple(net for net in NETS if net is not MNIST)
    own = _rates(desk, nets, CNN2.original, "cross_entropy")
    head = ("network", "images", *(f"slope {label(s)}" for s in SLOPES))
    rows: list[tuple[Value, ...]] = [
        (net.title, images, *(mean(_mean(net, r, s)[1:]) for s in SLOPES))
        for net in nets
        for images, r in (("all", rates), (f"the first {CNN2.original}, original", own))
    ]
    return Table("CIFAR-10: mean success (%) over classes and eps above 0", head, tuple(rows))


# ------------------------------------------------------------------------------------------- claims


def _gain(net: Net, rates: Rates, t: int) -> float:
    """Mean success towards class `t` at slopes above 1 minus that at slope 1: below 0 the slope has
    helped."""
    return mean([_average(net, rates, t, s) for s in ABOVE_1]) - _average(net, rates, t, 1.0)


def _slopes_above_1(rates: Rates) -> Claim:
    """About the same: at no eps do the means over classes at slopes above 1 lie further apart than
    `SAME`."""
    spread = {}
    for net in NETS:
        means = zip(*(_mean(net, rates, s) for s in ABOVE_1), strict=True)
        spread[net.title] = max(max(column) - min(column) for column in means)
    told = ", ".join(f"{value:.1f} ({net})" for net, value in spread.items())
    because = (
        "largest distance between slopes above 1 at one eps, points of mean success (allowed:"
        f" {SAME:g}): {told}"
    )
    same = [value <= SAME for value in spread.values()]
    return Claim("targeted.slopes_above_1", answer_by_network(same, same), because)


def _classes_helped(rates: Rates) -> Claim:
    """Helped: fewer successes, averaged over slopes above 1 and eps, than at slope 1; within one
    class of 6, 6, 4."""
    helped = {net: sum(_gain(net, rates, t) < 0 for t in range(10)) for net in NETS}
    met = [abs(count - HELPED[net.key]) <= 1 for net, count in helped.items()]
    told = ", ".join(f"{count} ({net.title})" for net, count in helped.items())
    return Claim(
        "targeted.classes_helped",
        answer_by_network(met, met),
        f"classes with fewer successes above slope 1: {told}",
    )


def _success(net: Net, rates: Rates, slope: float) -> float:
    """Over classes and eps above 0."""
    return mean(_mean(net, rates, slope)[1:])


def _slope_lowers(rates: Rates, hard: Rates) -> Claim:
    """Reduces: at every slope above 1 the mean success is `LOWER` or more below that at slope 1, on
    every network; truly: so it is of the loss without a softmax."""
    least, truly = (
        [_success(net, r, 1.0) - max(_success(net, r, s) for s in ABOVE_1) for net in NETS]
        for r in (rates, hard)
    )
    told = "; ".join(
        f"{net.title} {a:+.1f} ({b:+.1f})" for net, a, b in zip(NETS, least, truly, strict=True)
    )
    return Claim(
        "targeted.slope_lowers",
        answer_by_network([v >= LOWER for v in least], [v >= LOWER for v in truly]),
        "mean success at slope 1 less that at the slope above 1 where it is largest, points:"
        f" {told}; in brackets towards the target and away from the true class, without a softmax;"
        f" {LOWER:g} or more is asked for on every network",
    )


def _say_success(rates: Rates, hard: Rates) -> Takeaway:
    """What the slope does to targeted attacks, in a line."""
    told = "; ".join(
        f"{net.title} {_success(net, rates, 1.0):.1f} → {_success(net, rates, 100.0):.1f}"
        f" ({_success(net, hard, 1.0):.1f} → {_success(net, hard, 100.0):.1f})"
        for net in NETS
    )
    return Takeaway(
        5,
        "Targeted FGSM, mean success over classes and eps at slope 1 → at slope 100, %, and in"
        f" brackets by a loss without a softmax: {told}.",
    )


def _slopes_under_1(rates: Rates, hard: Rates) -> Claim:
    """Useful: at slope 0.5 the mean success is `LOWER` or more below that at slope 1, on every
    network; truly: so it is of the loss without a softmax."""
    won, truly = (
        [_success(net, r, 1.0) - _success(net, r, 0.5) for net in NETS] for r in (rates, hard)
    )
    told = "; ".join(
        f"{net.title} {a:+.1f} ({b:+.1f})" for net, a, b in zip(NETS, won, truly, strict=True)
    )
    return Claim(
        "targeted.slopes_under_1",
        answer_by_network([v >= LOWER for v in won], [v >= LOWER for v in truly]),
        f"mean success at slope 1 less that at 0.5, points: {told}; in brackets without a softmax;"
        f" {LOWER:g} or more is asked for on every network",
    )


def _not_stopped(rates: Rates, dead: list[float]) -> Claim:
    """Does not stop: at slope 100 `STOPPED` or more of slope 1's mean success is left, on every
    network; `dead` is the share (%) of exactly zero gradients there."""
    left = [_success(net, rates, 100.0) / max(_success(net, rates, 1.0), 1e-9) for net in NETS]
    goes_on = [share >= STOPPED for share in left]
    told = "; ".join(
        f"{net.title} {100 * share:.0f} %, {zero:.1f} % of the gradients exactly zero"
        for net, share, zero in zip(NETS, left, dead, strict=True)
    )
    return Claim(
        "targeted.explosion",
        answer_by_network(goes_on, goes_on),
        f"of the mean success at slope 1 is left at slope 100: {told}; {STOPPED:.0%} is asked for."
        " The gradient of another class's cross-entropy is large where that of the true class is"
        " zero",
    )
