"""What planted examples are worth by where the readout changes its mind.

    python bench/planted.py

A deep readout is no test for anybody (a random search finds it too, or the points do not tell it
apart), a shallow one may be more than an attack that sees can find. The table has, for each
`planted.DEPTH`, of the first 200 validation images (170 of the digits): how many a random search
finds as well, and how many of those that were planted an attack found that sees (the network's own
gradient; differences where the network rounds) and one that does not (the gradient of what rounds).
It ends where 40 are planted, or 3 missed. One thread, quick battery.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import retroact as ra
from retroact.auditing import planted
from retroact.auditing.attack_run import Conditions
from retroact.auditing.battery import QUICK
from retroact.auditing.planted import Planted, seek_planted
from retroact.auditing.subjects import TRACE, WIDTHS, _name_widths, prepare
from retroact.nets.data import Images

DEPTHS = (0.8, 0.9, 0.95, 0.98)
RADII = {"digits-cnn": 0.1, "lenet-mnist": 0.1, "mnist-cnn": 0.1}
OWN = "the network's own gradient"


class Front(nn.Module):
    """A network behind a change of its images."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.change(x))
        return out


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print("| network, climbed | depth | too easy | planted | found |\n|---|---|---|---|---|")
    for name, eps in RADII.items():
        net, images = (
            ra.load(name),
            ra.data(f"{_kind(name)}/validation[:{170 if _kind(name) == 'digits' else 200}]"),
        )
        for what, changed, kernel in _changes(net):
            for depth in DEPTHS:
                found = _seek(changed, kernel, images, eps, depth)
                said = f"{name}, {what} | {depth:g}"
                print(f"| {said} | {found.easy} | {found.planted} | {found.found} |", flush=True)


def _kind(name: str) -> str:
    return "digits" if "digits" in name else "mnist"


def _changes(net: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """What is climbed, of which network, and its name there."""
    rounds = Front(net, lambda x: torch.round(32 * x) / 32)
    yield OWN, net, TRACE
    yield "images rounded to 1/32, differences", rounds, _name_widths(WIDTHS[0])
    yield "images rounded to 1/32, blind", rounds, TRACE


def _seek(net: nn.Module, kernel: str, images: Images, eps: float, depth: float) -> Planted:
    planted.DEPTH = depth
    threat, under = ra.Linf(eps), Conditions(images, ra.Linf(eps), 10)
    subject = prepare(net, net, images, threat).after
    return seek_planted(subject, [kernel], torch.arange(len(images.labels)), under, QUICK)


if __name__ == "__main__":
    main()
