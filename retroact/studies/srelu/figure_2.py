"""Figure 2: FGSM against eps per slope, all attacks against slope, other activations

torchattacks' FGSM is the ordinary one: x + eps sign(∇CE), clipped. Only images that are right clean
are attacked, all stand in the denominator. The middle row averages the curves of Figure 3, eps = 0
(or DeepFool's first step) included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from retroact.activations.piecewise import SReLU
from retroact.activations.smooth import CELU, Sigmoid, Softplus, Softsign, Tanh
from retroact.attacks.fgsm import FGSM
from retroact.reports.plots import panels
from retroact.reports.studied import Claim, Figure, Part, Table, Takeaway, Text
from retroact.studies.counted import Counts, counts
from retroact.studies.desk import Desk, Facts
from retroact.studies.published import published
from retroact.studies.srelu.attacks import (
    ATTACKS,
    accuracies,
    as_published,
    attack_counts,
    columns,
    images,
)
from retroact.studies.srelu.networks import MNIST, NETS, SLOPES, Net, label
from retroact.studies.srelu.panels import Curve, mean, panel, table
from retroact.studies.truth import answer_by_network, answer_claim

ON_MARGIN = FGSM(loss="margin")
OTHERS: Facts = {
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "softsign": Softsign(),
    "softplus": Softplus(),
    "celu": CELU(),
    "relu": SReLU(1.0),
}

Found = dict[tuple[str, str, float], Counts]
"""What was counted, by network, attack and slope."""
Means = dict[tuple[str, str, float], float]
"""Accuracy averaged over the columns, by network, attack and slope."""
Clean = dict[tuple[str, str, float], float]
"""The clean accuracy on an attack's images, by network, attack and slope."""
FOUR = ("FGSM", "BIM", "RFGSM", "PGD")
"""The attacks against which the paper says that the defence does very well."""
VERY_WELL = 75.0
"""The least recovery (%) at slope 100 that is "very well"."""
ALMOST = 0.9
"""The share of the cases that is "almost always"."""


def make(desk: Desk) -> Iterator[Part]:
    yield from _top(desk)
    found = _under_all(desk)
    clean, means = {k: f.clean for k, f in found.items()}, _means(found)
    yield from _middle(desk, clean, means)
    yield from _bottom(desk)
    on_margin = _on_margin(desk)
    margins = _means(on_margin)
    yield _not_impacted(*({k: _cost(f) for k, f in by.items()} for by in (found, on_margin)))
    yield _starts_to_recover(clean, means, margins)
    yield _four_attacks(clean, means, margins)
    yield _hindered(clean, means, margins)
    yield _say_fgsm(found, on_margin)


# ------------------------------------------------------------------------------------------ top row


def _top(desk: Desk) -> Iterator[Part]:
    n = images(desk, "FGSM")
    curves = fgsm_curves(
        desk, {(net, label(s)): SReLU(s) for net in NETS for s in SLOPES}, n, "slope"
    )
    known = {(net, label(s)): as_published(net, "FGSM", s) for net in NETS for s in SLOPES}
    yield Text(
        f"**Top row.** The first {n} test images of each set; one gradient per image serves every"
        " eps."
    )
    yield from _show("FGSM: accuracy (%) against eps, per slope.", "slope", curves, known)


def fgsm_curves(
    desk: Desk, activations: Mapping[tuple[Net, str], Any], n: int, what: str = ""
) -> dict[tuple[Net, str], Curve]:
    """FGSM on each network with each activation: a curve over the network's eps."""
    asked = {
        (net, name): attack_counts(net, "FGSM", net.model(a), n)
        for (net, name), a in activations.items()
    }
    return {(net, name): _curve(name, what, f) for (net, name), f in counts(desk, asked).items()}


def _curve(name: str, what: str, found: Counts) -> Curve:
    own = None if found.first is None else accuracies("FGSM", found.first)
    return Curve(name, accuracies("FGSM", found), original=own, what=what)


