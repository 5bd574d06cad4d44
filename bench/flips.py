"""How often a verdict flips: the same audit over seeds and thread counts.

    python bench/flips.py runs.jsonl
    python bench/flips.py runs.jsonl --seeds 2 --cases itself --battery quick --n 60

Each case is audited with every seed and on every number of threads; one line of JSON per audit goes
to the file, and what stands there is not run again, so the same command goes on where it was
stopped. A line is that case's only for the same battery, its version, n and eps. Then a table says
how often each case's commonest effect was not the one given, and which verdicts came instead. Of
the clear cases, which are listed here with the effects that are right before anything is run, at
most 1 % may flip, and none may be wrong; the exit code says whether that is so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import retroact as ra
from retroact.auditing.battery import VERSION
from retroact.ground import one_thread

EPS = 0.1
MOST = 0.01
"""Of the audits of clear cases: how many may differ from the commonest effect of their case."""


@dataclass(frozen=True)
class Case:
    """Two networks, and the effects that are right for them; `clear` ones are bound to flip in at
    most 1 % of the audits."""

    title: str
    pair: Callable[[], tuple[nn.Module, nn.Module]]
    right: tuple[str, ...]
    clear: bool = True


def net() -> nn.Module:
    return ra.load("digits-cnn")


def put(activation: str) -> Callable[[], tuple[nn.Module, nn.Module]]:
    return lambda: (net(), ra.retrofit(net(), ra.parse(activation)))


@cache
def hardened() -> nn.Module:
    """Adversarially trained, as the self-test has it: the same on every machine of one kind."""
    recipe = ra.Hardening(learn="all", steps=80, batch=128, lr=0.003)
    with one_thread():
        return ra.harden(net(), ra.data("digits/train"), ra.Linf(EPS), recipe).net


def folded() -> tuple[nn.Module, nn.Module]:
    """Networks that decide alike, the second with logits that saturate."""
    sloped = ra.retrofit(net(), ra.SReLU(10.0))
    return ra.fold(sloped, scaled=False), sloped


CASES = (
    Case("itself", lambda: (net(), net()), ("NO EFFECT",)),
    Case("JumpReLU(1.0)", put("JumpReLU(1.0)"), ("HARMFUL",)),
    Case("SReLU(10) beside its folded net", folded, ("NO EFFECT",)),
    Case("adversarially trained", lambda: (net(), hardened()), ("GENUINE",)),
    Case("the same undone", lambda: (hardened(), net()), ("HARMFUL",)),
    # near the edge of what n images can tell: flips are told, and bound by nothing
    Case("JumpReLU(0.3)", put("JumpReLU(0.3)"), ("NO EFFECT", "INCONCLUSIVE", "HARMFUL"), False),
    Case("SReLU(10)", put("SReLU(10.0)"), ("NO EFFECT", "INCONCLUSIVE"), False),
)


def main() -> None:
    args = _arguments()
    warnings.filterwarnings("ignore")
    cases = [case for case in CASES if not args.cases or case.title in args.cases]
    setting = {"battery": args.battery, "version": VERSION, "n": args.n, "eps": EPS}
    known = {_name(run): run for run in _read(args.file)}
    with args.file.open("a", encoding="utf-8") as file:
        file.write(_ending(args.file))
        for case, seed, threads in _plan(cases, range(args.seeds), args.threads):
            said = setting | {"case": case.title, "seed": seed, "threads": threads}
            if _name(said) not in known:
                known[_name(said)] = said | _audit(case, seed, threads, args)
                file.write(json.dumps(known[_name(said)]) + "\n")
                file.flush()
    runs = [run for run in known.values() if all(run[k] == v for k, v in setting.items())]
    sys.exit(0 if _report(cases, runs) else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON lines, read and gone on with")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=[case.title for case in CASES])
    parser.add_argument("--battery", choices=["quick", "full", "thorough"], default="full")
    parser.add_argument("--n", type=int, default=200)
    return parser.parse_args()


def _read(path: Path) -> list[dict[str, Any]]:
    """What was run; a last line that was cut off is not."""
    runs = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"left out a line that is no JSON: {line[:60]}", file=sys.stderr)
    return runs


def _ending(path: Path) -> str:
    """What ends the last line, where a run was cut off in it."""
    return "\n" if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n") else ""


def _name(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[k] for k in ("case", "seed", "threads", "battery", "version", "n", "eps"))


def _plan(
    cases: Sequence[Case], seeds: Sequence[int], threads: Sequence[int]
) -> Iterator[tuple[Case, int, int]]:
    """Seed by seed, so that a run that is stopped has as many of each case."""
    return ((case, seed, n) for seed in seeds for case in cases for n in threads)


def _audit(case: Case, seed: int, threads: int, args: argparse.Namespace) -> dict[str, Any]:
    before, after = case.pair()
    battery = None if args.battery == "full" else args.battery
    began, held = time.process_time(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = ra.data(f"digits[:{args.n}]")
        made = ra.audit(before, after, data, ra.Linf(EPS), battery=battery, seed=seed)
    finally:
        torch.set_num_threads(held)
    verdict, counts = made.verdict, made.verdict.counts
    return {
        "effect": verdict.effect,
        "claim": verdict.claim,
        "verified": counts.verified,
        "gained": counts.gained,
        "lost": counts.lost,
        "doubts": list(verdict.doubts),
        "seconds": round(time.process_time() - began, 2),
    }


def _report(cases: Sequence[Case], runs: Sequence[dict[str, Any]]) -> bool:
    """Prints the table; whether the clear cases keep what they are bound to."""
    clear = flips = wrong = 0
    print(
        "| case | clear | audits | effects | flips | wrong | claims | CPU s |\n" + "|---" * 8 + "|"
    )
    for case in cases:
        mine = [run for run in runs if run["case"] == case.title]
        effects, claims = (Counter(run[k] for run in mine) for k in ("effect", "claim"))
        differ = len(mine) - max(effects.values(), default=0)
        bad = sum(n for effect, n in effects.items() if effect not in case.right)
        seconds = sum(run["seconds"] for run in mine)
        print(
            f"| {case.title} | {'yes' if case.clear else 'no'} | {len(mine)} | {_count(effects)} |"
            f" {differ} | {bad} | {_count(claims)} | {seconds:.0f} |"
        )
        if case.clear:
            clear, flips, wrong = clear + len(mine), flips + differ, wrong + bad
    share = flips / clear if clear else 0.0
    bound = f"{share:.1%}, at most {MOST:.0%}"
    print(f"\nclear cases: {flips} of {clear} flipped ({bound}), {wrong} wrong")
    _print_others(cases, runs)
    return share <= MOST and not wrong


def _count(found: Counter[str]) -> str:
    return ", ".join(f"{word} {n}" for word, n in found.most_common())


def _print_others(cases: Sequence[Case], runs: Sequence[dict[str, Any]]) -> None:
    """Every audit that did not say its case's commonest effect."""
    for case in cases:
        mine = [run for run in runs if run["case"] == case.title]
        usual = Counter(run["effect"] for run in mine).most_common(1)
        for run in mine:
            if run["effect"] != usual[0][0]:
                shares = " -> ".join(f"{100 * v:.1f}" for v in run["verified"])
                why = "; ".join(run["doubts"]) or "no doubt"
                where = f"seed {run['seed']}, {run['threads']} threads"
                print(f"{case.title}, {where}: {run['effect']}, verified {shares} ({why})")


if __name__ == "__main__":
    main()
