"""Hardening on validation images: what else could be learned, what clean accuracy buys, what comes
on top of it.

    python bench/hardening.py lenet-mnist --eps 0.1 "Hardening()" "Hardening(learn='kappa')"
    "Hardening(learn='all')" python bench/hardening.py lenet-mnist --eps 0.1 "Hardening()" --then
    "JumpReLU(0.5)" "SReLU(10)"

Prints a row for each recipe: how much it learned on the first 5000 training images, clean accuracy
on `--held` validation images, and the audit of the plain network beside the hardened one on the
first `--n` of them. `--then` retrofits each hardened network once more and audits the outcome
beside the hardened one. Nothing here looks at test images, so recipes may be compared by it. CPU
seconds of one process on one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch

import retroact as ra
from retroact.evaluation.accuracy import clean_accuracy_of
from retroact.nets.zoo import NETWORKS
from retroact.retrofitting.surgery import refit
from retroact.spec import show
from retroact.training.hardening import Hardening

COLUMNS = (
    "network",
    "change",
    "numbers",
    "clean, held",
    "verified",
    "gained, lost",
    "verdict",
    "learn + audit, CPU s",
)


def main() -> None:
    args = _arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    plain, name = ra.load(args.net), NETWORKS[args.net].data
    held, threat = ra.data(f"{name}/validation[:{args.held}]"), ra.Linf(args.eps)
    print(f"{held.name}, audited on the first {args.n}, {show(threat)}, seed {args.seed}")
    print("| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), sep="\n", flush=True)
    for recipe in args.recipes:
        began = time.process_time()
        train = ra.data(f"{name}/train[:{args.train}]")
        made = ra.harden(
            plain,
            train,
            threat,
            recipe,
            keep=args.keep,
            held=held if args.keep else None,
            seed=args.seed,
        )
        learned = f"{made.learned} ({100 * made.share:.2f} %)"
        dose = f", dose {made.dose:g}" if args.keep else ""
        _row(
            args.net,
            show(recipe) + dose,
            learned,
            plain,
            made.net,
            held,
            threat,
            args,
            time.process_time() - began,
        )
        for activation in args.then:
            # what was learned moves into the weights, and the sites are free again
            free = ra.fold(made.net)
            _row(
                "the same",
                f"+ {show(activation)}",
                "",
                free,
                refit(free, activation),
                held,
                threat,
                args,
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("net")
    parser.add_argument(
        "recipes", nargs="+", type=_recipe, help="such as \"Hardening(learn='all')\""
    )
    parser.add_argument("--eps", required=True, help="in pixels, such as 0.1 or 2/255")
    parser.add_argument(
        "--then", nargs="*", type=ra.parse, default=[], help='such as "JumpReLU(0.5)"'
    )
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--keep", type=float, default=0.0)
    parser.add_argument("--held", type=int, default=1000)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def _recipe(text: str) -> Hardening:
    recipe = ra.parse(text)
    assert isinstance(recipe, Hardening), f"expected a Hardening, got {text}"
    return recipe


def _row(
    name: str,
    change: str,
    learned: str,
    before: Any,
    after: Any,
    held: Any,
    threat: Any,
    args: Any,
    spent: float = 0.0,
) -> None:
    began = time.process_time()
    clean = [100 * clean_accuracy_of(net, held) for net in (before, after)]
    made = ra.audit(
        before,
        after,
        held[: args.n],
        threat,
        battery="quick" if args.quick else None,
        seed=args.seed,
    )
    c = made.verdict.counts
    cells = (
        name,
        change,
        learned,
        f"{clean[0]:.1f} / {clean[1]:.1f}",
        f"{100 * c.verified[0]:.1f} / {100 * c.verified[1]:.1f}",
        f"{c.gained}, {c.lost}",
        str(made.verdict),
        f"{spent:.0f} + {time.process_time() - began:.0f}",
    )
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
