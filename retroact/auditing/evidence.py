"""Evidence: every adversarial image of an audit in a folder, so that nobody has to believe it.

    keep(audit, "evidence")
    verify("evidence")

For each network `before.safetensors` and `after.safetensors` hold the images that fell, (k, …),
with row, label, the class decided and the attack; `before.pt` and `after.pt` one tensor of the size
of the slice, the clean image where none was found, as RobustBench takes it; `evidence.json` says
which networks, data and threat they belong to. `verify` trusts the claim alone: data and networks
are loaded anew, labels are theirs, and each image is judged by the network.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact import checkpoint
from retroact.auditing import kept
from retroact.auditing.attack_run import Side
from retroact.auditing.numbers import AuditNumbers, Fingerprints, Pair
from retroact.auditing.verdict import Counts, count
from retroact.checkpoint import digest
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.expectation import Expectation
from retroact.crafting.oracle import Network
from retroact.crafting.threat import ThreatModel
from retroact.doors import SLACK
from retroact.evaluation.evaluate import decide
from retroact.files import replacing
from retroact.ground import neutral
from retroact.nets.data import Images
from retroact.nets.data import data as read_data
from retroact.reading import Data, Net, as_activation, as_images, as_network, as_threat
from retroact.retrofitting.surgery import Retrofit, retrofit
from retroact.spec import SpecError, parse

if TYPE_CHECKING:
    from retroact.auditing.audit import Audit

FORMAT = 1
SIDES = ("before", "after")
COUNTED = ("clean", "claimed", "verified")
NUMBERS, ABOUT = "audit.json", "evidence.json"
NEITHER = Pair(False, False)
Load = Callable[[str, str], nn.Module]


class EvidenceError(ValueError):
    """A folder that is no evidence of an audit, or evidence that cannot be judged here."""


@dataclass(frozen=True)
class Origin:
    """How a network is made again: its name (zoo, saved file, package.module:function) and weights,
    the activation or Retrofit that was put in, at which sites and kinds, and over how many draws it
    was averaged."""

    net: str
    weights: str = ""
    change: str = ""
    sites: str = "*"
    also: tuple[str, ...] = ()
    draws: int = 0

    @classmethod
    def of(cls, described: str) -> Origin:
        """From what an audit calls it, such as "lenet-mnist + JumpReLU(kappa=1.0)"."""
        net, _, change = described.partition(" + ")
        return cls(net, change=change)

    def called(self, net: str, weights: str) -> Origin:
        """The same by another name, and with other weights where there are some."""
        return replace(self, net=net, weights=weights or self.weights)

    def load(self, load: Load) -> Network:
        """The network, from what `load(net, weights)` gives."""
        net: nn.Module = load(self.net, self.weights)
        if self.change:
            net = self._change(net)
        return Expectation(net, self.draws) if self.draws else net

    def _change(self, net: nn.Module) -> nn.Module:
        said = parse(self.change) if self.change.startswith("Retrofit(") else None
        if isinstance(said, Retrofit):
            return said(net)
        return retrofit(net, as_activation(self.change), sites=self.sites, also=self.also)


def keep(
    audit: Audit,
    folder: str | Path,
    texts: Mapping[str, str],
    *,
    networks: Pair[Origin] | None = None,
    commands: Sequence[str] = (),
) -> Path:
    """Writes the folder that `verify` reads; returns it.

    `texts` are the contents of further files, NUMBERS among them, `networks` say how to make these
    again, `commands` what was run. Raises ValueError for an audit that kept no images.
    """
    folder = Path(folder)
    for who, side in zip(SIDES, audit.sides, strict=True):
        if not kept.is_whole(side):
            raise EvidenceError(
                f"the audit did not keep every image that fell on the network {who}; run it again"
            )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ABOUT).unlink(missing_ok=True)  # comes last: without it the folder is no evidence
    for who, side in zip(SIDES, audit.sides, strict=True):
        kept.write(side, folder / f"{who}.safetensors")
        _write_whole(side, folder / f"{who}.pt")
    about = _describe(audit, networks or Pair(*map(Origin.of, audit.names)), commands)
    for name, text in {**texts, ABOUT: json.dumps(about, indent=2) + "\n"}.items():
        with replacing(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    return folder


def _write_whole(side: Side, path: Path) -> None:
    assert side.data is not None
    whole = side.data.images.clone()
    for example in side.examples:
        whole[example.row] = torch.from_numpy(example.x_adv)
    with replacing(path) as draft:
        torch.save(whole, draft)


def _describe(audit: Audit, networks: Pair[Origin], commands: Sequence[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "threat": audit.threat,
        "data": audit.data,
        "fingerprints": audit.fingerprints.to_json(),
        "networks": dict(zip(SIDES, map(asdict, networks), strict=True)),
        "commands": list(commands),
        "versions": audit.pedigree.versions,
        "machine": audit.pedigree.machine,
    }


# ------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Evidence:
    """What a folder says: the audit's numbers, and the networks, data and threat that they are
    about."""

    folder: Path
    claims: AuditNumbers
    networks: Pair[Origin]
    fingerprints: Fingerprints
    data: str
    threat: ThreatModel

    @classmethod
    def read(cls, folder: str | Path) -> Evidence:
        """Raises EvidenceError for a folder that is none."""
        folder = Path(folder)
        try:
            said, claims = (json.loads((folder / f).read_text("utf-8")) for f in (ABOUT, NUMBERS))
            if said["format"] != FORMAT:
                raise EvidenceError(
                    f"{folder} has format {said['format']}, expected {FORMAT}; upgrade retroact"
                )
            return cls(
                folder,
                AuditNumbers.from_json(claims),
                Pair(*(_named(said["networks"][who]) for who in SIDES)),
                Fingerprints.from_json(said["fingerprints"]),
                str(said["data"]),
                as_threat(said["threat"]),
            )
        except (OSError, json.JSONDecodeError, KeyError, TypeError, SpecError) as e:
            raise EvidenceError(
                f"{folder} is no evidence of an audit: {e}; `retroact audit … --evidence FOLDER`"
                " writes one"
            ) from e

    def images(self, given: Data | None) -> Images:
        """The data of the audit; EvidenceError where these are others."""
        images = read_data(self.data) if given is None else as_images(given)
        if images.fingerprint[:16] != self.fingerprints.data:
            raise EvidenceError(
                f"{images.name} are other images or labels than those of the audit"
                f" ({images.fingerprint[:16]}, expected {self.fingerprints.data}); give those with"
                " data="
            )
        return images

    def renamed(self, nets: Pair[str | None], weights: Pair[str]) -> Evidence:
        """The same with other names: of the network before, and after where that is a change of it;
        of the one after."""
        before, after = self.networks
        same = (after.net, after.weights) == (before.net, before.weights)
        if nets.before is not None:
            before = before.called(nets.before, weights.before)
            after = after.called(nets.before, weights.before) if same else after
        if nets.after is not None:
            after = Origin(nets.after, weights.after, draws=after.draws)
        return replace(self, networks=Pair(before, after))

    def network(
        self, i: int, load: Load | None = None, said: Collection[str | None] = ()
    ) -> Network:
        """The network before (0) or after (1) as the evidence names it; EvidenceError where it
        cannot be loaded, and where the name is code that is not among those `said`: a file runs
        none."""
        named, who = self.networks[i], SIDES[i]
        give = f"give it with {who}=, on the command line with --{('net', 'against')[i]}"
        if ":" in named.net and named.net not in said:
            raise EvidenceError(
                f"the network {who} is code, {named.net}, which runs only where you name it; {give}"
            )
        try:
            return named.load(load or _load)
        except (ValueError, TypeError, OSError) as e:
            raise EvidenceError(
                f"the network {who}, {named.net}, cannot be loaded: {e}; {give}"
            ) from e

    def averaged(self, i: int, net: Network) -> Network:
        """A network that is given, over as many draws as the audited one."""
        draws = self.networks[i].draws
        return Expectation(net, draws) if draws else net

    def judge(
        self, nets: Pair[Network], images: Images, given: Pair[bool] = NEITHER
    ) -> Verification:
        """Judges all images again; the weights of a network that was `given` may be others, if its
        counts are not."""
        findings: list[str] = []
        notes: list[str] = []
        for who, net, said, other in zip(
            SIDES, nets, self.fingerprints.weights, given, strict=True
        ):
            if said != (found := _digest(net)):
                text = f"{who}: the weights are {found}, those of the audit {said}"
                (notes if other else findings).append(text)
        judged = [judge_network(w, net, images, self) for w, net in zip(SIDES, nets, strict=True)]
        findings += [fault for one in judged for fault in one.faults]
        counts = count(*(Pair(*(getattr(one, what) for one in judged)) for what in COUNTED))
        made = Verification(self.claims, counts, notes=tuple(notes))
        return replace(made, findings=(*findings, *_compare(made)))


def _load(net: str, weights: str) -> nn.Module:
    return checkpoint.load(net, weights=weights or None)


def _named(said: Mapping[str, Any]) -> Origin:
    return Origin(**{**said, "also": tuple(said["also"])})


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
            attacks = json.loads(metadata["attacks"])
            rows, turns = tensors["row"].numpy(), tensors["turn"].numpy()
            claimed = np.array([attacks[turn]["role"] == "claimed" for turn in turns], dtype=bool)
        except kept.UNREADABLE as e:
            raise EvidenceError(f"{path} holds no images of an audit: {e}") from e
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


# ---------------------------------------------------------------------------------------- verifying


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
    return evidence.judge(Pair(*nets), evidence.images(data), given=whose)


def judge_network(who: str, net: Network, images: Images, evidence: Evidence) -> Judged:
    """What the images that fell on the network `who` are worth on `net`."""
    fallen = Fallen.read(evidence.folder / f"{who}.safetensors", images.images)
    x, labels = images.images[fallen.rows], images.labels[fallen.rows]
    right = (decide(net, images.images) == images.labels).numpy()
    decided = decide(net, fallen.x_adv, attacked=True) if len(x) else labels
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
    try:
        whole = torch.load(path, weights_only=True)  # refuses whatever would run code
    except (pickle.UnpicklingError, OSError, RuntimeError) as e:
        raise EvidenceError(f"{path} is no tensor: {e}") from e
    if not isinstance(whole, Tensor) or not torch.equal(whole, expected):
        yield f"{path.name} holds other images than {path.stem}.safetensors and the data"


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
