"""Figure 9: accuracy against the number of PGD iterations, and what an iteration costs

The whole curve is read off one run for each network: an image that was given up after k gradients
was broken at step k − 1, so the accuracy with any smaller budget is known. Steps of 0.01 in
normalised space, frozen, as in Table 2; the paper's panels for WideResNet and MobileNetV2 have the
robust weights. Adaptive: the retrofit under the same steps along its own gradients, those of the
network before the change, or those of a kernel at the jump, whichever breaks an image first.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from retroact.experiments.cell import Cell, Model, all_locked
from retroact.nets.data import data
from retroact.reports.plots import Mark, Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Takeaway, Text, Value, Weighed
from retroact.spec import Count, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.networks import (
    ALEX,
    LENET,
    LENET_ROBUST,
    MOBILE_ROBUST,
    PAPERS,
    RESNET,
    RESNET_ROBUST,
    WIDE_ROBUST,
    Net,
    available,
    untested,
)
from retroact.studies.jumprelu.sizes import ITERATIONS
from retroact.studies.told import Outcomes, Told, outcomes
from retroact.studies.truth import answer_by_network, answer_claim

PANELS = (LENET, ALEX, WIDE_ROBUST, MOBILE_ROBUST)
BESIDE = (LENET_ROBUST, RESNET, RESNET_ROBUST)
WIDTH = 3.0  # beta · kappa
NOT_AFFECTED = 1.1
"""A forward pass may take so many times the ReLU network's."""


@spec
class InferenceTime:
    """CPU seconds of a forward pass of `jumped` over those of `plain`, and of `plain` over its own:
    medians."""

    plain: Model
    jumped: Model
    data: str
    rounds: Count = 40

    def __call__(self) -> Facts:
        images, plain, jumped = data(self.data).images, self.plain(), self.jumped()
        ratios, again = [], []
        with torch.no_grad():
            for _ in range(self.rounds + 2):
                first, second, third = (_seconds(net, images) for net in (plain, jumped, plain))
                ratios.append(2 * second / (first + third))
                again.append(third / first)
        return {"ratio": statistics.median(ratios[2:]), "again": statistics.median(again[2:])}


def make(desk: Desk) -> Iterator[Part]:
    nets = available(desk, (*PANELS, *BESIDE))
    runs = {net.name: run(desk, net) for net in nets}
    if nets:
        caption = "White-box PGD: accuracy, %, with a budget of so many steps of 0.01."
        yield Figure(
            caption, panels([_panel(desk, net, runs[net.name]) for net in nets], columns=2)
        )
    if untested(desk, PANELS):
        yield Text(f"Not drawn{untested(desk, PANELS)}.")
    counts, times = ("iterations, kappa 0", "at kappa", "adaptive"), ("ms, kappa 0", "ms, kappa")
    rows = tuple(_row(desk, net, runs[net.name]) for net in nets)
    title = (
        "Iterations for the same fool rate, and milliseconds (wall clock) of an image and iteration"
    )
    yield Table(title, ("network", "n", "kappa", "fool rate, %", *counts, *times), rows, digits=2)
    yield Text(
        "An image that is broken costs nothing more, so the same number of iterations takes longer"
        " where more images are robust: this, and no slower network, is what the paper's 4 and 5"
        " minutes for WideResNet may show. Minutes of a GPU of 2019 are no claim that can be judged"
        " on a CPU."
    )
    yield from _iterations(desk, {net.title: runs[net.name] for net in nets if net in PANELS})
    yield from _inference(desk)


# ----------------------------------------------------------------------------------------- curves

HOW = ("kappa 0", "kappa", "from kappa 0", "kernel")


def budget(desk: Desk, net: Net) -> int:
    """The last number of iterations that is drawn."""
    return desk.pick(100, 200) if net.data == "mnist" else desk.pick(20, 40)


def run(desk: Desk, net: Net) -> list[Outcomes]:
    """PGD on `net` in each of the ways of HOW."""
    last = budget(desk, net)
    asked = {n: [cell(net, how, n, last) for how in HOW] for n in ITERATIONS.of(net)}

    def told(n: int) -> list[Told]:
        return [Told(c, ("gradients",)) for c in all_locked(asked[n])]

    return outcomes(desk, asked[desk.largest(ITERATIONS.of(net), told)], "gradients")


def cell(net: Net, how: str, n: int, last: int) -> Cell:
    """PGD in one of the ways of HOW; two steps more than the `last` drawn, see `broken_after`."""
    attack, threat = net.attack("pgd", steps=last + 2)
    if how == "kappa 0":
        return Cell(net.model(0), net.slice(n), attack, threat)
    others: Facts = {
        "from kappa 0": {"source": net.model(0)},
        "kernel": {"beta": WIDTH / net.kappa},
    }
    return Cell(net.model(net.kappa), net.slice(n), attack, threat, **others.get(how, {}))


def broken_after(found: Outcomes) -> NDArray[np.float64]:
    """After how many steps each image is broken: 0 where it is wrong clean, infinite where robust.

    An image is given up when its gradient is taken at the point that fools, so it saw one gradient
    more than steps. Of those that saw all gradients of the run the last step or the one before did
    it: curves end two steps before.
    """
    steps = np.where(found.stands, np.inf, found.gradients - 1.0)
    return np.where(found.right, steps, 0.0)


