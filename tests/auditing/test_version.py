"""The battery's version: what an audit runs and how it judges, written out for each version.

Stored audits carry `VERSION` in their key, so that none is served for another battery's. Where this
test fails, the battery has changed: raise VERSION in auditing/battery.py and write the new file,

    python tests/auditing/test_version.py

and leave the files of earlier versions as they are. Only where a line here says the same in other
words (a class was renamed) is the file of this version written anew without a higher VERSION.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import retroact as ra
from retroact.attacks.pgd import CLAIMED
from retroact.auditing import (
    attack_run,
    battery,
    chance,
    doubts,
    indicators,
    planted,
    subjects,
    verdict,
)
from retroact.auditing.attack_run import Conditions
from retroact.auditing.battery import QUICK, THOROUGH, VERSION, Battery
from retroact.auditing.indicators import FirstLook
from retroact.auditing.subjects import Climb, Subject
from retroact.crafting import reach
from retroact.crafting.threat import Linf
from retroact.evaluation.proof import Proved, leave_as_is
from retroact.nets.data import Images
from retroact.spec import is_spec, show

SMALL = Battery(steps=2, targets=2, targeted_steps=2, finish=2, trial_steps=2, rounds=1)
"""The order of the attacks is the same whatever is spent."""


def what(version: int) -> Path:
    return Path(__file__).with_name(f"battery_{version}.txt")


def test_a_changed_battery_has_a_higher_version():
    written = what(VERSION)
    assert written.is_file(), f"{written.name} is missing: {__doc__}"
    assert list(describe()) == written.read_text("utf-8").splitlines(), __doc__


def describe() -> Iterator[str]:
    """The battery, line by line."""
    yield from _specs()
    yield from _constants()
    yield from _order()
    yield from _readings()
    yield from _verdicts()


# ------------------------------------------------------------------------------- what is run


def _specs() -> Iterator[str]:
    yield f"claimed: {_whole(CLAIMED)}"
    for name, spent in {"whole": Battery(), "quick": QUICK, "thorough": THOROUGH}.items():
        yield f"{name}: {_whole(spent)}"
        for attack in (spent.untargeted(), spent.targeted(10), spent.longer(2).targeted(3)):
            yield f"{name}: {_whole(attack)}"
    for kernel, widths in subjects.KERNELS:
        yield f"kernel: {kernel}, {widths}"


def _whole(value: Any) -> str:
    """A spec with its version and every field, those at their default too."""
    said = ", ".join(
        f"{f.name}={_whole(v) if is_spec(v) else show(v)}"
        for f in dataclasses.fields(value)
        for v in (getattr(value, f.name),)
    )
    return f"{type(value).__name__} v{getattr(type(value), 'version', 1)}({said})"


def _constants() -> Iterator[str]:
    places = {
        battery: (
            "_FIRST_ROUND",
            "_ALARMED",
            "_LEAD",
            "_QUERIES",
            "_SMALL",
            "_ANEW",
            "_FEW",
            "_PATIENCE",
        ),
        attack_run: ("_APART",),
        chance: ("SURE", "FINAL", "_LUCK"),
        doubts: ("POINT", "RISING", "DEAD", "WITHIN", "ANSWERED", "HELD", "_BOXED"),
        indicators: ("STEPS", "SHARE"),
        planted: ("ENOUGH", "SHARE", "DRAWS", "DEPTH", "LOCAL"),
        reach: ("DRAWS", "TARGETS", "SCHEDULE", "_DEEP"),
        verdict: ("MARGIN",),
    }
    for place, names in places.items():
        for name in names:
            yield f"{place.__name__.rpartition('.')[2]}.{name} = {getattr(place, name)!r}"


def _order() -> Iterator[str]:
    """The attacks in the order in which they are run, with what each is run on, on a network that
    folds and has two kernels; nothing is broken, so that no number enters."""
    forms = {name: Proved(Certain(), Certain()) for name in ("net", "folded", "other", "a", "b")}
    sources = tuple(subjects.Source(f"{k} kernel", lambda k=k: forms[k]) for k in ("a", "b"))
    plain = Subject(forms["net"], forms["folded"], forms["other"], sources)
    names = {id(form): name for name, form in forms.items()}
    for subject in (plain, dataclasses.replace(plain, sources=())):
        for spent in (SMALL, dataclasses.replace(SMALL, trial_steps=0, queries=0)):
            side = Noted(names).run(spent, subject)
            yield f"battery: {show(spent)}, kernel {side or 'none'}"
            yield from Noted.lines


class Certain(nn.Module):
    """Class 0, whatever it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([9.0, 0.0, 0.0]) + 0.0 * x.flatten(1).sum(1, keepdim=True)


