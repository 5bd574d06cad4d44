"""The battery: the attacks that stand behind "verified", the same before the change and after it.

One after the other on the examples that are still robust; what counts is the union. The claimed
attack comes first, on all. Then the margin loss on the network, or on its folded copy where slopes
would saturate it, untargeted and targeted. Where the activation has a jump, the same through a
backward pass with a kernel at the jump; which kernel and how wide is tried out on a few robust
examples, beside difference quotients, which need no spec. Alarms of the network ask for more. Last
the controls, which should find nothing new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Literal

from retroact.attacks.apgd import APGD
from retroact.attacks.hop_skip_jump import HopSkipJump
from retroact.attacks.momentum import Momentum
from retroact.attacks.rays import RayS
from retroact.attacks.spsa import SPSA
from retroact.attacks.square import Square
from retroact.auditing.attack_run import AttackRun, Conditions, Side
from retroact.auditing.subjects import KERNELS, TRACE, Climb, Subject
from retroact.crafting.attack import Attack
from retroact.crafting.domain import domain_of
from retroact.crafting.student import train_student
from retroact.evaluation.proof import leave_as_is
from retroact.spec import AtLeast0, Count, Within, spec

VERSION = 10
"""Counts the changes of what an audit runs and how it judges. It enters the keys of stored audits,
so that no old one is served for a new one; tests/auditing/test_version.py says when to raise it.
"""

STAGES = 5
_QUERIES = 6  # times those of the Square control: what a decision-based attack may ask
_SMALL = 128  # entries of an example that scores alone find their way in
_ALARMED = 10  # steps of a trial where an alarm asks for one
_LEAD = 2  # more broken by what is three times as dear, where no alarm asked for it
_USELESS = ("no gradient", "gradient mismatch", "random directions", "equal logits")
"""Alarms of a backward pass that is not to be followed."""
_FIRST_ROUND = 3  # times the steps of the main attack
_ANEW, _FEW = 4, 0.05
"""How often at most the targeted attack begins anew on a network that draws, and the share of what
it is asked of which less is too little to go on, whoever begins anew."""
_ASKED = 8
"""Targeted attacks that alarms may ask for: another kernel, the trace, two that no size of logits
misleads, inner scores, the folded net, a student, planted examples."""
_PATIENCE = 2
"""How many such in a row end it on a network that draws, where each follows other means."""


@spec
class Battery:
    """How much is spent: APGD `steps` untargeted, then `targeted_steps` towards each of the
    `targets` likeliest classes and `finish` towards the nearest, through the kernel where there is
    a jump, gradients taken within `noise`.

    Then up to `rounds` of the targeted attack from fresh starts, the first with 3 times the steps,
    the next with 4 times, and so on until one of them breaks nothing. Where alarms fired `finish`
    is `alarmed_finish` at least, and where no kernel answers them, what broke most begins `anew` so
    often at most. Kernels are tried for `trial_steps` (0: the first is taken) on `sample` robust
    examples; the Square control takes `queries` on half as many; the indicators look at `points`.
    Gradients per example that is robust to the end: (steps + targets · targeted_steps + finish) ·
    restarts and those of the rounds; the transfer control `steps` more. Chosen on validation
    images: docs/audit.md.
    """

    steps: Count = 30
    targets: Count = 5
    targeted_steps: Count = 30
    finish: Annotated[int, Within(0)] = 150
    noise: AtLeast0 = 0.7
    rounds: Annotated[int, Within(0)] = 0
    anew: Annotated[int, Within(0)] = 0
    restarts: Count = 1
    trial_steps: Annotated[int, Within(0)] = 10
    sample: Count = 64
    queries: Annotated[int, Within(0)] = 500
    points: Count = 200
    alarmed_finish: Annotated[int, Within(0)] = 100

    def __call__(
        self,
        subject: Subject,
        under: Conditions,
        claimed: Attack,
        *,
        progress: Callable[[], None] = lambda: None,
        heard: Callable[[float], None] = lambda share: None,
    ) -> Side:
        """Runs on one network of an audit; `progress` is called after each of its `STAGES`, and
        `heard` with the claimed accuracy as soon as it is measured."""
        run = AttackRun(subject.net.network, under)
        run.attack("claimed", "claimed", claimed, Climb(subject.net))
        robust_to_claimed = run.robust.copy()
        heard(float(robust_to_claimed.mean()))
        # where slopes blinded it: the network without them has had its chance to be seen
        if subject.folded is not subject.net:
            folded = Climb(subject.folded)
            run.attack("claimed, on the folded net", "white box", claimed, folded)
        progress()
        run.attack("APGD, margin", "white box", self.untargeted(), Climb(subject.folded))
        progress()
        climb, *others = self.rank(run, subject)
        progress()
        title = f"targeted{_through(climb)}"
        spent = self.alarmed() if subject.alarms or subject.draws else self
        broken = run.attack(title, "white box", spent.targeted(under.classes), climb)
        if subject.alarms:
            spent.answer(run, subject, [climb, *others[:1]], under, broken)
        spent.look_inside(run, subject, under.classes)
        if subject.draws and not subject.is_baffling:
            spent.begin_anew(run, climb, under, _ANEW, _PATIENCE)
        progress()
        self.again(run, climb, under.classes)
        if self.queries:
            self.control(run, subject)
        progress()
        return run.finish(robust_to_claimed, climb.kernel)

    def add_controls(self, side: Side, subject: Subject, under: Conditions) -> Side:
        """The side after the controls, also where the battery itself runs none: what they break
        counts."""
        run = AttackRun(subject.net.network, under)
        run.resume(side)
        queries = self.queries or Battery.queries
        replace(self, queries=queries, sample=2 * self.sample).control(run, subject)
        return run.finish(side.claimed, side.kernel)

    def rank(self, run: AttackRun, subject: Subject) -> list[Climb]:
        """What to climb, first what breaks most of a few robust examples: kernels, scores inside,
        differences, or the folded net as it is. Differences cost three times a gradient, so where
        no alarm fired they must lead."""
        suspect = subject.alarms or subject.inner
        climbs, steps = subject.climbs, self.trial_steps or (_ALARMED if suspect else 0)
        if not steps or len(climbs) == 1:
            return climbs[:1]
        if not self.trial_steps:  # the first kernel alone, and what was derived
            climbs = [climbs[0], *climbs[max(1, len(subject.sources)) :]]
        trial = Momentum(steps)
        attempts = [
            run.attempt(f"trial{_through(c)}", "white box", trial, c, among=self.sample)
            for c in climbs
        ]
        for attempt in attempts:
            run.file(attempt)
        dear = () if subject.alarms else [source.name for source in subject.derived]

        def place(i: int) -> int:  # the first of those that broke as many
            return (_LEAD - 1) * (climbs[i].kernel in dear) - attempts[i].result.broken

        return [climbs[i] for i in sorted(range(len(climbs)), key=place)]

    def answer(
        self,
        run: AttackRun,
        subject: Subject,
        climbs: Sequence[Climb],
        under: Conditions,
        broken: int,
    ) -> None:
        """What alarms ask for: the untargeted attack through what broke most, the targeted one
        through what came next, through the trace where the backward pass is not its derivative,
        and through what no size of the logits can mislead where the margin misleads; where nothing
        that is its own computation broke two, along a student; and where nothing at all was broken,
        attacks that ask for decisions and scores alone. Of a network that draws, alarms hear the
        noise: its own averaged gradient is followed too. What breaks most there, or by a battery of
        few steps, is begun anew; the first of `climbs` has `broken` so many."""
        asked, targeted = subject.alarms, self.targeted(under.classes)
        title = f"APGD{_through(climbs[0])}"
        run.attack(title, "white box", self.untargeted(), climbs[0], asked_by=asked)
        if not subject.is_baffling:
            return
        trace = subject.source(TRACE)
        mismatched = "gradient mismatch" in subject.alarms and trace is not None
        more = [*climbs[1:], *([subject.through(trace)] if mismatched else [])]
        more += map(subject.through, subject.answers_misled)
        more += [Climb(subject.folded)] if subject.draws else []
        found = {climbs[0]: broken}
        for climb in {c.kernel: c for c in more if c.kernel != climbs[0].kernel}.values():
            title = f"targeted{_through(climb)}"
            found[climb] = run.attack(title, "white box", targeted, climb, asked_by=asked)
        turns, patience = (_ANEW, _PATIENCE) if subject.draws else (self.anew, 1)
        self.begin_anew(run, max(found, key=found.__getitem__), under, turns, patience)
        own = {s.name for s in (*subject.sources, *subject.derived) if not s.foreign}
        if subject.derives and not any(a.kernel in own and a.broken > 1 for a in run.attacks):
            self.imitate(run, subject, under)
        blind = "no gradient" in subject.alarms
        if self.queries and blind and not any(a.kernel and a.broken for a in run.attacks):
            self.search(run, subject, under)

    def look_inside(self, run: AttackRun, subject: Subject, classes: int) -> None:
        """The targeted attack towards scores inside that decide as the answers do, where there are
        any and nothing asked for it: what little is added to them no alarm hears."""
        ran = {attack.kernel for attack in run.attacks if not attack.is_trial}
        for source in subject.inner:
            if source.name not in ran:
                climb = subject.through(source)
                title = f"targeted{_through(climb)}"
                run.attack(title, "white box", self.targeted(classes), climb)

    def begin_anew(
        self, run: AttackRun, climb: Climb, under: Conditions, turns: int, patience: int
    ) -> None:
        """The targeted attack from fresh starts, until so many in a row break few: a mean over few
        draws, or few steps on what is ragged, lead astray in one run and not in the next."""
        idle = 0
        for turn in range(1, turns + 1):
            asked = int(run.robust.sum())
            title, attack = f"targeted anew, {turn}{_through(climb)}", self.targeted(under.classes)
            broken = run.attack(title, "white box", attack, climb, fresh=turn)
            idle = idle + 1 if broken < 2 or broken < _FEW * asked else 0
            if idle == patience:
                return

    def imitate(self, run: AttackRun, subject: Subject, under: Conditions) -> None:
        """The attacks along a student of the network's answers, where its backward pass is useless.
        A student is nobody's derivative: what it leaves may still be broken."""
        asked = tuple(title for title in subject.alarms if title in _USELESS)
        if not asked or not run.robust.any():
            return
        data, net = under.data, subject.net.network
        points = data.images, data.index, under.threat, domain_of(data)
        teach = partial(train_student, net, subject.other.network, *points, under.seed)
        climb = Climb(subject.net, make=cache(lambda: leave_as_is(teach())))
        for attack in (self.untargeted(), self.targeted(under.classes)):
            title = f"{type(attack).__name__} along a student"
            run.attack(title, "white box", attack, climb, asked_by=asked)

    def search(self, run: AttackRun, subject: Subject, under: Conditions) -> None:
        """Attacks without gradients, on all that is robust: by decisions, and by scores where
        examples are small."""
        plain, domain, norm = Climb(subject.net), domain_of(under.data), under.threat.norm
        by_decisions: list[Attack] = [RayS(_QUERIES * self.queries)]
        by_decisions += [HopSkipJump(_QUERIES * self.queries)]
        for attack in [a for a in by_decisions if norm in a.norms][:1]:
            name = type(attack).__name__
            run.attack(name, "white box", attack, plain, asked_by=subject.alarms)
        if domain.entries <= _SMALL:
            run.attack("SPSA", "white box", SPSA(), plain, asked_by=subject.alarms)

    def again(self, run: AttackRun, climb: Climb, classes: int) -> None:
        """The rounds, until one breaks nothing: so to spend more still would find next to
        nothing."""
        for turn in range(1, self.rounds + 1):
            attack = self.longer(_FIRST_ROUND + turn - 1).targeted(classes)
            title = f"round {turn}{_through(climb)}"
            if not run.attack(title, "white box", attack, climb, fresh=turn):
                return

    def control(self, run: AttackRun, subject: Subject) -> None:
        """Attacks that should be weaker: where they are not, the white-box ones have missed
        something."""
        plain, transfer = Climb(subject.net), Climb(subject.net, subject.other)
        if subject.folded is not subject.net:
            run.attack("APGD on the net as it is", "control", self.untargeted(), plain)
        run.attack("APGD, transfer", "control", self.untargeted(), transfer)
        square, few = Square(self.queries), max(1, self.sample // 2)
        run.attack("Square", "control", square, plain, among=few)

    def alarmed(self) -> Battery:
        """What is spent where an alarm fired, as what is climbed there is steep and ragged."""
        return replace(self, finish=max(self.finish, self.alarmed_finish))

    def doubled(self) -> Battery:
        """Twice the steps and twice the starts."""
        return replace(self.longer(2), restarts=2 * self.restarts)

    def longer(self, times: int) -> Battery:
        """So many times the steps."""
        steps, targeted, finish = (
            times * n for n in (self.steps, self.targeted_steps, self.finish)
        )
        return replace(self, steps=steps, targeted_steps=targeted, finish=finish)

    def passes(self, claimed: Attack, n: int, classes: int) -> int:
        """How many gradients n examples take at most that are robust to the end, beside what
        slopes, alarms and doubts ask for."""
        of_each = claimed.passes + self.untargeted().passes + self.targeted(classes).passes
        of_each += self.untargeted().passes if self.queries else 0
        for turn in range(self.rounds):
            of_each += self.longer(_FIRST_ROUND + turn).targeted(classes).passes
        trials = (len(KERNELS) + 1) * self.trial_steps
        return n * of_each + min(n, self.sample) * trials

    def more_passes(self, n: int, classes: int) -> int:
        """How many more alarms and doubts may ask for of n examples that are robust to the end."""
        targeted, untargeted = self.alarmed().targeted(classes).passes, self.untargeted().passes
        doubled = self.longer(2)
        doubts = doubled.untargeted().passes + doubled.targeted(classes).passes
        return n * ((_ASKED + self.anew) * targeted + 3 * untargeted + doubts)

    def untargeted(self) -> APGD:
        return APGD(self.steps, self.restarts, loss="margin")

    def targeted(self, classes: int) -> Momentum:
        targets = min(self.targets, classes - 1)
        return Momentum(
            self.targeted_steps, self.restarts, targets, finish=self.finish, noise=self.noise
        )


def _through(climb: Climb) -> str:
    return f" through a {climb.kernel}" if climb.kernel else ""


QUICK = Battery(
    steps=10,
    targets=3,
    targeted_steps=15,
    finish=45,
    trial_steps=0,
    sample=24,
    queries=0,
    points=100,
    anew=2,
)
"""The decisive attacks alone, for a first answer; the controls only before it says GENUINE."""

THOROUGH = Battery(rounds=8)
"""Begins anew until a round breaks nothing, so that more of the same would find little."""

Named = Literal["quick", "thorough"]
_NAMED: dict[Named, Battery] = {"quick": QUICK, "thorough": THOROUGH}


def battery_of(said: Battery | Named | None) -> Battery:
    """The battery that a user says; ValueError for a word that names none."""
    if isinstance(said, str):
        if said not in _NAMED:
            raise ValueError(f'battery: expected a Battery, "quick" or "thorough", got {said!r}')
        return _NAMED[said]
    return Battery() if said is None else said
