"""Minimum norms: the smallest L2 perturbation, in pixels, that any of several attacks finds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retroact.attacks.carlini_wagner import CarliniWagner
from retroact.attacks.ddn import DDN
from retroact.attacks.fmn import FMN
from retroact.experiments.cell import Cell, all_locked
from retroact.studies.desk import Desk
from retroact.studies.jumprelu.networks import FAR_2, PAPERS, Net
from retroact.studies.jumprelu.sizes import NORMS
from retroact.studies.told import Outcomes, Told, outcomes

FURTHER = 1.5
"""How many times the paper's kappa "a larger jump" is."""
WIDTHS = (3.0, 8.0)
"""beta · kappa of the kernels at the jump: a wide and a narrow one."""
PLAIN_DDN = DDN(loss="log_odds", step_size=1.0)
"""As it was when the norms of this page were found; its defaults now find smaller ones, at jumps
above all."""


def attacks_on(net: Net, kappa: float, data: str) -> dict[str, Cell]:
    """The minimum-norm attacks on `net` at `kappa`, by name: the plain ones first."""
    model = net.model(kappa)
    cells = {
        type(a).__name__: Cell(model, data, a, FAR_2) for a in (PLAIN_DDN, FMN(), CarliniWagner())
    }
    if kappa == 0:
        return cells
    for width in WIDTHS:
        cells[f"DDN, kernel {width:g}"] = Cell(model, data, PLAIN_DDN, FAR_2, beta=width / kappa)
    for attack in (FMN(), CarliniWagner()):
        cells[f"{type(attack).__name__}, kernel"] = Cell(
            model, data, attack, FAR_2, beta=WIDTHS[0] / kappa
        )
    cells["DDN, from kappa 0"] = Cell(model, data, PLAIN_DDN, FAR_2, source=net.model(0))
    return cells


def smallest(found: list[Outcomes]) -> NDArray[np.float64]:
    """The smallest L2 (pixels) that fooled each image, by any attack: 0 where wrong clean, infinite
    where none did."""
    each = [np.where(o.stands, np.inf, o.l2) for o in found]
    return np.where(found[0].right, np.min(each, axis=0), 0.0).astype(np.float64)


def found_norms(
    desk: Desk, net: Net, kappa: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`smallest` of all attacks at `kappa`, and of plain DDN alone.

    There is one size for all kappas that a page has of a network, so that images stand in pairs.
    """
    n = desk.largest(NORMS.of(net), lambda n: _told(net, n))
    found = outcomes(desk, list(attacks_on(net, kappa, net.slice(n)).values()), "l2")
    return smallest(found), smallest(found[:1])


def _told(net: Net, n: int) -> list[Told]:
    kappas = (0.0, net.kappa, *([FURTHER * net.kappa] if net in PAPERS else []))
    cells = [cell for k in kappas for cell in attacks_on(net, k, net.slice(n)).values()]
    return [Told(cell, ("l2",)) for cell in all_locked(cells)]


def median_ratio(desk: Desk, net: Net, kappa: float) -> float:
    """Median verified norm at `kappa` over that at 0, on images that both networks decide
    rightly."""
    before, after = found_norms(desk, net, 0.0)[0], found_norms(desk, net, kappa)[0]
    both = (before > 0) & (after > 0)
    return float(np.median(after[both]) / np.median(before[both]))
