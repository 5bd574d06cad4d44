"""Numbers from facts: pure functions on records. To add a metric, add a function here.

Shares are in [0, 1]. A metric marked by `@metric` says its bounds and which way is better, so that
tables and plots need to know no metric by name. No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retroact.evaluation.record import NORMS, Record
from retroact.shares import wilson as wilson


@dataclass(frozen=True)
class Metric:
    """A number of one record: its function, what it is called, its bounds, and which way is
    better."""

    function: Callable[[Record], float]
    title: str
    low: float
    high: float
    better: str  # "higher" or "lower", from the defender's side

    def __call__(self, record: Record) -> float:
        return self.function(record)


def metric(
    title: str, *, better: str, low: float = 0.0, high: float = 1.0
) -> Callable[[Callable[[Record], float]], Metric]:
    """Marks a function of one record as a metric."""
    return lambda function: Metric(function, title, low, high, better)


@metric("clean accuracy", better="higher")
def clean_accuracy(record: Record) -> float:
    """Share of examples that the network decides rightly without an attack."""
    return float(np.mean(record.right))


@metric("robust accuracy", better="higher")
def robust_accuracy(record: Record) -> float:
    """Share of *all* examples that are decided rightly both clean and under attack."""
    return float(np.mean(survives(record)))


@metric("success rate", better="lower")
def success_rate(record: Record) -> float:
    """Share of attackable examples on which the goal was reached (NaN where none was attackable).

    Untargeted: of those decided rightly clean. Targeted: of those of another class than the target
    and not already decided as it.
    """
    targeted = record.target >= 0
    elsewhere = (record.clean != record.target) & (record.label != record.target)
    attackable = np.where(targeted, elsewhere, record.clean == record.label)
    hit = np.where(
        targeted, record.adversarial == record.target, record.adversarial != record.label
    )
    return float(np.mean(hit[attackable])) if attackable.any() else math.nan


@metric("zero gradients", better="lower")
def zero_gradient_share(record: Record) -> float:
    """Share of all gradients that were exactly zero: an attack that saw them went nowhere."""
    return record.blind


@metric("non-finite", better="lower")
def nonfinite_share(record: Record) -> float:
    """Share of examples on which a NaN or infinite logit or gradient was seen, or logits alike but
    for rounding."""
    return float(np.mean(record.nonfinite))


@metric("queries per image", better="higher", high=math.inf)
def mean_queries(record: Record) -> float:
    """Forward passes of the attacked network per example, the clean look included."""
    return float(np.mean(record.queries))


@metric("gradients per image", better="higher", high=math.inf)
def mean_gradients(record: Record) -> float:
    """Backward passes per example."""
    return float(np.mean(record.gradients))


def survives(record: Record) -> NDArray[np.bool_]:
    """Bool (n,): decided rightly clean and under attack."""
    return record.robust


def worst_case(records: Sequence[Record]) -> NDArray[np.bool_]:
    """Bool (n,): survives every attack of `records`, example by example.

    Its mean is at most the smallest robust accuracy among them. Raises ValueError where the records
    are not of the same examples in the same order.
    """
    if not records:
        raise ValueError("expected at least one record, got none")
    for other in records[1:]:
        if not np.array_equal(other.index, records[0].index):
            raise ValueError(
                "the worst case is taken example by example: give records of the same examples"
            )
    robust: NDArray[np.bool_] = np.logical_and.reduce([survives(r) for r in records])
    return robust


def rho(record: Record, norm: str = "l2") -> float:
    """Mean relative perturbation ρ = (1/n) Σ ‖x_adv − x‖_p / ‖x‖_p over all n examples (JumpReLU
    eq. 12).

    In pixels of [0, 1] (the paper's own numbers are in normalised units). Examples that were never
    attacked count with 0, as in the paper; an all-black image counts with 0 as well.
    """
    p = NORMS.index(norm)
    size = record.size[:, p]
    return float(
        np.mean(np.divide(record.distance[:, p], size, out=np.zeros_like(size), where=size > 0))
    )


def median_distance(record: Record, norm: str = "l2") -> float:
    """Median ‖x_adv − x‖_p in pixels over the examples on which the attack succeeded (NaN:
    none)."""
    broken = (record.clean == record.label) & (record.adversarial != record.label)
    sizes = record.distance[broken, NORMS.index(norm)]
    return float(np.median(sizes)) if broken.any() else math.nan