def _show(
    caption: str,
    what: str,
    curves_of: dict[tuple[Net, str], Curve],
    known: dict[tuple[Net, str], dict[str, float]],
) -> Iterator[Part]:
    by_net = {
        net: [replace(c, published=known[k]) for k, c in curves_of.items() if k[0] is net]
        for net in NETS
    }
    drawn = [panel(net.title, columns(net, "FGSM"), curves) for net, curves in by_net.items()]
    yield Figure(f"{caption} Thin and dashed: published.", panels(drawn))
    for net, curves in by_net.items():
        yield table(
            f"{net.title}, FGSM per {what}", what, "eps", columns(net, "FGSM"), curves, net.original
        )


# --------------------------------------------------------------------------------------- middle row


def _middle(desk: Desk, clean: Clean, means: Means) -> Iterator[Part]:
    yield Text(
        "**Middle row.** Each attack of Figure 3, its accuracy averaged over all columns (eps = 0"
        " included, as in the notebooks; iterations for DeepFool), against the slope. The caption"
        " speaks of accuracy-loss recovery, the notebooks plot the mean accuracy; both are here."
        " Recovery is (acc at α − acc at 1) / (clean at 1 − acc at 1): 100 % gives back all that"
        f" the attack takes at slope 1. FGSM rests on {images(desk, 'FGSM')} images, the others on"
        f" {images(desk, 'PGD')}."
    )
    known = _quote_means()
    labels = [label(s) for s in SLOPES]
    accuracy = [
        panel(net.title, labels, _curves(net, means, known), "slope", "mean accuracy, %")
        for net in NETS
    ]
    yield Figure(
        "Mean accuracy over all columns against slope. Thin and dashed: published.",
        panels(accuracy),
    )
    recovery = {k: _recover(clean[(*k[:2], 1.0)], means, k) for k in means}
    published_clean = {net.key: as_published(net, "FGSM", 1.0)["0"] for net in NETS}
    known_recovery = {k: _recover(published_clean[k[0]], known, k) for k in known}
    yield _draw_recovery(recovery, known_recovery)
    for net in NETS:
        yield _middle_table(net, means, known, recovery, known_recovery)


def _draw_recovery(recovery: Means, known: Means) -> Figure:
    labels = [label(s) for s in SLOPES]
    axes = ("slope", "recovery, %", (-130, 105))
    drawn = [panel(net.title, labels, _curves(net, recovery, known), *axes) for net in NETS]
    return Figure(
        "Accuracy-loss recovery against slope, 0 at slope 1. Thin and dashed: from published"
        " accuracies.",
        panels(drawn),
    )


def _under_all(desk: Desk) -> Found:
    asked = {
        (net, attack, s): attack_counts(net, attack, net.sloped(s), images(desk, attack))
        for net in NETS
        for attack in ATTACKS
        for s in SLOPES
    }
    return {(net.key, attack, s): f for (net, attack, s), f in counts(desk, asked).items()}


def _means(found: Found) -> Means:
    return {k: mean(accuracies(k[1], f)) for k, f in found.items()}


def _quote_means() -> Means:
    """Only of curves that were published whole."""
    curves = {(net, a, s): as_published(net, a, s) for net in NETS for a in ATTACKS for s in SLOPES}
    whole = {k: list(v.values()) for k, v in curves.items() if len(v) == len(k[0].eps)}
    return {(net.key, a, s): mean(values) for (net, a, s), values in whole.items()}


def _recover(clean: float, means: Means, k: tuple[str, str, float]) -> float:
    base = means[k[0], k[1], 1.0]
    return 100 * (means[k] - base) / (clean - base)


def _curves(net: Net, means: Means, known: Means) -> list[Curve]:
    return [
        Curve(
            attack,
            [means[net.key, attack, s] for s in SLOPES],
            {label(s): known[net.key, attack, s] for s in SLOPES if (net.key, attack, s) in known},
        )
        for attack in ATTACKS
    ]


def _middle_table(
    net: Net, means: Means, known: Means, recovery: Means, known_recovery: Means
) -> Table:
    keys = [(net.key, attack, s) for attack in ATTACKS for s in SLOPES]
    head = (
        "attack",
        "slope",
        "mean accuracy",
        "published",
        "difference",
        "recovery",
        "published recovery",
    )
    rows = tuple(
        (
            k[1],
            label(k[2]),
            means[k],
            known.get(k),
            _gap(means[k], known.get(k)),
            recovery[k],
            known_recovery.get(k),
        )
        for k in keys
    )
    return Table(f"{net.title}, all attacks against slope", head, rows, folded=True)


