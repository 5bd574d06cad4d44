"""Doubts: reasons to abstain, where the attacks on the network after the change may have missed
something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retroact.attacks.fmn import FMN
from retroact.auditing.attack_run import AttackRun, Broken, Conditions, Side, Some
from retroact.auditing.battery import Battery
from retroact.auditing.chance import Chance
from retroact.auditing.indicators import SHARE, FirstLook, indicators
from retroact.auditing.numbers import AttackResult, Reading
from retroact.auditing.planted import LOCAL, Planted, compare_movement, seek_planted
from retroact.auditing.subjects import Climb, Subject
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.expectation import Expectation
from retroact.crafting.oracle import AccessError
from retroact.crafting.reach import Reach, find_reaches, withstand
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import decide, decided
from retroact.evaluation.proof import Proved, craft_on, leave_as_is
from retroact.spec import show

POINT = 0.01
"""Of accuracy: what controls and doubled attacks may move."""
RISING = 0.10
"""Of the examples that are broken at eps: what may be robust at a larger one."""
DEAD = 0.10
"""Of the points: what may be without a gradient."""
WITHIN = 0.5
"""Of eps: the length of a step of an attack, within which a network may jump and its gradient still
lead somewhere."""
ANSWERED = 0.05
"""Of what the other attacks left: what an answer to an alarm must have broken."""

HELD = 0.95
"""Of the images that stand: what must do so within all that a front end can give."""

_TOLD, _FMN_STEPS = 32, 40
_BOXED = 64  # images that are climbed in what a front end can give
_TAMPERED = "gradient mismatch"  # an alarm that planted examples do not answer
_MISLED = "misled margin"  # what is left by what goes around it alone is no proof


@dataclass
class Record:
    """What was measured on the way: what came of planted examples, how many images stand within all
    that a front end can give, and by how much of accuracy twice the steps moved the network (None:
    not asked)."""

    planted: str = ""
    reach: str = ""
    moved: float | None = None


@dataclass(frozen=True)
class Doubts:
    """Looks for them on a subject whose side of the audit is done; what it costs follows
    `battery`. `beside` is the side of the other network, None where there is none. `record` is
    filled on the way."""

    subject: Subject
    side: Side
    under: Conditions
    battery: Battery
    beside: Side | None = None
    record: Record = field(default_factory=Record)

    def find(self, readings: Sequence[Reading], gain: float) -> list[str]:
        """The reasons, each as a clause, why the network after a change may be less robust."""
        # one answer for all who ask
        ask_planted = cache(partial(self._ask_planted, readings))
        ask_reach = cache(partial(self._ask_reach, readings))
        reasons = [
            *self._find_dead(ask_reach),
            *self._find_nonfinite(ask_planted),
            *self._find_by_controls(),
            *self._find_shared(),
            *self._find_unsettled(),
            *self._find_unanswered(readings, gain, ask_planted, ask_reach),
            *self._find_known(gain),
        ]
        if self.battery.queries:
            reasons += [*self._find_by_doubling(), *self._find_rising()]
        return [*reasons, *self._find_unbounded(ask_reach)]

    def find_lower(self) -> list[str]:
        """Signs that a network withstands even less than was verified, by what was run anyway: they
        only add to a harm."""
        return [*self._find_nonfinite(), *self._find_by_controls(), *self._find_unsettled()]

    def find_moving(self, readings: Sequence[Reading], loss: float) -> list[str]:
        """The reasons why this network, the one before a change, may be less robust: by controls,
        by what fooled the other, by what was begun anew, by alarms of its own where it would
        withstand more by `loss`, and by doubling; nothing else is asked of it."""
        ask_planted = partial(self._ask_planted, readings)
        ask_reach = partial(self._ask_reach, readings)
        reasons = [
            *self._find_by_controls(),
            *self._find_shared(),
            *self._find_unsettled(),
            *self._find_unanswered(readings, loss, ask_planted, ask_reach),
        ]
        if not self.battery.queries:
            return reasons
        half = replace(self.battery, sample=max(1, self.battery.sample // 2))
        return [*reasons, *replace(self, battery=half)._find_by_doubling()]

    @property
    def _climb(self) -> Climb:
        """What the targeted attack of the battery ran on, from its first kernel on."""
        return self.subject.through(self.subject.source(self.side.kernel))

    def _find_dead(self, ask_reach: Callable[[], bool]) -> Iterator[str]:
        """Where the loss has no gradient at all, attacks that follow it see nothing, and robust
        means nothing; unless what else was climbed, and broke what the others had left, has one, or
        what stands does so in all that a front end can give."""
        sample = self._some(self.side.clean, self.battery.points)
        if sample is None:
            return
        answers = [attack.kernel for attack in self._attacks_that_answer]
        kernels = dict.fromkeys([self.side.kernel, *answers])
        climbs = (self.subject.through(self.subject.source(k)) for k in kernels)
        dead = (self._look(climb.source or climb.on, sample).dead for climb in climbs)
        first = next(dead)
        if first > DEAD and all(share > DEAD for share in dead) and not ask_reach():
            yield (
                f"the gradient is exactly zero at {100 * first:.0f} % of the points: give"
                " surrogate="
            )

    @property
    def _attacks_that_answer(self) -> list[AttackResult]:
        """Those through a kernel by which more than one, and a twentieth of what was left, fell."""
        ran = (a for a in self.side.attacks if a.kernel and not a.is_trial)
        return [attack for attack in ran if not _broke_few(attack)]

    def _find_nonfinite(self, ask_planted: Callable[[], str | None] = lambda: "") -> Iterator[str]:
        """An attack may be blind where it meets no numbers, and no such point counts as broken;
        unless another, which met numbers, broke what it had left or finds what is planted."""
        met = [a for a in self.side.attacks if a.role == "white box"]
        most = max(met, key=lambda a: a.nonfinite, default=None)
        if most is None or not self._is_blind(most):
            return
        if not all(self._is_blind(attack) for attack in self._attacks_that_answer):
            return
        if ask_planted() is not None:
            yield (
                f"{most.title} met logits or gradients that are no numbers at {most.nonfinite} of"
                f" {most.asked}"
            )

    def _is_blind(self, attack: AttackResult) -> bool:
        return attack.nonfinite > 1 and attack.nonfinite / len(self.side.clean) > POINT

    def _find_by_controls(self) -> Iterator[str]:
        n = len(self.side.clean)
        for attack in self.side.attacks:
            if attack.role != "control" or attack.broken < 2:
                continue  # one example is no sign of anything
            robust = float(np.mean(self.side.verified)) + attack.broken / n
            if attack.broken / attack.asked * robust > POINT:
                yield (
                    f"{attack.title}, a control, broke {attack.broken} of {attack.asked} that the"
                    " white-box attacks left"
                )

    def _find_shared(self) -> Iterator[str]:
        """What attacks made of images for the other network is judged on this one, too: attacks on
        this one have missed what fools both."""
        if self.beside is None or self.under.past_rejection:
            return
        others = [e for e in self.beside.examples if self.side.verified[e.row]]
        fooled = self._count_fooled(others)
        if fooled > 1 and fooled / len(self.side.clean) > POINT:
            yield (
                f"{fooled} of {len(others)} that it withstood and the other network did not fool it"
                " as they were made for the other"
            )

    def _count_fooled(self, examples: Sequence[Broken]) -> int:
        if not examples:
            return 0
        x = torch.from_numpy(np.stack([example.x_adv for example in examples]))
        labels = torch.tensor([example.label for example in examples])
        net, chunk = self.subject.net.network, self.under.chunk
        if isinstance(net, Expectation):
            decisions = Chance.of(net, self.under.data).decide(x, labels, chunk)
        else:
            decisions = decide(net, x, chunk=chunk, attacked=True)
        return int(((decisions != labels) & (decisions >= 0)).sum())

    def _find_unsettled(self) -> Iterator[str]:
        """Where what broke most was begun anew as often as it may, and the last time it still broke
        more than few, the next would have."""
        anew = [a for a in self.side.attacks if a.is_anew][-1:]
        for attack in anew:
            if not _broke_few(attack) and attack.broken / len(self.side.clean) > POINT:
                yield f"{attack.title} still broke {attack.broken} of {attack.asked}"

    def _find_unanswered(
        self,
        readings: Sequence[Reading],
        gain: float,
        ask_planted: Callable[[], str | None],
        ask_reach: Callable[[], bool],
    ) -> Iterator[str]:
        """What is gained beside an alarm counts only where attacks that answer it broke what the
        others had left, more than one example. That an alarm is silent on what was attacked instead
        is no answer: the trace of a network is silent wherever its backward pass is what alarms.
        What an attack breaks when it is begun anew is no answer either, as any would break some.
        Where the margin misleads and no scores inside decide alike, nothing is an answer, and
        nothing need be gained. Where there was nothing to break, it is asked whether planted
        examples are found, and what stands in all that a front end can give."""
        blind = [r.title for r in readings if r.fired and r.mechanism != "saturation"]
        led = _MISLED in blind and not self.subject.inner
        if not blind or (gain <= 0 and not led):
            return
        answers = [a for a in self.side.attacks if a.kernel and not a.is_anew]
        broken, left = sum(a.broken for a in answers), max((a.asked for a in answers), default=0)
        if broken >= 2 and broken >= ANSWERED * left and not led:
            return
        tried = "nothing that was derived answers it" if answers else "no kernel answers it"
        planted = "" if _TAMPERED in blind else ask_planted()
        if planted is not None and (led or not ask_reach()):
            said = f" ({planted})" if planted else ""
            yield f"{' and '.join(blind)} fired and {tried}{said}: give surrogate="

    def _find_known(self, gain: float) -> Iterator[str]:
        """A network that knows the images of the audit may be calm on them, and on no others."""
        rows = torch.from_numpy(np.flatnonzero(self.side.clean))
        if gain <= 0 or not len(rows):
            return
        moved = compare_movement(self.subject.net.network, rows, self.under)
        if moved < LOCAL:
            yield (
                f"its features move {moved:.2g} times as far around these images as around images"
                " mixed of them, so it may know them: audit it on others"
            )

    def _ask_planted(self, readings: Sequence[Reading]) -> str | None:
        """None where planted examples are found along what was climbed and no alarm but that of
        steps, which is one of values, fires on it: such a network, were that its backward pass,
        would have raised none. What jumps by less than a step of an attack is asked over steps of
        that length as well, along its own backward pass too. Else what was wrong."""
        ran = [a for a in self.side.attacks if not a.is_trial and not self._is_blind(a)]
        kernels = dict.fromkeys(a.kernel for a in ran if a.kernel or a.role == "white box")
        quiet = [k for k in kernels if self._is_quiet(k, readings)]
        if not quiet:
            return ""
        planted = self._seek_planted(quiet)
        self.record.planted = str(planted)
        return None if planted.are_found else str(planted)

    def _ask_reach(self, readings: Sequence[Reading]) -> bool:
        """Whether what stands does so within all that a front end can give, climbed behind it,
        where no indicator fires. Steps of the front end, and whatever it does to gradients, have no
        say there."""
        some = self._some(self.side.verified, _BOXED)
        if some is None or self.subject.draws or self.under.past_rejection:
            return False
        where = (self.under.threat, domain_of(self.under.data), self.under.seed)
        for reach in find_reaches(self.subject.net.network, some.images, some.index, *where):
            if self._fire_behind(reach, some, readings):
                continue
            held = withstand(reach, some.labels, some.index, self.under.seed)
            self.record.reach = (
                f"{int(held.sum())} of {len(held)} that stand do so within all that its front end"
                " can give"
            )
            return float(held.float().mean()) >= HELD
        return False

    def _fire_behind(self, reach: Reach, some: Some, readings: Sequence[Reading]) -> bool:
        """Whether an indicator fires on what stands behind a front end: one that fired on the whole
        network, within a ball as large as the longest side of the box; another, within one that is
        no larger than those that indicators were calibrated in."""
        least, most = float(reach.low.min()), float(reach.high.max())
        domain = Domain(tuple(reach.at.shape[1:]), least, max(most, least + 1e-6))
        few = slice(0, self.battery.points)
        points = (reach.at[few], some.labels[few], some.index[few])

        def look(radius: float) -> FirstLook:
            threat = Linf(radius, width=max(1.0, domain.width))
            return FirstLook(leave_as_is(reach.behind), *points, threat, self.under.seed, domain)

        eps = self.under.threat.eps
        known = {r.title: r for r in readings}
        near, far = look(min(reach.radius or eps, eps)), look(reach.radius or eps)
        for indicator in (i for i in indicators() if i.mechanism != "steps"):
            reading = known.get(indicator.title)
            at = far if reading is not None and reading.fired else near
            if indicator.fires_on(at, 0.0 if reading is None else reading.before):
                return True
        return False

    def _is_quiet(self, kernel: str, readings: Sequence[Reading]) -> bool:
        """Whether no indicator fires on a network with this backward pass."""
        sample = self._some(self.side.clean, self.battery.points)
        source = self.subject.source(kernel)
        if sample is None or (source is not None and source.foreign) or (kernel and not source):
            return False
        climb = self.subject.net if source is None else source.make()
        tell = getattr(climb.lean, "progress", None)
        if tell is not None:
            tell(1.0)  # the last and truest of its forms
        looks = [self._look(climb, sample, share) for share in (SHARE, WITHIN)]
        return any(not self._fire_on(look, readings) for look in (looks if kernel else looks[1:]))

    def _fire_on(self, look: FirstLook, readings: Sequence[Reading]) -> bool:
        before = {r.title: r.before for r in readings}
        asked = [i for i in indicators() if i.mechanism in ("jump", "wrong gradient")]
        return any(i.fires_on(look, before.get(i.title, 0.0)) for i in asked)

    def _seek_planted(self, kernels: Sequence[str]) -> Planted:
        """Around the images in question first, those that nothing broke."""
        robust, others = self.side.verified, self.side.clean & ~self.side.verified
        rows = np.concatenate([np.flatnonzero(robust), np.flatnonzero(others)])
        return seek_planted(self.subject, kernels, torch.from_numpy(rows), self.under, self.battery)

    def _look(self, on: Proved, sample: Some, share: float = SHARE) -> FirstLook:
        points, under = (sample.images, sample.labels, sample.index), self.under
        where = under.threat, under.seed, domain_of(under.data)
        return FirstLook(on, *points, *where, share=share)

    def _find_by_doubling(self) -> Iterator[str]:
        sample = self._some(self.side.verified, self.battery.sample)
        if sample is None:
            return
        under = replace(self.under, data=sample, seed=self.under.seed + 1)
        robust = self._attack(under, self.battery.longer(2))
        broken = int((~robust).sum())
        moved = broken / len(robust) * float(np.mean(self.side.verified))
        self.record.moved = moved
        if broken > 1 and moved > POINT:
            yield (
                f"twice the steps, begun anew, broke {broken} of {len(robust)} more, about"
                f" {100 * moved:.1f} points"
            )

    def _find_rising(self) -> Iterator[str]:
        """What is broken at eps must be broken at a larger one, or the attack is steered by
        something else than the loss."""
        sample = self._some(self.side.clean & ~self.side.verified, self.battery.sample // 2)
        if sample is None:
            return
        wider = self.under.threat.times(1.5)
        robust = self._attack(replace(self.under, data=sample, threat=wider), self.battery)
        if robust.sum() > 1 and float(robust.mean()) > RISING:
            yield (
                f"{int(robust.sum())} of {len(robust)} that are broken at eps are robust at 1.5 eps"
            )

    def _find_unbounded(self, ask_reach: Callable[[], bool]) -> Iterator[str]:
        sample = self._some(self.side.verified, self.battery.sample // 2)
        if sample is None:
            return
        whole = self.under.threat.whole(domain_of(self.under.data))
        robust = self._attack(replace(self.under, data=sample, threat=whole), self.battery)
        if float(robust.mean()) > 1 / self.under.classes + 0.05 and not ask_reach():
            yield (
                f"{int(robust.sum())} of {len(robust)} are robust at any eps, so the attacks do not"
                " bite"
            )

    def _attack(self, under: Conditions, battery: Battery) -> NDArray[np.bool_]:
        """Which examples are robust under the decisive attacks."""
        run = AttackRun(self.subject.net.network, under)
        folded, targeted = Climb(self.subject.folded), battery.targeted(under.classes)
        run.attack("again", "white box", battery.untargeted(), folded)
        run.attack("again, targeted", "white box", targeted, self._climb)
        return run.robust

    def _some(self, which: NDArray[np.bool_], at_most: int) -> Some | None:
        rows = torch.from_numpy(np.flatnonzero(which)[:at_most])
        return Some.of(self.under, rows) if len(rows) else None


def _broke_few(attack: AttackResult) -> bool:
    """Whether no more than one of what was asked, or less than a twentieth, fell."""
    return attack.broken < 2 or attack.broken < ANSWERED * attack.asked


def find_telling(subject: Subject, side: Side, under: Conditions) -> str:
    """The threat at which half of the first right examples would be robust, by the nearest
    adversarial example that FMN finds for each: where a threat is so strong that nothing is. Empty
    where none is found."""
    rows = torch.from_numpy(np.flatnonzero(side.clean)[:_TOLD])
    climb = subject.through(subject.source(side.kernel))
    if not len(rows):
        return ""
    data = under.data
    how: dict[str, Any] = {"source": climb.source, "domain": domain_of(data), "seed": under.seed}
    examples = data.images[rows], data.labels[rows], data.index[rows]
    try:
        (crafted,) = craft_on(
            climb.on, FMN(_FMN_STEPS), *examples, [under.threat], under.goal, **how
        )
    except (AccessError, ValueError):
        return ""
    hit = decided(crafted.logits, attacked=True) != data.labels[rows]
    sizes = under.threat.size(crafted.outcome.x_adv - data.images[rows])[hit]
    radius = float(sizes.median()) if len(sizes) else 0.0
    # 0: a network that draws may be wrong where it is not attacked at all
    if not 0 < radius < under.threat.eps:
        return ""
    return show(replace(under.threat, eps=float(f"{radius:.2g}")))  # type: ignore[type-var]
