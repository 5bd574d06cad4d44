"""A row of the docket as a frozen value: what is done to a network with which values of a knob, how
its authors choose the value, and which attack their claim rests on."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from retroact.attacks.apgd import APGD
from retroact.attacks.pgd import CLAIMED
from retroact.crafting.attack import Attack
from retroact.studies.ledger.networks import Net
from retroact.studies.ledger.treatments import Treatment
from retroact.studies.published import published

COST = 0.01
"""The clean accuracy that a choice may cost, where its rule says so."""

FIRST_OF_AUTOATTACK = APGD(100)
"""What an audit takes for the claimed attack where a claim rests on AutoAttack: the first of its
four, on the cross-entropy. All four stand in a column of their own."""


@dataclass(frozen=True)
class Point:
    """A value of a knob on held-out images: clean accuracy `before` and after (`clean`), what is
    left under the `claimed` attack, and `verified`, None where it costs too much to be asked."""

    before: float
    clean: float
    claimed: float
    verified: float | None = None

    def keeps(self, cost: float) -> bool:
        """Whether it costs at most so much clean accuracy."""
        return self.clean >= self.before - cost - 1e-9


class Rule(Protocol):
    """How a row's authors choose among the values of its knob, which are in order from the plain
    network on: the places of those chosen."""

    @property
    def words(self) -> str: ...

    def __call__(self, points: Sequence[Point]) -> list[int]: ...

    @property
    def most(self) -> int:
        """How many values it chooses at most."""


@dataclass(frozen=True)
class AsPublished:
    """These values, whatever they do here."""

    which: tuple[int, ...]
    words: str = "as published"

    def __call__(self, points: Sequence[Point]) -> list[int]:
        return list(self.which)

    @property
    def most(self) -> int:
        return len(self.which)


@dataclass(frozen=True)
class Strongest:
    """The last value that costs at most `cost` of clean accuracy; the first where none does."""

    words: str
    cost: float = COST
    most: int = 1

    def __call__(self, points: Sequence[Point]) -> list[int]:
        return [max((i for i, p in enumerate(points) if p.keeps(self.cost)), default=0)]


@dataclass(frozen=True)
class BestClaimed:
    """The value with the highest accuracy under the claimed attack; of several the first."""

    words: str
    most: int = 1

    def __call__(self, points: Sequence[Point]) -> list[int]:
        return [max(range(len(points)), key=lambda i: (points[i].claimed, -i))]


VERIFIED = "by verified accuracy"


def choose_verified(points: Sequence[Point]) -> int | None:
    """The place of the value with the highest verified accuracy among those that cost at most COST;
    of several the first, and None where none is affordable or none has been asked."""
    told = [
        (p.verified, -i) for i, p in enumerate(points) if p.keeps(COST) and p.verified is not None
    ]
    return -max(told)[1] if told else None


@dataclass(frozen=True)
class Published:
    """What stands in published.json of a row: what is `said`, the `gain` (robust accuracy in
    points, or the relative one, "times": 10 for +1000 %) with `network`, `radius`, `protocol` and
    `source`, and the `gains` on networks that are also ours; what its authors and others report
    `against` it; how `ours` differs, whether other networks than those are `outside` the claim, and
    what would `settle` it there; whether it was `seen` before."""

    said: str
    source: str
    gain: float | None = None
    gains: Mapping[str, float] = field(default_factory=dict)
    unit: Literal["points", "times"] = "points"
    network: str = ""
    radius: str = ""
    protocol: str = ""
    against: str = ""
    ours: str = ""
    outside: bool = True
    settle: str = ""
    seen: str = ""

    def is_outside(self, net: str) -> bool:
        """Whether what is measured on a network of this name is outside the claim."""
        return self.outside and net not in self.gains

    def expect(self, net: str, before: float, clean: float) -> float | None:
        """The gain that it claims of a network of this name, of which `before` is robust and
        `clean` right, both in [0, 1]; no more than there is to gain. None where it says none."""
        gain = self.gains.get(net, self.gain)
        if gain is None:
            return None
        said = gain / 100 if self.unit == "points" else gain * before
        return min(said, max(0.0, clean - before))


@dataclass(frozen=True)
class Row:
    """A row: its `name` in published.json and its `title`; the values of its knob from the plain
    network on, those for CIFAR-10 where they are others; the rule of its authors (None: there is
    one value); the attack of the claim.

    `everywhere`: on the wide networks too. `mnist`: on MNIST alone. `control`: its truth is known.
    `random`: it draws, so its audits are averaged. `by_autoattack`: the claim rests on AutoAttack.
    """

    name: str
    title: str
    values: tuple[Treatment, ...]
    rule: Rule | None = None
    on_cifar10: tuple[Treatment, ...] = ()
    claimed: Attack = CLAIMED
    everywhere: bool = False
    mnist: bool = False
    control: bool = False
    random: bool = False
    by_autoattack: bool = False

    @property
    def said(self) -> Published:
        """What is published of it."""
        told: dict[str, Any] = published("ledger", "rows", self.name)
        return Published(**told)

    @property
    def reply(self) -> str:
        """What its authors answer, where they have."""
        return published("ledger", "replies", self.name) or ""

    def values_on(self, net: Net) -> tuple[Treatment, ...]:
        """The values of its knob that are tried on a network."""
        return self.on_cifar10 if net.data == "cifar10" and self.on_cifar10 else self.values

    def is_on(self, net: Net) -> bool:
        """Whether the row is run on a network."""
        return (self.everywhere or not net.wide) and (net.data == "mnist" or not self.mnist)

    @property
    def tunes(self) -> bool:
        """Whether there is a value to choose: where every one has a line there is none."""
        return self.rule is not None and self.rule.most < len(self.values)

    @property
    def most(self) -> int:
        """How many lines it has on a network, at most."""
        return 1 if self.rule is None else min(len(self.values), self.rule.most + self.tunes)


def docket() -> list[tuple[str, Row]]:
    """All rows, each with the name of its item, in the docket's order: ROW of every entry_N_NAME.py
    beside this file."""
    package = importlib.import_module(__package__)
    names = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("entry_")]
    ordered = sorted(names, key=lambda name: int(name.split("_")[1]))
    return [(name, importlib.import_module(f"{__package__}.{name}").ROW) for name in ordered]