def _gap(measured: float, known: float | None) -> float | None:
    return None if known is None else measured - known


# --------------------------------------------------------------------------------------- bottom row


def _bottom(desk: Desk) -> Iterator[Part]:
    n = images(desk, "FGSM")
    curves = fgsm_curves(desk, {(net, name): a for net in NETS for name, a in OTHERS.items()}, n)
    known = {
        k: published("srelu", f"figure2.activation_swap.{k[0].key}", k[1]) or {} for k in curves
    }
    lost = {k: c.y[0] - c.y[-1] for k, c in curves.items()}
    kept = ", ".join(f"{net.title} {_costlier(net, lost)}" for net in NETS)
    yield Text(
        "**Bottom row.** The same weights with every activation swapped (on CNN2 the two of the"
        " fully connected layers alone), nothing trained again. The paper reads these curves as"
        " “the attacks became even more damaging”. But much is lost before any attack, since the"
        " network was trained with ReLU. Functions among the five from which FGSM at the largest"
        f" eps takes more points than from ReLU: {kept}."
    )
    yield from _show("FGSM with other activations at slope 1.", "activation", curves, known)
    yield _more_damaging({k: c.y for k, c in curves.items()})


def _costlier(net: Net, lost: dict[tuple[Net, str], float]) -> str:
    worse = [name for name in OTHERS if lost[net, name] > lost[net, "relu"]]
    return f"{len(worse)} ({', '.join(worse)})" if worse else "0"


# ------------------------------------------------------------------------------------------- claims


def _on_margin(desk: Desk) -> Found:
    """FGSM up the margin loss."""
    n = images(desk, "FGSM")
    asked = {
        (net, "FGSM", s): net.counted(net.sloped(s), ON_MARGIN, n) for net in NETS for s in SLOPES
    }
    return {(net.key, attack, s): f for (net, attack, s), f in counts(desk, asked).items()}


def _starts_to_recover(clean: Clean, means: Means, margins: Means) -> Claim:
    """Starts to: at slopes 2 and 5 FGSM's recovery on MNIST is above 5 %, and more at 5 than at 2;
    truly: so it is under the margin loss."""
    base = clean[MNIST.key, "FGSM", 1.0]
    seen, truly = (
        [_recover(base, m, (MNIST.key, "FGSM", s)) for s in (2.0, 5.0)] for m in (means, margins)
    )
    return Claim(
        "untargeted.slope_2_5.mnist",
        answer_claim(5 < seen[0] < seen[1], 5 < truly[0] < truly[1]),
        f"FGSM's accuracy-loss recovery is {seen[0]:.0f} % at slope 2 and {seen[1]:.0f} % at 5"
        f" ({truly[0]:.0f} and {truly[1]:.0f} on the margin loss); more than 5 %, and growing, is"
        " asked for",
    )


def _four_attacks(clean: Clean, means: Means, margins: Means) -> Claim:
    """Very well: at slope 100 each of four attacks gives back `VERY_WELL` or more on every network;
    truly: so does FGSM on the margin loss."""
    won = {
        (net.key, a): _recover(clean[net.key, a, 1.0], means, (net.key, a, 100.0))
        for net in NETS
        for a in FOUR
    }
    hard = [
        _recover(clean[net.key, "FGSM", 1.0], margins, (net.key, "FGSM", 100.0)) for net in NETS
    ]
    holds = [all(won[net.key, a] >= VERY_WELL for a in FOUR) for net in NETS]
    told = "; ".join(
        f"{net.title} " + ", ".join(f"{a} {won[net.key, a]:.0f}" for a in FOUR) for net in NETS
    )
    return Claim(
        "four_attacks",
        answer_by_network(holds, [v >= VERY_WELL for v in hard]),
        f"recovery at slope 100, %: {told}; FGSM on the margin loss"
        f" {', '.join(f'{v:.0f}' for v in hard)}; {VERY_WELL:g} or more is asked for",
    )


