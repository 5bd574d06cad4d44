"""Attacks without gradients beside attacks with them, and HopSkipJump beside foolbox's.

    python bench/decisions.py --net digits-cnn --n 50

Two tables of markdown. The first: what each attack leaves robust within `--eps` (L_inf) of the
network as it is, of the network that gives away its decision alone (one-hot, no graph), and of one
whose ReLUs round to quarters; queries per image, and CPU seconds on one thread. The second: the
medians of the perturbations of HopSkipJump and of foolbox's, over the images that both fool, over
the median of a white-box attack, after about as many queries.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import retroact as ra
from retroact.crafting.attack import Attack

FEW = 20  # steps of foolbox's; ours is given as many queries as they take


def main() -> None:
    args = _arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    net, data = ra.load(args.net), ra.data(f"{args.data}[:{args.n}]")
    print(f"`{args.net}`, {data.name}, L_inf {args.eps:g}, torch {torch.__version__}\n")
    print("| network | attack | robust % | queries | CPU s |\n|---|---|---|---|---|")
    for name, network in (
        ("as it is", net),
        ("decisions alone", Votes(net)),
        ("rounded", _round(net)),
    ):
        for attack in _attacks():
            print(_line(name, network, attack, data, ra.Linf(args.eps)), flush=True)
    if args.ours:
        return
    print(
        "\n| norm | HopSkipJump | queries | median, over the white box's | CPU s |"
        "\n|---|---|---|---|---|"
    )
    for threat in (ra.L2(8.0), ra.Linf(1.0)):
        for line in _side_by_side(net, data, threat):
            print(line, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", default="digits-cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--ours", action="store_true", help="the first table only")
    return parser.parse_args()


class Votes(nn.Module):
    """The decision alone, one-hot, and no graph."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return F.one_hot(logits.argmax(1), logits.shape[1]).float()


class Quarters(nn.Module):
    """round(4 relu(z)) / 4, whose derivative is zero."""

    def forward(self, z: Tensor) -> Tensor:
        return (z.relu() * 4).round() / 4


def _round(net: nn.Module) -> nn.Module:
    copied = copy.deepcopy(net)
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, Quarters())
    return copied


def _attacks() -> list[Attack]:
    white = ra.APGD(steps=60, loss="dlr", targets=3)
    return [white, ra.RayS(500), ra.RayS(3000), ra.Square(2000), ra.SPSA()]


def _line(name: str, net: nn.Module, attack: Attack, data: ra.Images, threat: ra.Linf) -> str:
    began = time.process_time()
    try:
        record = ra.evaluate(net, data, attack, threat)
    except PermissionError:
        return f"| {name} | `{attack}` | no gradient | | |"
    seconds, left = time.process_time() - began, 100 * ra.robust_accuracy(record)
    return f"| {name} | `{attack}` | {left:.1f} | {record.queries.mean():.0f} | {seconds:.1f} |"


# ----------------------------------------------------------------------------------------- foolbox


def _side_by_side(net: nn.Module, data: ra.Images, threat: ra.L2 | ra.Linf) -> Iterator[str]:
    size = type(threat).size
    right = net(data.images).argmax(1) == data.labels
    x, y = data.images[right], data.labels[right]
    white = ra.DDN(steps=200) if isinstance(threat, ra.L2) else ra.FMN(steps=200)
    best = size(_craft(white, net, x, y, threat)[0] - x)
    began = time.process_time()
    theirs, queries = _foolbox(net, x, y, threat.norm)
    halfway = time.process_time()
    ours, mine = _craft(ra.HopSkipJump(queries=queries), net, x, y, threat)
    ended = time.process_time()
    with torch.no_grad():
        both = (net(theirs).argmax(1) != y) & (net(ours).argmax(1) != y)
    for who, found, asked, seconds in (
        ("ours", ours, mine, ended - halfway),
        ("foolbox", theirs, queries, halfway - began),
    ):
        ratio = float(size(found - x)[both].median() / best[both].median())
        yield (
            f"| {threat.norm} | {who} | {asked} | {ratio:.3f} ({int(both.sum())} of"
            f" {len(x)} images) | {seconds:.1f} |"
        )


def _craft(
    attack: Attack, net: nn.Module, x: Tensor, y: Tensor, threat: ra.L2 | ra.Linf
) -> tuple[Tensor, int]:
    from retroact.crafting.driver import craft

    made = craft(attack, net, x, y, torch.arange(len(x)), threat)
    return made.x_adv, int(made.queries.float().mean())


def _foolbox(net: nn.Module, x: Tensor, y: Tensor, norm: str) -> tuple[Tensor, int]:
    """Its examples, and the mean of its queries."""
    import foolbox

    shown = [0]

    class Counted(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            shown[0] += len(z)
            return net(z)

    model = foolbox.PyTorchModel(Counted().eval(), bounds=(0, 1))
    attack = foolbox.attacks.HopSkipJumpAttack(steps=FEW, constraint=norm)
    torch.manual_seed(0)
    _, found, _ = attack(model, x, y, epsilons=None)
    return found, round(shown[0] / len(x))


if __name__ == "__main__":
    main()