class Noted:
    """Notes the attacks of a battery instead of running them."""

    lines: tuple[str, ...] = ()

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names

    def run(self, spent: Battery, subject: Subject) -> str:
        noted: list[str] = []
        names = self._names

        class Run(attack_run.AttackRun):
            def attempt(self, title: str, role: Any, attack: Any, climb: Climb, **how: Any) -> Any:
                source = names[id(climb.source)] if climb.source else "its own"
                more = {k: v for k, v in how.items() if v}
                on = f"on {names[id(climb.on)]}, gradients of {source}"
                noted.append(f"  {title} ({role}): {_whole(attack)} {on} {more or ''}".rstrip())
                return super().attempt(title, role, attack, climb, **how)

        plain, battery.AttackRun = battery.AttackRun, Run  # type: ignore[misc]
        try:
            x = torch.full((2, 1, 2, 2), 0.5)
            part = Images.of(x, torch.zeros(2, dtype=torch.int64))
            side = spent(subject, Conditions(part, Linf(0.1), 3), ra.FGSM())
        finally:
            battery.AttackRun = plain  # type: ignore[misc]
        Noted.lines = tuple(noted)
        return side.kernel


# ------------------------------------------------------------------------- how it is judged


def _readings() -> Iterator[str]:
    """Every indicator with its threshold, and what it shows on two networks of one pixel."""
    x = torch.linspace(0.3, 0.7, 21).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels, index = (x[:, 0, 0, 0] > 0.5).long(), torch.arange(len(x))
    keep = (x[:, 0, 0, 0] - 0.5).abs() > 0.015
    part = x[keep], labels[keep], index[keep]
    plain, loud, rough = (
        FirstLook(leave_as_is(net), *part, Linf(0.1))
        for net in (Line(), Line(1e4), Line(1.0, 0.004))
    )
    for ask in indicators.indicators():
        shown = [f"{v:.2f}" for after in (loud, rough) for v in ask.function(after, plain)]
        rule = f"{'times' if ask.ratio else 'plus'} {ask.threshold:g}"
        yield f"{ask.title}: {ask.mechanism}, {rule}: {', '.join(shown)}"


class Line(nn.Module):
    """Two classes that meet at a grey of 0.5; at every multiple of `steps` the grey jumps back by
    three of them, which no gradient shows."""

    def __init__(self, slope: float = 1.0, steps: float = 0.0) -> None:
        super().__init__()
        self.slope, self.steps = slope, steps

    def forward(self, x: Tensor) -> Tensor:
        grey = x.flatten(1).mean(1, keepdim=True) - 0.5
        if self.steps:
            grey = grey - 3.0 * (grey / self.steps).floor() * self.steps
        return self.slope * torch.cat([-grey, grey], 1)


def _verdicts() -> Iterator[str]:
    cases = [(300, 40, 5), (300, 5, 40), (2000, 3, 5), (60, 3, 1), (300, 0, 0)]
    for n, gained, lost in cases:
        robust = (10 + lost) / n, (10 + gained) / n
        for claimed in (robust, (robust[0], robust[1] + 0.2), (robust[0] + 0.1, robust[1] + 0.3)):
            counts = verdict.Counts(n, (1.0, 1.0), claimed, robust, gained, lost)
            for alarms in ([], ["saturation", "jump"]):
                said = verdict.judge(counts, alarms)
                doubted = verdict.judge(counts, alarms, ["a doubt"]).effect
                yield (
                    f"{n}, {gained}, {lost}, {claimed[0]:.2f}, {claimed[1]:.2f}, {alarms}:"
                    f" {said.effect} ({doubted}), {said.claim}, {said.mechanism or 'none'}"
                )


if __name__ == "__main__":
    what(VERSION).write_text("\n".join(describe()) + "\n", encoding="utf-8")
