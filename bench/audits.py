"""Audits of the zoo's networks, and what stronger or other people's attacks find beyond them.

    python bench/audits.py lenet-mnist-robust --activation "JumpReLU(1.0)" --eps 0.2 --n 1000
    --beyond python bench/audits.py lenet-mnist --harden "Hardening()" --eps 0.1 --n 500
    --autoattack 100

Prints a row of the table of docs/audit.md, and what each run of the battery did. `--beyond` attacks
every image that the audit calls robust with its battery, rounds included, at twice the steps and
starts, with AutoAttack's standard version and with Foolbox's attacks, and prints how many fall to
each. `--autoattack N` runs AutoAttack's standard version on the first N images, on both networks,
and prints its accuracies, McNemar's p and its CPU seconds beside the audit's on the same images.
CPU seconds of one process on one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any, Literal

import numpy as np
import torch

import retroact as ra
from retroact.auditing.attack_run import AttackRun, Conditions
from retroact.auditing.audit import Audit
from retroact.auditing.subjects import Climb, prepare
from retroact.auditing.verdict import mcnemar
from retroact.evaluation.evaluate import decide
from retroact.evaluation.proof import craft
from retroact.spec import show
from retroact.training.hardening import Hardening

FOOLBOX = ("LinfPGD", "LinfBasicIterativeAttack", "LinfDeepFoolAttack", "LInfFMNAttack")


def main() -> None:
    args = _arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    before = ra.load(args.net)
    after, made_by = _changed(before, args)
    part = f"{_data_of(args.net)}[{args.first or ''}:{args.first + args.n}]"
    data, threat = ra.data(part), ra.Linf(args.eps)
    began = time.process_time()
    audit = ra.audit(before, after, data, threat, battery=_battery(args), seed=args.seed)
    spent = time.process_time() - began
    c = audit.verdict.counts
    shares = " | ".join(
        f"{100 * a:.1f} / {100 * b:.1f}" for a, b in (c.clean, c.claimed, c.verified)
    )
    print(
        f"| {args.net} | {made_by} | {show(threat)} | {c.n} | {shares} | {audit.verdict} |"
        f" {spent:.0f} s |",
        flush=True,
    )
    for name, side in zip(("before", "after"), audit.sides, strict=True):
        for attack in side.attacks:
            print(
                f"    {name}: {attack.title}: broke {attack.broken} of {attack.asked},"
                f" {attack.gradients} gradients",
                flush=True,
            )
    print(
        "    alarms:",
        ", ".join(f"{r.title} {r.value:.3g} ({r.before:.3g})" for r in audit.alarms) or "none",
    )
    print("    gradients per image:", audit.pedigree.gradients_per_image, flush=True)
    if args.beyond:
        _beyond(before, after, data, threat, audit, args)
    if args.autoattack:
        _beside_autoattack(before, after, data[: args.autoattack], threat, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("net")
    parser.add_argument("--activation", default="")
    parser.add_argument(
        "--harden", type=ra.parse, help="a recipe instead, such as \"Hardening(learn='norms')\""
    )
    parser.add_argument(
        "--against",
        default="",
        help="or a changed network that was saved, such as hard.safetensors",
    )
    parser.add_argument(
        "--train", type=int, default=5000, help="how many training images it learns on"
    )
    parser.add_argument("--keep", type=float, default=0.0)
    parser.add_argument("--eps", required=True, help="in pixels, such as 0.1 or 2/255")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the test image to begin with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--thorough", action="store_true")
    parser.add_argument(
        "--only-doubled", action="store_true", help="with --beyond: the doubled battery alone"
    )
    parser.add_argument("--beyond", action="store_true")
    parser.add_argument("--autoattack", type=int, default=0)
    return parser.parse_args()


def _battery(args: argparse.Namespace) -> Literal["quick", "thorough"] | None:
    return "quick" if args.quick else "thorough" if args.thorough else None


def _data_of(net: str) -> str:
    return next(name for name in ("mnist", "cifar10", "digits") if name in net)


def _changed(before: Any, args: argparse.Namespace) -> tuple[Any, str]:
    if args.against:
        return ra.load(args.against), args.against
    if not args.harden:
        return ra.retrofit(before, ra.parse(args.activation)), args.activation
    recipe, name = args.harden, _data_of(args.net)
    assert isinstance(recipe, Hardening), f"expected a Hardening, got {recipe}"
    began = time.process_time()
    held = ra.data(f"{name}/validation[:1000]")
    train = ra.data(f"{name}/train[:{args.train}]")
    made = ra.harden(before, train, ra.Linf(args.eps), recipe, keep=args.keep, held=held)
    seconds = time.process_time() - began
    curve = ", ".join(f"{point.dose:g}: {100 * point.clean:.1f}" for point in made.curve)
    print(
        f"    hardened: {made}; {seconds:.0f} CPU s; clean accuracy on {held.name} by dose {curve}",
        flush=True,
    )
    return made.net, f"hardened, {show(recipe)}"


def _beyond(
    before: Any, after: Any, data: Any, threat: Any, audit: Audit, args: argparse.Namespace
) -> None:
    rows = torch.from_numpy(np.flatnonzero(audit.after.verified))
    part = data.images[rows], data.labels[rows], data.index[rows]
    robust, twice = ra.Images(*part, classes=data.classes), audit.battery.doubled()
    subject = prepare(before, after, data, threat).after
    climb = subject.through(subject.source(audit.after.kernel))
    run = AttackRun(after, Conditions(robust, threat, data.classes, args.seed + 1))
    run.attack("doubled", "white box", twice.untargeted(), Climb(subject.folded))
    run.attack("doubled, targeted", "white box", twice.targeted(data.classes), climb)
    twice.again(run, climb, data.classes)
    spent = sum(attack.gradients for attack in run.attacks) / len(rows)
    each = ", ".join(f"{attack.title} {attack.broken}" for attack in run.attacks)
    broken = int((~run.robust).sum())
    print(
        f"    {show(twice)}: {broken} of {len(rows)}, {spent:.0f} gradients an image ({each})",
        flush=True,
    )
    if args.only_doubled:
        return
    for attack in (*(ra.Foolbox(name) for name in FOOLBOX), ra.AutoAttack()):
        began = time.process_time()
        outcome = craft(attack, after, robust.images, robust.labels, robust.index, threat)
        inside = threat(outcome.x_adv, robust.images)
        hit = (decide(after, outcome.x_adv) != robust.labels) & inside
        seconds = time.process_time() - began
        print(
            f"    {show(attack)}: {int(hit.sum())} of {len(rows)}, {seconds:.0f} CPU s", flush=True
        )


def _beside_autoattack(
    before: Any, after: Any, data: Any, threat: Any, args: argparse.Namespace
) -> None:
    robust, seconds = [], []
    for net in (before, after):
        began = time.process_time()
        outcome = craft(ra.AutoAttack(), net, data.images, data.labels, data.index, threat)
        seconds.append(time.process_time() - began)
        robust.append(
            (
                (decide(net, data.images) == data.labels)
                & (decide(net, outcome.x_adv) == data.labels)
            ).numpy()
        )
    began = time.process_time()
    audit = ra.audit(before, after, data, threat, battery=_battery(args), seed=args.seed)
    ours = time.process_time() - began
    v0, v1 = robust
    gained, lost = int((v1 & ~v0).sum()), int((v0 & ~v1).sum())
    theirs = f"{100 * v0.mean():.1f} / {100 * v1.mean():.1f}, gained {gained}, lost {lost}"
    verified = " / ".join(f"{100 * v:.1f}" for v in audit.verdict.counts.verified)
    print(
        f"    AutoAttack, standard, n = {len(data)}: {theirs}, p = {mcnemar(gained, lost):.2g};"
        f" {seconds[0]:.0f} + {seconds[1]:.0f} CPU s. The audit there: {verified}, {ours:.0f} CPU s"
        f" for everything, {audit.before.seconds:.0f} + {audit.after.seconds:.0f} s wall for the"
        " batteries",
        flush=True,
    )


if __name__ == "__main__":
    main()
