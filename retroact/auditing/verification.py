"""Verification: the adversarial images of an audit, judged again on its networks.

It trusts the claim alone: data and networks are loaded anew, labels are theirs, each image must lie
in ball and box, and the networks decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.auditing import kept
from retroact.auditing.chance import judges_of
from retroact.auditing.evidence import SIDES, Evidence, EvidenceError
from retroact.auditing.numbers import AuditNumbers, Pair
from retroact.auditing.verdict import Counts, count
from retroact.checkpoint import digest
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.expectation import Expectation
from retroact.crafting.oracle import Network
from retroact.doors import SLACK
from retroact.evaluation.evaluate import decide
from retroact.files import check_unpacked
from retroact.ground import neutral
from retroact.nets.data import Images
from retroact.reading import Data, Net, as_network
from retroact.spec import shorten

COUNTED = ("clean", "claimed", "verified")
NEITHER = Pair(False, False)


@dataclass(frozen=True)
class Fallen:
    """The adversarial images of a file: `x_adv` (k, …) of the rows (k,), and the attack's role."""

    x_adv: Tensor
    rows: NDArray[np.int64]
    claimed: NDArray[np.bool_]

    @classmethod
    def read(cls, path: Path, images: Tensor) -> Fallen:
        """Raises EvidenceError for a file that is not what `keep` writes about these images."""
        try:
            tensors, metadata = kept.read(path)
            attacks = kept.attacks_in(metadata)
            rows, turns = tensors["row"].numpy(), tensors["turn"].numpy()
            claimed = np.array([attacks[turn].role == "claimed" for turn in turns], dtype=bool)
        except kept.UNREADABLE as e:
            raise EvidenceError(f"{path} holds no images of an audit: {shorten(str(e))}") from e
        x_adv, n = tensors["x_adv"].float(), len(images)
        if len(set(rows.tolist())) != len(rows) or x_adv.shape != (len(rows), *images.shape[1:]):
            raise EvidenceError(
                f"{path}: expected an image of shape {tuple(images.shape[1:])} for each of its"
                f" {len(rows)} rows, got {tuple(x_adv.shape)}"
            )
        if len(rows) and not 0 <= rows.min() <= rows.max() < n:
            raise EvidenceError(
                f"{path}: expected rows below {n}, got {rows.min()} to {rows.max()}"
            )
        return cls(x_adv, rows, claimed)


@dataclass(frozen=True)
class Judged:
    """A network of the evidence, judged anew, all (n,): right clean, robust to the claimed attack,
    robust to all; and what is wrong with single images, a sentence each."""

    clean: NDArray[np.bool_]
    claimed: NDArray[np.bool_]
    verified: NDArray[np.bool_]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What `verify` found: the `counts` beside those claimed, every difference in `findings`, and
    what else there is to know in `notes`."""

    claims: AuditNumbers
    counts: Counts
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the images show what the audit says."""
        return not self.findings

    def table(self) -> list[tuple[str, str, int, int]]:
        """Network, what was counted, how many by the claim, how many were found."""
        return [
            (who, what, *(round(getattr(of, what)[i] * of.n) for of in (self.claims, self.counts)))
            for i, who in enumerate(SIDES)
            for what in COUNTED
        ]

    def __str__(self) -> str:
        said = "; ".join(self.findings) or "every image that fell falls again"
        return f"{'HOLDS' if self.holds else 'DIFFERS'}: {said}"


@neutral()
def verify(
    folder: str | Path,
    *,
    before: Net | None = None,
    after: Net | None = None,
    data: Data | None = None,
) -> Verification:
    """Judges the adversarial images of an evidence folder on the networks again: each must lie in
    ball and box and be decided wrongly, and the counts must be those of the audit.

    Networks and data are those that the evidence names, unless others are given, `before` and
    `after` with all that was changed in them. Nothing is unpickled, and no code is run but the
    networks'. Raises EvidenceError for a folder that is none, and for other data.
    """
    evidence, given = Evidence.read(folder), Pair(before, after)
    nets = (
        evidence.network(i) if net is None else evidence.averaged(i, as_network(net))
        for i, net in enumerate(given)
    )
    whose = Pair(before is not None, after is not None)
    return judge(evidence, Pair(*nets), evidence.images(data), given=whose)


