"""An audit in five sentences, for a review or a paper. No torch here."""

from __future__ import annotations

from collections.abc import Iterator

from retroact.auditing.numbers import AuditNumbers
from retroact.evaluation.metrics import wilson


def write_paragraph(numbers: AuditNumbers) -> str:
    """What was compared, how it was attacked, what was claimed, what was verified, and what it
    comes to; each with the numbers that a reviewer asks for."""
    return " ".join(_sentences(numbers))


def _sentences(numbers: AuditNumbers) -> Iterator[str]:
    n, word = numbers.n, numbers.example
    yield (
        f"We compared {numbers.names.after}{_print_of(numbers, 1)} with {numbers.names.before}"
        f"{_print_of(numbers, 0)} on n = {n} {word}s, {numbers.data}{_data_print(numbers)}, within"
        f" {numbers.threat}."
    )
    yield (
        f"Both were attacked by the battery {numbers.battery} of retroact {numbers.retroact}"
        f" (battery version {numbers.battery_version}{_run(numbers)}){_spent(numbers)}."
    )
    yield (
        f"Clean accuracy is {_share(numbers.clean[0])} before the change and"
        f" {_share(numbers.clean[1])} after it; the accuracy that would be claimed, under"
        f" {numbers.claimed_attack}, is {_share(numbers.claimed[0])} and"
        f" {_share(numbers.claimed[1])}."
    )
    low, high = (100 * end for end in numbers.interval)
    yield (
        f"Verified accuracy, the worst case over all these attacks {word} by {word} and so an upper"
        f" bound, is {_bounded(numbers, 0)} before and {_bounded(numbers, 1)} after (95 % Wilson"
        f" intervals), a difference of {100 * numbers.gain:+.1f} points with a 95 % bootstrap"
        f" interval of {low:+.1f} to {high:+.1f} ({numbers.gained} {word}s gained,"
        f" {numbers.lost} lost, McNemar's exact p = {numbers.p:.2g})."
    )
    doubts = f", because {'; '.join(numbers.doubts)}" if numbers.doubts else ""
    yield (
        f"The effect of the change is {numbers.effect}{doubts}, and its claim is"
        f" {numbers.explained_claim}."
    )


def _share(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bounded(numbers: AuditNumbers, side: int) -> str:
    share = numbers.verified[side]
    low, high = (100 * end for end in wilson(round(share * numbers.n), numbers.n))
    return f"{_share(share)} [{low:.1f}, {high:.1f}]"


def _print_of(numbers: AuditNumbers, side: int) -> str:
    said = numbers.fingerprints.weights[side] if numbers.fingerprints else ""
    return f" (weights {said})" if said else ""


def _data_print(numbers: AuditNumbers) -> str:
    return f" (SHA-256 {numbers.fingerprints.data}…)" if numbers.fingerprints else ""


def _run(numbers: AuditNumbers) -> str:
    run = numbers.pedigree
    return f", seed {run.seed}; {run.versions}" if run else ""


def _spent(numbers: AuditNumbers) -> str:
    """How many attacks there were on each network, and what they cost."""
    if not (numbers.attacks and numbers.pedigree):
        return ""
    attacks = " and ".join(str(len(side)) for side in numbers.attacks)
    spent = " and ".join(f"{each:.0f}" for each in numbers.pedigree.gradients_per_image)
    return (
        f", {attacks} attacks before and after the change with {spent} gradients per"
        f" {numbers.example}"
    )
