"""The battery: the attacks that stand behind "verified", the same on the twin and on the retrofit.

One after the other on the examples that still stand; what counts is the union. The claimed attack
comes first, on all. Then the margin loss on the network, or on its folded copy where slopes would
saturate it, untargeted and targeted. Where the activation has a jump, the same through a backward
pass with a kernel at the jump; which kernel and how wide is tried out on a few standing examples.
Last the controls, which should find nothing new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.activations.activation import Kernel
from retroact.activations.per_site import PerSite
from retroact.activations.piecewise import without_slope
from retroact.activations.ramp import RELU
from retroact.attacks.apgd import APGD
from retroact.attacks.momentum import Momentum
from retroact.attacks.square import Square
from retroact.crafting.annealed import Annealed
from retroact.crafting.attack import Attack
from retroact.crafting.domain import domain_of
from retroact.crafting.oracle import Network, device_of
from retroact.crafting.threat import ThreatModel
from retroact.evaluation.evaluate import Examples, decide, decided
from retroact.evaluation.proof import Proved, craft_on, prove, prove_same
from retroact.retrofitting.folding import FoldError, fold
from retroact.retrofitting.sites import sites
from retroact.retrofitting.surgery import Retrofit, refit, refit_sharing, retrofit
from retroact.spec import AtLeast0, Count, Within, show, spec

VERSION = 2
"""Counts the changes of what an audit runs and how it judges. It enters the keys of stored audits,
so that no old one is served for a new one; tests/auditing/test_version.py says when to raise it.
"""

Role = Literal["claimed", "white box", "control"]

Schedule = tuple[Kernel, tuple[float, ...]]
KERNELS: tuple[Schedule, ...] = (
    ("sigmoid", (2.0, 3.0, 4.0, 5.0, 7.0, 9.0, 12.0, 16.0, 22.0, 30.0)),
    ("sigmoid", (1.5, 2.5, 4.0, 6.0, 10.0)),
    ("rectangle", (0.5, 1.0, 2.0)),
)
"""Kernels with their beta · kappa from the first steps of an attack to its last: wide, then
narrow."""

KEPT = 6  # fallen examples per network that are kept for the report


@spec
class Battery:
    """How much is spent: APGD `steps` untargeted, then `targeted_steps` towards each of the
    `targets` likeliest classes and `finish` towards the nearest, through the kernel where there is
    a jump, gradients taken within `noise`.

    Then up to `rounds` of the targeted attack from fresh starts, the first with 3 times the steps,
    the next with 4 times, and so on until one of them fells nothing. Kernels are tried for
    `trial_steps` (0: the first is taken) on `sample` standing examples; the Square control takes
    `queries` on half as many; the indicators look at `points`. Gradients per example that stands to
    the end: (steps + targets · targeted_steps + finish) · restarts and those of the rounds; the
    transfer control `steps` more. Chosen on validation images: docs/audit.md.
    """

    steps: Count = 30
    targets: Count = 5
    targeted_steps: Count = 30
    finish: Annotated[int, Within(0)] = 150
    noise: AtLeast0 = 0.7
    rounds: Annotated[int, Within(0)] = 0
    restarts: Count = 1
    trial_steps: Annotated[int, Within(0)] = 10
    sample: Count = 64
    queries: Annotated[int, Within(0)] = 500
    points: Count = 200

    def __call__(
        self,
        party: Party,
        data: Examples,
        threat: ThreatModel,
        claimed: Attack,
        *,
        classes: int,
        seed: int = 0,
        chunk: int | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> Side:
        """Runs on one side of an audit; `progress` is called after each of its `STAGES`."""
        siege = Siege(party.net.network, data, threat, seed, chunk)
        siege.attack(_CLAIMED, "claimed", claimed, party.net)
        under_claim = siege.stands.copy()
        # where slopes blinded it: the twin, which it saw, has had its chance
        if party.folded is not party.net:
            siege.attack("claimed, on the folded net", "white box", claimed, party.folded)
        progress()
        siege.attack("APGD, margin", "white box", self.untargeted(), party.folded)
        progress()
        name, guide = _best_guide(siege, party, self)
        progress()
        siege.attack(
            f"targeted{name}", "white box", self.targeted(classes), **party.seen_through(guide)
        )
        progress()
        self.again(siege, party, guide, name, classes)
        if self.queries:
            _controls(siege, party, self)
        progress()
        return siege.ended(under_claim)

    def controlled(
        self,
        side: Side,
        party: Party,
        data: Examples,
        threat: ThreatModel,
        seed: int = 0,
        chunk: int | None = None,
    ) -> Side:
        """The side after the controls, also where the battery itself runs none: what they fell
        counts."""
        siege = Siege(party.net.network, data, threat, seed, chunk)
        siege.stands, siege.felled_by = side.verified.copy(), side.felled_by.copy()
        siege.runs, siege.fallen = list(side.runs), list(side.fallen)
        _controls(
            siege,
            party,
            replace(self, queries=self.queries or Battery.queries, sample=2 * self.sample),
        )
        return siege.ended(side.claimed)

    def again(self, siege: Siege, party: Party, guide: Proved, name: str, classes: int) -> None:
        """The rounds, until one fells nothing: so to spend more still would find next to
        nothing."""
        for turn in range(1, self.rounds + 1):
            attack = self.longer(_FIRST_ROUND + turn - 1).targeted(classes)
            if not siege.attack(
                f"round {turn}{name}", "white box", attack, **party.seen_through(guide), fresh=turn
            ):
                return

    def doubled(self) -> Battery:
        """Twice the steps and twice the starts."""
        return replace(self.longer(2), restarts=2 * self.restarts)

    def longer(self, times: int) -> Battery:
        """So many times the steps."""
        steps, targeted, finish = (
            times * n for n in (self.steps, self.targeted_steps, self.finish)
        )
        return replace(self, steps=steps, targeted_steps=targeted, finish=finish)

    def untargeted(self) -> APGD:
        return APGD(self.steps, self.restarts, loss="margin")

    def targeted(self, classes: int) -> Momentum:
        targets = min(self.targets, classes - 1)
        return Momentum(
            self.targeted_steps, self.restarts, targets, finish=self.finish, noise=self.noise
        )


QUICK = Battery(
    steps=10,
    targets=3,
    targeted_steps=15,
    finish=45,
    trial_steps=0,
    sample=24,
    queries=0,
    points=100,
)
"""The decisive attacks alone, for a first answer; the controls only before it says GENUINE."""

THOROUGH = Battery(rounds=8)
"""Begins anew until a round fells nothing, so that more of the same would find little."""

_FIRST_ROUND = 3  # times the steps of the main attack


@dataclass(frozen=True)
class Run:
    """What one attack of the battery did: on `asked` standing examples it felled `felled`."""

    title: str
    attack: str
    role: Role
    asked: int
    felled: int
    gradients: int
    zero_gradients: int
    queries: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Side:
    """One network under the battery, example by example, all (n,): `clean` right, standing under
    the claimed attack (`claimed`), under all of them (`verified`), and which run felled it first
    (`felled_by`, −1: none).

    `fallen` keeps some rows with their adversarial images.
    """

    clean: NDArray[np.bool_]
    claimed: NDArray[np.bool_]
    verified: NDArray[np.bool_]
    felled_by: NDArray[np.int64]
    runs: tuple[Run, ...]
    fallen: tuple[Fallen, ...]

    @property
    def gradients(self) -> int:
        """Gradient passes of all runs."""
        return sum(run.gradients for run in self.runs)

    @property
    def seconds(self) -> float:
        return sum(run.seconds for run in self.runs)


@dataclass(frozen=True, eq=False)
class Fallen:
    """An example that fell: its row, what it was before and after (…), the class decided, and the
    run's title."""

    row: int
    label: int
    decided: int
    image: NDArray[np.float32]
    x_adv: NDArray[np.float32]
    by: str


