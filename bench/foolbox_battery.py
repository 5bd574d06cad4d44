"""Figure 4's battery, ours beside Foolbox's own, on the same images: CPU seconds, and how the
results differ.

    python bench/foolbox_battery.py --net mnist-cnn --slope 1 --n 50

Both run the 21 distinct attacks of the Sloped ReLU paper for all its eps, one after the other, in
one process on one thread; Foolbox gets the images as one batch, as the paper's notebooks gave them.
A deterministic attack should give the same answer for every image and eps, a random one an accuracy
within two standard errors, but for the images that Foolbox turns into NaN, which it counts as
fooled and we do not. Prints a markdown table and the ratio of the totals.
"""

from __future__ import annotations

import argparse
import time
import warnings

import foolbox
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import retroact as ra
from retroact.evaluation.metrics import survives
from retroact.nets.data import Images
from retroact.studies.srelu.battery import BATTERY, Entry
from retroact.studies.srelu.networks import NETS, Net

Stands = NDArray[np.bool_]


def main() -> None:
    args = _arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    net = next(n for n in NETS if n.key.startswith(args.net.split("-")[0]))
    model, images = net.sloped(args.slope)().eval(), ra.data(net.slice(args.n))
    eps = tuple(e for e in net.eps if e > 0)
    print(
        f"{net.title}, slope {args.slope:g}, {images.name}, eps {eps}, torch {torch.__version__}\n"
    )
    print(
        "| attack | ours, CPU s | Foolbox, CPU s | ratio | accuracies at the last eps | NaN |"
        " difference |"
    )
    print("|---|---|---|---|---|---|---|")
    totals, published = np.zeros(2), 0.0
    for entry in (e for e in BATTERY if args.only in e.name):
        spent = _line(entry, net, model, images, eps)
        totals += spent
        published += entry.times * spent[1]
        print(flush=True)
    print(
        f"\n21 distinct attacks: {totals[1] / totals[0]:.1f} times faster ({totals[0]:.0f} s,"
        f" {totals[1]:.0f} s);"
    )
    print(
        f"the published list of 25 takes Foolbox {published:.0f} s, {published / totals[0]:.1f}"
        " times ours"
    )


def _line(
    entry: Entry, net: Net, model: nn.Module, images: Images, eps: tuple[float, ...]
) -> NDArray[np.float64]:
    ours, mine = _timed(lambda: _ours(entry, model, images, eps))
    (theirs, ruined), yours = _timed(lambda: _theirs(entry, model, images, eps))
    last = f"{100 * ours[-1].mean():.1f} / {100 * theirs[-1].mean():.1f}"
    times = f"{mine:.2f} | {yours:.2f} | {yours / mine:.1f}"
    print(
        f"| {entry.name} | {times} | {last} | {int(ruined.sum())} |"
        f" {_difference(entry, ours, theirs, ruined)} |",
        end="",
    )
    return np.array([mine, yours])


def _difference(entry: Entry, ours: Stands, theirs: Stands, ruined: Stands) -> str:
    ours, theirs = ours[:, ~ruined], theirs[:, ~ruined]
    if not ours.size:
        return "all NaN"
    if not entry.random:
        return f"{int((ours != theirs).sum())} of {ours.size} decisions"
    p = (ours.mean(1) + theirs.mean(1)) / 2
    error = np.sqrt(np.maximum(2 * p * (1 - p) / ours.shape[1], 1e-12))
    most = float((np.abs(ours.mean(1) - theirs.mean(1)) / error).max())
    return f"at most {most:.1f} standard errors"


def _timed(run):  # type: ignore[no-untyped-def]
    began = time.process_time()
    found = run()
    return found, max(time.process_time() - began, 1e-3)


def _ours(entry: Entry, model: nn.Module, images: Images, eps: tuple[float, ...]) -> Stands:
    records = ra.evaluate_all(model, images, entry.attack, [entry.threat(e) for e in eps])
    return np.array([survives(r) for r in records])


def _theirs(
    entry: Entry, model: nn.Module, images: Images, eps: tuple[float, ...]
) -> tuple[Stands, Stands]:
    attack = entry.foolbox._attack(foolbox, entry.threat(eps[-1]))
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    torch.manual_seed(0)
    _, clipped, success = attack(bounded, images.images, images.labels, epsilons=list(eps))
    ruined = torch.stack([found.isnan().flatten(1).any(1) for found in clipped]).any(0)
    return ~success.numpy(), ruined.numpy()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", default="mnist-cnn", choices=("mnist-cnn", "cifar10-cnn1"))
    parser.add_argument("--slope", type=float, default=1.0)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    return parser.parse_args()


if __name__ == "__main__":
    main()
