"""What a page reads of records where it asks for numbers alone: how many images stand, by attack
and by threat.

A record of 10,000 images is 1 MB, its bits packed (`told`) are some kilobytes, and these counts a
few digits. One `Counted` stands for a whole curve, or for all attacks on a network, so that a page
made of some thousand cells carries some hundred of them. Shares are still computed late.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from retroact.evaluation.metrics import survives, worst_case
from retroact.evaluation.record import Record
from retroact.experiments.cell import Cell, Model
from retroact.spec import spec
from retroact.studies.desk import Desk, Facts

K = TypeVar("K")
Group = tuple[tuple[Any, ...], tuple[Any, ...]]
"""Attacks and threats: each of the attacks under each of the threats."""


@dataclass(frozen=True)
class Counts:
    """Of `n` images `right` are decided rightly clean. Cell by cell: `left` of them are so under
    the attack too, `zero` of the gradients that were `asked` are exactly zero, and on `nonfinite`
    images a NaN or infinite logit or gradient was seen.

    `worst` withstand every attack, each under the last threat of its group; `beyond` have seen
    more gradients than each of `Counted.beyond` and are right clean, in the first cell.
    """

    n: int
    right: int
    left: tuple[int, ...]
    zero: tuple[int, ...] = ()
    asked: tuple[int, ...] = ()
    nonfinite: tuple[int, ...] = ()
    worst: int = 0
    beyond: tuple[int, ...] = ()
    first: Counts | None = None

    @classmethod
    def of(
        cls, records: Sequence[Record], ends: Sequence[int] = (-1,), beyond: Sequence[int] = ()
    ) -> Counts:
        """Those of records of the same images; `ends` are the places of the last threats."""
        right, stands = records[0].clean == records[0].label, [survives(r) for r in records]
        return cls(
            n=len(right),
            right=int(right.sum()),
            left=tuple(int(s.sum()) for s in stands),
            zero=tuple(int(r.zero_gradients.sum()) for r in records),
            asked=tuple(int(r.gradients.sum()) for r in records),
            nonfinite=tuple(int(r.nonfinite.sum()) for r in records),
            worst=int(worst_case([records[i] for i in ends]).sum()),
            beyond=tuple(int((right & (records[0].gradients > k)).sum()) for k in beyond),
        )

    @classmethod
    def read(cls, facts: Facts) -> Counts:
        """Those that `facts` wrote."""
        said: Facts = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        first = said.pop("first", None)
        return cls(**said, first=None if first is None else cls.read(first))

    def facts(self) -> Facts:
        """As JSON has them."""
        said: Facts = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        if self.first is not None:
            said["first"] = self.first.facts()
        return {k: v for k, v in said.items() if v not in ([], None)}

    @property
    def clean(self) -> float:
        """The share (%) that is decided rightly clean."""
        return 100 * (self.right / self.n)

    @property
    def robust(self) -> list[float]:
        """The share (%) that is decided rightly clean and under attack, cell by cell."""
        return [100 * (k / self.n) for k in self.left]

    @property
    def robust_to_all(self) -> float:
        """The share (%) that withstands every attack under its last threat."""
        return 100 * (self.worst / self.n)

    @property
    def blind(self) -> list[float]:
        """The share (%) of the gradients that are exactly zero, cell by cell."""
        pairs = zip(self.zero, self.asked, strict=True)
        return [100 * (k / of) if of else 0.0 for k, of in pairs]


@spec
class Counted:
    """Counts of `model` on `data` under each group's attacks, each of them under each threat of the
    group; `first`: the same once more of the first images alone.

    `source`: whose gradients are climbed, where they are another network's. `beyond`: numbers of
    gradients, see `Counts`.
    """

    model: Model
    data: str
    groups: tuple[Any, ...]
    source: Model | None = None
    first: int = 0
    beyond: tuple[int, ...] = ()
    seed: int = 0
    derived: ClassVar[bool] = True

    def cells(self) -> list[Cell]:
        """The cells that are counted, threat by threat, attack by attack, group by group."""
        how: dict[str, Any] = {"source": self.source, "seed": self.seed}
        runs = [(a, t) for attacks, threats in self.groups for a in attacks for t in threats]
        return [Cell(self.model, self.data, attack, threat, **how) for attack, threat in runs]

    @property
    def attacks(self) -> tuple[Any, ...]:
        """All attacks, in order."""
        return tuple(attack for attacks, _ in self.groups for attack in attacks)

    def __call__(self, desk: Desk) -> Facts:
        records, ends = desk.records(self.cells()), list(self._ends())
        counted = Counts.of(records, ends, self.beyond)
        if self.first:
            own = [cut(record, self.first) for record in records]
            counted = replace(counted, first=Counts.of(own, ends, self.beyond))
        return counted.facts()

    def _ends(self) -> Iterator[int]:
        """The place of each attack's last threat."""
        end = -1
        for attacks, threats in self.groups:
            for _ in attacks:
                end += len(threats)
                yield end


def counts(desk: Desk, asked: Mapping[K, Counted]) -> dict[K, Counts]:
    """The counts of each, by its name; the cells that are neither counted nor in the store are run
    together, where the executor runs them."""
    specs = list(asked.values())
    desk.run_before({what: what.cells() for what in specs})
    return dict(zip(asked, map(Counts.read, desk.derive(specs)), strict=True))


def cut(record: Record, n: int) -> Record:
    """The facts of a record's first `n` examples."""
    facts: Facts = {name: values[:n] for name, values in record.facts().items()}
    return Record(**facts)
