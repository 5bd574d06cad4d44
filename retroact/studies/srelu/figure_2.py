"""Figure 2, top row: FGSM against eps, per slope

torchattacks' FGSM is the ordinary one: x + eps sign(∇CE), clipped. Only images that are right clean are attacked, all
stand in the denominator.
"""

from __future__ import annotations

from collections.abc import Iterator

from retroact.attacks.fgsm import FGSM
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.evaluation.record import Record
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table
from retroact.studies.desk import Desk
from retroact.studies.published import published
from retroact.studies.srelu.networks import MNIST, NETS, SLOPES, Net, said
from retroact.studies.truth import answered

MARGIN = FGSM(loss="margin")


def make(desk: Desk) -> Iterator[Part]:
    n = desk.pick(500, 10_000)
    curves = {net.key: {slope: curve(desk, net, slope, n) for slope in SLOPES} for net in NETS}
    yield Figure(
        "FGSM: accuracy (%) against eps (pixels), per slope. Thin and dashed: published.",
        panels([panel(net, curves[net.key]) for net in NETS]),
    )
    for net in NETS:
        head = ("slope", "eps", "measured", "published", "difference")
        yield Table(f"{net.title}, FGSM", head, rows(net, curves[net.key]), folded=True)
    yield _not_impacted(desk, n, curves[MNIST.key])


def _not_impacted(desk: Desk, n: int, curves: dict[float, list[float]]) -> Claim:
    """Not impacted: less than one point lost at the largest eps, at both slopes; truly: under the margin loss too."""
    margin = {s: accuracies(desk.records(MNIST.cells(MNIST.sloped(s), MARGIN, n, eps=(0.3,)))) for s in (10.0, 100.0)}
    lost = {s: curves[s][0] - curves[s][-1] for s in margin}
    truly = {s: values[0] - values[-1] for s, values in margin.items()}
    costs = " and ".join(f"{lost[s]:.1f} ({truly[s]:.1f})" for s in margin)
    return Claim(
        "untargeted.slope_10_100.mnist",
        answered(max(lost.values()) < 1, max(truly.values()) < 1),
        f"at slopes 10 and 100, FGSM with eps 0.3 costs {costs} points; in brackets one step on the margin loss",
    )


def curve(desk: Desk, net: Net, slope: float, n: int) -> list[float]:
    """Accuracy in percent at each eps of the net's grid; the first is the clean one."""
    found = desk.records(net.cells(net.sloped(slope), FGSM(), n))
    return accuracies(found)


def accuracies(found: list[Record]) -> list[float]:
    """Clean accuracy, then accuracy under attack, record by record, in percent."""
    return [100 * v for v in (clean_accuracy(found[0]), *map(robust_accuracy, found))]


def panel(net: Net, curves: dict[float, list[float]]) -> Panel:
    x = [said(e) for e in net.eps]
    made = [Series(f"slope {s:g}", x, y, colour=i) for i, (s, y) in enumerate(curves.items())]
    for i, slope in enumerate(curves):
        there = _published(net, slope)
        if there:
            made.append(Series("published", list(there), list(there.values()), published=True, colour=i))
    return Panel(net.title, made, "eps, pixels", "accuracy, %")


def rows(net: Net, curves: dict[float, list[float]]) -> tuple[tuple[str | float | None, ...], ...]:
    made: list[tuple[str | float | None, ...]] = []
    for slope, values in curves.items():
        there = _published(net, slope)
        for eps, value in zip(net.eps, values, strict=True):
            known = there.get(said(eps))
            made.append((said(slope), said(eps), value, known, None if known is None else value - known))
    return tuple(made)


def _published(net: Net, slope: float) -> dict[str, float]:
    return published("srelu", f"figure2_3.{net.key}", "accuracy", "FGSM", said(slope)) or {}
