"""Figure 8: the transfer attack that the paper calls BPDA

Nothing of it was published, neither code nor numbers. Here: a second network of the same
architecture at slope 1, with weights of its own, learns the outputs of the sloped target, −Σ
softmax(z_target) log softmax(z_surrogate), by Adam (1e-3) on training images; its gradients then
attack the target. PGD is the paper's: steps of 2/255, 40 of them, from the clean image. The target
decides when an image is broken, so PGD stops at the first step that fools it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from retroact.crafting.losses import Loss
from retroact.crafting.oracle import evaluating
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import decide, evaluate_all
from retroact.evaluation.metrics import clean_accuracy, robust_accuracy
from retroact.experiments.cell import Cell, Model
from retroact.nets.data import Images, data
from retroact.nets.zoo import NETWORKS
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Text, Value
from retroact.spec import Count, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.srelu import CHUNK
from retroact.studies.srelu.attacks import make_attack
from retroact.studies.srelu.networks import NETS, Net, label
from retroact.studies.truth import answer_claim

WAYS = ("direct, slope 1", "direct, this slope", "surrogate", "from slope 1", "direct, margin loss")
Curves = dict[tuple[str, float, str], list[float]]
"""Accuracy in percent over the net's eps grid, by attack, slope and way."""


def make(desk: Desk) -> Iterator[Part]:
    slopes = desk.pick((100.0,), (2.0, 5.0, 10.0, 100.0))
    learned = {net.key: {s: desk.facts(_surrogate(desk, net, s)) for s in slopes} for net in NETS}
    by_net = {net.key: _curves(desk, net, learned[net.key]) for net in NETS}
    yield Text(_agreement(learned, *_lesson(desk)))
    for attack in ("FGSM", "PGD"):
        shown = [_panel(net, by_net[net.key], attack, slopes[-1]) for net in NETS]
        yield Figure(
            f"{attack} at slope {slopes[-1]:g}: accuracy (%) against eps, by whose gradients.",
            panels(shown),
        )
    for net in NETS:
        yield Table(
            f"{net.title}: accuracy (%) at each eps",
            _head(net),
            _rows(net, by_net[net.key]),
            folded=True,
        )
    yield _claim(by_net, slopes)


# ----------------------------------------------------------------------------------- the surrogate


def distil(
    target: nn.Module, surrogate: nn.Module, train: Images, *, epochs: int = 2, seed: int = 0
) -> nn.Module:
    """Teaches `surrogate` the outputs of `target` on `train`, in place: Adam 1e-3, batches of
    64."""
    with evaluating(target), torch.no_grad():
        taught = torch.cat([target(part) for part in train.images.split(500)]).softmax(1)
    adam, generator = (
        torch.optim.Adam(surrogate.parameters(), lr=1e-3),
        torch.Generator().manual_seed(seed),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        surrogate.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(train), generator=generator).split(64):
                adam.zero_grad()
                _soft(surrogate(train.images[rows]), taught[rows]).backward()
                adam.step()
    return surrogate.eval()


def _soft(logits: Tensor, taught: Tensor) -> Tensor:
    return -(taught * logits.log_softmax(1)).sum(1).mean()


@spec
class Transferred:
    """`model` under the gradients of a surrogate that learned its outputs on `train`: accuracies by
    attack and eps."""

    model: Model
    train: str
    data: str
    eps: tuple[float, ...]
    epochs: Count = 2
    seed: int = 0

    def __call__(self) -> Facts:
        target, test = self.model().eval(), data(self.data)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            fresh = NETWORKS[self.model.net]()
        surrogate = distil(target, fresh, data(self.train), epochs=self.epochs, seed=self.seed)
        decisions = [decide(net, test.images) for net in (target, surrogate)]
        shares: Facts = {"agree": 100 * float((decisions[0] == decisions[1]).float().mean())}
        for name in ("FGSM", "PGD"):
            shares[name] = []
            for eps in self.eps:
                scene = target, test, make_attack(name, eps), [Linf(eps)]
                (record,) = evaluate_all(*scene, source=surrogate, seed=self.seed, chunk=CHUNK)
                shares[name].append(100 * robust_accuracy(record))
        return shares


def _lesson(desk: Desk) -> tuple[int, int]:
    """How many training images a surrogate learns from, and how often it sees them."""
    return desk.pick((4000, 2), (20_000, 3))


def _surrogate(desk: Desk, net: Net, slope: float) -> Transferred:
    images, epochs = _lesson(desk)
    train = f"{net.data}/train[:{images}]"
    return Transferred(net.sloped(slope), train, net.slice(_n(desk, net)), _eps(net), epochs)


def _n(desk: Desk, net: Net) -> int:
    return desk.pick(100, min(2000, net.original))


