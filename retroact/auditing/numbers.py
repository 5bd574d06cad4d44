"""An audit as plain numbers and texts: what is stored, and what reports read. No torch here.

In JSON the fields have the names that they were first stored under: "twin" is the network before
the change, "network" the one after it, "felled" counts the examples that an attack has broken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from retroact import __version__
from retroact.auditing.verdict import WORDS, Claim, Effect, Mechanism, Word
from retroact.files import read_object

SCHEMA = 3
"""1: without the schema's number, the package's and the battery's version, the kernels and the
fingerprints. 2: `asked_by` is one text, and there are neither `words` nor `mechanisms`. What is
written now is described in schema.json, beside this file."""

Json = dict[str, Any]
Stored = Mapping[str, Any]
Role = Literal["claimed", "white box", "control"]
T = TypeVar("T")


class Pair(NamedTuple, Generic[T]):
    """The same of the network before the change and of the one after it."""

    before: T
    after: T


_COMMA, _AND = ", ", " and "
UNNAMED = Pair("", "")
UNMOVED: Pair[float | None] = Pair(None, None)


@dataclass(frozen=True)
class AttackResult:
    """What one attack of the battery did: of `asked` examples that were robust until then it broke
    `broken`. `kernel` names the kernel that its gradients went through, empty where none did;
    `asked_by` the alarms that asked for it; `nonfinite` examples met logits or gradients that are
    no numbers and were not broken."""

    title: str
    attack: str
    role: Role
    asked: int
    broken: int
    gradients: int
    zero_gradients: int
    queries: int
    seconds: float
    kernel: str = ""
    asked_by: str = ""
    nonfinite: int = 0

    @property
    def is_trial(self) -> bool:
        """Whether it only tried out what to climb."""
        return self.title.startswith("trial")

    @property
    def is_anew(self) -> bool:
        """Whether it began the targeted attack anew."""
        return self.title.startswith("targeted anew")

    def to_json(self, schema: int = SCHEMA) -> Json:
        said, late = _rename(vars(self), {"broken": "felled"}), ("kernel", "asked_by", "nonfinite")
        if schema >= 3:
            said["asked_by"] = [title for title in self.asked_by.split(_COMMA) if title]
        return {name: value for name, value in said.items() if name not in late or value}

    @classmethod
    def from_json(cls, stored: Stored) -> AttackResult:
        said = _rename(stored, {"felled": "broken"})
        if isinstance(said.get("asked_by"), list):
            said["asked_by"] = _COMMA.join(said["asked_by"])
        return cls(**said)


@dataclass(frozen=True)
class Reading:
    """What an indicator showed: its value before the change and after it, and whether it `fired`,
    above `before + threshold` (`ratio`: `threshold` times `before`; `absolute`: `threshold`, and
    then `fired_before` says the same of the network before). `about` and `source` say what it asks
    and whose it is."""

    title: str
    mechanism: Mechanism
    value: float
    before: float
    threshold: float
    fired: bool
    about: str = ""
    source: str = ""
    ratio: bool = False
    absolute: bool = False
    fired_before: bool = False

    @property
    def turned(self) -> Reading:
        """What it says of the network before."""
        fired, after = self.fired_before, self.fired and self.absolute
        return replace(self, value=self.before, before=self.value, fired=fired, fired_before=after)

    def __str__(self) -> str:
        state = "FIRED" if self.fired else "silent"
        state += ", FIRED before too" if self.fired_before else ""
        return (
            f"{self.title} ({self.mechanism}): {self.value:.3g}, before {self.before:.3g}: {state}"
        )

    def to_json(self) -> Json:
        said = _rename(vars(self), {"before": "twin"})
        late = () if self.absolute else ("absolute", "fired_before")
        return {name: value for name, value in said.items() if name not in late}

    @classmethod
    def from_json(cls, stored: Stored) -> Reading:
        said = _rename(stored, {"twin": "before"})
        return cls(**said | {k: _number(said[k]) for k in ("value", "before")})


@dataclass(frozen=True)
class Entries:
    """Places in an example of this `shape`, counted in its order, that were moved alone: where the
    margin moved and the gradient said so (`found`), and where it did not (`missing`)."""

    shape: tuple[int, ...]
    found: tuple[int, ...]
    missing: tuple[int, ...]

    def to_json(self) -> Json:
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, stored: Stored) -> Entries:
        return cls(*(tuple(stored[f.name]) for f in fields(cls)))


@dataclass(frozen=True)
class Curves:
    """What a page draws of a network: the mean `loss` along PGD, its sorted prediction ratios
    (`fidelity`), the median `margin` of its logits, and single `entries`, where the gradient of
    many of them is missing."""

    loss: tuple[float, ...]
    fidelity: tuple[float, ...]
    margin: float
    entries: Entries | None = None

    def to_json(self) -> Json:
        said: Json = {
            "loss": list(self.loss),
            "fidelity": list(self.fidelity),
            "margin": self.margin,
        }
        return said if self.entries is None else said | {"entries": self.entries.to_json()}

    @classmethod
    def from_json(cls, stored: Stored) -> Curves:
        loss, fidelity = (tuple(map(_number, stored[k])) for k in ("loss", "fidelity"))
        entries = _read(stored, "entries", Entries.from_json)
        return cls(loss, fidelity, _number(stored["margin"]), **entries)


@dataclass(frozen=True)
class AuditPedigree:
    """How an audit was run: where, on which forms of the networks, and what it cost. None where an
    older version did not say it. `baseline` is the key of the one that the network before was read
    from, and its cost with it; empty where it was attacked. `draws` are those that a randomised
    network was averaged over, 0 where it is none; `single` says for it which accuracy single draws
    have on the images as they were left, and half of its 95 % interval (1.96 s/√draws). `budget`
    says how many examples were taken of how many, where a time box said so."""

    seed: int
    device: str
    machine: str
    versions: str
    gradients_per_image: Pair[float]
    seconds: Pair[float]
    threads: int | None = None
    forms: Pair[str] | None = None
    left_alone: Mapping[str, int] | None = None
    baseline: str = ""
    draws: Pair[int] | None = None
    single: Pair[tuple[float, float] | None] | None = None
    budget: str = ""

    def to_json(self) -> Json:
        said = {
            "seed": self.seed,
            "device": self.device,
            "left_alone": self.left_alone,
            "forms": self.forms and list(self.forms),
            "threads": self.threads,
            "machine": self.machine,
            "versions": self.versions,
            "gradients_per_image": list(self.gradients_per_image),
            "seconds": list(self.seconds),
            "baseline": self.baseline or None,
            "draws": list(self.draws) if self.draws and any(self.draws) else None,
            "single": list(self.single) if self.single and any(self.single) else None,
            "budget": self.budget or None,
        }
        return {name: value for name, value in said.items() if value is not None}

    @classmethod
    def from_json(cls, stored: Stored) -> AuditPedigree:
        pairs = ("gradients_per_image", "seconds", "forms", "draws", "single")
        said: Json = {k: Pair(*v) if k in pairs else v for k, v in stored.items()}
        if "single" in said:
            said["single"] = Pair(*(ends and tuple(ends) for ends in said["single"]))
        return cls(**said)


@dataclass(frozen=True)
class Fingerprints:
    """The first 16 hex digits of the SHA-256 of the images and labels, and of each network's
    weights; empty where a network has none."""

    data: str
    weights: Pair[str]

    def to_json(self) -> Json:
        return {"data": self.data, "twin": self.weights.before, "network": self.weights.after}

    @classmethod
    def from_json(cls, stored: Stored) -> Fingerprints:
        return cls(stored["data"], Pair(stored["twin"], stored["network"]))


@dataclass(frozen=True)
class AuditNumbers:
    """An audit's numbers: accuracies in [0, 1] of the network before the change and after it.

    `n` examples; `effect`, `claim` and `mechanism` are the verdict's, `verdict` and `plainly` its
    sentences, `p` and `interval` those of the difference that was verified, `gained` and `lost` the
    examples robust on one network alone. `kernels` are those that the battery chose, empty where it
    needed none. `indicators`, `attacks` and `curves` are empty where they were not kept. `battery`
    is what was spent, `battery_version` counts the changes of what that means (0: not said).
    `example` is what an example is called. `planted` says how many planted examples the attacks
    found, `reach` how many images stand in all that a front end can give, each empty where nobody
    asked, `moved` what accuracy twice the steps took (None: not asked).
    `also` is the same audit where rejected counts as robust, where both were asked for.
    """

    n: int
    effect: Effect
    claim: Claim
    mechanism: str
    clean: Pair[float]
    claimed: Pair[float]
    verified: Pair[float]
    p: float
    names: Pair[str] = UNNAMED
    data: str = ""
    threat: str = ""
    verdict: str = ""
    plainly: str = ""
    gained: int = 0
    lost: int = 0
    interval: tuple[float, float] = (math.nan, math.nan)
    doubts: tuple[str, ...] = ()
    needs: int = 0
    claimed_attack: str = ""
    battery: str = ""
    indicators: tuple[Reading, ...] = ()
    attacks: Pair[tuple[AttackResult, ...]] | None = None
    curves: Pair[Curves] | None = None
    pedigree: AuditPedigree | None = None
    schema: int = SCHEMA
    retroact: str = __version__
    battery_version: int = 0
    kernels: Pair[str] = UNNAMED
    fingerprints: Fingerprints | None = None
    example: str = "image"
    planted: str = ""
    reach: str = ""
    moved: Pair[float | None] = UNMOVED
    also: AuditNumbers | None = None

    def __repr__(self) -> str:
        return f"<AuditNumbers on {self.data} within {self.threat}: {self.verdict}>"

    @property
    def gain(self) -> float:
        """The verified accuracy after the change less that before it."""
        return self.verified.after - self.verified.before

    @property
    def claimed_gain(self) -> float:
        """The claimed accuracy after the change less that before it."""
        return self.claimed.after - self.claimed.before

    @property
    def mirage(self) -> float:
        """What the claim promises beyond the truth: the claimed gain less the verified one."""
        return self.claimed_gain - self.gain

    @property
    def words(self) -> tuple[Word, ...]:
        """The claim in single words."""
        return WORDS[self.claim]

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """The mechanisms behind a mask, one by one."""
        return tuple(name for name in self.mechanism.split(_AND) if name)

    @property
    def explained_claim(self) -> str:
        """The claim with the mechanism behind a mask: "MASKED by jump, WEAK PROTOCOL"."""
        said = (f"MASKED by {self.mechanism}" if w == "MASKED" else w for w in self.words)
        return ", ".join(said)

    def summary(self) -> AuditNumbers:
        """The same without the indicators, the single attacks and the curves."""
        also = None if self.also is None else self.also.summary()
        return replace(self, indicators=(), attacks=None, curves=None, also=also)

    def to_json(self) -> Json:
        """The fields by the names that they are stored under; what is not kept is left out."""
        return {
            "twin": self.names.before,
            "network": self.names.after,
            "data": self.data,
            "threat": self.threat,
            "n": self.n,
            "effect": self.effect,
            "claim": self.claim,
            "verdict": self.verdict,
            "plainly": self.plainly,
            "mechanism": self.mechanism,
            **self._lists(),
            **self._accuracies(),
            "gained": self.gained,
            "lost": self.lost,
            "p": self.p,
            "interval": list(self.interval),
            "doubts": list(self.doubts),
            "needs": self.needs,
            "claimed_attack": self.claimed_attack,
            "battery": self.battery,
            **{w: said for w in ("planted", "reach") if (said := getattr(self, w))},
            **({"moved": list(self.moved)} if any(m is not None for m in self.moved) else {}),
            **self._details(),
            **self._origin(),
        }

    def _lists(self) -> Json:
        """The fields since schema 3: what a text says elsewhere, one by one."""
        if self.schema < 3:
            return {}
        return {"words": list(self.words), "mechanisms": list(self.mechanisms)}

    def _accuracies(self) -> Json:
        pairs = {"clean": self.clean, "claimed": self.claimed, "verified": self.verified}
        return {
            name: value
            for what, pair in pairs.items()
            for name, value in ((what, pair.after), (f"{what}_twin", pair.before))
        }

    def _details(self) -> Json:
        said: Json = {}
        if self.indicators:
            said["indicators"] = [reading.to_json() for reading in self.indicators]
        if self.attacks:
            twin, network = ([r.to_json(self.schema) for r in side] for side in self.attacks)
            said["attacks"] = {"twin": twin, "network": network}
        if self.curves:
            before, after = self.curves
            said["curves"] = {"network": after.to_json(), "twin": before.to_json()}
        said |= {"also": self.also.to_json()} if self.also else {}
        return said | ({"pedigree": self.pedigree.to_json()} if self.pedigree else {})

    def _origin(self) -> Json:
        """The fields since schema 2."""
        if self.schema < 2:
            return {}
        return {
            "schema": self.schema,
            "retroact": self.retroact,
            "battery_version": self.battery_version,
            "kernels": {"twin": self.kernels.before, "network": self.kernels.after},
            "fingerprints": self.fingerprints and self.fingerprints.to_json(),
            "example": self.example,
        }

    @classmethod
    def from_json(cls, stored: Stored) -> AuditNumbers:
        """What `to_json` wrote, by this or an older version, or some of its fields: those of the
        verdict and the accuracies at least."""
        plain = ("n", "effect", "claim", "mechanism", "data", "threat", "verdict", "plainly")
        more = (
            "gained",
            "lost",
            "needs",
            "claimed_attack",
            "battery",
            "battery_version",
            "example",
            "planted",
            "reach",
        )
        said: Json = {name: stored[name] for name in (*plain, *more) if name in stored}
        for what in ("clean", "claimed", "verified"):
            said[what] = Pair(_number(stored[f"{what}_twin"]), _number(stored[what]))
        said |= {"p": _number(stored["p"]), "schema": stored.get("schema", 1)}
        said |= {"retroact": stored.get("retroact", "")}
        said |= _read(stored, "twin", lambda name: Pair(name, stored["network"]), "names")
        said |= _read(stored, "interval", lambda ends: tuple(map(_number, ends)))
        said |= _read(stored, "doubts", tuple)
        said |= _read(stored, "moved", lambda sides: Pair(*sides))
        said |= _read(stored, "indicators", _each(Reading.from_json))
        said |= _read(stored, "attacks", _of_both(_each(AttackResult.from_json)))
        said |= _read(stored, "curves", _of_both(Curves.from_json))
        said |= _read(stored, "pedigree", AuditPedigree.from_json)
        said |= _read(stored, "kernels", _of_both(str))
        said |= _read(stored, "fingerprints", Fingerprints.from_json)
        said |= _read(stored, "also", AuditNumbers.from_json)
        return cls(**said)


class HasNumbers(Protocol):
    """An audit, as far as its numbers are read."""

    def numbers(self) -> AuditNumbers: ...


Told: TypeAlias = str | Path | AuditNumbers | HasNumbers
"""An audit, its numbers, or the file that `audit --json` wrote."""


def as_numbers(told: Told) -> AuditNumbers:
    """The numbers of an audit. Raises ValueError for a file that holds none."""
    if isinstance(told, AuditNumbers):
        return told
    if not isinstance(told, str | Path):
        return told.numbers()
    try:
        stored = read_object(Path(told))
    except ValueError as error:
        raise ValueError(f"{told} holds no audit: {error}; {_CURE}") from error
    try:
        return AuditNumbers.from_json(stored)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{told} holds no audit ({type(error).__name__}: {error}); {_CURE}"
        ) from error


_CURE = (
    "give what `retroact audit … --json-out FILE` writes; of `attack` and `sweep`, `report` reads"
    " the store (--store)"
)


def _read(stored: Stored, name: str, read: Callable[[Any], Any], into: str = "") -> Json:
    """The field `into` (`name`), as `read` makes it of what is stored, where something is."""
    return {into or name: read(stored[name])} if stored.get(name) else {}


def _each(read: Callable[[Any], T]) -> Callable[[Iterable[Any]], tuple[T, ...]]:
    return lambda several: tuple(map(read, several))


def _of_both(read: Callable[[Any], T]) -> Callable[[Stored], Pair[T]]:
    return lambda stored: Pair(read(stored["twin"]), read(stored["network"]))


def _rename(said: Stored, names: Mapping[str, str]) -> Json:
    return {names.get(name, name): value for name, value in said.items()}


def _number(value: float | None) -> float:
    """JSON knows no NaN and no infinity: both are stored as null."""
    return math.nan if value is None else float(value)
