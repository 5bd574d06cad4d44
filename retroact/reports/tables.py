"""Tables from stored records: one line per cell, numbers computed here and nowhere before.

No torch here, so that a report opens in an instant.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, NamedTuple

from retroact.evaluation.metrics import (
    clean_accuracy,
    mean_gradients,
    mean_queries,
    nonfinite_share,
    rho,
    robust_accuracy,
    success_rate,
    wilson,
    worst_case,
    zero_gradient_share,
)
from retroact.evaluation.record import Record
from retroact.experiments.fields import CellFields
from retroact.experiments.store import Store


class Group(NamedTuple):
    """What lines must share to be compared."""

    data: str
    threat: str
    goal: str


@dataclass(frozen=True)
class Line:
    """One cell as a line of a table. Accuracies and shares are in [0, 1], `low`/`high` Wilson's 95
    %."""

    key: str
    fields: CellFields
    record: Record

    @property
    def network(self) -> str:
        return self.fields.network

    @property
    def attack(self) -> str:
        """The attack, and what its gradients went through where that is not the network itself."""
        return self.fields.attack_and_kernel

    @property
    def group(self) -> Group:
        """Lines of one group may be compared: same data, threat, and goal."""
        return Group(self.fields.data, self.fields.threat, self.fields.goal)

    @property
    def interval(self) -> tuple[float, float]:
        n = len(self.record)
        return wilson(round(robust_accuracy(self.record) * n), n)

    def numbers(self) -> dict[str, Any]:
        """The line as plain data, for JSON and CSV."""
        low, high = self.interval
        return {
            "key": self.key,
            **asdict(self.fields),
            "n": len(self.record),
            "clean_accuracy": clean_accuracy(self.record),
            "robust_accuracy": robust_accuracy(self.record),
            "robust_accuracy_low": low,
            "robust_accuracy_high": high,
            "success_rate": success_rate(self.record),
            "rho_l2": rho(self.record, "l2"),
            "rho_linf": rho(self.record, "linf"),
            "zero_gradients": zero_gradient_share(self.record),
            "nonfinite": nonfinite_share(self.record),
            "queries": mean_queries(self.record),
            "gradients": mean_gradients(self.record),
            **{k: self.of_the_run(k) for k in ("seconds", "device", "machine", "versions")},
        }

    def of_the_run(self, what: str) -> Any:
        """What the record says of the run's seconds, device, machine or versions; None where it
        says nothing."""
        return self.record.pedigree.get(what)

    @property
    def left_alone(self) -> str:
        """What the retrofit left as it is: "17 gelu", or nothing."""
        return left_alone(self.record.pedigree.get("left_alone", {}))

    def alarms(self) -> list[str]:
        """What makes this line's number doubtful, each in a few words."""
        return self.record.alarms()


def line_of(record: Record) -> Line:
    """A record by itself as a line, by what its pedigree says was run."""
    run = record.pedigree
    source = run.get("source")
    fields = CellFields(
        attack=str(run.get("attack", "")),
        threat=str(run.get("threat", "")),
        goal=str(run.get("goal", "")),
        data=str(run.get("data", "")),
        net=str(run.get("network", "a network")),
        source=source,
        knowledge="gray" if source else "white",
        seed=int(run.get("seed", 0)),
        crafting=str(run.get("crafting", "float32")),
    )
    return Line("", fields, record)


@dataclass(frozen=True)
class Worst:
    """The per-example worst case of one network over all attacks of a group; `blind` where no
    attack without an alarm comes as low as one with an alarm, so that it says nothing of the
    network."""

    network: str
    attacks: int
    accuracy: float
    interval: tuple[float, float]
    n: int
    blind: bool = False


def left_alone(counts: Mapping[str, int]) -> str:
    """The kinds of activations that a retrofit left, with their numbers: "17 gelu, 2 sigmoid"."""
    return ", ".join(f"{n} {kind}" for kind, n in counts.items())