def _eps(net: Net) -> tuple[float, ...]:
    return tuple(e for e in net.eps if e > 0)


# ------------------------------------------------------------------------------------- the curves


def _curves(desk: Desk, net: Net, learned: dict[float, Facts]) -> Curves:
    by_way: Curves = {}
    for name in ("FGSM", "PGD"):
        plain = _curve(desk, net, 1.0, name)
        for slope, transferred in learned.items():
            direct = _curve(desk, net, slope, name)
            by_way[name, slope, "direct, slope 1"] = plain
            by_way[name, slope, "direct, this slope"] = direct
            by_way[name, slope, "surrogate"] = [direct[0], *transferred[name]]
            by_way[name, slope, "from slope 1"] = _curve(
                desk, net, slope, name, source=net.sloped(1.0)
            )
            by_way[name, slope, "direct, margin loss"] = _curve(
                desk, net, slope, name, loss="margin"
            )
    return by_way


def _curve(
    desk: Desk,
    net: Net,
    slope: float,
    name: str,
    *,
    loss: Loss = "cross_entropy",
    source: Model | None = None,
) -> list[float]:
    model, images = net.sloped(slope), net.slice(_n(desk, net))
    records = desk.records(
        [Cell(model, images, make_attack(name, e, loss), Linf(e), source=source) for e in _eps(net)]
    )
    return [100 * v for v in (clean_accuracy(records[0]), *map(robust_accuracy, records))]


def _panel(net: Net, by_way: Curves, attack: str, slope: float) -> Panel:
    x = [label(e) for e in net.eps]
    drawn = [Series(way, x, by_way[attack, slope, way], colour=i) for i, way in enumerate(WAYS)]
    return Panel(net.title, drawn, "eps, pixels", "accuracy, %")


def _head(net: Net) -> tuple[str, ...]:
    return ("attack", "slope", "gradients of", *(f"eps {label(e)}" for e in net.eps))


def _rows(net: Net, by_way: Curves) -> tuple[tuple[Value, ...], ...]:
    return tuple(
        (attack, label(slope), way, *values) for (attack, slope, way), values in by_way.items()
    )


def _agreement(learned: dict[str, dict[float, Facts]], images: int, epochs: int) -> str:
    shown = "; ".join(
        f"{net.title} "
        + ", ".join(f"{f['agree']:.0f} % (slope {s:g})" for s, f in learned[net.key].items())
        for net in NETS
    )
    return (
        f"The surrogate learns from {images} training images, {epochs}"
        f" times over, and then decides like its target on these test images: {shown}. A steep"
        " target's outputs are one-hot, so it learns decisions rather than logits; how far it"
        " falls short of that network is its own weakness, not the target's strength. The figure's"
        " caption in the paper, “Lower y value here means better defense”, contradicts its axis,"
        " accuracy: higher is better. The legend's last entry is not in the paper: the attacked"
        " network's own gradients again, of the margin instead of the cross-entropy."
    )


# --------------------------------------------------------------------------------------- the claim


def _claim(by_net: dict[str, Curves], slopes: tuple[float, ...]) -> Claim:
    """Severely hindered: the surrogate takes half of the clean accuracy somewhere on the grid.
    Higher than directly: its mean over the attacked eps is above that of the direct attack at slope
    1; truly: so is that under the gradients of slope 1.
    """
    cases = [
        (c, key)
        for c in by_net.values()
        for key in c
        if key[2] == "surrogate" and key[1] == max(slopes)
    ]
    hindered = all(min(c[key]) < c[key][0] / 2 for c, key in cases)
    above = [_mean_gap(c, key, "surrogate") for c, key in cases]
    from_1 = [_mean_gap(c, key, "from slope 1") for c, key in cases]
    margins = [_mean_gap(c, key, "direct, margin loss") for c, key in cases]
    return Claim(
        "figure8",
        answer_claim(hindered and min(above) > 0, min(from_1) > 1),
        f"slope {max(slopes):g}, FGSM and PGD, three networks: the surrogate takes half of the"
        f" clean accuracy or more {'everywhere' if hindered else 'not everywhere'}; mean accuracy"
        f" above the direct attack at slope 1 by {min(above):+.1f} to {max(above):+.1f} points"
        f" under the surrogate, {min(from_1):+.1f} to {max(from_1):+.1f} under the gradients"
        f" of slope 1, {min(margins):+.1f} to {max(margins):+.1f} under its own with the margin"
        " loss",
    )


def _mean_gap(curves: Curves, key: tuple[str, float, str], way: str) -> float:
    """Mean accuracy over the attacked eps less that of the direct attack at slope 1, in points."""
    mine, plain = curves[(*key[:2], way)][1:], curves[(*key[:2], "direct, slope 1")][1:]
    return (sum(mine) - sum(plain)) / len(mine)
