"""check: one defended network and a number from a paper, where there is nothing to compare with.

The battery of an audit on one network, and the alarms that need no other beside it. A reported
robust accuracy is *too high* where it lies above what is left, whatever else is in doubt, for every
image that fell is there to be shown; it *stands* where it does not and nothing is in doubt; else it
*cannot be told*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from retroact.attacks.pgd import CLAIMED
from retroact.auditing.audit import Audit, audit
from retroact.auditing.battery import Battery, Named, battery_of
from retroact.crafting.attack import Attack
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.metrics import wilson
from retroact.parts import HasParts
from retroact.reading import Counting, Data, Net, Said, as_network
from retroact.shown import as_html, percent
from retroact.spec import CallError

if TYPE_CHECKING:
    from retroact.figures import Figure

Statement = Literal["STANDS", "TOO HIGH", "CANNOT BE TOLD", "NOT ASKED"]


@dataclass(frozen=True, eq=False)
class Check:
    """What became of a reported robust accuracy, in [0, 1] (None: none was given). `audit` is that
    of the network against itself, whose after side is what was attacked."""

    reported: float | None
    audit: Audit

    @property
    def also(self) -> Check | None:
        """The same where rejected counts as robust, if both were asked for."""
        return None if self.audit.also is None else Check(self.reported, self.audit.also)

    @property
    def n(self) -> int:
        return self.audit.verdict.counts.n

    @property
    def clean(self) -> float:
        return self.audit.verdict.counts.clean[1]

    @property
    def claimed(self) -> float:
        """Accuracy under the claimed attack."""
        return self.audit.verdict.counts.claimed[1]

    @property
    def verified(self) -> float:
        """Accuracy under all attacks, an upper bound."""
        return self.audit.verdict.counts.verified[1]

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the verified accuracy."""
        return wilson(round(self.verified * self.n), self.n)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why the network may be less robust still."""
        return self.audit.verdict.doubts

    @property
    def excess(self) -> float:
        """By at least how much the reported accuracy is too high: reported − the interval's upper
        end; 0 where it is not."""
        return max(0.0, (self.reported or 0.0) - self.interval[1])

    @property
    def statement(self) -> Statement:
        if self.reported is None:
            return "NOT ASKED"
        if self.excess > 0:
            return "TOO HIGH"
        return "CANNOT BE TOLD" if self.doubts else "STANDS"

    @property
    def alarms(self) -> tuple[str, ...]:
        """What fired on it, by itself."""
        return tuple(r.title for r in self.audit.readings if r.fired)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and texts, accuracies in [0, 1]; `attacks` are those that were run. Their
        form is that of schema.json, beside this file."""
        numbers = self.audit.numbers()
        assert numbers.pedigree is not None
        return {
            "schema": numbers.schema,
            "retroact": numbers.retroact,
            "network": numbers.names.after,
            "statement": self.statement,
            "sentence": str(self),
            "reported": self.reported,
            "clean": self.clean,
            "claimed": self.claimed,
            "verified": self.verified,
            "interval": list(self.interval),
            "n": self.n,
            "excess": self.excess,
            "alarms": list(self.alarms),
            "doubts": list(self.doubts),
            "attacks": [attack.to_json() for attack in self.audit.after.attacks],
            "claimed_attack": numbers.claimed_attack,
            "battery": numbers.battery,
            "battery_version": numbers.battery_version,
            "threat": numbers.threat,
            "data": numbers.data,
            "fingerprints": self.audit.fingerprints.to_json(),
            "pedigree": numbers.pedigree.to_json(),
        } | ({} if self.also is None else {"also": self.also.to_json()})

    def __str__(self) -> str:
        low, high = (100 * v for v in self.interval)
        verified = f"verified {100 * self.verified:.1f} % [{low:.1f}, {high:.1f}] (n = {self.n})"
        said = {
            "NOT ASKED": f"{verified}, claimed {100 * self.claimed:.1f} %",
            "STANDS": f"the claim of {self._told} stands against these attacks: {verified}",
            "TOO HIGH": (
                f"the claim of {self._told} is too high by at least {100 * self.excess:.1f} points:"
                f" {verified}"
            ),
            "CANNOT BE TOLD": f"whether {self._told} is true cannot be told: {verified}",
        }[self.statement]
        said += "" if self.audit.rejection is None else f"; {self.audit.rejection}"
        fired = f"; alarms: {', '.join(self.alarms)}" if self.alarms else ""
        also = "" if self.also is None else f"; {self.also}"
        return said + fired + "".join(f"; {doubt}" for doubt in self.doubts) + also

    def __repr__(self) -> str:
        return f"<Check on {self.audit.data} within {self.audit.threat}: {self}>"

    def _repr_html_(self) -> str:
        low, high = map(percent, self.interval)
        verified = f"{percent(self.verified)} [{low}, {high}]"
        reported = "–" if self.reported is None else percent(self.reported)
        return as_html(
            str(self),
            ("clean %", "reported %", "claimed attack %", "verified %", "n"),
            [(percent(self.clean), reported, percent(self.claimed), verified, str(self.n))],
            [*self.doubts, *(f"alarm: {title}" for title in self.alarms)],
        )

    def plot(self) -> Figure:
        """Clean, claimed and verified accuracy of the network, with Wilson's 95 %, and the reported
        one as a dashed line."""
        from retroact.figures import TOLD, bars  # and with it matplotlib

        sides = {self.audit.names.after: (self.clean, self.claimed, self.verified)}
        title = f"{self.statement}\n{self.audit.threat} on {self.audit.data}, n = {self.n}"
        how: dict[str, Any] = {"word": self.audit.domain.word, "told": self.reported}
        return bars(tuple(TOLD), sides, self.n, title=title, **how)

    @property
    def _told(self) -> str:
        return f"{100 * (self.reported or 0.0):.1f} %"


def check(
    net: Net,
    data: Data,
    threat: Said[ThreatModel],
    reported: float | None = None,
    *,
    claimed: Said[Attack] = CLAIMED,
    surrogate: Net | None = None,
    battery: Battery | Named | None = None,
    rejected: Counting | None = None,
    draws: int = 0,
    seed: int = 0,
    chunk: int | None = None,
    store: HasParts | None = None,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Whether a `reported` robust accuracy of one network, in per cent as papers print it, is true.

        ra.check("lenet-mnist", "mnist[:200]", "Linf(0.1)", reported=53.1)

    The battery, the alarms and the refusals are those of `audit`, but that controls and doubling
    are run with any battery, as no claim stands without them; so is what `store` and `fresh` mean.
    Raises as `audit` does, and CallError
    for a number that is no percentage.
    """
    if reported is not None and not 1 < reported <= 100:
        raise CallError(
            f"reported: expected per cent, above 1 and at most 100, got {reported}; 53.1 for 53.1 %"
        )
    one, spent = as_network(net), battery_of(battery)
    spent = spent if spent.queries else replace(spent, queries=Battery.queries)
    how: dict[str, Any] = {
        "claimed": claimed,
        "battery": spent,
        "rejected": rejected,
        "draws": draws,
        "seed": seed,
        "chunk": chunk,
        "store": store,
        "fresh": fresh,
    }
    outcome = audit(one, one, data, threat, surrogate=surrogate, progress=progress, **how)
    return Check(None if reported is None else reported / 100, outcome)
