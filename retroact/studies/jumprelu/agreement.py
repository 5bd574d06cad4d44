"""The cells of Tables 1 and 2 beside the published numbers, and how many of them agree: within 5
points of accuracy, noise within 20 %.

Cells that hold by construction are left out of the count: a source's own examples that fool it by
definition (DeepFool and TR in Table 1, and PGD where the paper has 0), and the clean accuracies,
which both tables have, count once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retroact.reports.studied import Value
from retroact.studies.desk import Facts
from retroact.studies.jumprelu.networks import ATTACKS, NOISES, Net
from retroact.studies.jumprelu.white_box import Runs

POINTS, SHARE = 5.0, 0.2
"""How far an accuracy, and a noise as a share of the published one, may lie from it."""
Shares = dict[str, tuple[int, dict[float, float]]]
"""Clean accuracy by the network's name: of how many images, and by kappa."""


@dataclass(frozen=True)
class Compared:
    """A number, %, of a table beside the published one (None: not published); `error` is its
    standard error, `trivial` says that it holds by construction or stands in the other table."""

    net: Net
    kappa: float
    name: str
    measured: float
    published: float | None
    error: float = 0.0
    trivial: bool = False

    @property
    def title(self) -> str:
        return ATTACKS.get(self.name, "clean accuracy")

    @property
    def values(self) -> tuple[Value, Value, Value]:
        """Measured, published, and their difference."""
        known = self.published
        return self.measured, known, None if known is None else self.measured - known

    @property
    def counts(self) -> bool:
        """Whether it is among the cells that are counted."""
        return self.published is not None and not self.trivial

    def agrees(self, *, noise: bool) -> bool:
        """Whether it lies as near to the published number as it is asked for."""
        assert self.published is not None
        allowed = SHARE * self.published if noise else POINTS
        return abs(self.measured - self.published) <= allowed


def gray_cells(net: Net, facts: dict[str, Facts], clean: Shares) -> Iterator[Compared]:
    """Those of Table 1."""
    n, share = clean[net.name]
    for judge, kappa in enumerate((0.0, net.kappa)):
        value, known = 100 * share[kappa], net.published("1", "clean", kappa)
        yield Compared(net, kappa, "clean", value, known, _error(value, n), trivial=True)
        for name in ATTACKS:
            value, known = 100 * facts[name]["accuracy"][0][judge], net.published("1", name, kappa)
            error = _error(value, facts[name]["n"])
            yield Compared(net, kappa, name, value, known, error, trivial=kappa == 0 and not known)


def white_cells(net: Net, by_kappa: Runs, clean: Shares) -> Iterator[Compared]:
    """Those of Table 2."""
    n, share = clean[net.name]
    for kappa, facts in by_kappa.items():
        value, known = 100 * share[kappa], net.published("2", "clean", kappa)
        yield Compared(net, kappa, "clean", value, known, _error(value, n))
        value, known = 100 * facts["pgd"]["accuracy"][0][0], net.published("2", "pgd", kappa)
        yield Compared(net, kappa, "pgd", value, known, _error(value, facts["pgd"]["n"]))
        for name in NOISES:
            known, error = net.published("2", name, kappa), 100 * facts[name]["noise_error"]
            yield Compared(net, kappa, name, 100 * facts[name]["noise"], known, error)


def count_agreeing(gray: list[Compared], white: list[Compared]) -> tuple[int, int]:
    """How many of the cells of both tables agree, and of how many."""
    agree = [c.agrees(noise=False) for c in gray if c.counts]
    agree += [c.agrees(noise=c.name in NOISES) for c in white if c.counts]
    return sum(agree), len(agree)


def _error(percent: float, n: int) -> float:
    return float(np.sqrt(percent * (100 - percent) / n))
