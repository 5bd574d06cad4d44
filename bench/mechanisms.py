"""The audit against changes that it was told nothing of, each with its truth.

    python bench/mechanisms.py --out mechanisms.jsonl
    python bench/mechanisms.py --net lenet-mnist --n 100 --battery quick --out mechanisms.jsonl
    python bench/mechanisms.py --only "pixels,one-hot" --seed other --out some.jsonl
    python bench/mechanisms.py --net resnet20-cifar10 --seed same --only "70 % of" --out some.jsonl
    python bench/mechanisms.py --fast --battery quick --without "trace,controls" --out some.jsonl
    python bench/mechanisms.py --table --out mechanisms.jsonl

Every mechanism of `retroact/auditing/mechanisms` around the very network that stands before the
change (`--seed same`) and around one of the same architecture trained from another seed (`other`).
Each case is a line of JSON in `--out`; those that stand there are not run again. The truth is what
stands under the attack that knows the mechanism and under all that any audit in the file found, on
the same images. The table's seconds are CPU seconds of one process on one thread. `--without` takes
a part out of the audit (an indicator by its title, or what `PARTS` names): what is it worth?
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

import retroact as ra
from retroact.auditing import audit as procedure
from retroact.auditing import subjects
from retroact.auditing.battery import Battery
from retroact.auditing.doubts import Doubts
from retroact.auditing.indicators import indicators
from retroact.auditing.mechanisms.collection import mechanisms
from retroact.auditing.mechanisms.judging import Said, Stands, find_faults
from retroact.auditing.mechanisms.mechanism import Given, Made, Mechanism
from retroact.auditing.mechanisms.truth import truth
from retroact.crafting import derived
from retroact.training.anew import trained_anew

EPS = {"digits-cnn": 0.1, "lenet-mnist": 0.1, "resnet20-cifar10": 2 / 255}
EPOCHS = {"digits-cnn": 40, "lenet-mnist": 8}
"""Of the networks of other seeds: the truth is measured on them, so they need not be as good."""
SEEDS = {"same": 0, "other": 1}

Line = dict[str, Any]
Judged = dict[tuple[Any, ...], dict[str, tuple[Line, list[str]]]]
"""For each case and battery its line, and what was wrong with it."""
OLD = "0.1.0"
"""Begins the name of an older version's battery, whose mechanisms may have been others."""


# --------------------------------------------------------------------------------- what is left out


def _nothing(*args: Any, **kwargs: Any) -> tuple[()]:
    return ()


def _as_it_is(battery: Battery, side: Any, *args: Any) -> Any:
    return side


PARTS: dict[str, Any] = {
    "": nullcontext,
    "trace": lambda: patch.object(subjects, "_derive", lambda *_: subjects._NOTHING),
    "differences": lambda: patch.object(subjects, "WIDTHS", ()),
    "what alarms ask for": lambda: patch.object(Battery, "answer", _nothing),
    "attacks without gradients": lambda: patch.object(Battery, "search", _nothing),
    "stand-ins": lambda: patch.object(subjects, "_stand_in", _nothing),
    "twin in floats": lambda: patch.object(subjects, "float_twin", lambda *_: None),
    "softened choices": lambda: patch.object(derived, "find_choices", _nothing),
    "student": lambda: patch.object(Battery, "imitate", _nothing),
    "known images": lambda: patch.object(Doubts, "_find_known", _nothing),
    "controls": lambda: patch.multiple(Battery, control=_nothing, add_controls=_as_it_is),
    "doubts": lambda: patch.multiple(Doubts, find=_nothing, find_moving=_nothing),
    **{
        i.title: lambda title=i.title: patch.object(
            procedure, "indicators", lambda: [i for i in indicators() if i.title != title]
        )
        for i in indicators()
    },
}
"""What can be taken out of the audit, to see what it is worth."""


def _leave_out(part: str) -> AbstractContextManager[Any]:
    if part not in PARTS:
        raise SystemExit(
            f"--without: expected parts of {', '.join(filter(None, PARTS))}, got {part}"
        )
    left: AbstractContextManager[Any] = PARTS[part]()
    return left


