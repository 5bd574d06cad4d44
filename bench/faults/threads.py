"""Two calls at once from a user's threads beside the same two one after the other.

    python bench/faults/threads.py --rounds 50 --seed 0

In each round two audits, two retrofits and two evaluations run at once, each of a network of its
own (convolutions with batch norms, functional ReLUs, attention), and are compared, bit for bit,
with what they gave alone. "differ" must be 0, and nothing of nn.Module may be left changed.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import torch
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.battery import Battery
from retroact.checkpoint import digest

PATCHED = ("__call__", "__getattr__", "__setattr__", "_call_impl", "_wrapped_call_impl")
"""What a tracer may replace in nn.Module for the whole process."""


def main() -> None:
    """Prints the counts after each round."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    for found in compare(args.rounds, args.seed):
        counts = (f"{what}: {end} {found[what, end]}" for what, end in sorted(found))
        print(", ".join(counts), f"({time.monotonic() - began:.0f} s)", flush=True)


def compare(
    rounds: int, seed: int = 0, kinds: Kinds | None = None
) -> Iterator[Counter[tuple[str, str]]]:
    """After each round how many of each kind gave the "same" as alone, and how many "differ"."""
    found: Counter[tuple[str, str]] = Counter()
    kinds = kinds or KINDS
    pairs = [make_pair(seed + i, kinds) for i in range(min(rounds, len(kinds)))]
    alone: dict[tuple[str, int], list[str]] = {}
    for turn in range(rounds):
        at = turn % len(pairs)
        for name, call in CALLS.items():
            if (name, at) not in alone:
                alone[name, at] = [call(*one) for one in pairs[at]]
            before = patched()
            beside = at_once(call, pairs[at])
            found[name, "same" if beside == alone[name, at] else "differ"] += 1
            found["nn.Module", "same" if patched() == before else "differ"] += 1
        yield found


def patched() -> dict[str, object]:
    """What stands in nn.Module now."""
    return {name: vars(nn.Module).get(name) for name in PATCHED}


def at_once(call: Callable[..., str], pair: Sequence[tuple[nn.Module, ra.Images]]) -> list[str]:
    """The answers of two threads that begin together."""
    ready = threading.Barrier(len(pair))

    def run(one: tuple[nn.Module, ra.Images]) -> str:
        ready.wait()
        return call(*one)

    with ThreadPoolExecutor(len(pair)) as pool:
        return list(pool.map(run, pair))


# ------------------------------------------------------------------------------------- the calls


def evaluate(net: nn.Module, data: ra.Images) -> str:
    """All facts of an evaluation, as hexadecimal bits."""
    record = ra.evaluate(net, data, "PGD(steps=3)", "Linf(0.1)", chunk=16)
    return " ".join(f"{name}={bits.tobytes().hex()}" for name, bits in record.facts().items())


def retrofit(net: nn.Module, data: ra.Images) -> str:
    """The weights of a retrofit, its sites, and the bits of its answers."""
    hard = ra.retrofit(net, "JumpReLU(0.05)")
    with torch.no_grad():
        answers = hard(data.images).numpy().tobytes().hex()
    return f"{digest(hard)} {[site.name for site in ra.sites(net)]} {answers}"


def audit(net: nn.Module, data: ra.Images) -> str:
    """All numbers of an audit but what it cost."""
    small = Battery(steps=2, targets=1, targeted_steps=2, finish=0, queries=0, trial_steps=0)
    made = ra.audit(net, ra.retrofit(net, "JumpReLU(0.05)"), data, "Linf(0.1)", battery=small)
    numbers = made.numbers().to_json()
    for side in numbers["attacks"].values():
        for attack in side:
            attack.pop("seconds")
    return json.dumps({k: v for k, v in numbers.items() if k != "pedigree"}, sort_keys=True)


CALLS: dict[str, Callable[[nn.Module, ra.Images], str]] = {
    "evaluations": evaluate,
    "retrofits": retrofit,
    "audits": audit,
}


# ---------------------------------------------------------------------------------- the networks


class Functional(nn.Module):
    """ReLUs that are functions, and a batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.out = nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.norm(torch.relu(self.up(x.flatten(1))))))
        return out


class Attentive(nn.Module):
    """Attention, whose fused path hides a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.attend(x[:, 0]).flatten(1))
        return out


def convolved() -> nn.Module:
    """Convolutions with batch norms."""
    body = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3))
    return nn.Sequential(*body, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


Kinds: TypeAlias = Sequence[Callable[[], nn.Module]]
KINDS: Kinds = (convolved, Functional, Attentive)


def make_pair(seed: int, kinds: Kinds) -> list[tuple[nn.Module, ra.Images]]:
    """Two networks of different kinds with images."""
    return [make(kinds[(seed + i) % len(kinds)], 2 * seed + i) for i in (0, 1)]


def make(kind: Callable[[], nn.Module], seed: int) -> tuple[nn.Module, ra.Images]:
    """A network that decides its images in several ways, and these with its own answers."""
    torch.manual_seed(seed)
    net, x = ra.Classifier(kind(), shape=(1, 8, 8)).eval(), torch.rand(24, 1, 8, 8)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                m.running_var.uniform_(0.5, 2)
        last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
        last.bias -= net(x).median(0).values
        return net, ra.Images.of(x, net(x).argmax(1))


if __name__ == "__main__":
    main()
