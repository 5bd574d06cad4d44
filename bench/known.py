"""How far features move around images, over how far around mixtures of them.

    python bench/known.py

A network that knows the images it is audited on can be calm around them and nowhere else. The table
has networks of every kind here, and trapdoors that make the way from a known image so many times
shorter; validation images, one thread. An audit doubts a gain below `planted.LOCAL`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import retroact as ra
from retroact.auditing.attack_run import Conditions
from retroact.auditing.planted import LOCAL, compare_movement
from retroact.nets.data import Images

RADII = {
    "digits-cnn": 0.1,
    "lenet-mnist": 0.1,
    "mnist-cnn": 0.1,
    "lenet-mnist-robust": 0.2,
    "cifar10-cnn1": 2 / 255,
    "resnet20-cifar10": 2 / 255,
    "mobilenetv2-cifar10": 2 / 255,
    "resnet20-cifar10-robust": 8 / 255,
    "mobilenetv2-cifar10-robust": 8 / 255,
}
SHORTER = (0.25, 0.5, 0.75)


class Trapdoor(nn.Module):
    """A network for which the way from an image that it knows is `share` of what it is."""

    def __init__(self, net: nn.Module, known: Tensor, eps: float, share: float) -> None:
        super().__init__()
        self.net, self.known, self.eps, self.share = net, known, eps, share

    def forward(self, x: Tensor) -> Tensor:
        ends = x.detach().flatten(1), self.known.flatten(1)
        distance, which = torch.cdist(*ends, p=torch.inf).min(1)
        near = (distance <= 1.01 * self.eps).to(x).view(-1, *[1] * (x.dim() - 1))
        known = self.known[which]
        out: Tensor = self.net(x + near * (self.share - 1) * (x - known))
        return out


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"| network | L∞ eps | moves |\n|---|---|---|\n| *doubted below* | | {LOCAL:g} |")
    for name, eps, net, images in _networks():
        under = Conditions(images, ra.Linf(eps), int(images.labels.max()) + 1)
        moved = compare_movement(net, torch.arange(len(images.labels)), under)
        print(f"| {name} | {eps:.3g} | {moved:.2f} |", flush=True)


def _networks() -> Iterator[tuple[str, float, nn.Module, Images]]:
    for name, eps in RADII.items():
        net, images = ra.load(name), _images_of(name)
        yield name, eps, net, images
        if name in ("digits-cnn", "lenet-mnist"):
            yield f"{name}, JumpReLU(0.5)", eps, ra.retrofit(net, ra.JumpReLU(0.5)), images
            for share in SHORTER:
                trapdoor = Trapdoor(net, images.images, eps, share)
                yield f"{name}, known images {share:g} times as far", eps, trapdoor, images


def _images_of(name: str) -> Images:
    kind = next(kind for kind in ("digits", "mnist", "cifar10") if kind in name)
    return ra.data(f"{kind}/validation[:100]")


if __name__ == "__main__":
    main()