def _hindered(clean: Clean, means: Means, margins: Means) -> Claim:
    """Hinder both: at slope 0.5 the clean accuracy falls on every network, and the mean accuracy in
    `ALMOST` all pairs of network and attack; truly: under FGSM on the margin loss on every
    network."""
    clean_cost = [clean[net.key, "FGSM", 0.5] - clean[net.key, "FGSM", 1.0] for net in NETS]
    change = {
        (net.title, a): means[net.key, a, 0.5] - means[net.key, a, 1.0]
        for net in NETS
        for a in ATTACKS
    }
    hard = [margins[net.key, "FGSM", 0.5] - margins[net.key, "FGSM", 1.0] for net in NETS]
    fallen, lost = max(clean_cost) < 0, [k for k, v in change.items() if v < 0]
    best = max(change, key=lambda k: change[k])
    return Claim(
        "untargeted.slopes_under_1",
        answer_claim(fallen and len(lost) >= ALMOST * len(change), fallen and max(hard) < 0),
        f"slope 0.5 against 1: clean {', '.join(f'{v:+.1f}' for v in clean_cost)} points; the mean"
        f" accuracy under attack falls in {len(lost)} of {len(change)} pairs of network and attack"
        f" ({ALMOST:.0%} asked for), most it rises is {change[best]:+.1f} ({' '.join(best)}); FGSM"
        f" on the margin loss {', '.join(f'{v:+.1f}' for v in hard)}",
    )


def _more_damaging(curves: Mapping[tuple[Net, str], Sequence[float]]) -> Claim:
    """More damaging: with each of five functions the mean accuracy under FGSM is below ReLU's, on
    every network; truly: of the images that are right clean FGSM fells a larger share than of
    ReLU's, for without an attack the swap has cost some already."""
    others = [name for name in OTHERS if name != "relu"]
    pairs = [(net, name) for net in NETS for name in others]
    lower = [k for k in pairs if _under(curves[k]) < _under(curves[k[0], "relu"])]
    share = {k: 1 - _under(y) / max(y[0], 1e-9) for k, y in curves.items()}
    truly = [k for k in pairs if share[k] > share[k[0], "relu"]]
    spared = ", ".join(f"{name} ({net.title})" for net, name in pairs if (net, name) not in truly)
    by_net = [[k for k in pairs if k[0] is net] for net in NETS]
    return Claim(
        "activation_swap",
        answer_by_network(
            [all(k in lower for k in of) for of in by_net],
            [all(k in truly for k in of) for of in by_net],
        ),
        f"of {len(pairs)} pairs of function and network the mean accuracy under FGSM is below"
        f" ReLU's in {len(lower)}; FGSM fells a larger share of the images that are right clean in"
        f" {len(truly)}, not with {spared or 'none'}",
    )


def _under(y: Sequence[float]) -> float:
    """Mean accuracy over eps above 0."""
    return mean(y[1:])


def _cost(found: Counts) -> float:
    """Points of accuracy that an attack at the largest eps takes."""
    return found.clean - found.robust[-1]


def _not_impacted(plain: Means, margins: Means) -> Claim:
    """Not impacted: less than one point lost at the largest eps, at both slopes; truly: under the
    margin loss too."""
    slopes = (10.0, 100.0)
    lost, truly = ([cost[MNIST.key, "FGSM", s] for s in slopes] for cost in (plain, margins))
    told = " and ".join(f"{a:.1f} ({b:.1f})" for a, b in zip(lost, truly, strict=True))
    return Claim(
        "untargeted.slope_10_100.mnist",
        answer_claim(max(lost) < 1, max(truly) < 1),
        f"at slopes 10 and 100, FGSM with eps {MNIST.eps[-1]:g} costs {told} points; "
        "in brackets one step on the margin loss",
    )


def _say_fgsm(found: Found, on_margin: Found) -> Takeaway:
    """What the slope does to one step on either loss, in a line."""
    told = []
    for net in NETS:
        plain, steep, hard = (
            by[net.key, "FGSM", s].robust[-1]
            for by, s in ((found, 1.0), (found, 100.0), (on_margin, 100.0))
        )
        told.append(f"{net.title} {plain:.1f} → {steep:.1f} ({hard:.1f})")
    return Takeaway(
        2,
        "FGSM at the largest eps, accuracy at slope 1 → at slope 100, %, and in brackets where the"
        f" same step climbs the margin of the logits: {'; '.join(told)}.",
    )
