"""audit: what a change is worth, claimed beside verified, with the mechanism and a verdict.

The order of the procedure is that of `audit`: the checks, the indicators on points that both
networks decide rightly, the same battery on both, the doubts, and the verdict. *Verified* is the
worst case over every attack that was run, example by example: an upper bound on what the network
withstands, never a certificate.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from retroact.activations.activation import Activation
from retroact.attacks.pgd import CLAIMED
from retroact.auditing.attack_run import Conditions, Side
from retroact.auditing.baseline import StoredSide
from retroact.auditing.battery import STAGES, VERSION, Battery, Named, battery_of
from retroact.auditing.boxed import Box
from retroact.auditing.checks import NAMES, Witness, check, check_chance, is_random
from retroact.auditing.doubts import Doubts, find_telling
from retroact.auditing.filed import Looked, pack_looked, unpack_looked
from retroact.auditing.indicators import FirstLook, indicators
from retroact.auditing.numbers import (
    AuditNumbers,
    AuditPedigree,
    Curves,
    Fingerprints,
    Pair,
    Reading,
)
from retroact.auditing.paragraph import write_paragraph
from retroact.auditing.resuming import check_same, name_sides, parts_of
from retroact.auditing.subjects import KERNELS, Schedule, Subject, prepare
from retroact.auditing.trails import Trail, follow
from retroact.auditing.verdict import (
    MARGIN,
    SHARES,
    Counts,
    Verdict,
    check_margin,
    count,
    fewest,
    judge,
)
from retroact.checkpoint import digest
from retroact.crafting.attack import Attack
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.drawing import drawing
from retroact.crafting.expectation import Expectation
from retroact.crafting.oracle import Network, device_of, evaluating
from retroact.crafting.threat import ThreatModel
from retroact.doors import checked, whole
from retroact.durations import seconds_of
from retroact.evaluation.evaluate import decide, describe, left_alone
from retroact.evaluation.proof import logits_of
from retroact.evaluation.surroundings import surroundings
from retroact.executors import SERIAL, Executor, Here
from retroact.ground import neutral, one_thread
from retroact.nets.cards import Measured
from retroact.nets.data import Images
from retroact.parts import Filed, HasParts
from retroact.reading import (
    Counting,
    Data,
    Net,
    Rejected,
    Said,
    as_attack,
    as_changed,
    as_images,
    as_network,
    as_rejecting,
    as_scoring,
    as_threat,
)
from retroact.retrofitting.copying import copy_of
from retroact.retrofitting.surgery import Retrofit
from retroact.shown import as_html
from retroact.spec import show, take

if TYPE_CHECKING:
    from pandas import DataFrame

    from retroact.figures import Figure

DRAWS = (10, 20, 40, 80)
"""Over how many draws a randomised network is averaged, one after the other until nothing moves."""
_MAY_BE_MISSING = ("decided_before", "decided_after")
_SETTLED = 0.02  # of verified accuracy
_Z = 1.96


@dataclass(frozen=True)
class Rejection:
    """What rejected examples counted as, and the share of clean ones that each network rejects,
    which are wrong in either case."""

    counted: Rejected
    clean: Pair[float]

    def __str__(self) -> str:
        before, after = (f"{100 * share:.1f} %" for share in self.clean)
        return (
            f"Rejected counts as {self.counted}; clean ones that are rejected count as wrong:"
            f" {before} before, {after} after"
        )


@dataclass(frozen=True, eq=False)
class Audit:
    """The outcome of an audit: `verdict`, the two `sides`, the `readings`, and what was run.

    `rejection` says what rejected examples counted as, None where no network rejects, and `also`
    is the same audit where they count as robust, if both were asked for. `trails` has the margins
    along an attack of the examples that a page shows.
    """

    verdict: Verdict
    sides: Pair[Side]
    readings: tuple[Reading, ...]
    names: Pair[str]
    data: str
    threat: str
    claimed_attack: str
    battery: Battery
    pedigree: AuditPedigree
    fingerprints: Fingerprints
    curves: Pair[Curves]
    domain: Domain
    rejection: Rejection | None = None
    also: Audit | None = None
    trails: tuple[Trail, ...] = ()

    @property
    def before(self) -> Side:
        """The network before the change."""
        return self.sides.before

    @property
    def after(self) -> Side:
        """The network after the change."""
        return self.sides.after

    @property
    def alarms(self) -> tuple[Reading, ...]:
        """The indicators that fired."""
        return tuple(r for r in self.readings if r.fired)

    def __str__(self) -> str:
        also = "" if self.also is None else f"; {self.also}"
        return str(self.verdict) + self._say_rejected("; {}") + also

    def __repr__(self) -> str:
        return f"<Audit on {self.data} within {self.threat}: {self}>"

    def _repr_html_(self) -> str:
        return as_html(
            f"{self}",
            (f"{self.threat} on {self.data}", *SHARES),
            self.verdict.counts.rows(self.names),
            [*self.verdict.doubts, *(f"alarm: {r.title}" for r in self.alarms)],
        )

    def _say_rejected(self, how: str) -> str:
        return "" if self.rejection is None else how.format(self.rejection)

    def paragraph(self) -> str:
        """The audit in five sentences for a review or a paper: networks, examples, threat, battery,
        clean, claimed and verified accuracy, intervals, p, seed and version."""
        return write_paragraph(self.numbers())

    def measured(self) -> tuple[Measured, ...]:
        """What the audit found of each network, and, of the one after the change, what it was
        before: `save(net, path, audit=audit)` writes it beside the network."""
        c, under = self.verdict.counts, f"within {self.threat}"
        shares = {
            "clean accuracy": c.clean,
            f"accuracy under {self.claimed_attack}, {under}": c.claimed,
            f"verified accuracy {under}, by {show(self.battery)}": c.verified,
        }
        before, after = self.fingerprints.weights
        told = [(what, pair[0], before) for what, pair in shares.items()]
        told += [(f"{what}, before the change", pair[0], after) for what, pair in shares.items()]
        told += [(what, pair[1], after) for what, pair in shares.items()]
        return tuple(Measured(what, value, self.data, c.n, of) for what, value, of in told)

    def plot(self) -> Figure:
        """Clean, claimed and verified accuracy before and after the change, with Wilson's 95 %."""
        from retroact.figures import TOLD, bars  # and with it matplotlib

        v, c = self.verdict, self.verdict.counts
        shares = zip(c.clean, c.claimed, c.verified, strict=True)
        sides = {
            f"{when}: {name}": side
            for when, name, side in zip(Pair._fields, self.names, shares, strict=True)
        }
        title = f"{v.effect}; {v.claim}\n{self.threat} on {self.data}, n = {c.n}"
        return bars(tuple(TOLD), sides, c.n, word=self.domain.word, title=title)

    def frame(self) -> DataFrame:
        """A row for each example, in the order of the data, as a pandas DataFrame.

        `index` in the data set and `label`; of each network (`_before`, `_after`) `clean`,
        `claimed` and `verified`, whether it was decided rightly without an attack, and withstood
        the claimed one, and all; `broken_by`, the attack's title, and `decided`, the class under
        it, both missing where nothing broke the example. pd.DataFrame([vars(a) for a in
        audit.after.attacks]) has a row for each attack.
        """
        from pandas import DataFrame  # which `datasets` brings

        data = self.after.data
        assert data is not None
        columns: dict[str, Any] = {"index": data.index.numpy(), "label": data.labels.numpy()}
        for side, name in zip(self.sides, Pair._fields, strict=True):
            columns |= {f"{what}_{name}": values for what, values in side.columns().items()}
        return DataFrame(columns).astype(dict.fromkeys(_MAY_BE_MISSING, "Int64"))

    def numbers(self) -> AuditNumbers:
        """The audit as plain numbers and texts, for JSON and the report."""
        c, v = self.verdict.counts, self.verdict
        return AuditNumbers(
            n=c.n,
            effect=v.effect,
            claim=v.claim,
            mechanism=v.mechanism,
            clean=Pair(*c.clean),
            claimed=Pair(*c.claimed),
            verified=Pair(*c.verified),
            p=c.p,
            names=self.names,
            data=self.data,
            threat=self.threat,
            verdict=str(self),
            plainly=v.plainly(self.domain.word) + self._say_rejected(" {}."),
            gained=c.gained,
            lost=c.lost,
            interval=c.interval,
            doubts=v.doubts,
            needs=v.needs,
            planted=v.planted,
            reach=v.reach,
            moved=Pair(*v.moved),
            claimed_attack=self.claimed_attack,
            battery=show(self.battery),
            indicators=self.readings,
            attacks=Pair(self.before.attacks, self.after.attacks),
            curves=self.curves,
            pedigree=self.pedigree,
            battery_version=VERSION,
            kernels=Pair(self.before.kernel, self.after.kernel),
            fingerprints=self.fingerprints,
            example=self.domain.word,
            also=None if self.also is None else self.also.numbers(),
        )