Guide = tuple[str, Callable[[], Proved]]
"""What a kernel is called, and the network with that kernel in its backward pass."""


@dataclass(frozen=True)
class Party:
    """A network under audit, `net`, with what the battery may climb instead of it.

    `folded` computes the same without slopes (the net itself where there are none or it does not
    fold); `other` is the network it is compared with; `guides` see a jump in their backward pass.
    They compute the same, unless they are `foreign`: a user's surrogate.
    """

    net: Proved
    folded: Proved
    other: Proved
    guides: tuple[Guide, ...] = ()
    foreign: bool = False

    def seen_through(self, guide: Proved) -> dict[str, Any]:
        """What an attack along `guide` is run on: a guide that computes the same decides too, which
        is cheaper; of a `foreign` one only the gradients are taken."""
        if self.foreign and guide is not self.folded:
            return {"on": self.net, "source": guide}
        return {"on": guide}


def parties(
    twin: Network,
    defended: Network,
    data: Examples,
    threat: ThreatModel,
    surrogate: Network | None = None,
    kernels: Sequence[Schedule] = KERNELS,
    seed: int = 0,
) -> tuple[Party, Party]:
    """The two sides of an audit, (twin, defended), with kernels and folds derived from their own
    specs.

    Each network's lean form, its fold and what its kernels are put into are made here, once, and
    proved on `data`. `surrogate` is a user's own network to climb in the place of `defended`, for a
    defence without a spec.
    """
    ask = partial(prove, images=data.images, index=data.index, threat=threat)
    domain = domain_of(data)
    before = ask(twin, passes=_MANY, domain=domain, seed=seed)
    after, *own = (
        ask(net, passes=_MANY, domain=domain, seed=seed, like=before)
        for net in (defended, surrogate)
        if net is not None
    )
    before, after = (_own_jumps(on, data, threat) for on in (before, after))
    folded = _folded(before, data, threat), _folded(after, data, threat)
    one, other = Party(before, folded[0], after), Party(after, folded[1], before)
    if own:
        return one, replace(other, guides=(("your surrogate", lambda: own[0]),), foreign=True)
    return (
        replace(one, guides=_guides(folded[0], folded[1], kernels, data, threat)),
        replace(other, guides=_guides(folded[1], folded[0], kernels, data, threat)),
    )


