"""One network under one attack after the other: each gets the examples that are still robust."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retroact.auditing.chance import Chance
from retroact.auditing.filed import fingerprint
from retroact.auditing.numbers import AttackResult, Role
from retroact.auditing.subjects import Climb
from retroact.crafting.attack import Attack
from retroact.crafting.domain import domain_of
from retroact.crafting.expectation import Expectation
from retroact.crafting.goals import Goal, PastRejection, Untargeted
from retroact.crafting.oracle import AccessError, Network
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import Examples, decide, decided
from retroact.evaluation.proof import Crafted, craft_on
from retroact.parts import UNFILED, Arrays, Filed
from retroact.spec import key, show

_APART = 1_000_003  # seeds of fresh starts, out of the way of a user's own


@dataclass(frozen=True)
class Conditions:
    """What both networks of an audit are attacked under; `past_rejection`: only a class of so many
    breaks an example, not the last, "rejected", which is none of them. What was `filed` is not run
    again."""

    data: Examples
    threat: ThreatModel
    classes: int
    seed: int = 0
    chunk: int | None = None
    past_rejection: bool = False
    filed: Filed = UNFILED

    @property
    def goal(self) -> Goal:
        return PastRejection() if self.past_rejection else Untargeted()


@dataclass(frozen=True)
class Some:
    """Some rows of a data set."""

    images: Tensor
    labels: Tensor
    index: Tensor
    name: str
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, under: Conditions, rows: Tensor) -> Some:
        data, domain = under.data, domain_of(under.data)
        part = data.images[rows], data.labels[rows], data.index[rows]
        return cls(*part, data.name, domain.low, domain.high)


@dataclass(frozen=True, eq=False)
class Broken:
    """An example that an attack broke: its row, what it was before and after (…), the class
    decided, the attack's title and role, and the attack's `turn` in the battery."""

    row: int
    label: int
    decided: int
    image: NDArray[np.float32]
    x_adv: NDArray[np.float32]
    by: str
    role: Role
    turn: int


@dataclass(frozen=True, eq=False)
class Side:
    """One network under the battery, example by example, all (n,): `clean` right, robust under the
    claimed attack (`claimed`), under all of them (`verified`), and which attack broke it first
    (`broken_by`, −1: none).

    `kernel` names the one that the battery chose, empty where it needed none. `examples` has every
    example that was broken with its adversarial image, by row, and `data` what was attacked;
    `stored` is the key of the baseline that all of it was read from.
    """

    clean: NDArray[np.bool_]
    claimed: NDArray[np.bool_]
    verified: NDArray[np.bool_]
    broken_by: NDArray[np.int64]
    attacks: tuple[AttackResult, ...]
    examples: tuple[Broken, ...]
    kernel: str = ""
    data: Examples | None = None
    stored: str = ""

    @property
    def gradients(self) -> int:
        """Gradient passes of all attacks."""
        return sum(attack.gradients for attack in self.attacks)

    @property
    def seconds(self) -> float:
        return sum(attack.seconds for attack in self.attacks)

    def columns(self) -> dict[str, Any]:
        """What became of each example (n,): clean, claimed, verified, the title of the attack that
        broke it, and the class decided then; None where it was not broken."""
        said: dict[str, Any] = {name: getattr(self, name) for name in _JUDGED}
        titles: list[str | None] = [None] * len(self.clean)
        classes: list[int | None] = [None] * len(self.clean)
        for example in self.examples:
            titles[example.row], classes[example.row] = example.by, example.decided
        return said | {"broken_by": titles, "decided": classes}

    def attacked(self, images: Tensor) -> Tensor:
        """A copy of the images (n, …) in which each that fell is its adversarial one."""
        images = images.clone()
        for example in self.examples:
            images[example.row] = torch.from_numpy(example.x_adv)
        return images


class Attempt(NamedTuple):
    """What an attack did, the rows (m,) it broke, their new decisions (m,) and images
    (m, …)."""

    result: AttackResult
    rows: Tensor
    decided: Tensor
    x_adv: Tensor | None


class AttackRun:
    """Attacks a network's examples; `robust` (n,) are those that are right clean and that no attack
    has broken."""

    def __init__(self, net: Network, under: Conditions) -> None:
        self._under, self._goal, judge = under, under.goal, net
        self._chance: Chance | None = None
        if isinstance(net, Expectation):
            self._chance = Chance.of(net, under.data, under.goal)
            self._goal, judge = self._chance.goal, self._chance.judge
        decisions = decide(judge, under.data.images, chunk=under.chunk)
        self.clean: NDArray[np.bool_] = (decisions == under.data.labels).numpy()
        self.robust = self.clean.copy()
        self.broken_by = np.full(len(self.robust), -1, dtype=np.int64)
        self.attacks: list[AttackResult] = []
        self.examples: list[Broken] = []

    def attack(
        self,
        title: str,
        role: Role,
        attack: Attack,
        climb: Climb,
        *,
        among: int | None = None,
        fresh: int = 0,
        asked_by: Sequence[str] = (),
    ) -> int:
        """Attacks the first `among` (None: all) robust examples; the network itself judges what is
        broken.

        `fresh` counts how often the attack has begun anew, from other random starts; `asked_by`
        are the alarms that asked for it. Returns how many it broke.
        """
        attempt = self.attempt(title, role, attack, climb, among=among, fresh=fresh)
        said = replace(attempt.result, asked_by=", ".join(asked_by))
        return self.file(attempt._replace(result=said))

    def attempt(
        self,
        title: str,
        role: Role,
        attack: Attack,
        climb: Climb,
        *,
        among: int | None = None,
        fresh: int = 0,
    ) -> Attempt:
        """What the attack would break, nothing where there is no gradient to follow; nothing is
        counted yet."""
        rows = torch.from_numpy(np.flatnonzero(self.robust)[:among])
        result = AttackResult(title, show(attack), role, len(rows), 0, 0, 0, 0, 0.0, climb.kernel)
        if not len(rows):
            return Attempt(result, rows, rows, None)
        filed = self._under.filed
        name = self._name(result, attack, rows, fresh) if filed.about else ""
        found = filed.find(name)
        if found is not None:
            return _recall(found, result, rows)
        made = self._make(result, attack, climb, rows, fresh)
        if made.x_adv is not None:
            filed.keep(name, f"{title} on {self._under.data.name}", _pack(made, rows))
        return made

    def _name(self, asked: AttackResult, attack: Attack, rows: Tensor, fresh: int) -> str:
        """The key of an attack on some rows: all that its outcome depends on beside the network."""
        under, what = self._under, (asked.title, asked.attack, key(attack), asked.kernel, fresh)
        how = show(under.threat), under.seed, under.chunk, under.classes, under.past_rejection
        return under.filed.name(*what, *how, fingerprint(under.data, rows))

    def _make(
        self, result: AttackResult, attack: Attack, climb: Climb, rows: Tensor, fresh: int
    ) -> Attempt:
        began = time.perf_counter()
        try:
            crafted = self._craft(attack, climb, rows, fresh)
        except AccessError:
            # alarms say so, and ask for attacks that need none
            return Attempt(replace(result, zero_gradients=len(rows)), rows[:0], rows[:0], None)
        outcome, labels = crafted.outcome, self._under.data.labels[rows]
        if self._chance is None:
            decisions = decided(crafted.logits, attacked=True)
        else:
            decisions = self._chance.decide(outcome.x_adv, labels, self._under.chunk)
        # −1: the network overflowed, which is no success
        hit = (decisions != labels) & (decisions >= 0)
        gradients, zeros, queries = (
            int(c.sum()) for c in (outcome.gradients, outcome.zero_gradients, outcome.queries)
        )
        result = replace(
            result,
            broken=int(hit.sum()),
            gradients=gradients,
            zero_gradients=zeros,
            queries=queries,
            seconds=time.perf_counter() - began,
            nonfinite=int((outcome.nonfinite & ~hit).sum()),
        )
        return Attempt(result, rows[hit], decisions[hit], outcome.x_adv[hit])

    def _craft(self, attack: Attack, climb: Climb, rows: Tensor, fresh: int) -> Crafted:
        data, under = self._under.data, self._under
        how: dict[str, Any] = {
            "source": climb.guide(),
            "domain": domain_of(data),
            "seed": under.seed + _APART * fresh,
            "chunk": under.chunk,
        }
        examples = data.images[rows], data.labels[rows], data.index[rows]
        (crafted,) = craft_on(climb.on, attack, *examples, [under.threat], self._goal, **how)
        return crafted

    def file(self, attempt: Attempt) -> int:
        """Counts what an attempt broke, where nothing else has; returns how many."""
        new = self.robust[attempt.rows.numpy()]
        rows = attempt.rows.numpy()[new]
        self.broken_by[rows] = len(self.attacks)
        self.robust[rows] = False
        self.examples += [self._describe(attempt, int(i)) for i in np.flatnonzero(new)]
        self.attacks.append(replace(attempt.result, broken=len(rows)))
        return len(rows)

    def _describe(self, attempt: Attempt, i: int) -> Broken:
        row = int(attempt.rows[i])
        assert attempt.x_adv is not None
        return Broken(
            row,
            int(self._under.data.labels[row]),
            int(attempt.decided[i]),
            self._under.data.images[row].numpy(),
            attempt.x_adv[i].numpy(),
            attempt.result.title,
            attempt.result.role,
            len(self.attacks),
        )

    def resume(self, side: Side) -> None:
        """Goes on from the end of a finished run."""
        self.robust, self.broken_by = side.verified.copy(), side.broken_by.copy()
        self.attacks, self.examples = list(side.attacks), list(side.examples)

    def finish(self, claimed: NDArray[np.bool_], kernel: str = "") -> Side:
        """What came of it; `claimed` are those that were robust under the claimed attack."""
        examples = tuple(sorted(self.examples, key=lambda example: example.row))
        robust, broken_by = self.robust.copy(), self.broken_by.copy()
        facts = self.clean, claimed, robust, broken_by
        return Side(*facts, tuple(self.attacks), examples, kernel, self._under.data)


_JUDGED = ("clean", "claimed", "verified")
_COUNTED = ("broken", "gradients", "zero_gradients", "queries", "nonfinite")


def _pack(attempt: Attempt, rows: Tensor) -> Arrays:
    """An attempt on these rows as arrays."""
    assert attempt.x_adv is not None
    at = torch.searchsorted(rows, attempt.rows)  # among those that were asked
    counts = [getattr(attempt.result, name) for name in _COUNTED]
    return {
        "at": at.numpy(),
        "decided": attempt.decided.numpy(),
        "x_adv": attempt.x_adv.numpy(),
        "counts": np.array(counts, dtype=np.int64),
        "seconds": np.array([attempt.result.seconds]),
    }


def _recall(found: Arrays, asked: AttackResult, rows: Tensor) -> Attempt:
    """The attempt that `_pack` was given."""
    counts = (int(n) for n in found["counts"])
    told: dict[str, Any] = dict(zip(_COUNTED, counts, strict=True))
    result = replace(asked, **told, seconds=float(found["seconds"][0]))
    at, decided, x_adv = (torch.from_numpy(found[k].copy()) for k in ("at", "decided", "x_adv"))
    return Attempt(result, rows[at], decided, x_adv)