@neutral()
@one_thread()
def audit(
    before: Net,
    after: Net | Said[Activation] | Retrofit,
    data: Data,
    threat: Said[ThreatModel],
    *,
    claimed: Said[Attack] = CLAIMED,
    surrogate: Net | None = None,
    battery: Battery | Named | None = None,
    kernels: Sequence[Schedule] | None = None,
    rejected: Counting | None = None,
    draws: int = 0,
    margin: float = MARGIN,
    budget: float | str | None = None,
    seed: int = 0,
    chunk: int | None = None,
    baseline: str | Path | None = None,
    store: HasParts | None = None,
    fresh: bool = False,
    executor: Said[Executor] = SERIAL,
    progress: Callable[[int, int], None] | None = None,
    heard: Callable[[str, str, float], None] | None = None,
) -> Audit:
    """What the network `after` a change is worth beside the one `before` it, on `data`.

    Any two networks with the same inputs and classes will do; the attacks that know a retrofit are
    derived from its spec, and an activation as `after` is put into `before`. All may be texts:
    audit("lenet-mnist", "JumpReLU(1.0)", "mnist[:300]", "Linf(0.1)"). `claimed` is the attack that
    the claim rests on; `surrogate` a network to climb in the place of `after`, if it has no spec.
    `rejected` says what an example counts as that a network rejects, by one more class, the last,
    or by a flag (n,) beside its logits: "wrong", or "robust" where it is perturbed, so that only a
    wrong class breaks it; a clean one that is rejected is wrong in either case. "both" asks one
    after the other: what is returned counts it as wrong, its `also` as robust.
    `battery` "quick" runs the decisive attacks only, "thorough" begins anew until nothing more is
    broken. `draws` averages randomised networks over so many (0: as many as it takes).
    `margin` is the accuracy difference that matters. A `budget`, "5m" or seconds, takes as many of
    the first examples as fit into that time, by what the fewest took that could tell anything; the
    result is that of `data[:n]`. A `baseline` is a file in which the side of
    `before` is looked up, and stored where it is not there yet. Each attack's outcome is filed in
    the `store`, where one is given, so that the same audit goes on after a stop, with the same
    bits; `fresh` starts it anew. The `executor` attacks the two, Threads(2) both at once, with the
    same outcome. `heard` is called with each accuracy as it is measured, long before the end:
    ("before", "claimed", 0.69), then "verified"; ("after", …).

    Raises ValueError for networks that do not fit each other or the data, decide at chance, that
    remember what they were asked, or decide otherwise in another batch, for a threat without
    gradients, a radius at which nothing survives.
    """
    if budget is not None or rejected == "both":
        how: dict[str, Any] = {"claimed": claimed, "surrogate": surrogate, "battery": battery}
        how |= {"kernels": kernels, "draws": draws, "margin": margin, "seed": seed, "chunk": chunk}
        how |= {"baseline": baseline, "store": store, "fresh": fresh, "executor": executor}
        how |= {"heard": heard}
        if budget is None:
            return _ask_both(partial(audit, before, after, data, threat, **how), progress)
        seconds, old = seconds_of(budget), as_network(before)
        images, new = as_images(data, old), old if after is before else after
        box, how = Box(seconds, domain_of(images).word), how | {"rejected": rejected}
        return _ask_within(box, partial(audit, old, new, threat=threat, **how), images, progress)
    spent, (nets, images) = battery_of(battery), _read(before, after, data, rejected)
    radius, attack = as_threat(threat), as_attack(claimed)
    own = None if surrogate is None else as_network(surrogate)
    (seed, chunk, _), draws = checked(seed, chunk), whole(draws, "draws")
    where, prints = take(executor, Executor), _fingerprint(images, nets)
    check_margin(margin)
    parts = parts_of(store, fresh, (*nets, own))

    untouched = Pair(*map(copy_of, nets))  # before anybody asks them anything
    drawn = [
        is_random(net, copy, images, radius, name, seed)
        for net, copy, name in zip(nets, untouched, NAMES, strict=True)
    ]

    def run(draws: int) -> Audit:
        asked: Pair[Network] = nets
        if draws:
            means = [
                Expectation(net, draws) if r else net for net, r in zip(nets, drawn, strict=True)
            ]
            # one against itself stays one
            asked = Pair(means[0], means[0] if nets.after is nets.before else means[1])
        sides = 1 if nets.before is nets.after else 2
        stages = Here(_Stages(progress, sides * STAGES + 2))
        witnesses = [
            Witness(net, copy, images, radius, name, seed)
            for net, copy, name, random in zip(nets, untouched, NAMES, drawn, strict=True)
            if not random
        ]
        classes, past = check(asked, images, radius), rejected == "robust"
        under = Conditions(images, radius, classes - past, seed, chunk, past)
        given = KERNELS if kernels is None else kernels
        subjects = prepare(asked.before, asked.after, images, radius, own, given, seed)
        averaged = draws if drawn[0] else 0
        about: dict[str, Any] = {"draws": averaged, "kernels": kernels, "counted": rejected}
        stored = StoredSide.of(baseline, prints, under, attack, spent, **about)
        if store is not None:
            under = replace(under, filed=Filed(parts))
            over = [draws if r else 0 for r in drawn]
            subjects = name_sides(subjects, under, prints, own, over, given)
        how = asked, subjects, under, spent, attack, where, stages, stored
        tell = Here(heard or _ignore)
        procedure = _Procedure(*how, tell, partial(_ask_again, witnesses))
        outcome = procedure.run(margin, prints)
        _ask_again(witnesses)
        stored.keep(outcome.before)  # of a network that was seen to be one that can be audited
        return replace(outcome, rejection=_find_rejected(asked, images, rejected))

    if draws or not any(drawn):
        return run(draws)
    return _settle_draws(run)


