"""Figure 7: scaling the pixels instead of the slope

x ← s·x, in the left column clamped to [0, 1]; images decided wrongly are dropped; gradient of the
cross-entropy there; one FGSM step from there; clipped to [0, 1] in both columns, so that "without
clipping" is clipped, too, before it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retroact.attacks.fgsm import FGSM
from retroact.crafting.losses import Loss
from retroact.reports.plots import panels
from retroact.reports.studied import Claim, Figure, Part, Table, Takeaway, Text, Value
from retroact.studies.counted import counts
from retroact.studies.desk import Desk
from retroact.studies.published import published
from retroact.studies.srelu.attacks import accuracies, images
from retroact.studies.srelu.networks import ABOVE_1, CNN1, MNIST, SLOPES, Net, label
from retroact.studies.srelu.panels import Curve, mean, panel, table
from retroact.studies.srelu.scaled_pixels import ScaledPixels
from retroact.studies.truth import answer_claim

PLAIN, ON_MARGIN = FGSM(), FGSM(loss="margin")
COLUMNS = ("clipped", "unclipped")
RESEMBLES = 10.0
"""Percentage points that curves may lie apart, averaged over eps above 0, and still resemble each
other."""
NO_HELP = 2.0
"""Percentage points of mean accuracy under attack that scaling up may win and still "not help"."""

Key = tuple[str, str, float]
"""Network, column and scale."""


def make(desk: Desk) -> Iterator[Part]:
    n = desk.pick(500, 10_000)
    by_net = {net: _curves(desk, net, n) for net in (MNIST, CNN1)}
    yield Text(
        f"The network has slope 1; the first {n} test images are multiplied by the scale, attacked"
        " there by FGSM and judged after a clip to [0, 1]. That last clip is made in both columns:"
        " in the paper's “without clipping” an image counts as right where it is so both before it"
        " (far outside [0, 1]) and after."
    )
    drawn = [
        panel(f"{net.title}, {column}", _eps(net), [curves[net.key, column, s] for s in SLOPES])
        for net, curves in by_net.items()
        for column in COLUMNS
    ]
    yield Figure(
        "FGSM on scaled images, per scale. Thin and dashed: published.", panels(drawn, columns=2)
    )
    slopes = {net: _slopes(desk, net) for net in by_net}
    yield _against_slopes(by_net, slopes)
    yield _zeros(desk, n)
    for net, curves in by_net.items():
        for column in COLUMNS:
            shown = [curves[net.key, column, s] for s in SLOPES]
            yield table(f"{net.title}, {column}", "scale", "eps", _eps(net), shown, net.original)
    yield _mnist_clipped(by_net[MNIST])
    yield _mnist_unclipped(desk, n, by_net[MNIST], slopes[MNIST])
    yield _cifar(by_net[CNN1])
    yield _say_scaled(by_net, slopes)


# ------------------------------------------------------------------------------------------ numbers


def _curves(desk: Desk, net: Net, n: int) -> dict[Key, Curve]:
    sizes = [n, net.original] if net.mixed(n) else [n]
    keys = [(column, s) for column in COLUMNS for s in SLOPES]
    asked = [_spec(net, net.slice(k), s, column) for column, s in keys for k in sizes]
    measured = iter([[100 * v / f["n"] for v in f["left"]] for f in desk.all_facts(asked)])
    by_key = {}
    for column, s in keys:
        y, *original = [next(measured) for _ in sizes]
        by_key[net.key, column, s] = Curve(
            label(s), y, _quote(net, column, s), original[0] if original else None, "scale"
        )
    return by_key


def _spec(
    net: Net, images: str, scale: float, column: str, loss: Loss = "cross_entropy"
) -> ScaledPixels:
    return ScaledPixels(net.sloped(1.0), images, scale, net.eps, column == "clipped", loss)


def _quote(net: Net, column: str, scale: float) -> dict[str, float]:
    counts = published("srelu", f"figure7.{net.key}.{column}.count", label(scale)) or {}
    return {eps: count / 100 for eps, count in counts.items()}  # of 10,000


def _slopes(desk: Desk, net: Net, attack: FGSM = PLAIN) -> dict[float, list[float]]:
    """FGSM's curve per slope, as in Figure 2."""
    n = images(desk, "FGSM")
    by_slope = counts(desk, {s: net.counted(net.sloped(s), attack, n) for s in SLOPES})
    return {s: accuracies("FGSM", found) for s, found in by_slope.items()}


def _eps(net: Net) -> list[str]:
    return [label(e) for e in net.eps]


