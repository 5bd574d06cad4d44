"""What the ledger measures, as specs: a network before any change, a value of a knob on held-out
images, the audit of a row, and AutoAttack beside it. What they file is small: counts, one bit per
image, and the audit's words."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from retroact.attacks.foreign import AutoAttack
from retroact.attacks.pgd import CLAIMED
from retroact.auditing.audit import Audit, audit
from retroact.auditing.battery import VERSION
from retroact.auditing.checks import check_chance
from retroact.auditing.numbers import Pair
from retroact.crafting.attack import Attack
from retroact.crafting.drawing import drawing
from retroact.crafting.oracle import device_of
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import decide, evaluate
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.experiments.cell import Model
from retroact.experiments.facts import Measurement
from retroact.files import own_cache
from retroact.nets.data import Images, data
from retroact.parts import HasParts, name_part
from retroact.spec import Seed, show, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.ledger.treatments import Given, Treatment
from retroact.studies.truth import BatteryName
from retroact.training.anew import trained_anew

M = TypeVar("M", bound=Measurement)
Bits = NDArray[np.bool_]


def found(desk: Desk, asked: Iterable[M]) -> dict[M, Facts]:
    """The facts of all that the desk has or makes, together; what a desk that makes nothing lacks
    is left out."""
    here = [what for what in dict.fromkeys(asked) if not desk.lacks([what])]
    return dict(zip(here, desk.all_facts(here), strict=True))


def pack(bits: Bits) -> str:
    """One bit per image, in base64."""
    return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack(text: str, n: int) -> Bits:
    """The n bits that `pack` was given."""
    packed = np.frombuffer(base64.b64decode(text), dtype=np.uint8)
    return np.unpackbits(packed, count=n).astype(bool)


# ------------------------------------------------------------------------------ before any change


@spec
class Before:
    """A network by itself: clean and verified accuracy."""

    model: Model
    data: str
    threat: ThreatModel
    battery: BatteryName = "whole"
    version: ClassVar[int] = VERSION
    resumes: ClassVar[bool] = True

    def __call__(self, store: HasParts | None = None) -> Facts:
        net = self.model()
        how: dict[str, Any] = {"battery": _spent(self.battery), "store": store}
        side = audit(net, net, data(self.data), self.threat, **how).after
        return {"clean": _mean(side.clean), "verified": _mean(side.verified)}


# ---------------------------------------------------------------------------- a value of a knob


@spec
class Tried:
    """A value of a knob on held-out images: clean accuracy before and after, and what is left under
    the attack of the claim."""

    model: Model
    what: Treatment
    held: str
    train: str
    whole: str
    threat: ThreatModel
    claimed: Attack = CLAIMED

    def __call__(self) -> Facts:
        images = data(self.held)
        before, after = _pair(self)
        clean = clean_accuracy(evaluate(before, images, CLAIMED, self.threat))
        record = evaluate(after, images, self.claimed, self.threat)
        return {
            "before": clean,
            "clean": clean_accuracy(record),
            "claimed": robust_accuracy(record),
        }


# ------------------------------------------------------------------------------ the audit of a row


@spec
class RowAudit:
    """A network before and after a change, audited on `data`, in small facts (`small`).

    `draws` are those that a randomised network is averaged over (0: as many as it takes);
    `training` is the seed that the network itself is trained from anew (0: that of the zoo). Where
    one of the two decides at chance, nothing is attacked, and the facts say so (`refused`). The
    network before is attacked once for all changes of it: its side is kept in the user's cache.
    """

    model: Model
    what: Treatment
    data: str
    held: str
    train: str
    whole: str
    threat: ThreatModel
    claimed: Attack = CLAIMED
    battery: BatteryName = "whole"
    draws: int = 0
    seed: Seed = 0
    training: Seed = 0
    version: ClassVar[int] = VERSION
    resumes: ClassVar[bool] = True

    def __call__(self, store: HasParts | None = None) -> Facts:
        images, nets = data(self.data), self.networks()
        if said := _refusal(nets, images):
            return {"n": len(images), "refused": said}
        return small(self.run(store))

    def networks(self) -> Pair[nn.Module]:
        """The network before the change and after it."""
        return _pair(self, self.training)

    def run(self, store: HasParts | None = None) -> Audit:
        """The audit itself, for its page and its evidence; quick where the `store` has filed its
        attacks."""
        images, nets = data(self.data), self.networks()
        how: dict[str, Any] = {"claimed": self.claimed, "battery": _spent(self.battery)}
        how |= {"seed": self.seed, "baseline": self._baseline(), "store": store}
        if not how["baseline"].exists():  # the same for every change, whichever is audited first
            audit(nets.before, nets.before, images, self.threat, **how)
        return audit(*nets, images, self.threat, draws=self.draws, **how)

    def _baseline(self) -> Path:
        """Where the side before lies: a file for each question, so that no two processes write to
        one."""
        folder = own_cache() / "ledger"
        folder.mkdir(parents=True, exist_ok=True)
        own = show(self.what) if has_own_before(self.what) else ""
        said = [show(self.model), own, self.data, show(self.threat), show(self.claimed)]
        return folder / f"before-{name_part([*said, self.battery, self.seed, self.training])}.json"


def has_own_before(what: Treatment) -> bool:
    """Whether a change is compared with another network than the one of the zoo."""
    return type(what).before is not Treatment.before


def small(made: Audit) -> Facts:
    """What is kept of an audit: counts, words, doubts, and for each image whether it is robust."""
    told, sides = made.numbers(), made.sides
    counts = {name: list(getattr(told, name)) for name in ("clean", "claimed", "verified")}
    words = {name: getattr(told, name) for name in ("effect", "claim", "mechanism")}
    draws = None if told.pedigree is None else told.pedigree.draws
    return {
        "n": told.n,
        **counts,
        "gained": told.gained,
        "lost": told.lost,
        **words,
        "doubts": list(told.doubts),
        "kernel": told.kernels.after,
        "alarms": [r.title for r in made.alarms],
        "draws": list(draws) if draws else [0, 0],
        "robust": [pack(side.verified) for side in sides],
    }


def _refusal(nets: Pair[nn.Module], images: Images) -> str:
    """Why there is nothing to audit: a network decides at chance; else empty."""
    with drawing(0, device_of(nets.after)):
        decisions = Pair(*(decide(net, images.images).cpu() for net in nets))
    try:
        check_chance(decisions, images.labels)
    except ValueError as e:
        return str(e)
    return ""


# --------------------------------------------------------------------------------------- AutoAttack


@spec
class ByAutoAttack:
    """AutoAttack's standard version on a network after a change or on what it is compared with,
    image by image; `what` None: on the network itself, once for all changes."""

    model: Model
    what: Treatment | None
    side: Literal["before", "after"]
    data: str
    held: str
    train: str
    whole: str
    threat: ThreatModel

    def __call__(self) -> Facts:
        net = self.model() if self.what is None else getattr(_pair(self), self.side)
        record = evaluate(net, data(self.data), AutoAttack(), self.threat)
        right, stands = (d == record.label for d in (record.clean, record.adversarial))
        return {"n": len(right), "clean": _mean(right), "robust": pack(right & stands)}


# ------------------------------------------------------------------------------------------ helpers


def _pair(what: Any, training: int = 0) -> Pair[nn.Module]:
    """The network before and after the change that a measurement names."""
    net = trained_anew(what.model.net, training) if training else what.model()
    parts = (data(part) for part in (what.train, what.whole, what.held))
    given = Given(*parts, what.threat, training)
    return Pair(what.what.before(net, given), what.what(net, given))


def _spent(battery: BatteryName) -> Any:
    return "quick" if battery == "quick" else None


def _mean(values: Sequence[bool] | Bits) -> float:
    return float(np.mean(values))