def lines(
    store: Store,
    glob: str = "*",
    *,
    keys: Container[str] | None = None,
    images: bool = False,
) -> list[Line]:
    """The finished cells of a store whose key or print matches `glob`, oldest first; with `keys`
    those alone, and no other record is read."""
    return [
        Line(row.key, row.fields, store.read(row.key, images=images))
        for row in store.rows(glob)
        if keys is None or row.key in keys
    ]


def group_lines(members: Iterable[Line]) -> list[tuple[Group, list[Line]]]:
    """Lines by group, each group ordered as its networks first appear."""
    ordered = sorted(members, key=lambda line: line.group)
    return [
        (group, list(members)) for group, members in groupby(ordered, key=lambda line: line.group)
    ]


def worst_cases(group: Sequence[Line]) -> list[Worst]:
    """One entry per network of a group that was attacked in more than one way, on the same
    examples."""
    return [worst for worst in worst_of_each(group) if worst.attacks > 1]


def worst_of_each(group: Sequence[Line]) -> list[Worst]:
    """The same of every network, also where it was attacked in one way alone."""
    by_network: dict[str, list[Line]] = {}
    for line in group:
        by_network.setdefault(line.network, []).append(line)
    return [_worst(name, members) for name, members in by_network.items()]


def _worst(name: str, members: list[Line]) -> Worst:
    robust = worst_case([line.record for line in members])
    n, k = len(robust), int(robust.sum())
    return Worst(name, len(members), k / n, wilson(k, n), n, _is_blind(members))


def _is_blind(members: Sequence[Line]) -> bool:
    seeing = [robust_accuracy(line.record) for line in members if not line.alarms()]
    return min(seeing, default=math.inf) > min(robust_accuracy(line.record) for line in members)


def markdown(shown: Sequence[Line]) -> str:
    """The lines as Markdown tables, one per group, percent with Wilson's 95 % interval."""
    return "\n\n".join(_markdown_group(group, members) for group, members in group_lines(shown))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A head and rows as a Markdown table, each cell one line of it, and no HTML in any."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_in_cell(v) for v in row) + " |" for row in cells)


def _in_cell(value: Any) -> str:
    return plain(str(value)).replace("|", "\\|")


def plain(text: str) -> str:
    """A text of somebody else's for a line of Markdown: one line, no HTML."""
    return without_html(" ".join(text.split()))


def without_html(text: str) -> str:
    """A text of Markdown in which nothing is HTML."""
    return text.replace("<", "&lt;")


def _markdown_group(group: Group, members: Sequence[Line]) -> str:
    head = "| network | attack | knowledge | clean % | robust % (95 %) | ρ₂ % | zero gradients % |"
    n = len(members[0].record)
    title = plain(f"{group.threat}, {group.goal}, {group.data}, n = {n}")
    rows = [f"**{title}**", "", head]
    rows.append("|" + "---|" * 7)
    for line in members:
        low, high = line.interval
        network, attack, knowledge = map(
            _in_cell, (line.network, line.attack, line.fields.knowledge)
        )
        rows.append(
            f"| {network} | {attack} | {knowledge} |"
            f" {clean_accuracy(line.record):.1%} | {robust_accuracy(line.record):.1%}"
            f" ({low:.1%}–{high:.1%}) | {rho(line.record):.1%} |"
            f" {zero_gradient_share(line.record):.0%} |"
        )
    for worst in worst_cases(members):
        low, high = worst.interval
        share = f"**{worst.accuracy:.1%}** ({low:.1%}–{high:.1%})"
        rows.append(
            f"| {_in_cell(worst.network)} | **worst case of {worst.attacks}** | | | "
            f"{'not known: the attacks were blind' if worst.blind else share} | | |"
        )
    return "\n".join(rows)


def as_csv(shown: Sequence[Line]) -> str:
    """The lines as CSV, one row per cell."""
    rows = [line.numbers() for line in shown]
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