def _under_attack(y: Sequence[float]) -> float:
    """Mean over eps above 0."""
    return mean(y[1:])


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Mean absolute difference of two curves over eps above 0."""
    return mean([abs(u - v) for u, v in zip(a[1:], b[1:], strict=True)])


# -------------------------------------------------------------------------------- tables and claims


def _against_slopes(
    by_net: dict[Net, dict[Key, Curve]], slopes: dict[Net, dict[float, list[float]]]
) -> Table:
    head = (
        "network",
        "scaled, or slope, by",
        "scaled, clipped",
        "scaled, unclipped",
        "slope instead",
    )
    rows: list[tuple[Value, ...]] = [
        (
            net.title,
            label(s),
            *(_under_attack(curves[net.key, column, s].y) for column in COLUMNS),
            _under_attack(slopes[net][s]),
        )
        for net, curves in by_net.items()
        for s in SLOPES
    ]
    return Table("Accuracy under FGSM (%), mean over eps above 0", head, tuple(rows))


def _zeros(desk: Desk, n: int) -> Table:
    """The share of exactly zero gradients among images that are right when scaled."""
    rows: list[tuple[Value, ...]] = []
    for net in (MNIST, CNN1):
        for column in COLUMNS:
            facts = desk.all_facts([_spec(net, net.slice(n), s, column) for s in SLOPES])
            rows.append((net.title, column, *(100 * f["zero"] / max(1, f["right"]) for f in facts)))
    head = ("network", "column", *(f"scale {label(s)}" for s in SLOPES))
    return Table(
        "Exactly zero gradients (%) among scaled images that are decided rightly", head, tuple(rows)
    )


def _mnist_clipped(by_key: dict[Key, Curve]) -> Claim:
    """Did not improve: no scale above 1 wins more than `NO_HELP` points of accuracy under attack
    when pixels are clipped."""
    base = _under_attack(by_key[MNIST.key, "clipped", 1.0].y)
    won = {s: _under_attack(by_key[MNIST.key, "clipped", s].y) - base for s in ABOVE_1}
    told = ", ".join(f"{v:+.1f} at {label(s)}" for s, v in won.items())
    return Claim(
        "figure7.mnist_clipped",
        answer_claim(max(won.values()) <= NO_HELP),
        f"scales above 1 against 1, clipped, points of accuracy, mean over eps above 0 (allowed:"
        f" {NO_HELP:g}): {told}",
    )


def _mnist_unclipped(
    desk: Desk, n: int, by_key: dict[Key, Curve], slopes: dict[float, list[float]]
) -> Claim:
    """Resembles: at every factor above 1 within `RESEMBLES` of the slope's curve; truly: under the
    margin loss too."""
    asked = [_spec(MNIST, MNIST.slice(n), s, "unclipped", "margin") for s in ABOVE_1]
    hard = [[100 * v / f["n"] for v in f["left"]] for f in desk.all_facts(asked)]
    steep = _slopes(desk, MNIST, ON_MARGIN)
    apart = [_distance(by_key[MNIST.key, "unclipped", s].y, slopes[s]) for s in ABOVE_1]
    truly = [_distance(y, steep[s]) for s, y in zip(ABOVE_1, hard, strict=True)]
    told = ", ".join(
        f"{a:.1f} ({b:.1f}) at {label(s)}" for a, b, s in zip(apart, truly, ABOVE_1, strict=True)
    )
    return Claim(
        "figure7.mnist_unclipped",
        answer_claim(max(apart) <= RESEMBLES, max(truly) <= RESEMBLES),
        f"mean distance of both curves over eps above 0, points (allowed: {RESEMBLES:g}), in"
        f" brackets under one step on the margin loss: {told}",
    )


def _cifar(by_key: dict[Key, Curve]) -> Claim:
    """Does not help: no scale above 1 wins more than `NO_HELP` points of accuracy under attack, in
    either column."""
    won = {
        (column, s): (
            _under_attack(by_key[CNN1.key, column, s].y)
            - _under_attack(by_key[CNN1.key, column, 1.0].y)
        )
        for column in COLUMNS
        for s in ABOVE_1
    }
    column, scale = max(won, key=lambda k: won[k])
    best = won[column, scale]
    because = (
        f"the best scale above 1, {label(scale)} {column}, wins {best:+.1f} points, mean over eps"
        " above 0"
    )
    return Claim(
        "figure7.cifar", answer_claim(best <= NO_HELP), f"{because} (allowed: {NO_HELP:g})"
    )


def _say_scaled(
    by_net: dict[Net, dict[Key, Curve]], slopes: dict[Net, dict[float, list[float]]]
) -> Takeaway:
    """What scaling does beside a slope, in a line."""
    told = []
    for net, curves in by_net.items():
        plain, steep = (_under_attack(slopes[net][s]) for s in (1.0, 100.0))
        scaled = (_under_attack(curves[net.key, column, 100.0].y) for column in COLUMNS)
        shown = ", ".join(f"{value:.1f}" for value in (plain, steep, *scaled))
        told.append(f"{net.title} {shown}")
    return Takeaway(
        6,
        "Mean accuracy under FGSM, %, at slope 1, at slope 100, and at slope 1 with pixels times"
        f" 100, clipped and unclipped: {'; '.join(told)}.",
    )