def _ignore(when: str, what: str, share: float) -> None: ...


def _ask_within(
    box: Box, ask: partial[Audit], images: Images, progress: Callable[[int, int], None] | None
) -> Audit:
    """The audit on as many images as fit into the box, with a word of how many that were.

    The first part neither reads nor keeps anything, as what is read takes no time.
    """
    first = min(fewest(ask.keywords["margin"]), len(images))
    kept = {name: ask.keywords[name] for name in ("baseline", "store")}
    unkept = dict.fromkeys(kept)
    watch = box.watch(first, progress)
    made = ask(data=images[:first], progress=watch, **unkept | {"fresh": False})
    n = box.size(first, len(images))
    if n > first or kept != unkept:
        made = ask(data=images[:n], progress=progress)
    return replace(made, pedigree=replace(made.pedigree, budget=box.tell(n, len(images), first)))


def _ask_both(ask: Callable[..., Audit], progress: Callable[[int, int], None] | None) -> Audit:
    """The audit where rejected counts as wrong, with the one where it counts as robust."""

    def follow(part: int) -> Callable[[int, int], None] | None:
        tell = progress
        return None if tell is None else lambda done, all: tell(done + part * all, 2 * all)

    wrong = ask(rejected="wrong", progress=follow(0))
    return replace(wrong, also=ask(rejected="robust", progress=follow(1)))