def _own_jumps(on: Proved, data: Examples, threat: ThreatModel) -> Proved:
    """A network whose own code jumps (x[x <= t] = 0), dressed as the retrofit that it is, so that
    kernels can see it.

    As it is where it has no such sites, carries a retrofit, or the dressed form is not proved to
    compute the same.
    """
    if not isinstance(on.lean, nn.Module) or getattr(on.lean, "retrofit", None) is not None:
        return on
    example = data.images[:2].to(device_of(on.lean))
    try:
        found = sites(on.lean, example, also=(OWN_JUMP,))
        if not any(site.own is not None and site.own.jump for site in found):
            return on
        each = PerSite(tuple(without_slope(site.own or RELU) for site in found))
        dressed = retrofit(on.lean, each, also=(OWN_JUMP,), example=example)
    except (ValueError, TypeError, RuntimeError):
        # sealed, or not to be replaced: it is attacked without kernels
        return on
    where, domain = (data.images, data.index, threat), domain_of(data)
    same = prove_same(on.network, dressed, *where, domain=domain, gradients=False)
    return replace(on, lean=dressed) if same else on


OWN_JUMP = "jumprelu"  # what recognition calls a jump that a network's own code makes
_MANY = 1000  # what an audit asks of an image: always more than a proof costs


def _guides(
    on: Proved, other: Proved, kernels: Sequence[Schedule], data: Examples, threat: ThreatModel
) -> tuple[Guide, ...]:
    """Kernels at the jumps of a network; where it has none and the other has, kernels of the same
    bandwidth at its kinks."""
    own, others = getattr(on.lean, "retrofit", None), getattr(other.lean, "retrofit", None)
    if not isinstance(on.lean, nn.Module):
        return ()
    if own is not None and own.activation.jump:
        bend: Bend = own.activation.smoothed
        made = partial(_annealed, on, on.lean, lambda: on.fallback, bend)
        return tuple((_called(*schedule), made(schedule)) for schedule in kernels)
    if others is None or not others.activation.jump:
        return ()
    bend = partial(others.activation.smoothed, plain=True)
    kernel, widths = KERNELS[0]
    soften = partial(_softened, others=others, data=data, neutral=bend(widths[0], kernel))
    soft = soften(on.lean)
    # shifts, and slopes that did not fold, would be lost
    how: dict[str, Any] = {"scale": on.scale, "gradients": False, "domain": domain_of(data)}
    if soft is None or not prove_same(on.network, soft, data.images, data.index, threat, **how):
        return ()
    made = partial(_annealed, on, soft, lambda: soften(on.fallback), bend)  # type: ignore[arg-type]
    return tuple((_called(*schedule), made(schedule)) for schedule in kernels)


