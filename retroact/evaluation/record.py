"""A Record: the facts of one attack on one network, example by example. Numbers are computed late.

No torch here: reports read records and never a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from retroact.shares import wilson
from retroact.shown import as_html, percent

if TYPE_CHECKING:
    from pandas import DataFrame

    from retroact.figures import Figure

NORMS = ("l0", "l1", "l2", "linf")
FORMAT = "1"

ZERO_GRADIENT_ALARM = 0.01
"""Above this share of exactly-zero gradients an attack was blind (AutoAttack's own flag has no
slack)."""


class RecordError(ValueError):
    """Bytes that are no record, or facts that do not belong together."""


@dataclass(frozen=True, eq=False)
class Record:
    """What happened to each of n examples.

    `index` (n,) names the example in its data set, `label`, `target` (−1: untargeted), `clean` and
    `adversarial` are classes (−1: the logits were NaN, infinite or alike but for rounding, so there
    was no decision). `distance` and `size` (n, 4) are ‖x_adv − x‖ and ‖x‖ in pixels of [0, 1], or
    the data's own units, columns L0, L1, L2, L_inf. `queries`, `gradients` count passes;
    `zero_gradients` counts gradients that were exactly zero; `nonfinite` says that a NaN or
    infinite logit or gradient was seen, or logits that rounding has made alike.

    Beside the facts, and not counted for equality: `examples` and `originals` (m, …), the
    adversarial and clean images of the first m ≤ n examples, float32, lossless (None: not kept),
    and `pedigree` (what was run, seconds, machine, versions).
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    target: NDArray[np.int64]
    clean: NDArray[np.int64]
    adversarial: NDArray[np.int64]
    distance: NDArray[np.float32]
    size: NDArray[np.float32]
    queries: NDArray[np.int64]
    gradients: NDArray[np.int64]
    zero_gradients: NDArray[np.int64]
    nonfinite: NDArray[np.bool_]
    examples: NDArray[np.float32] | None = None
    originals: NDArray[np.float32] | None = None
    pedigree: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, facts in self.facts().items():
            if len(facts) != len(self.index):
                raise RecordError(f"expected {len(self.index)} facts in {name}, got {len(facts)}")

    def __len__(self) -> int:
        return len(self.index)

    def __eq__(self, other: object) -> bool:
        """Equal facts, bit for bit; pedigree and kept images aside."""
        if not isinstance(other, Record):
            return NotImplemented
        theirs = other.facts()
        return all(
            facts.tobytes() == theirs[name].tobytes() for name, facts in self.facts().items()
        )

    def facts(self) -> dict[str, NDArray[Any]]:
        """The arrays that count for equality, by name."""
        aside = ("examples", "originals", "pedigree")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in aside}

    @property
    def right(self) -> NDArray[np.bool_]:
        """Bool (n,): decided rightly without an attack."""
        return np.asarray(self.clean == self.label)

    @property
    def robust(self) -> NDArray[np.bool_]:
        """Bool (n,): decided rightly without an attack and under it."""
        return np.asarray(self.right & (self.adversarial == self.label))

    @property
    def blind(self) -> float:
        """The share of all gradients that were exactly zero, in [0, 1]."""
        asked = int(self.gradients.sum())
        return int(self.zero_gradients.sum()) / asked if asked else 0.0

    @property
    def box(self) -> tuple[float, float]:
        """Where the entries of the examples lie: [0, 1] where nothing is said."""
        low, high = self.pedigree.get("box", (0.0, 1.0))
        return float(low), float(high)

    @property
    def unit(self) -> str:
        """What lengths are measured in: pixels of [0, 1], or entries of the data's own box."""
        low, high = self.box
        return f"{'pixels' if self.box == (0.0, 1.0) else 'entries'} of [{low:g}, {high:g}]"

    def alarms(self) -> list[str]:
        """What makes the accuracy under this attack doubtful, each in a few words."""
        reasons = []
        if self.blind > ZERO_GRADIENT_ALARM:
            reasons.append(f"{self.blind:.0%} of its gradients were exactly zero")
        if seen := int(self.nonfinite.sum()):
            where = f"{seen} of {len(self)} images"
            reasons.append(f"NaN, infinity or logits all alike on {where}")
        return reasons

    def __repr__(self) -> str:
        return f"Record(n={len(self)}, {', '.join(f'{k}={v}' for k, v in self.pedigree.items())})"

    def _repr_html_(self) -> str:
        n, k = len(self), int(self.robust.sum())
        low, high = map(percent, wilson(k, n)) if n else ("", "")
        shares = [f"{percent(k / n)} [{low}, {high}]", percent(self.right.mean())] if n else []
        told = f"{k} of {n} examples stay right under {self._said('attack', 'the attack')}"
        head = ("network", "data", "threat", "under attack %", "clean %")
        texts = [self._said(what) for what in head[:3]]
        return as_html(told, head[: 3 + len(shares)], [[*texts, *shares]], self.alarms())

    def _said(self, what: str, otherwise: str = "") -> str:
        return str(self.pedigree.get(what, otherwise))

    def frame(self) -> DataFrame:
        """A row for each example, in the order of the data, as a pandas DataFrame: the facts by
        their names, and `robust`; distances and sizes have a column for each norm,
        `distance_linf`."""
        from pandas import DataFrame  # which `datasets` brings

        columns: dict[str, Any] = {}
        for name, facts in self.facts().items():
            named = {name: facts} if facts.ndim == 1 else _by_norm(name, facts)
            columns |= named
        return DataFrame(columns | {"robust": self.robust})

    def plot(self, norm: str = "linf") -> Figure:
        """The share of examples that stay right where none is moved by more than r, against r, with
        Wilson's 95 %.

        The length in `norm` ("l0", "l1", "l2", "linf") is in pixels of [0, 1] or the data's own
        units. It is what this attack found, so an upper bound, and between 0 and eps a close one
        only of an attack that looks for the smallest perturbation. Raises ValueError for another
        norm and for a record of no examples.
        """
        from retroact.figures import Curve, curves  # and with it matplotlib

        if norm not in NORMS or not len(self):
            raise ValueError(
                f"expected one of {', '.join(NORMS)} and a record of examples, got norm={norm!r}"
                f" and {len(self)} examples"
            )
        radii, shares = self._over_radii(norm)
        drawn = Curve(self._said("attack", "attack"), radii, shares, n=len(self), steps=True)
        return curves(
            [drawn],
            f"{norm.capitalize()} length of the perturbation, {self.unit}",
            "decided rightly, %",
            title=f"{self._said('network')} · {self._said('data')} · {self._said('threat')}",
        )

    def _over_radii(self, norm: str) -> tuple[list[float], list[float]]:
        """Each length at which an example falls, and the share that is still right there."""
        lengths, robust = self.distance[:, NORMS.index(norm)], self.robust
        fell = np.where(self.right & ~robust, lengths, np.inf)
        radii = np.unique([0.0, *fell[np.isfinite(fell)], lengths.max()])
        return radii.tolist(), [float(np.mean(self.right & (fell > r))) for r in radii]

    def pictures(self, most: int = 6) -> Figure:
        """The kept images, clean, attacked, and what was changed (clear to red, one scale); those
        that the attack broke first.

        Raises ValueError for a record that kept none, and for examples that are no images.
        """
        from retroact.figures import Shown, is_image, pictures

        if self.examples is None or self.originals is None:
            raise ValueError(
                "this record kept no images; run it again with keep= (--keep on the command line)"
            )
        if not is_image(self.examples[0]):
            raise ValueError(f"expected images (c, h, w) to draw, got {self.examples.shape[1:]}")
        fell = self.right & ~self.robust
        drawn = [
            Shown(self.originals[i], self.examples[i], self._caption(i), bool(fell[i]))
            for i in self.broken_first(most)
        ]
        return pictures(drawn, *self.box)

    def _caption(self, i: int) -> tuple[str, str, str]:
        """What stands over an image, over it after the attack, and over their difference."""
        length = f"L∞ {self.distance[i, 3]:.3f}  L₂ {self.distance[i, 2]:.2f}"
        wrong = "" if self.right[i] else ", clean too"
        return f"true {self.label[i]}", f"seen as {self.adversarial[i]}{wrong}", length

    def broken_first(self, most: int) -> list[int]:
        """Which of the kept examples are drawn: those that the attack broke before the others."""
        kept = 0 if self.examples is None else len(self.examples)
        fell = self.right & ~self.robust
        return sorted(range(kept), key=lambda i: not fell[i])[:most]