def _ask_again(witnesses: Sequence[Witness]) -> None:
    """ValueError where a network answers otherwise by now."""
    for witness in witnesses:
        witness.check()


def _settle_draws(run: Callable[[int], Audit]) -> Audit:
    """The audit of means over more and more draws, until the verdict and what was verified move no
    more."""
    outcome = run(DRAWS[0])
    for draws in DRAWS[1:]:
        last, outcome = outcome.verdict, run(draws)
        moved = (abs(a - b) for a, b in zip(last.counts.verified, _verified(outcome), strict=True))
        if last.effect == outcome.verdict.effect and max(moved) <= _SETTLED:
            return outcome
    unsettled = f"the mean over {DRAWS[-1]} draws is not settled: give more draws="
    return replace(outcome, verdict=outcome.verdict.doubt(unsettled))


def _verified(outcome: Audit) -> tuple[float, float]:
    return outcome.verdict.counts.verified


def _find_rejected(
    nets: Pair[Network], images: Images, counted: Rejected | None
) -> Rejection | None:
    if counted is None:
        return None
    logits = (logits_of(net, images.images) for net in nets)
    shares = (float((z.argmax(1) == z.shape[1] - 1).double().mean()) for z in logits)
    return Rejection(counted, Pair(*shares))


def _read(
    before: Net,
    after: Net | Said[Activation] | Retrofit,
    data: Data,
    rejected: Rejected | None,
) -> tuple[Pair[Network], Images]:
    old = as_network(before)
    images = as_images(data, old)
    new = old if after is before else as_changed(after, old, images.images)
    old, new = as_rejecting(old, new, images, rejected)
    one = as_scoring(old, images, beside=new)
    return Pair(one, one if new is old else as_scoring(new, images, beside=old)), images


