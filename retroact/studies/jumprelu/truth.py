"""Truth: what the retrofit is worth against attacks that know it

Audits in pixels: the same battery on the network and on its retrofit, example by example (radius
0.1 on the base LeNet-like, 0.2 on the robust one, 2/255 on CIFAR-10). Minimum norms: the smallest
L2 perturbation, in pixels, that any of several attacks finds; on a retrofit they climb its own
gradients, those through a kernel at the jump, and those of the network before the change. An upper
bound on both sides, and tighter than DeepFool's on either.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retroact.attacks.carlini_wagner import CarliniWagner
from retroact.attacks.ddn import DDN
from retroact.attacks.fmn import FMN
from retroact.evaluation.record import NORMS, Record
from retroact.experiments.cell import Cell
from retroact.reports.studied import Claim, Part, Table, Text, Value
from retroact.studies.desk import Desk
from retroact.studies.jumprelu import table_1, table_2
from retroact.studies.jumprelu.audited import audited
from retroact.studies.jumprelu.networks import (
    ALEX,
    ALEX_ROBUST,
    ATTACKS,
    FAR_2,
    LENET,
    LENET_ROBUST,
    MOBILE,
    MOBILE_ROBUST,
    PAPERS,
    WIDE,
    WIDE_ROBUST,
    Net,
    available,
    untested,
)
from retroact.studies.truth import answered, audits, numbers

DEEPFOOLS = ("deepfool_linf", "deepfool_l2")
WIDTHS = (3.0, 8.0)
"""beta · kappa of the kernels at the jump: a wide and a narrow one."""
PLAIN_DDN = DDN(loss="log_odds", step_size=1.0)
"""As it was when the norms of this page were found; its defaults now find smaller ones, at jumps
above all."""
GREATLY = 5.0
"""Points of accuracy, the margin of an audit's verdict, that "greatly" asks for at least."""


def make(desk: Desk) -> Iterator[Part]:
    asked = [(net.title, audited(net, quick=desk.quick)) for net in available(desk)]
    yield audits(desk, "Audits: accuracy, %, before → after the retrofit", asked)
    yield Text(
        "Claimed is PGD with 40 steps and a random start in this ball; verified is what withstands"
        " every attack of the battery. A verdict is about the difference between the two networks"
        " under the same attacks."
        + (f" Not among them: {untested(desk).removeprefix('; ')}." if untested(desk) else "")
    )
    yield norms(desk)
    yield Text(
        "At kappa 0 the smallest is that of three attacks (DDN, FMN, Carlini and Wagner), at kappa"
        " that of eight: the same three, kernels of two widths, and the gradients of kappa 0. Plain"
        " DDN is one attack on either side, and blind to the jump."
    )
    head = ("network", "kappa", "PGD, frozen", "PGD, all steps", *table_1.SCALED)
    title = (
        "Transfer from the ReLU network, carried on, as under Table 1: accuracy of the retrofit, %"
    )
    yield Table(title, head, table_1.longer(desk), folded=True)
    yield _robust_models(desk)
    yield _agnostic(desk)
    yield _deepfool(desk, "deepfool_noise.mnist", (LENET, LENET_ROBUST), (1.5, 2.5))
    cifar = (ALEX, ALEX_ROBUST, WIDE, WIDE_ROBUST, MOBILE, MOBILE_ROBUST)
    yield _deepfool(desk, "deepfool_noise.cifar10", cifar, (3.0, 7.0))


def verified(desk: Desk, net: Net) -> tuple[float, bool]:
    """Points of verified accuracy that the retrofit gains, and whether the audit calls its effect
    genuine."""
    outcome = numbers(desk, audited(net, quick=desk.quick))
    return 100 * outcome.gain, outcome.effect == "GENUINE"


# ----------------------------------------------------------------------------------- minimum norms


def attacks_on(net: Net, kappa: float, data: str) -> dict[str, Cell]:
    """The minimum-norm attacks on `net` at `kappa`, by name: the plain ones first."""
    model = net.model(kappa)
    made = {
        type(a).__name__: Cell(model, data, a, FAR_2) for a in (PLAIN_DDN, FMN(), CarliniWagner())
    }
    if kappa == 0:
        return made
    for width in WIDTHS:
        made[f"DDN, kernel {width:g}"] = Cell(model, data, PLAIN_DDN, FAR_2, beta=width / kappa)
    for attack in (FMN(), CarliniWagner()):
        made[f"{type(attack).__name__}, kernel"] = Cell(
            model, data, attack, FAR_2, beta=WIDTHS[0] / kappa
        )
    made["DDN, from kappa 0"] = Cell(model, data, PLAIN_DDN, FAR_2, source=net.model(0))
    return made