def _by_norm(name: str, facts: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {f"{name}_{norm}": facts[:, i] for i, norm in enumerate(NORMS)}


def to_bytes(record: Record) -> bytes:
    """The record's facts and pedigree as safetensors bytes; kept images travel on their own."""
    # One key: safetensors writes several in random order, and the same record should be the same
    # bytes.
    said = {
        "record": json.dumps({"format": FORMAT, "pedigree": dict(record.pedigree)}, sort_keys=True)
    }
    return save({k: np.ascontiguousarray(v) for k, v in record.facts().items()}, metadata=said)


def from_bytes(data: bytes, images: bytes | None = None) -> Record:
    """The record that `to_bytes` wrote. Raises RecordError for anything else."""
    try:
        facts = load(data)
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        pedigree = json.loads(head["__metadata__"]["record"])["pedigree"]
        kept = {} if images is None else load(images)
        return Record(**facts, **kept, pedigree=pedigree)
    except (SafetensorError, ValueError, KeyError, TypeError) as e:
        raise RecordError(f"expected the bytes of a record, got something else: {e}") from None


def images_to_bytes(record: Record) -> bytes | None:
    """The kept images as safetensors bytes, or None where none were kept."""
    if record.examples is None or record.originals is None:
        return None
    kept = {"examples": record.examples, "originals": record.originals}
    return save({k: np.ascontiguousarray(v) for k, v in kept.items()})