def _fingerprint(images: Images, nets: Pair[Network]) -> Fingerprints:
    weights = (digest(net) if isinstance(net, nn.Module) else "" for net in nets)
    return Fingerprints(images.fingerprint[:16], Pair(*weights))


class _Stages:
    """Counts the stages of an audit for whoever watches, from any thread."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int) -> None:
        self._progress, self._done, self._total = progress, itertools.count(1), total

    def __call__(self) -> None:
        done = next(self._done)
        if self._progress is not None:
            self._progress(done, self._total)


@dataclass(frozen=True)
class _Procedure:
    """The steps of an audit on networks that are checked and prepared."""

    nets: Pair[Network]
    subjects: Pair[Subject]
    under: Conditions
    battery: Battery
    claimed: Attack
    executor: Executor
    stages: Here
    baseline: StoredSide
    heard: Here
    ask_again: Callable[[], None]

    def run(self, margin: float, fingerprints: Fingerprints) -> Audit:
        """All of them, in order."""
        readings, curves = self._recall_looked()
        alarmed = Pair(*(_alarm(s, readings, i) for i, s in enumerate(self.subjects)))
        self.stages()
        with evaluating(*self.nets):  # here, so that neither side switches the other's network back
            if self._is_alone:
                alone = self._attack(alarmed.after)
                sides = Pair(alone, alone)
            else:
                how = self.executor, self._attack, alarmed, self.nets.before, self.under
                sides = self.baseline.attack(*how)
        if not self.battery.queries and self._asks_controls(alarmed.after, sides):
            self.ask_again()  # one that remembers by now is not asked thousands of times more
            under = self._under(alarmed.after)
            after = self.battery.add_controls(sides.after, alarmed.after, under)
            sides = Pair(sides.before, after)
        self.heard("after", "verified", float(sides.after.verified.mean()))
        verdict = self._judge(alarmed, sides, readings, margin)
        trails = follow(alarmed, sides, verdict.counts.verified_gain, self.under)
        self.stages()
        return Audit(
            verdict=verdict,
            sides=sides,
            readings=readings,
            names=Pair(*map(describe, self.nets)),
            data=self.under.data.name,
            threat=show(self.under.threat),
            claimed_attack=show(self.claimed),
            battery=self.battery,
            pedigree=self._describe(sides),
            fingerprints=fingerprints,
            curves=curves,
            domain=domain_of(self.under.data),
            trails=trails,
        )

    def _asks_controls(self, after: Subject, sides: Pair[Side]) -> bool:
        """Nothing is GENUINE that no control has seen; where what was climbed only stands in for
        the network, or it gains beside an alarm that is not its spec's, they may find more."""
        source, counts = after.source(sides.after.kernel), _count(sides)
        stands_in = source is not None and source.foreign
        baffling = after.is_baffling and counts.verified_gain > 0
        return counts.interval[0] > 0 or stands_in or baffling

    def _judge(
        self,
        subjects: Pair[Subject],
        sides: Pair[Side],
        readings: tuple[Reading, ...],
        margin: float,
    ) -> Verdict:
        """The verdict on what was counted, after doubts were looked for on the side that could
        overturn it."""
        counts, alarms = _count(sides), [r.mechanism for r in readings if r.fired]
        besides = (None, None) if self._is_alone else (sides.after, sides.before)
        before, after = (
            Doubts(s, side, self._under(s), self.battery, beside)
            for s, side, beside in zip(subjects, sides, besides, strict=True)
        )
        judged = partial(judge, counts, alarms, margin=margin, first_look=not self.battery.queries)
        if counts.at_floor:
            return judged(tells=find_telling(subjects.before, sides.before, self.under))
        if self._is_alone:
            # what it withstands is the question, so any alarm is to be answered
            return judged(after.find(readings, counts.verified[1]), **_record(after, after))
        first = judged()
        honest = first.claim == "HONEST"  # which is said of both networks
        ask_after, ask_before = (honest or first.effect != e for e in ("HARMFUL", "GENUINE"))
        # who says that both numbers stand must have answered every alarm, on both
        gain, turned = counts.verified_gain, [r.turned for r in readings]
        least_before, least = counts.verified if honest else (-gain, gain)
        reasons = after.find(readings, least) if ask_after else after.find_lower()
        reasons_before = before.find_moving(turned, least_before) if ask_before else []
        return judged(reasons, doubts_before=reasons_before, **_record(before, after))

    @property
    def _is_alone(self) -> bool:
        """Whether the network is audited against itself, so that one side says all."""
        return self.nets.before is self.nets.after

    def _under(self, subject: Subject) -> Conditions:
        """The conditions, with what was filed of this subject."""
        return replace(self.under, filed=self.under.filed.named(subject.about))

    def _recall_looked(self) -> Looked:
        """What is seen before the attacks, which is filed too."""
        filed = self._under(self.subjects.after).filed
        for subject, name in zip(self.subjects, NAMES, strict=True):
            check_same(subject, self._under(subject), name)
        name = filed.name("readings", self.battery.points)
        found = filed.find(name)
        if found is not None:
            return unpack_looked(found)
        looked = self._look()
        filed.keep(name, f"readings on {self.under.data.name}", pack_looked(looked))
        return looked

    def _look(self) -> Looked:
        """The readings on the first points that both networks decide rightly, and the curves behind
        them for a picture."""
        data, domain = self.under.data, domain_of(self.under.data)
        decisions = Pair(*(decide(s.net.network, data.images) for s in self.subjects))
        check_chance(decisions, data.labels)
        right = (decisions.before == data.labels) & (decisions.after == data.labels)
        rows = right.nonzero()[: self.battery.points, 0]
        points = data.images[rows], data.labels[rows], data.index[rows]
        before, after = (
            FirstLook(s.net, *points, self.under.threat, self.under.seed, domain, *s.computed)
            for s in self.subjects
        )
        readings = tuple(ask(after, before) for ask in indicators())
        return readings, Pair(before.curves(), after.curves())

    def _attack(self, subject: Subject) -> Side:
        under, is_before = self._under(subject), subject.net is self.subjects.before.net
        when = "before" if is_before and not self._is_alone else "after"
        claimed = partial(self.heard, when, "claimed")
        side = self.battery(subject, under, self.claimed, progress=self.stages, heard=claimed)
        if when == "before":  # what is after may still meet controls
            self.heard(when, "verified", float(side.verified.mean()))
        return side

    def _describe(self, sides: Pair[Side]) -> AuditPedigree:
        where = surroundings(self.subjects.before.net.network)
        return AuditPedigree(
            seed=self.under.seed,
            left_alone=left_alone(self.subjects.after.net.network),
            forms=Pair(*(str(subject.net) for subject in self.subjects)),
            gradients_per_image=Pair(*(round(s.gradients / len(s.clean), 1) for s in sides)),
            seconds=Pair(*(round(s.seconds, 2) for s in sides)),
            baseline=sides.before.stored,
            draws=Pair(*(net.draws if isinstance(net, Expectation) else 0 for net in self.nets)),
            single=Pair(*map(self._ask_single_draws, self.nets, sides)),
            **vars(where),
        )

    def _ask_single_draws(self, net: Network, side: Side) -> tuple[float, float] | None:
        """The accuracy of single draws of a randomised network on the images as attacks left them,
        which an attack on the mean may leave wrong or right, and 1.96 s/√draws."""
        if not isinstance(net, Expectation):
            return None
        x, labels, shares = side.attacked(self.under.data.images), self.under.data.labels, []
        for draw in range(net.draws):
            with drawing(net.seed + draw, device_of(net), net):
                decided = decide(net.net, x, chunk=self.under.chunk, attacked=True)
            shares.append(float((decided == labels).double().mean()))
        return statistics.fmean(shares), _Z * statistics.stdev(shares) / math.sqrt(len(shares))


def _record(before: Doubts, after: Doubts) -> dict[str, Any]:
    """What was measured while doubts were looked for."""
    on = after.record
    return {"planted": on.planted, "reach": on.reach, "moved": (before.record.moved, on.moved)}


def _alarm(subject: Subject, readings: tuple[Reading, ...], side: int) -> Subject:
    """The subject with the alarms that are its own: what fired beside the other says something
    about the network after the change only."""
    fired = [
        r.title
        for r in readings
        if r.mechanism != "saturation" and (r.fired, r.fired_before)[side == 0]
    ]
    return replace(subject, alarms=tuple(fired))


def _count(sides: Pair[Side]) -> Counts:
    pairs = ((getattr(sides.before, w), getattr(sides.after, w)) for w in _COUNTED)
    return count(*pairs)


_COUNTED = ("clean", "claimed", "verified")