Bend = Callable[[float, Kernel], Any]
"""The activation with a kernel of some sharpness at its jump."""


def _softened(net: nn.Module, others: Retrofit, data: Examples, neutral: Any) -> nn.Module | None:
    """The net with the other one's kernels at kappa = 0, where its own activation has its kink;
    None where it has no such sites."""
    if getattr(net, "retrofit", None) is not None:
        return refit(net, neutral)
    given = None if getattr(net, "shape", None) is not None else data.images[:2].to(device_of(net))
    try:
        return replace(others, activation=neutral)(net, given)
    except ValueError:
        return None


def _called(kernel: Kernel, widths: tuple[float, ...]) -> str:
    return f"{kernel} kernel, beta kappa = {', '.join(f'{w:g}' for w in widths)}"


def _annealed(
    on: Proved, net: nn.Module, bare: Callable[[], Any], bend: Bend, schedule: Schedule
) -> Callable[[], Proved]:
    """Makes `net`, which computes what `on` does, with one kernel after the other, from the first
    on; the nets are made once and share their weights. `bare` makes it without the lean form."""
    kernel, widths = schedule

    def through(net: nn.Module) -> list[nn.Module]:
        return [refit_sharing(net, bend(width, kernel)) for width in widths]

    lean, whole = cache(lambda: through(net)), cache(lambda: through(bare()))
    return lambda: replace(on, lean=Annealed(lean()), instead=lambda: Annealed(whole()))


def _folded(on: Proved, data: Examples, threat: ThreatModel) -> Proved:
    """The network without its slopes; as it is where it has none, does not fold, or its fold is not
    proved."""
    net = on.network
    if getattr(net, "retrofit", None) is None or not isinstance(net, nn.Module):
        return on
    try:
        made = fold(net, scaled=False)
    except FoldError:
        return on
    scale: float = made.logit_scale  # type: ignore[assignment]
    where, domain = (data.images, data.index, threat), domain_of(data)
    if scale == 1.0 or not prove_same(net, made, *where, scale=scale, domain=domain):
        return on
    lean = prove(made, *where, passes=_MANY, domain=domain, like=on)
    return Proved(net, lean.lean, lean.form, scale, lambda: made)


# --------------------------------------------------------------------------------------- the run


