"""Truth: what the retrofit is worth against attacks that know it

Audits in pixels: the same battery on the network and on its retrofit, example by example (radius
0.1 on the base LeNet-like, 0.2 on the robust one, 2/255 on CIFAR-10). Minimum norms: the smallest
L2 perturbation, in pixels, that any of several attacks finds; on a retrofit they climb its own
gradients, those through a kernel at the jump, and those of the network before the change. An upper
bound on both sides, and tighter than DeepFool's on either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retroact.reports.plots import Mark
from retroact.reports.studied import Claim, Part, Table, Takeaway, Text, Value, Weighed
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.audited import true_audit
from retroact.studies.jumprelu.gray_box import SCALED, run_longer
from retroact.studies.jumprelu.minimum_norms import found_norms, median_ratio
from retroact.studies.jumprelu.networks import (
    ALEX,
    ALEX_ROBUST,
    ATTACKS,
    DEEPFOOLS,
    LENET,
    LENET_ROBUST,
    MOBILE,
    MOBILE_ROBUST,
    NOISES,
    PAPERS,
    WIDE,
    WIDE_ROBUST,
    Net,
    available,
    untested,
)
from retroact.studies.jumprelu.white_box import Runs, published_ratio, ratios, runs
from retroact.studies.truth import answer_by_network, audits, numbers

GAINED = "points of accuracy that the retrofit gains"
GREATLY = 5.0
"""Points of accuracy, the margin of an audit's verdict, that "greatly" asks for at least."""


def make(desk: Desk) -> Iterator[Part]:
    asked = [(net.title, true_audit(desk, net)) for net in available(desk)]
    yield audits(desk, "Audits: accuracy, %, before → after the retrofit", asked)
    yield Text(
        "Claimed is PGD with 40 steps and a random start in this ball; verified is what withstands"
        " every attack of the battery. A verdict is about the difference between the two networks"
        " under the same attacks."
        + (f" Not among them: {untested(desk).removeprefix('; ')}." if untested(desk) else "")
    )
    yield _say_verified(desk)
    table = norms(desk)
    yield table
    yield _say_norms(table)
    yield Text(
        "At kappa 0 the smallest is that of three attacks (DDN, FMN, Carlini and Wagner), at kappa"
        " that of eight: the same three, kernels of two widths, and the gradients of kappa 0. Plain"
        " DDN is one attack on either side, and blind to the jump."
    )
    head = ("network", "kappa", "PGD, frozen", "PGD, all steps", *SCALED)
    title = (
        "Transfer from the ReLU network, carried on, as under Table 1: accuracy of the retrofit, %"
    )
    yield Table(title, head, run_longer(desk), folded=True)
    yield _robust_models(desk)
    yield _agnostic(desk)
    yield _deepfool(desk, "deepfool_noise.mnist", (LENET, LENET_ROBUST), (1.5, 2.5))
    cifar = (ALEX, ALEX_ROBUST, WIDE, WIDE_ROBUST, MOBILE, MOBILE_ROBUST)
    yield _deepfool(desk, "deepfool_noise.cifar10", cifar, (3.0, 7.0))


def _say_verified(desk: Desk) -> Takeaway:
    """What the audits say, in a line."""
    gains = {net: verify(desk, net) for net in available(desk, PAPERS)}
    falls = sum(gain < 0 for gain, _ in gains.values())
    genuine = sum(is_so for _, is_so in gains.values())
    points = [gain for gain, _ in gains.values()]
    return Takeaway(
        3,
        f"Against attacks that know of the jump the retrofit lowers accuracy on {falls} of"
        f" {len(gains)} of the paper's networks (by {max(points):+.1f} to {min(points):+.1f}"
        f" points at kappa beside kappa 0); its audits call {genuine} gains genuine.",
    )


def _say_norms(table: Table) -> Takeaway:
    """What the minimum norms say, in a line."""
    at, titles = table.head.index("ratio"), {net.title for net in PAPERS}
    ratios_ = [float(row[at] or 0) for row in table.rows if row[0] in titles]
    noise = [
        float(row[table.head.index(f"ratio by {ATTACKS[a]}")] or 0)
        for row in table.rows
        for a in DEEPFOOLS
        if row[0] in titles
    ]
    return Takeaway(
        4,
        f"DeepFool needs {min(noise):.1f} to {max(noise):.1f} times the noise at kappa; the"
        f" smallest perturbation that any attack finds is {min(ratios_):.2f} to"
        f" {max(ratios_):.2f} times as long as without the jump.",
    )


def verify(desk: Desk, net: Net) -> tuple[float, bool]:
    """Points of verified accuracy that the retrofit gains, and whether the audit calls its effect
    genuine."""
    outcome = numbers(desk, true_audit(desk, net))
    return 100 * outcome.gain, outcome.effect == "GENUINE"


def norms(desk: Desk) -> Table:
    """Median minimum norms at kappa 0 and at the paper's kappa, beside what DeepFool makes of
    it."""
    rows = tuple(_norms_row(desk, net) for net in available(desk))
    head = (
        "network",
        "kappa",
        "n",
        "at kappa 0",
        "at kappa",
        "ratio",
        "95 %",
        "ratio by plain DDN",
        *(f"ratio by {title}" for title in NOISES.values()),
    )
    title = (
        "Median of the smallest L2 perturbation (pixels) that any attack found; the paper's ratios"
        " of mean noise"
    )
    return Table(title, head, rows, digits=2)


