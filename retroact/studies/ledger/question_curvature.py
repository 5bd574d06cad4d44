"""Question: does a rounded corner help, on what, and beside what else?

Curvature Tuning in depth: one beta for the network, chosen on validation images, a beta for each
site, and one for each channel, learned on training images; networks trained from other seeds; on
top of hardening, and on networks trained with adversarial images; at a small and a large radius;
and AutoAttack beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from retroact.crafting.threat import Linf
from retroact.reports.studied import Part, Table, Takeaway, Text, Value
from retroact.studies.desk import Desk, Facts, NotMeasuredError
from retroact.studies.ledger.curved import LearnedCurvature
from retroact.studies.ledger.lines import audit_of, choices_of
from retroact.studies.ledger.measurements import ByAutoAttack, RowAudit, found, unpack
from retroact.studies.ledger.networks import Net, available, radii
from retroact.studies.ledger.power import interval
from retroact.studies.ledger.rows import Row, docket
from retroact.studies.ledger.treatments import Hardened, OnTop, Swapped, Treatment

PLACE = 6
HEAD = ("network", "radius", "change", "clean", "verified", "difference, 95 %", "audit", "n")
Asked = tuple[Net, Treatment, Linf, RowAudit]


def make(desk: Desk) -> Iterator[Part]:
    nets, row = available(desk), _row()
    at = radii(desk, nets)
    chosen = choices_of(desk, row, nets, at)
    if not chosen:
        raise NotMeasuredError("the beta of any network")
    best = {net: choices[-1].what for net, choices in chosen.items()}
    parts = {
        "One beta, and a beta for each site and channel": _finer(desk, row, best, at),
        "Networks trained from other seeds": _seeds(desk, row, best, at),
        "On top of hardening (hardened → hardened and rounded)": _on_top(desk, row, best, at),
        "At other radii": _radii(desk, row, best),
    }
    facts = found(desk, [asked[-1] for several in parts.values() for asked in several])
    every: list[tuple[Asked, Facts]] = []
    for title, several in parts.items():
        told = [(asked, facts[asked[-1]]) for asked in several if asked[-1] in facts]
        yield Table(title, HEAD, tuple(_show(*pair) for pair in told))
        every += told
    yield from _by_autoattack(desk, best, at)
    yield from summarise([(asked[0].name, asked[1].knob, f) for asked, f in every])


def _row() -> Row:
    return next(row for name, row in docket() if row.name == "curvature_tuning")


def _finer(desk: Desk, row: Row, best: dict[Net, Treatment], at: dict[Net, Linf]) -> list[Asked]:
    return [
        (net, what, at[net], audit_of(desk, row, net, what, at[net]))
        for net in best
        for what in (best[net], LearnedCurvature("site"), LearnedCurvature("channel"))
    ]


def _seeds(desk: Desk, row: Row, best: dict[Net, Treatment], at: dict[Net, Linf]) -> list[Asked]:
    return [
        (net, what, at[net], audit_of(desk, row, net, what, at[net], training=training))
        for net, what in best.items()
        for training in desk.pick((), net.seeds)
    ]


def _on_top(desk: Desk, row: Row, best: dict[Net, Treatment], at: dict[Net, Linf]) -> list[Asked]:
    made = {
        net: OnTop(Hardened(), what.activation)
        for net, what in best.items()
        if isinstance(what, Swapped)
    }
    return [
        (net, what, at[net], audit_of(desk, row, net, what, at[net])) for net, what in made.items()
    ]


def _radii(desk: Desk, row: Row, best: dict[Net, Treatment]) -> list[Asked]:
    """At the second and the last radius of each network: 2 and 8 of 255 on CIFAR-10."""
    return [
        (net, what, Linf(eps), audit_of(desk, row, net, what, Linf(eps)))
        for net, what in best.items()
        for eps in (net.radii[1], net.radii[-1])
    ]


def _show(asked: Asked, facts: Facts) -> tuple[Value, ...]:
    net, what, threat, audit = asked
    name = f"{net.name}, seed {audit.training}" if audit.training else net.name
    start = name, net.radius(threat), what.knob
    if "refused" in facts:
        return (*start, None, None, None, "a network decides at chance", str(facts["n"]))
    pairs = (f"{100 * b:.1f} → {100 * a:.1f}" for b, a in (facts["clean"], facts["verified"]))
    low, high = interval(facts["gained"], facts["lost"], facts["n"])
    gain = (facts["gained"] - facts["lost"]) / facts["n"]
    difference = f"{100 * gain:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return (*start, *pairs, difference, f"{facts['effect']} · {facts['claim']}", str(facts["n"]))


def _by_autoattack(desk: Desk, best: dict[Net, Treatment], at: dict[Net, Linf]) -> Iterator[Table]:
    """AutoAttack before and after the one beta, where it is measured."""
    asked = {net: _pair(desk, net, what, at[net]) for net, what in best.items()}
    facts = found(desk, [what for pair in asked.values() for what in pair])
    rows = [
        (
            net.name,
            net.radius(at[net]),
            best[net].knob,
            _share(facts[a]),
            _share(facts[b]),
            _n(facts[b]),
        )
        for net, (a, b) in asked.items()
        if a in facts and b in facts
    ]
    head = ("network", "radius", "change", "before", "after", "n")
    yield Table("AutoAttack, standard version: accuracy, %", head, tuple(rows))


def _pair(desk: Desk, net: Net, what: Treatment, threat: Linf) -> tuple[ByAutoAttack, ByAutoAttack]:
    s = net.slices(desk)
    where = (s.auto, s.held, s.train, s.whole, threat)
    return (
        ByAutoAttack(net.model, None, "before", *where),
        ByAutoAttack(net.model, what, "after", *where),
    )


def _share(facts: Facts) -> float:
    return 100 * float(unpack(facts["robust"], facts["n"]).mean())


def _n(facts: Facts) -> str:
    return str(facts["n"])


def summarise(told: Sequence[tuple[str, str, Facts]]) -> Iterator[Takeaway | Text]:
    """Where it helps, by the audit's own words and without a correction for so many questions:
    that is the first table's."""
    judged = [(net, knob, f) for net, knob, f in told if "refused" not in f]
    helped = [(net, knob) for net, knob, f in judged if f["effect"] == "GENUINE"]
    harmed = sum(f["effect"] == "HARMFUL" for *_, f in judged)
    if helped:
        names = "; ".join(f"{knob} on {net}" for net, knob in dict.fromkeys(helped))
        yield Takeaway(
            PLACE,
            f"A rounded corner helps for free in {len(helped)} of {len(judged)} audits in depth"
            f" (not corrected for their number): {names}.",
        )
    yield Text(
        f"By these audits, each for itself: GENUINE in {len(helped)}, HARMFUL in {harmed} of"
        f" {len(judged)}. What holds for many questions at once stands in the first table."
    )
