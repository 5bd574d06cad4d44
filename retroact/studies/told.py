"""What a page reads of records, image by image and packed: a record of 2000 images is 70 kB, and a
page asks it who stands, after how many gradients, and how far away.

`Told` is filed beside the records it is made of, and carried with a page in their place; numbers
are still computed late, from these facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from retroact.evaluation.record import NORMS, Record
from retroact.experiments.cell import Cell, all_locked
from retroact.spec import spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.packed import pack, unpack

Column = Literal["gradients", "l2"]
_KINDS: dict[Column, str] = {"gradients": "<u4", "l2": "<f4"}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """n images of a record: `right` (n,) bool clean, `stands` under the attack, the `gradients`
    that each saw, and ‖x_adv − x‖₂ in pixels (`l2`), where these were asked for; `seconds` (wall
    clock) of the whole."""

    right: NDArray[np.bool_]
    stands: NDArray[np.bool_]
    seconds: float = 0.0
    columns: dict[Column, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Record, columns: Sequence[Column] = tuple(_KINDS)) -> Outcomes:
        """Those of a record."""
        known: dict[Column, NDArray[Any]] = {
            "gradients": record.gradients,
            "l2": record.distance[:, NORMS.index("l2")],
        }
        return cls(
            record.clean == record.label,
            record.adversarial == record.label,
            float(record.pedigree.get("seconds", 0.0)),
            {name: known[name].astype(_KINDS[name]) for name in columns},
        )

    @classmethod
    def read(cls, facts: Facts) -> Outcomes:
        """Those that `facts` wrote."""
        packed = {name: unpack(facts[name], _KINDS[name]) for name in _KINDS if name in facts}
        bits = (unpack(facts[name], "u1") for name in ("right", "stands"))
        right, stands = (np.unpackbits(b, count=facts["n"]).astype(bool) for b in bits)
        return cls(right, stands, facts["wall"], packed)

    def facts(self) -> Facts:
        """As JSON has them: bits and numbers deflated, in base64."""
        bits = {"right": np.packbits(self.right), "stands": np.packbits(self.stands)}
        packed = {k: pack(v, v.dtype.str) for k, v in (*bits.items(), *self.columns.items())}
        return {"n": len(self), "wall": self.seconds, **packed}

    def __len__(self) -> int:
        return len(self.right)

    @property
    def gradients(self) -> NDArray[np.int64]:
        return self.columns["gradients"].astype(np.int64)

    @property
    def l2(self) -> NDArray[np.float64]:
        return self.columns["l2"].astype(np.float64)

    @property
    def fooled(self) -> NDArray[np.bool_]:
        """Right clean and wrong under the attack."""
        return self.right & ~self.stands

    @property
    def clean_accuracy(self) -> float:
        """The share that is decided rightly clean."""
        return float(np.mean(self.right))

    @property
    def robust_accuracy(self) -> float:
        """The share that is decided rightly clean and under the attack."""
        return float(np.mean(self.right & self.stands))

    @property
    def median_l2(self) -> float:
        """The median ‖x_adv − x‖₂ (pixels) of the fooled; NaN where none is."""
        return float(np.median(self.l2[self.fooled])) if self.fooled.any() else math.nan


@spec
class Told:
    """What a page reads of the record of a `cell` that is locked, with the columns `also`."""

    cell: Cell
    also: tuple[Column, ...] = ()
    derived: ClassVar[bool] = True

    @property
    def data(self) -> str:
        return str(self.cell.data)

    @property
    def seed(self) -> int:
        return self.cell.seed

    def __call__(self, desk: Desk) -> Facts:
        (record,) = desk.records([self.cell])
        return Outcomes.of(record, self.also).facts()


def outcomes(desk: Desk, cells: Sequence[Cell], *also: Column) -> list[Outcomes]:
    """The outcomes of each cell, in order; those that are neither told nor in the store are run
    together, where the executor runs them."""
    asked = [Told(cell, also) for cell in all_locked(cells)]
    desk.run_before({what: [what.cell] for what in asked})
    return [Outcomes.read(facts) for facts in desk.derive(asked)]