def _norms_row(desk: Desk, net: Net) -> tuple[Value, ...]:
    (before, _), (after, naive) = found_norms(desk, net, 0.0), found_norms(desk, net, net.kappa)
    both = (before > 0) & (after > 0)
    medians = [float(np.median(v[both])) for v in (before, after, naive)]
    low, high = _interval(before[both], after[both])
    growth = ratios(runs(desk, net))
    return (
        net.title,
        f"{net.kappa:g}",
        int(both.sum()),
        *medians[:2],
        medians[1] / medians[0],
        f"{low:.2f} to {high:.2f}",
        medians[2] / medians[0],
        *(growth[name] for name in NOISES),
    )


def _interval(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    """The bootstrap's 95 % interval of the ratio of medians, images drawn in pairs (2000 draws,
    seed 0)."""
    rows = np.random.default_rng(0).integers(0, len(before), (2000, len(before)))
    drawn = np.median(after[rows], axis=1) / np.median(before[rows], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


# ------------------------------------------------------------------------------------------ claims


def _robust_models(desk: Desk) -> Claim:
    """Greatly: on every robust network PGD's accuracy, white box, rises by 2 points and DeepFool's
    noise by half."""
    said, protocol, truth = [], [], []
    marks: list[Mark] = []
    for net in available(desk, tuple(net for net in PAPERS if net.robust)):
        by_kappa = runs(desk, net)
        points, noise = _rise(net, by_kappa), min(ratios(by_kappa)[a] for a in DEEPFOOLS)
        gain, genuine = verify(desk, net)
        marks += [Mark(net.title, "the paper's PGD", points), _mark_verified(desk, net)]
        protocol.append(points >= 2 and noise >= 1.5)
        truth.append(genuine and gain >= GREATLY)
        said.append(
            f"{net.title}: PGD {points:+.1f} points, DeepFool × {noise:.2f}; verified {gain:+.1f}"
            " points"
        )
    because = f"{'; '.join(said)}{untested(desk, PAPERS)}"
    shown = Weighed(tuple(marks), GAINED, (2.0, math.inf))
    return Claim("robust_models", answer_by_network(protocol, truth), because, shown)


def _mark_verified(desk: Desk, net: Net) -> Mark:
    """The points of verified accuracy with the audit's interval."""
    outcome = numbers(desk, true_audit(desk, net))
    low, high = outcome.interval
    return Mark(net.title, "verified", 100 * outcome.gain, (100 * low, 100 * high))


def _rise(net: Net, by_kappa: Runs) -> float:
    """Points of accuracy under the paper's PGD that the retrofit gains."""
    before, after = (by_kappa[k]["pgd"]["accuracy"][0][0] for k in (0.0, net.kappa))
    return 100 * float(after - before)


def _agnostic(desk: Desk) -> Claim:
    """All attacks: every column of Table 2 is better at kappa than at 0 on every network; truly: so
    says the audit."""
    worse, gains, protocol, truth = [], [], [], []
    marks: list[Mark] = []
    for net in available(desk, PAPERS):
        by_kappa = runs(desk, net)
        not_better = [] if _rise(net, by_kappa) > 0 else [f"{net.title} PGD"]
        not_better += [
            f"{net.title} {ATTACKS[a]}" for a, ratio in ratios(by_kappa).items() if ratio <= 1
        ]
        gain, genuine = verify(desk, net)
        gains.append(f"{net.title} {gain:+.1f}")
        marks += [Mark(net.title, "the paper's PGD", _rise(net, by_kappa))]
        marks += [_mark_verified(desk, net)]
        protocol.append(not not_better)
        truth.append(genuine)
        worse += not_better
    columns = (
        f"no better at kappa: {', '.join(worse)}"
        if worse
        else "better at kappa in every column of Table 2"
    )
    because = f"{columns}; verified accuracy, points: {', '.join(gains)}{untested(desk, PAPERS)}"
    shown = Weighed(tuple(marks), GAINED, (0.0, math.inf))
    return Claim("agnostic", answer_by_network(protocol, truth), because, shown)


def _deepfool(desk: Desk, about: str, among: tuple[Net, ...], factor: tuple[float, float]) -> Claim:
    """The ratio of DeepFool's noise lies within `factor`; truly: the verified minimum norm grew as
    much."""
    low, high = factor
    within, truth, said = [], [], []
    marks: list[Mark] = []
    for net in available(desk, among):
        by_attack = ratios(runs(desk, net))
        growth = [by_attack[a] for a in DEEPFOOLS]
        verified = median_ratio(desk, net, net.kappa)
        marks += [
            Mark(net.title, ATTACKS[a], by_attack[a], None, published_ratio(net, a))
            for a in DEEPFOOLS
        ]
        marks += [_mark_norm(desk, net, verified)]
        within.append(all(low <= v <= high for v in growth))
        truth.append(verified >= low)
        noise = " and ".join(f"{v:.2f}" for v in growth)
        said.append(f"{net.title} × {noise}, verified minimum norm × {verified:.2f}")
    because = f"asked for {low:g} to {high:g}: {'; '.join(said)}{untested(desk, among)}"
    shown = Weighed(tuple(marks), "noise at kappa over that at kappa 0", factor)
    return Claim(about, answer_by_network(within, truth), because, shown)


def _mark_norm(desk: Desk, net: Net, ratio: float) -> Mark:
    """The ratio of the verified minimum norms with its interval."""
    before, after = (found_norms(desk, net, kappa)[0] for kappa in (0.0, net.kappa))
    both = (before > 0) & (after > 0)
    return Mark(net.title, "verified minimum norm", ratio, _interval(before[both], after[both]))