def main() -> None:
    args = _arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if not args.table:
        if "other" in args.seed and set(args.net) - set(EPOCHS):
            raise SystemExit(f"only {', '.join(EPOCHS)} are trained anew here; give --seed same")
        for net in args.net:
            for seed in args.seed:
                _run(net, seed, args)
    _print(_read(args.out), args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", type=_words, default=["digits-cnn"])
    parser.add_argument("--seed", type=_words, default=["same", "other"])
    parser.add_argument("--battery", type=_words, default=["quick", "full"])
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--only", type=_words, default=[], help="parts of the names, by commas")
    parser.add_argument("--without", type=_words, default=[], help="parts of the audit, by commas")
    parser.add_argument("--fast", action="store_true", help="those of the self-test alone")
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON for every case")
    parser.add_argument("--table", action="store_true", help="print what stands there, run nothing")
    return parser.parse_args()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _chosen(args: argparse.Namespace) -> list[Mechanism]:
    return [
        m
        for m in mechanisms(fast=args.fast)
        if not args.only or any(part in m.name for part in args.only)
    ]


# --------------------------------------------------------------------------------------------- run


def _run(net: str, seed: str, args: argparse.Namespace) -> None:
    done, bench = {_key(line) for line in _read(args.out)}, None
    for mechanism in _chosen(args):
        case = {"net": net, "seed": seed, "mechanism": mechanism.name, "n": args.n}
        heads = [case | {"battery": "truth"}]
        heads += [
            case | {"battery": battery} | ({"without": part} if part else {})
            for battery in args.battery
            for part in (args.without or [""])
        ]
        for head in (head for head in heads if _key(head) not in done):
            bench = bench or _Bench(net, SEEDS[seed], args.n)
            began = time.process_time()
            with _leave_out(head.get("without", "")):
                line = head | bench.ask(mechanism, head["battery"])
            line["seconds"] = round(time.process_time() - began, 2)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(*head.values(), _tell(line), sep=" | ", flush=True)


def _key(line: Line) -> tuple[Any, ...]:
    known = tuple(line[word] for word in ("net", "seed", "mechanism", "n", "battery"))
    return (*known, line.get("without", ""))


def _tell(line: Line) -> str:
    if line.get("error"):
        return str(line["error"])
    shares = " -> ".join(f"{100 * _stands(line[side]).mean():.1f}" for side in ("before", "after"))
    return f"{line.get('effect', '')} {line.get('claim', '')} {shares} %, {line['seconds']:.0f} s"


def _others(net: str) -> list[Any]:
    """Networks beside it: of two more seeds where it is quickly trained, else its robust twin."""
    if net not in EPOCHS:
        return [ra.load(f"{net}-robust")]
    return [trained_anew(net, seed, epochs=EPOCHS[net]) for seed in (1, 2)]


class _Bench:
    """The networks before and after each mechanism, on images of one kind; each is made once."""

    def __init__(self, net: str, seed: int, n: int) -> None:
        name = next(name for name in ("mnist", "digits", "cifar10") if name in net)
        nets: list[Any] = [ra.load(net), *_others(net)]
        self.data, self.threat = ra.data(f"{name}[:{n}]"), ra.Linf(EPS[net])
        train = ra.data(f"{name}/train")
        others = [(*nets[:at], *nets[at + 1 :]) for at in (0, seed)]
        self.first, self.given = (
            Given(nets[at], rest, train, EPS[net])
            for at, rest in zip((0, seed), others, strict=True)
        )
        self._made: dict[str, tuple[Made, Made]] = {}

    def ask(self, mechanism: Mechanism, battery: str) -> Line:
        """What the audit says with this battery, or the truth; or what was raised instead."""
        torch.manual_seed(0)
        try:
            before, after = self._make(mechanism)
            if battery == "truth":
                sides = self._find_truth(before, mechanism), self._find_truth(after, mechanism)
                return {"before": _bits(sides[0]), "after": _bits(sides[1])}
            return self._audit(mechanism, before.net, after.net, battery)
        except Exception as e:
            return {"error": Said.instead(e).error}

    def _make(self, mechanism: Mechanism) -> tuple[Made, Made]:
        if mechanism.name not in self._made:
            plain = Made(self.first.net, (self.first.net,))
            before = plain if mechanism.before is None else mechanism.before(self.first)
            self._made = {mechanism.name: (before, mechanism.build(self.given))}
        return self._made[mechanism.name]

    def _find_truth(self, made: Made, mechanism: Mechanism) -> NDArray[np.bool_]:
        plain = made.net is self.first.net
        return truth(
            made,
            self.data,
            self.threat,
            draws=0 if plain else mechanism.draws,
            transfer=() if plain else (self.first.net,),
        )

    def _audit(self, mechanism: Mechanism, before: Any, after: Any, battery: str) -> Line:
        how: Any = {"battery": "quick"} if battery == "quick" else {}
        # copies, as a network that remembers must not have been asked before
        pair = copy.deepcopy(before), copy.deepcopy(after)
        audit = ra.audit(*pair, self.data, self.threat, draws=mechanism.draws, **how)
        said = Said.by(audit)
        return {
            "effect": said.effect,
            "claim": said.claim,
            "doubts": list(audit.verdict.doubts),
            "clean": audit.verdict.counts.clean,
            "claimed": said.claimed,
            "alarms": [reading.title for reading in audit.alarms],
            "attacks": [
                [a.title, a.role, a.asked_by, a.asked, a.broken, round(a.seconds, 2)]
                for a in audit.after.attacks
            ],
            "before": _bits(audit.before.verified),
            "after": _bits(audit.after.verified),
        }


# ------------------------------------------------------------------------------------------- lines


def _read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _bits(stands: NDArray[np.bool_]) -> str:
    return "".join("01"[int(bit)] for bit in stands)


def _stands(bits: str) -> NDArray[np.bool_]:
    return np.array([bit == "1" for bit in bits])


def _truths(lines: list[Line]) -> dict[tuple[Any, ...], Stands]:
    """The least of all lines on the same pair of networks and images."""
    own = {m.name for m in mechanisms() if m.before is not None}
    stateful = {m.name for m in mechanisms() if m.refusable}
    sides: dict[tuple[Any, ...], NDArray[np.bool_]] = {}
    told = (line for line in lines if not line.get("error") and OLD not in line["battery"])
    for line in told:
        for side, key in zip(("before", "after"), _networks_of(line, own), strict=True):
            found = _stands(line[side])
            if side == "after" and line["battery"] != "truth" and line["mechanism"] in stateful:
                continue  # whether it is fooled there depends on what else it was asked
            sides[key] = sides[key] & found if key in sides else found
    pairs = {_case(line): _networks_of(line, own) for line in lines}
    return {
        case: (sides[keys[0]], sides[keys[1]])
        for case, keys in pairs.items()
        if keys[0] in sides and keys[1] in sides
    }


def _case(line: Line) -> tuple[Any, ...]:
    return _key(line)[:4]


def _networks_of(line: Line, own: set[str]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    net, seed, name, n = _case(line)
    before = (net, "before", name if name in own else "", n)
    return before, (net, seed, name, n)


# ------------------------------------------------------------------------------------------- table


def _print(lines: list[Line], args: argparse.Namespace) -> None:
    truths, known = _truths(lines), {m.name: m for m in mechanisms()}
    judged: Judged = {}
    for line in lines:
        if line["battery"] != "truth" and _case(line) in truths and line["mechanism"] in known:
            refusable = known[line["mechanism"]].refusable
            faults = find_faults(_said(line), truths[_case(line)], refusable=refusable)
            judged.setdefault(_case(line), {})[_label(line)] = line, list(faults)
    labels = list(dict.fromkeys(label for told in judged.values() for label in told))
    _print_counts(judged, labels)
    _print_cases(judged, labels, truths)


def _label(line: Line) -> str:
    without = line.get("without", "")
    return f"{line['battery']} without {without}" if without else str(line["battery"])


def _print_counts(judged: Judged, labels: list[str]) -> None:
    """How often each battery was wrong, on each network and seed."""
    words = ["false GENUINE", "false HONEST", "wrong effect", "too high", "crashed"]
    head = ["battery", "network", "seed", "n", "cases", *words, "abstained", "refused", "CPU s"]
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for label in labels:
        for net, seed, n in dict.fromkeys((c[0], c[1], c[3]) for c in judged):
            told = [
                t[label]
                for c, t in judged.items()
                if (c[0], c[1], c[3]) == (net, seed, n) and label in t
            ]
            if not told:
                continue
            faults = Counter(fault for _, found in told for fault in found)
            said = [_said(line) for line, _ in told]
            row: list[Any] = [label, net, seed, n, len(told), *(faults[word] for word in words)]
            row += [sum(s.abstained for s in said), sum(s.refused for s in said)]
            row += [round(sum(line["seconds"] for line, _ in told))]
            print(f"| {' | '.join(map(str, row))} |")
    print()


def _print_cases(
    judged: Judged,
    labels: list[str],
    truths: dict[tuple[Any, ...], Stands],
) -> None:
    """What each battery verified, what it said, and for how many CPU seconds."""
    head = ["mechanism", "seed", "truth", *labels]
    print(f"| {' | '.join(head)} |")
    print("|---" * len(head) + "|")
    for case, told in judged.items():
        net, seed, name, _ = case
        cells = [name if len({c[0] for c in judged}) == 1 else f"{name} ({net})", seed]
        cells += [
            _arrow(truths[case]),
            *(_tell_cell(*told[k]) if k in told else "–" for k in labels),
        ]
        print(f"| {' | '.join(cells)} |")


def _tell_cell(line: Line, faults: list[str]) -> str:
    if line.get("error"):
        return "refused" if _said(line).refused else str(line["error"]).partition(":")[0]
    said = f"{_arrow((_stands(line['before']), _stands(line['after'])))}, {line['effect']};"
    said += f" {line['claim']}, {line['seconds']:.0f} s"
    return said + "".join(f", **{fault}**" for fault in faults)


def _said(line: Line) -> Said:
    if line.get("error"):
        return Said(error=line["error"])
    sides = _stands(line["before"]), _stands(line["after"])
    doubts = len(line["doubts"])
    return Said(line["effect"], line["claim"], doubts, tuple(line["claimed"]), sides)


def _arrow(pair: Stands) -> str:
    return " → ".join(f"{100 * side.mean():.1f}" for side in pair)


if __name__ == "__main__":
    main()