def accuracies(steps: NDArray[np.float64], last: int) -> list[float]:
    """Accuracy (%) with a budget of 0, 1, …, `last` steps."""
    return [100 * float(np.mean(steps > t)) for t in range(last + 1)]


def adaptive(runs: list[Outcomes]) -> NDArray[np.float64]:
    """The fewest steps by any of the retrofit's runs."""
    fewest: NDArray[np.float64] = np.min([broken_after(r) for r in runs[1:]], axis=0)
    return fewest


def _panel(desk: Desk, net: Net, runs: list[Outcomes]) -> Panel:
    last = budget(desk, net)
    x = list(range(last + 1))[:: max(1, last // 20)]
    curves = (("kappa 0", broken_after(runs[0])), ("the paper's kappa", broken_after(runs[1])))
    drawn = [
        Series(name, x, [accuracies(s, last)[t] for t in x], colour=i)
        for i, (name, s) in enumerate(curves)
    ]
    known = [accuracies(adaptive(runs), last)[t] for t in x]
    drawn.append(Series("the paper's kappa, adaptive", x, known, colour=2))
    return Panel(f"{net.title}, kappa {net.kappa:g}", drawn, "iterations", "accuracy, %")


def _row(desk: Desk, net: Net, runs: list[Outcomes]) -> tuple[Value, ...]:
    rate, counts = same_rate(
        [broken_after(runs[0]), broken_after(runs[1]), adaptive(runs)], budget(desk, net)
    )
    times = [milliseconds(r) for r in runs[:2]]
    return net.title, len(runs[0]), f"{net.kappa:g}", 100 * rate, *counts, *times


def same_rate(steps: list[NDArray[np.float64]], last: int) -> tuple[float, list[int]]:
    """The fool rate that all reach, half of the images or less, and after how many steps each
    reaches it."""
    reached = [[float(np.mean(s <= t)) for t in range(last + 1)] for s in steps]
    rate = min(0.5, *(r[-1] for r in reached))
    return rate, [next(t for t, v in enumerate(r) if v >= rate) for r in reached]


def milliseconds(found: Outcomes) -> float:
    """Milliseconds (wall clock) of an image and iteration; the looks before and after the attack
    are in it."""
    return 1000 * found.seconds / max(1, int(found.gradients.sum()))


# ------------------------------------------------------------------------------------------ claims


def _iterations(desk: Desk, runs: dict[str, list[Outcomes]]) -> Iterator[Part]:
    """More: the retrofit reaches the same fool rate later on every network; truly: adaptive steps
    take 10 % more."""
    by_title = {net.title: net for net in PANELS}
    protocol, truth, said = [], [], []
    marks: list[Mark] = []
    for title, records in runs.items():
        last = budget(desk, by_title[title])
        rate, (low, high, best) = same_rate(
            [broken_after(records[0]), broken_after(records[1]), adaptive(records)], last
        )
        protocol.append(high > low)
        truth.append(best >= 1.1 * low)
        counts = f"{low} iterations at kappa 0, {high} at kappa, {best} adaptive"
        said.append(f"{title}, fool rate {100 * rate:.0f} %: {counts}")
        marks += [Mark(title, "at kappa", high / low), Mark(title, "adaptive", best / low)]
    because = "; ".join(said) + untested(desk, PANELS)
    unit = "iterations for the same fool rate, over those at kappa 0"
    shown = Weighed(tuple(marks), unit, (1.0, math.inf))
    yield Claim("iterations", answer_by_network(protocol, truth), because, shown)
    yield Takeaway(
        6,
        f"More iterations are needed on {sum(protocol)} of {len(protocol)} networks by the jump's"
        f" own gradients, and on {sum(truth)} by an attacker who also takes those of kappa 0.",
    )


def _inference(desk: Desk) -> Iterator[Part]:
    """Forward passes, alternating; the ReLU network against itself shows the noise."""
    nets = available(desk, (*PAPERS, RESNET, RESNET_ROBUST))
    times = {net: desk.facts(_time(net)) for net in nets if not net.robust}
    rows = [(net.title, f["ratio"], f["again"]) for net, f in times.items()]
    head = ("network", "JumpReLU / ReLU", "ReLU / itself")
    yield Table(
        "CPU time of a forward pass, median ratio of alternating rounds",
        head,
        tuple(rows),
        digits=3,
    )
    said = ", ".join(f"{net.title} × {f['ratio']:.3f}" for net, f in times.items())
    if not times:
        return
    answer = answer_claim(max(f["ratio"] for f in times.values()) <= NOT_AFFECTED)
    if answer == "holds":
        yield Takeaway(10, f"A forward pass costs what it cost: {said}.")
    yield Claim(
        "inference_time",
        answer,
        f"a forward pass on a CPU, over the ReLU network's: {said}{untested(desk, PAPERS)}",
        Weighed(
            tuple(
                Mark(net.title, what, f[name])
                for net, f in times.items()
                for what, name in (("JumpReLU", "ratio"), ("ReLU against itself", "again"))
            ),
            "CPU time of a forward pass, over the ReLU network's",
            (-math.inf, NOT_AFFECTED),
        ),
    )


def _time(net: Net) -> InferenceTime:
    return InferenceTime(
        net.model(0), net.model(net.kappa), net.slice(128 if net.data == "mnist" else 16)
    )


def _seconds(net: torch.nn.Module, images: torch.Tensor) -> float:
    began = time.process_time()
    net(images)
    return time.process_time() - began
