"""Evidence: every adversarial image of an audit in a folder, so that nobody has to believe it.

For each network `before.safetensors` and `after.safetensors` hold the images that fell, (k, …),
with row, label, the class decided and the attack; `before.pt` and `after.pt` one tensor of the size
of the slice, the clean image where none was found, as RobustBench takes it. `audit.json` has the
audit's numbers with the fingerprints of data and weights, `evidence.json` says how the networks are
made again, and by which commands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from retroact import checkpoint
from retroact.auditing import kept
from retroact.auditing.attack_run import Side
from retroact.auditing.numbers import AuditNumbers, Fingerprints, Pair
from retroact.crafting.expectation import Expectation
from retroact.crafting.oracle import Network
from retroact.crafting.threat import ThreatModel
from retroact.files import read_object, replacing
from retroact.nets.data import Images
from retroact.nets.data import data as read_data
from retroact.nets.sources import DataError
from retroact.reading import Data, as_activation, as_images, as_threat
from retroact.retrofitting.surgery import Retrofit, retrofit
from retroact.spec import parse, quote, shorten

if TYPE_CHECKING:
    from retroact.auditing.audit import Audit

FORMAT = 1
SIDES = ("before", "after")
COUNTED = ("clean", "claimed", "verified")
NUMBERS, ABOUT = "audit.json", "evidence.json"
NEITHER = Pair(False, False)


class EvidenceError(ValueError):
    """A folder that is no evidence of an audit, or evidence that cannot be judged here."""


@dataclass(frozen=True)
class Origin:
    """How a network is made again: its name (zoo, saved file, package.module:function) and weights,
    the mean and std of a plain module, the activation or Retrofit that was put in, at which sites
    and kinds, and over how many draws it was averaged."""

    net: str
    weights: str = ""
    change: str = ""
    sites: str = "*"
    also: tuple[str, ...] = ()
    draws: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @classmethod
    def of(cls, described: str) -> Origin:
        """From what an audit calls it, such as "lenet-mnist + JumpReLU(kappa=1.0)"."""
        net, _, change = described.partition(" + ")
        return cls(net, change=change)

    def called(self, net: str, weights: str) -> Origin:
        """The same by another name, and with other weights where there are some."""
        return replace(self, net=net, weights=weights or self.weights)

    def load(self, load: Load) -> Network:
        """The network, from what `load(self)` gives."""
        net: nn.Module = load(self)
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
    if audit.rejection is not None:
        raise EvidenceError(
            "evidence is not kept of networks that reject, as `verify` would not know the rejected:"
            " keep audit.after.examples yourself"
        )
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
    named = networks or Pair(*map(Origin.of, audit.names))
    draws = audit.pedigree.draws or (0, 0)
    origins = [replace(origin, draws=n) for origin, n in zip(named, draws, strict=True)]
    about = {
        "format": FORMAT,
        "networks": dict(zip(SIDES, map(asdict, origins), strict=True)),
        "commands": list(commands),
    }
    for name, text in {**texts, ABOUT: json.dumps(about, indent=2) + "\n"}.items():
        with replacing(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    return folder


def _write_whole(side: Side, path: Path) -> None:
    assert side.data is not None
    with replacing(path) as draft:
        torch.save(side.attacked(side.data.images), draft)


# ------------------------------------------------------------------------------------------ reading


Load = Callable[[Origin], nn.Module]


@dataclass(frozen=True)
class Evidence:
    """What a folder says: the audit's numbers, how its networks are made again, and the threat that
    the numbers are about."""

    folder: Path
    claims: AuditNumbers
    networks: Pair[Origin]
    threat: ThreatModel

    @classmethod
    def read(cls, folder: str | Path) -> Evidence:
        """Raises EvidenceError for a folder that is none."""
        folder = Path(folder)
        try:
            said, claims = (read_object(folder / f) for f in (ABOUT, NUMBERS))
            if said["format"] != FORMAT:
                raise EvidenceError(
                    f"{folder} has format {shorten(str(said['format']))}, expected {FORMAT};"
                    " upgrade retroact"
                )
            numbers = AuditNumbers.from_json(claims)
            _check_numbers(numbers)
            return cls(
                folder,
                numbers,
                Pair(*(_named(said["networks"][who]) for who in SIDES)),
                as_threat(claims["threat"]),
            )
        except EvidenceError:
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
            raise EvidenceError(
                f"{folder} is no evidence of an audit: {shorten(str(e))}; `retroact audit …"
                " --evidence FOLDER` writes one"
            ) from e

    @property
    def fingerprints(self) -> Fingerprints:
        """Those of the audit."""
        return self.claims.fingerprints or Fingerprints("", Pair("", ""))

    def images(self, given: Data | None) -> Images:
        """The data of the audit; EvidenceError where these are others."""
        try:
            images = read_data(self.claims.data) if given is None else as_images(given)
        except DataError as e:
            raise EvidenceError(f"the data of the audit: {e}; give them with data=") from e
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


def _load(origin: Origin) -> nn.Module:
    mean, std = origin.mean or None, origin.std or None
    return checkpoint.load(origin.net, weights=origin.weights or None, mean=mean, std=std)


def _named(said: Mapping[str, Any]) -> Origin:
    lists = {name: tuple(said.get(name, ())) for name in ("also", "mean", "std")}
    origin = Origin(**{**said, **lists})
    texts = (origin.net, origin.weights, origin.change, origin.sites, *origin.also)
    numbers = (*origin.mean, *origin.std)
    if not all(isinstance(text, str) for text in texts) or origin.draws not in range(_MOST_DRAWS):
        raise ValueError(f"expected texts for a network, got {quote(said)}")
    if not all(isinstance(v, float) for v in numbers):
        raise ValueError(f"expected mean and std as numbers, got {quote(numbers)}")
    return origin


_MOST_DRAWS = 2**16  # of a randomised network: each is a forward pass


def _check_numbers(numbers: AuditNumbers) -> None:
    """ValueError for numbers that no audit gives."""
    counts = {name: getattr(numbers, name) for name in ("n", "gained", "lost")}
    shares = [share for what in COUNTED for share in getattr(numbers, what)]
    if not all(map(_is_count, counts.values())) or not isinstance(numbers.data, str):
        raise ValueError(f"expected how many examples of which data, got {quote(counts)}")
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"expected accuracies from 0 to 1, got {quote(shares)}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40
