"""What an audit spends on copies: how often it traces, copies, retrofits, folds and proves, and the
forward passes that this takes.

    python bench/copies.py
    python bench/copies.py --network lenet-mnist --change "SReLU(10.0)" --data "mnist[:100]"

Prints a markdown table of one audit. A call counts where nothing of its own kind is already under
way; `Tracer.trace` is counted each time, as one tracing asks for up to four graphs. Passes count
where a network is called, not the layers inside it, with the images that went in. They are "for
copies" while a copy is being made or proved, "at the end" where what an attack left standing is
compared once more, and "attacks" otherwise. The seconds are those of the outermost call, and so add
up to the whole.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

import retroact as ra

WATCHED = {
    "tracings": "retrofitting.tracing traced|trace",
    "graphs": "retrofitting.tracing Tracer.trace",
    "copies with their weights": "retrofitting.copying copied|deep_copy",
    "copies that share them": "retrofitting.copying shadow",
    "surveys": "retrofitting.sites survey",
    "retrofits": "retrofitting.surgery Retrofit.__call__",
    "refits": "retrofitting.surgery refit",
    "refits that share weights": "retrofitting.surgery refit_sharing",
    "folds": "retrofitting.folding fold",
    "lean forms": "retrofitting.lean Form.__call__",
    "proofs": "evaluation.proof prove",
    "comparisons": "evaluation.proof prove_same",
    "at the end": "evaluation.proof _differing|_find_differing",
}
"""What is counted, and where it is defined: under this name or that, by version, or not yet."""


@dataclass
class Counts:
    """What has been counted so far, and what is under way."""

    calls: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    under_way: list[str] = field(default_factory=list)
    depth: int = 0

    @property
    def purpose(self) -> str:
        """What a forward pass is for just now."""
        if not self.under_way:
            return "attacks"
        return "at the end" if self.under_way[0] == "at the end" else "for copies"

    def watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counted under `name`."""

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if name == "graphs" or name not in self.under_way:
                self.calls[name] += 1
            self.under_way.append(name)
            began, purpose = time.perf_counter(), self.purpose
            try:
                return function(*args, **kwargs)
            finally:
                self.under_way.pop()
                if not self.under_way:
                    self.seconds[purpose] += time.perf_counter() - began

        return counted

    def enter(self, _: nn.Module, args: Any) -> None:
        """Before any module's forward pass."""
        if self.depth == 0:
            self.passes[self.purpose] += 1
            self.images[self.purpose] += len(args[0]) if args and isinstance(args[0], Tensor) else 0
        self.depth += 1

    def leave(self, *_: Any) -> None:
        """After it, also after one that raised."""
        self.depth -= 1


@contextmanager
def counting(counts: Counts) -> Iterator[None]:
    """Everything in `WATCHED` and every forward pass is counted meanwhile, in all threads."""
    replaced = [*_replacements(counts)]
    hooks = [
        register_module_forward_pre_hook(counts.enter),
        register_module_forward_hook(counts.leave, always_call=True),
    ]
    for owner, name, _, new in replaced:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for owner, name, old, _ in replaced:
            setattr(owner, name, old)


def _replacements(counts: Counts) -> Iterator[tuple[Any, str, Any, Any]]:
    """Each place that holds a watched function: its name there, the function, what counts it."""
    importlib.import_module("retroact.auditing.audit")  # and with it all that an audit calls
    for label, where in WATCHED.items():
        home, path = where.split()
        owner: Any = importlib.import_module(f"retroact.{home}")
        *classes, name = path.split(".")
        for cls in classes:
            owner = getattr(owner, cls)
        name = next((one for one in name.split("|") if hasattr(owner, one)), "")
        if not name:
            continue
        old = getattr(owner, name)
        new = counts.watched(label, old)
        yield owner, name, old, new
        if not classes:  # and wherever it was imported by its name
            modules = [m for n, m in sys.modules.items() if n.startswith("retroact.")]
            for module in modules:
                if module is not owner and vars(module).get(name) is old:
                    yield module, name, old, new


def main() -> None:
    args = _arguments()
    torch.set_num_threads(1)
    net, data = ra.load(args.network), ra.data(args.data)
    if args.norms:
        _add_norms(net)
    counts, began = Counts(), time.perf_counter()
    with counting(counts):
        audit = ra.audit(net, args.change, data, args.threat, battery=args.battery)
    whole = time.perf_counter() - began
    print(f"audit({args.network!r}, {args.change!r}, {args.data!r}, {args.threat!r}): {audit}\n")
    print("| what | times |\n|---|---|")
    for name in WATCHED:
        print(f"| {name} | {counts.calls[name]} |")
    print("\n| forward passes | passes | images | seconds |\n|---|---|---|---|")
    counts.seconds["attacks"] = whole - sum(counts.seconds.values())
    for name in ("for copies", "at the end", "attacks"):
        print(
            f"| {name} | {counts.passes[name]} | {counts.images[name]}"
            f" | {counts.seconds[name]:.2f} |"
        )


def _add_norms(net: nn.Module) -> None:
    """A batch norm after every convolution that changes next to nothing, and so can be folded."""
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Conv2d):
            net.set_submodule(path, nn.Sequential(module, nn.BatchNorm2d(module.out_channels)))
    net.eval()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--network", default="digits-cnn")
    parser.add_argument("--change", default="JumpReLU(0.5)")
    parser.add_argument("--data", default="digits[:100]")
    parser.add_argument("--threat", default="Linf(0.1)")
    parser.add_argument("--norms", action="store_true", help="with a batch norm per convolution")
    parser.add_argument("--battery", choices=("quick", "thorough"), default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
