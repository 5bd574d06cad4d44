"""How often an attack waits for the device that it runs on.

    python bench/syncs.py
    python bench/syncs.py --only "PGD,APGD" --n 64

Counted on a pretended device, by what would make a GPU's program wait: a number read from a tensor
(`item`, `bool`), a result whose size depends on values (`nonzero`, an index of bools, `bincount`),
and a copy to the CPU. A pass is one forward or one backward through the network. All examples are
in one chunk, which waits twice beside its attack: for who is to be attacked, and at its end.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.driver import craft_all

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import pretended
from pretended import NAME

_COMPUTED = pretended._computed

_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "bincount",
    "unique_dim",
    "_unique2",
    "masked_select",
    "equal",
    "repeat_interleave",
}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Waits(Counter[str]):
    """Counts the operations of the pretended device that wait for it, by name."""

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What `pretended` computes."""
        name = func.overloadpacket.__name__
        if name in _WAITS:
            self[name] += kwargs.get("output_size") is None  # else it need not ask
        elif name in _INDEXED and any(t is not None and t.dtype == torch.bool for t in args[1]):
            self[f"{name} by bools"] += 1
        elif name == "_to_copy" and args[0].device.type == NAME and _is_cpu(kwargs.get("device")):
            self["copy to the CPU"] += 1
        return _COMPUTED(func, args, kwargs)


def _is_cpu(place: str | torch.device | None) -> bool:
    return place is not None and torch.device(place).type == "cpu"


class Counted(nn.Module):
    """A network that counts its passes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        out: Tensor = self.net(x)
        if out.requires_grad:
            out.register_hook(self._count_back)
        return out

    def _count_back(self, gradient: Tensor) -> None:
        self.passes += 1


def count(attack: Any, threat: Any, net: nn.Module, images: ra.Images) -> tuple[Counter[str], int]:
    """What waits in one run in one chunk, and the passes through the network, forward and
    backward."""
    n, seen = max(32, len(images)), (images.images, images.labels, images.index)
    with pretended.pretended():
        asked = Counted(copy.deepcopy(net).to(NAME))
        with mock.patch("pretended._computed", waits := Waits()):
            craft_all(attack, asked, *seen, [threat], chunk=n)
    return waits, asked.passes


LINF, L2, L1 = ra.Linf(0.05), ra.L2(0.5), ra.L1(5.0)
ATTACKS: tuple[tuple[Callable[[], Any], Any], ...] = (
    (lambda: ra.FGSM(), LINF),
    (lambda: ra.PGD(steps=20), LINF),
    (lambda: ra.PGD(steps=20, restarts=2), L2),
    (lambda: ra.BIM(steps=20), LINF),
    (lambda: ra.APGD(steps=20), LINF),
    (lambda: ra.APGD(steps=20, targets=3, loss="dlr"), LINF),
    (lambda: ra.Momentum(steps=20, targets=3), LINF),
    (lambda: ra.Square(queries=40), LINF),
    (lambda: ra.SPSA(steps=10), LINF),
    (lambda: ra.RayS(queries=100), LINF),
    (lambda: ra.HopSkipJump(queries=200), L2),
    (lambda: ra.DeepFool(), L2),
    (lambda: ra.DDN(steps=20), L2),
    (lambda: ra.FMN(steps=20), L2),
    (lambda: ra.CarliniWagner(steps=20, search_steps=2), L2),
    (lambda: ra.TrustRegion(), LINF),
    (lambda: ra.APGD(steps=20), L1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--only", default="", help="parts of names, by commas")
    args = parser.parse_args()
    net, images = ra.load("digits-cnn"), ra.data(f"digits[:{args.n}]")
    wanted = [part for part in args.only.split(",") if part]
    print("| attack | passes | waits | by pass |\n|---|---|---|---|")
    for make, threat in ATTACKS:
        attack = make()
        if wanted and not any(part in str(attack) for part in wanted):
            continue
        found, passes = count(attack, threat, net, images)
        total = sum(found.values())
        parts = ", ".join(f"{name} {k}" for name, k in found.most_common())
        print(f"| {attack} under {threat} | {passes} | {total}: {parts} | {total / passes:.2f} |")


if __name__ == "__main__":
    main()
