"""Question: what does the published FGSM's loss, averaged over a batch, explain?

The notebooks take the gradient of the cross-entropy averaged over those of 100 images that are
right clean. In exact numbers that is the direction of each image's own loss. In float32 it is
smaller by two orders, and an entry below 1e-45 is zero: at slopes where gradients are about as
small as that, images that would fall stand still. `FGSM(batch=100)` divides the loss as they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from retroact.attacks.fgsm import FGSM
from retroact.reports.studied import Part, Table, Text, Value
from retroact.studies.counted import Counts, counts
from retroact.studies.desk import Desk
from retroact.studies.srelu.attacks import as_published, images
from retroact.studies.srelu.networks import CNN1, CNN2, MNIST, SHIFTED, SLOPES, Net, label

ALONE, AVERAGED = FGSM(), FGSM(batch=100)
ASKED = 5.0
"""The slope at which the published curve and ours were farthest from understood."""


@dataclass(frozen=True)
class Row:
    """FGSM at the largest eps on a network at a slope: accuracies and zero gradients (%), with each
    image's own loss and with the averaged one."""

    net: Net
    slope: float
    alone: float
    averaged: float
    published: float | None
    zero_alone: float
    zero_averaged: float

    @property
    def explained(self) -> float:
        """What averaging adds to the accuracy, in points."""
        return self.averaged - self.alone


def make(desk: Desk) -> Iterator[Part]:
    nets, n = (MNIST, SHIFTED, CNN1, CNN2), images(desk, "FGSM")
    asked = {
        (net, s, attack): net.counted(net.sloped(s), attack, n, eps=net.eps[-1:])
        for net in nets
        for s in SLOPES
        for attack in (ALONE, AVERAGED)
    }
    found = counts(desk, asked)
    rows = [
        _row(net, s, found[net, s, ALONE], found[net, s, AVERAGED]) for net in nets for s in SLOPES
    ]
    yield Table(
        f"FGSM at the largest eps, n = {n}: accuracy and exactly zero gradients (%)",
        (
            *("network", "slope", "own loss", "averaged over 100", "difference, averaged − own"),
            *("published", "zero, own loss", "zero, averaged"),
        ),
        tuple(map(_values, rows)),
        digits=2,
    )
    yield Text(_describe(rows))


def _row(net: Net, slope: float, alone: Counts, averaged: Counts) -> Row:
    there = as_published(net, "FGSM", slope).get(label(net.eps[-1]))
    accuracies = (alone.robust[-1], averaged.robust[-1])
    return Row(net, slope, *accuracies, there, alone.blind[-1], averaged.blind[-1])


def _values(row: Row) -> tuple[Value, ...]:
    accuracies = (row.alone, row.averaged, row.explained, row.published)
    return (row.net.title, label(row.slope), *accuracies, row.zero_alone, row.zero_averaged)


def _describe(rows: list[Row]) -> str:
    told = "; ".join(_explain(row) for row in rows if row.slope == ASKED)
    most = max(rows, key=lambda row: abs(row.explained))
    return (
        f"**At slope {ASKED:g}** averaging explains: {told}. The most that it changes anywhere is"
        f" {most.explained:+.2f} points ({most.net.title}, slope {most.slope:g}). The notebooks"
        " divide by how many of 100 images were right clean, so by a little less than 100. The"
        " weights are ours, not the paper's; those of the second network learned from normalised"
        " images, as the paper's did."
    )


def _explain(row: Row) -> str:
    if row.published is None:
        return f"{row.net.title} {row.explained:+.2f} points (nothing published)"
    return (
        f"{row.net.title} {row.explained:+.2f} of the {row.published - row.alone:+.2f} points by"
        " which the published accuracy differs"
    )