def smallest(records: list[Record]) -> NDArray[np.float64]:
    """The smallest L2 (pixels) that fooled each image, by any record: 0 where wrong clean, infinite
    where none did."""
    l2 = NORMS.index("l2")
    each = [np.where(r.adversarial != r.label, r.distance[:, l2], np.inf) for r in records]
    return np.where(records[0].clean == records[0].label, np.min(each, axis=0), 0.0).astype(
        np.float64
    )


def found_norms(
    desk: Desk, net: Net, kappa: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`smallest` of all attacks at `kappa`, and of plain DDN alone."""
    full = 1000 if net.data == "mnist" else 200
    data = net.slice(desk.pick(100 if net.data == "mnist" else 16, min(full, net.sizes[1])))
    records = desk.records(attacks_on(net, kappa, data).values())
    return smallest(records), smallest(records[:1])


def median_ratio(desk: Desk, net: Net, kappa: float) -> float:
    """Median verified norm at `kappa` over that at 0, on images that both networks decide
    rightly."""
    before, after = found_norms(desk, net, 0.0)[0], found_norms(desk, net, kappa)[0]
    both = (before > 0) & (after > 0)
    return float(np.median(after[both]) / np.median(before[both]))


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
        *(f"ratio by {ATTACKS[a]}" for a in (*DEEPFOOLS, "trust_region")),
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
    ratios = table_2.ratios(table_2.runs(desk, net))
    return (
        net.title,
        f"{net.kappa:g}",
        int(both.sum()),
        *medians[:2],
        medians[1] / medians[0],
        f"{low:.2f} to {high:.2f}",
        medians[2] / medians[0],
        *(ratios[a] for a in (*DEEPFOOLS, "trust_region")),
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
    nets = available(desk, tuple(net for net in PAPERS if net.robust))
    if not nets:
        return Claim(
            "robust_models", "not tested", f"no robust network is here{untested(desk, PAPERS)}"
        )
    said, protocol, truth = [], [], []
    for net in nets:
        found = table_2.runs(desk, net)
        points = 100 * (
            found[net.kappa]["pgd"]["accuracy"][0][0] - found[0.0]["pgd"]["accuracy"][0][0]
        )
        noise = min(table_2.ratios(found)[a] for a in DEEPFOOLS)
        gain, genuine = verified(desk, net)
        protocol.append(points >= 2 and noise >= 1.5)
        truth.append(genuine and gain >= GREATLY)
        said.append(
            f"{net.title}: PGD {points:+.1f} points, DeepFool × {noise:.2f}; verified {gain:+.1f}"
            " points"
        )
    return Claim(
        "robust_models",
        answered(all(protocol), all(truth)),
        f"{'; '.join(said)}{untested(desk, PAPERS)}",
    )


def _agnostic(desk: Desk) -> Claim:
    """All attacks: every column of Table 2 is better at kappa than at 0 on every network; truly: so
    says the audit."""
    worse, gains, truth = [], [], []
    for net in available(desk, PAPERS):
        found = table_2.runs(desk, net)
        better = found[net.kappa]["pgd"]["accuracy"][0][0] > found[0.0]["pgd"]["accuracy"][0][0]
        worse += [] if better else [f"{net.title} PGD"]
        worse += [
            f"{net.title} {ATTACKS[a]}" for a, ratio in table_2.ratios(found).items() if ratio <= 1
        ]
        gain, genuine = verified(desk, net)
        gains.append(f"{net.title} {gain:+.1f}")
        truth.append(genuine)
    if not truth:
        return Claim(
            "agnostic", "not tested", f"none of its networks is here{untested(desk, PAPERS)}"
        )
    columns = (
        f"no better at kappa: {', '.join(worse)}"
        if worse
        else "better at kappa in every column of Table 2"
    )
    because = f"{columns}; verified accuracy, points: {', '.join(gains)}{untested(desk, PAPERS)}"
    return Claim("agnostic", answered(not worse, all(truth)), because)


def _deepfool(desk: Desk, about: str, among: tuple[Net, ...], factor: tuple[float, float]) -> Claim:
    """The ratio of DeepFool's noise lies within `factor`; truly: the verified minimum norm grew as
    much."""
    nets = available(desk, among)
    if not nets:
        return Claim(about, "not tested", f"none of its networks is here{untested(desk, among)}")
    low, high = factor
    ratios = {
        net.title: [table_2.ratios(table_2.runs(desk, net))[a] for a in DEEPFOOLS] for net in nets
    }
    truth = {net.title: median_ratio(desk, net, net.kappa) for net in nets}
    within = all(low <= v <= high for values in ratios.values() for v in values)
    said = "; ".join(
        f"{title} × {' and '.join(f'{v:.2f}' for v in values)}, verified minimum norm ×"
        f" {truth[title]:.2f}"
        for title, values in ratios.items()
    )
    because = f"asked for {low:g} to {high:g}: {said}{untested(desk, among)}"
    return Claim(about, answered(within, all(v >= low for v in truth.values())), because)