class Siege:
    """A network's examples under one attack after the other; `stands` (n,) are those that none has
    felled."""

    def __init__(
        self, net: Network, data: Examples, threat: ThreatModel, seed: int, chunk: int | None = None
    ) -> None:
        self._data, self._threat, self._seed, self._chunk = data, threat, seed, chunk
        self.clean = (decide(net, data.images, chunk=chunk) == data.labels).numpy()
        self.stands = self.clean.copy()
        self.felled_by = np.full(len(self.stands), -1, dtype=np.int64)
        self.runs: list[Run] = []
        self.fallen: list[Fallen] = []

    def attack(
        self,
        title: str,
        role: Role,
        attack: Attack,
        on: Proved,
        *,
        source: Proved | None = None,
        among: int | None = None,
        fresh: int = 0,
    ) -> int:
        """Attacks the first `among` (None: all) standing examples on a form; the network itself
        judges what falls.

        `fresh` counts how often the attack has begun anew, from other random starts. Returns how
        many fell.
        """
        return self.file(
            self.attempt(title, role, attack, on, source=source, among=among, fresh=fresh)
        )

    def attempt(
        self,
        title: str,
        role: Role,
        attack: Attack,
        on: Proved,
        *,
        source: Proved | None = None,
        among: int | None = None,
        fresh: int = 0,
    ) -> Attempt:
        """What the attack would fell; nothing is filed yet."""
        rows, began = torch.from_numpy(np.flatnonzero(self.stands)[:among]), time.perf_counter()
        if not len(rows):
            return Attempt(Run(title, show(attack), role, 0, 0, 0, 0, 0, 0.0), rows, rows, None)
        x, y, index = self._data.images[rows], self._data.labels[rows], self._data.index[rows]
        how: dict[str, Any] = {
            "source": source,
            "domain": domain_of(self._data),
            "seed": self._seed + _APART * fresh,
            "chunk": self._chunk,
        }
        (made,) = craft_on(on, attack, x, y, index, [self._threat], **how)
        decision, outcome = decided(made.logits, attacked=True), made.outcome
        hit = (decision != y) & (decision >= 0)  # −1: the network overflowed, which is no success
        passes, dead, queries = (
            int(c.sum()) for c in (outcome.gradients, outcome.zero_gradients, outcome.queries)
        )
        seconds = time.perf_counter() - began
        run = Run(
            title, show(attack), role, len(rows), int(hit.sum()), passes, dead, queries, seconds
        )
        return Attempt(run, rows[hit], decision[hit], outcome.x_adv[hit])

    def file(self, attempt: Attempt) -> int:
        """Counts what an attempt felled, where nothing else has; returns how many."""
        new = self.stands[attempt.rows.numpy()]
        rows = attempt.rows.numpy()[new]
        self.felled_by[rows] = len(self.runs)
        self.stands[rows] = False
        self.runs.append(replace(attempt.run, felled=len(rows)))
        kept = sum(f.by == attempt.run.title for f in self.fallen)
        self.fallen += [self._fallen(attempt, int(i)) for i in np.flatnonzero(new)[: KEPT - kept]]
        return len(rows)

    def _fallen(self, attempt: Attempt, i: int) -> Fallen:
        row = int(attempt.rows[i])
        assert attempt.x_adv is not None
        before, after = self._data.images[row].numpy(), attempt.x_adv[i].numpy()
        return Fallen(
            row,
            int(self._data.labels[row]),
            int(attempt.decided[i]),
            before,
            after,
            attempt.run.title,
        )

    def ended(self, claimed: NDArray[np.bool_]) -> Side:
        """What came out of it."""
        felled = self.felled_by.copy()
        # what the claimed attack did not find says more than what it found
        fallen = tuple(sorted(self.fallen, key=lambda f: f.by == _CLAIMED)[:KEPT])
        return Side(self.clean, claimed, self.stands.copy(), felled, tuple(self.runs), fallen)


class Attempt(NamedTuple):
    """A run, the rows (m,) it felled, their new decisions (m,) and images (m, …)."""

    run: Run
    rows: Tensor
    decided: Tensor
    x_adv: Tensor | None


STAGES = 5
_APART = 1_000_003  # seeds of fresh starts, out of the way of a user's own
_CLAIMED = "claimed"


def _best_guide(siege: Siege, party: Party, battery: Battery) -> tuple[str, Proved]:
    """The kernel that fells most of a few standing examples, with its name; the folded net where
    there is no jump."""
    if not party.guides:
        return "", party.folded
    if not battery.trial_steps:
        name, make = party.guides[0]
        return f" through a {name}", make()
    guides = [(name, make()) for name, make in party.guides]
    trial = Momentum(battery.trial_steps)
    tried = [
        siege.attempt(
            f"trial of a {name}",
            "white box",
            trial,
            **party.seen_through(net),
            among=battery.sample,
        )
        for name, net in guides
    ]
    # the first of those that fell as many
    best = max(range(len(guides)), key=lambda i: tried[i].run.felled)
    for attempt in tried:
        siege.file(attempt)
    return f" through a {guides[best][0]}", guides[best][1]


def chosen_guide(party: Party, side: Side) -> Proved | None:
    """The kernel that the battery chose; None where it needed none."""
    titles = {run.title for run in side.runs}
    return next(
        (make() for name, make in party.guides if f"targeted through a {name}" in titles), None
    )


def _controls(siege: Siege, party: Party, battery: Battery) -> None:
    """Attacks that should be weaker: where they are not, the white-box ones have missed
    something."""
    if party.folded is not party.net:
        siege.attack("APGD on the net as it is", "control", battery.untargeted(), party.net)
    siege.attack("APGD, transfer", "control", battery.untargeted(), party.net, source=party.other)
    siege.attack(
        "Square", "control", Square(battery.queries), party.net, among=max(1, battery.sample // 2)
    )