def judge(
    evidence: Evidence, nets: Pair[Network], images: Images, given: Pair[bool] = NEITHER
) -> Verification:
    """Judges all images again; the weights of a network that was `given` may be others, if its
    counts are not."""
    findings: list[str] = []
    notes: list[str] = []
    weights = evidence.fingerprints.weights
    for who, net, said, other in zip(SIDES, nets, weights, given, strict=True):
        if said != (found := _digest(net)):
            text = f"{who}: the weights are {found}, those of the audit {said}"
            (notes if other else findings).append(text)
    judged = [judge_network(w, net, images, evidence) for w, net in zip(SIDES, nets, strict=True)]
    findings += [fault for one in judged for fault in one.faults]
    counts = count(*(Pair(*(getattr(one, what) for one in judged)) for what in COUNTED))
    made = Verification(evidence.claims, counts, notes=tuple(notes))
    return replace(made, findings=(*findings, *_compare(made)))


def judge_network(who: str, net: Network, images: Images, evidence: Evidence) -> Judged:
    """What the images that fell on the network `who` are worth on `net`."""
    fallen = Fallen.read(evidence.folder / f"{who}.safetensors", images.images)
    x, labels = images.images[fallen.rows], images.labels[fallen.rows]
    first, last = judges_of(net) if isinstance(net, Expectation) else (net, net)
    right = (decide(first, images.images) == images.labels).numpy()
    decided = decide(last, fallen.x_adv, attacked=True) if len(x) else labels
    ball, box = evidence.threat(fallen.x_adv, x), _in_box(fallen.x_adv, domain_of(images))
    fooled = (decided != labels) & (decided >= 0)
    good = (ball & box & fooled).numpy() & right[fallen.rows]
    faults = [
        *_find_faults(fallen.rows, ball, box, fooled, right),
        *_find_differences(evidence.folder / f"{who}.pt", fallen, images.images),
    ]
    claimed, verified = right.copy(), right.copy()
    verified[fallen.rows[good]] = False
    claimed[fallen.rows[good & fallen.claimed]] = False
    return Judged(right, claimed, verified, tuple(f"{who}: {fault}" for fault in faults))


def _digest(net: Network) -> str:
    inner = net.net if isinstance(net, Expectation) else net
    return digest(inner) if isinstance(inner, nn.Module) else ""


def _in_box(x: Tensor, domain: Domain) -> Tensor:
    slack = SLACK * max(domain.width, abs(domain.low), abs(domain.high))
    flat = x.flatten(1)
    inside: Tensor = ((flat >= domain.low - slack) & (flat <= domain.high + slack)).all(1)
    return inside


def _find_faults(
    rows: NDArray[np.int64], ball: Tensor, box: Tensor, fooled: Tensor, right: NDArray[np.bool_]
) -> Iterator[str]:
    for i, row in enumerate(rows.tolist()):
        if not ball[i]:
            yield f"image {row} lies outside the ball"
        elif not box[i]:
            yield f"image {row} lies outside the box"
        elif not right[row]:
            yield f"image {row} is decided wrongly without an attack"
        elif not fooled[i]:
            yield f"image {row} is decided rightly"


def _find_differences(path: Path, fallen: Fallen, images: Tensor) -> Iterator[str]:
    """Whether the tensor that RobustBench takes holds the same images, and clean ones elsewhere."""
    expected = images.clone()
    expected[fallen.rows] = fallen.x_adv
    if not path.is_file():
        raise EvidenceError(f"there is no file {path}")
    try:
        check_unpacked(path)
        whole = torch.load(path, map_location="cpu", weights_only=True)  # refuses to run code
    except Exception as e:  # bytes that are no tensor end in any error
        raise EvidenceError(f"{path} is no tensor: {shorten(str(e))}") from e
    if not _is_equal(whole, expected):
        yield f"{path.name} holds other images than {path.stem}.safetensors and the data"


def _is_equal(whole: object, expected: Tensor) -> bool:
    if not isinstance(whole, Tensor) or whole.layout is not torch.strided:
        return False
    return whole.dtype == expected.dtype and torch.equal(whole, expected)


def _compare(made: Verification) -> Iterator[str]:
    if made.counts.n != made.claims.n:
        yield f"the audit is of {made.claims.n} examples, here are {made.counts.n}"
    for who, what, said, found in made.table():
        if said != found:
            yield f"{who}: {what} {found} of {made.counts.n}, the audit says {said}"
    for what in ("gained", "lost"):
        said, found = getattr(made.claims, what), getattr(made.counts, what)
        if said != found:
            yield f"{what} {found}, the audit says {said}"
