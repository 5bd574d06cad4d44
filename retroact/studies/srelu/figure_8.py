"""Figure 8: the transfer attack that the paper calls BPDA

Nothing of it was published, neither code nor numbers. Here: a second network of the same
architecture at slope 1, with weights of its own, learns the outputs of the sloped target, −Σ p log
softmax(z_surrogate), on training images; its gradients then attack the target. A steep target's
outputs are one-hot and teach decisions alone, so p = softmax(softness · z_target / σ), σ the
standard deviation of all its logits: distilled logits of one size, whatever the slope. PGD is the
paper's: steps of 2/255, 40 of them, from the clean image. The target decides when an image is
broken, so PGD stops at the first step that fools it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retroact.crafting.oracle import evaluating
from retroact.crafting.threat import Linf
from retroact.evaluation.evaluate import decide, evaluate_all
from retroact.evaluation.metrics import robust_accuracy
from retroact.experiments.cell import Model
from retroact.nets.data import Images, data
from retroact.nets.zoo import NETWORKS
from retroact.reports.plots import Panel, Series, panels
from retroact.reports.studied import Claim, Figure, Part, Table, Takeaway, Text, Value
from retroact.spec import Count, Positive, spec
from retroact.studies.counted import counts
from retroact.studies.desk import Desk, Facts
from retroact.studies.srelu import CHUNK
from retroact.studies.srelu.attacks import climb, make_attack
from retroact.studies.srelu.networks import CNN1, MNIST, NETS, Net, label
from retroact.studies.truth import answer_by_network

WAYS = ("direct, slope 1", "direct, this slope", "surrogate", "from slope 1", "direct, margin loss")
Curves = dict[tuple[str, float, str], list[float]]
"""Accuracy in percent over the net's eps grid, by attack, slope and way."""
Learned = dict[str, dict[float, Facts]]
"""What `Transferred` gives, by network and slope."""
AGREEMENT = {"mnist": 90.0, "cifar10": 80.0}
"""The share (%) of the test images on which a surrogate must decide like its target."""


def make(desk: Desk) -> Iterator[Part]:
    slopes = desk.pick((100.0,), (2.0, 5.0, 10.0, 100.0))
    learned = _learn(desk, slopes)
    by_net = {net.key: _curves(desk, net, learned[net.key]) for net in NETS}
    yield Text(_describe(learned, [_surrogate(desk, net, slopes[0]) for net in (MNIST, CNN1)]))
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
    yield _claim(by_net, slopes, learned)
    yield _say_transfer(by_net, max(slopes))


# ----------------------------------------------------------------------------------- the surrogate


@spec
class Lesson:
    """How a surrogate is taught: `epochs` over its images by Adam in batches of `batch`, at a rate
    that rises to `rate` within a tenth of all steps and falls along half a cosine, without
    dropout. `softness` as in p = softmax(softness · z / σ); `moved`: half of the images are
    mirrored where a class is the same in a mirror (CIFAR-10), all are shifted by up to two pixels,
    and the target is asked about what comes out.
    """

    epochs: Count = 30
    rate: Positive = 2e-3
    batch: Count = 128
    softness: Positive = 3.0
    moved: bool = True


def distil(
    target: nn.Module, surrogate: nn.Module, train: Images, lesson: Lesson, *, seed: int = 0
) -> nn.Module:
    """Teaches `surrogate` the outputs of `target` on the images `train`, in place."""
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(surrogate.parameters(), lr=lesson.rate)
    steps = lesson.epochs * -(-len(train) // lesson.batch)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _part_of_rate(step / steps))
    surrogate.eval()  # dropout would leave it a mean of networks that no target is
    with evaluating(target):
        unit = _ask(target, train.images).std() / lesson.softness
        for _ in range(lesson.epochs):
            for rows in torch.randperm(len(train), generator=generator).split(lesson.batch):
                x = train.images[rows]
                x = _move(x, generator) if lesson.moved else x
                adam.zero_grad()
                _divergence(surrogate(x), (_ask(target, x) / unit).softmax(1)).backward()
                adam.step()
                rate.step()
    return surrogate


def _part_of_rate(done: float) -> float:
    """From 0 to 1 within a tenth, times half a cosine down to 0."""
    return min(1.0, 10 * done + 1e-3) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def _ask(target: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([target(part) for part in images.split(500)])


def _move(x: Tensor, generator: torch.Generator) -> Tensor:
    """The images shifted by up to two pixels, all alike, half of those in colour mirrored."""
    if x.shape[1] == 3:
        mirrored = torch.rand(len(x), generator=generator) < 0.5
        x = x.flip(3).where(mirrored[:, None, None, None], x)
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return x.roll((down, right), (2, 3))


def _divergence(logits: Tensor, taught: Tensor) -> Tensor:
    return -(taught * logits.log_softmax(1)).sum(1).mean()


@spec
class Transferred:
    """`model` under the gradients of a surrogate that learned its outputs on the images `train` by
    a `lesson`: accuracies (%) on `data` by attack and eps, and on how many (%) of the images
    `asked` both decide alike."""

    model: Model
    lesson: Lesson
    train: str
    data: str
    asked: str
    eps: tuple[float, ...]
    seed: int = 0

    def __call__(self) -> Facts:
        target, test = self.model().eval(), data(self.data)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            fresh = NETWORKS[self.model.net]()
        surrogate = distil(target, fresh, data(self.train), self.lesson, seed=self.seed)
        asked = data(self.asked).images
        decisions = [decide(net, asked) for net in (target, surrogate)]
        shares: Facts = {"agree": 100 * float((decisions[0] == decisions[1]).float().mean())}
        for name in ("FGSM", "PGD"):
            shares[name] = []
            for eps in self.eps:
                scene = target, test, make_attack(name, eps), [Linf(eps)]
                (record,) = evaluate_all(*scene, source=surrogate, seed=self.seed, chunk=CHUNK)
                shares[name].append(100 * robust_accuracy(record))
        return shares


LESSONS = {"mnist": Lesson(5), "cifar10": Lesson(100)}
"""By data set: chosen on its validation images, see LOG.md."""


def _lesson(desk: Desk, net: Net) -> Lesson:
    return desk.pick(Lesson(2), LESSONS[net.data])


def _learn(desk: Desk, slopes: tuple[float, ...]) -> Learned:
    facts = iter(desk.all_facts([_surrogate(desk, net, s) for net in NETS for s in slopes]))
    return {net.key: {s: next(facts) for s in slopes} for net in NETS}


def _surrogate(desk: Desk, net: Net, slope: float) -> Transferred:
    train = f"{net.data}/train{desk.pick('[:4000]', '')}"
    images = (train, net.slice(_n(desk, net)), net.slice(desk.pick(500, 10_000)))
    return Transferred(net.sloped(slope), _lesson(desk, net), *images, _eps(net))


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


def _curve(desk: Desk, net: Net, slope: float, name: str, **how: Any) -> list[float]:
    found = counts(desk, {name: climb(net, slope, name, _n(desk, net), **how)})[name]
    return [found.clean, *found.robust]


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


def _describe(learned: Learned, asked: Sequence[Transferred]) -> str:
    shown = "; ".join(
        f"{net.title} "
        + ", ".join(f"{f['agree']:.1f} % (slope {s:g})" for s, f in learned[net.key].items())
        for net in NETS
    )
    taught = " and ".join(f"`{what.lesson}` from `{what.train}`" for what in asked)
    weak = ", ".join(net.title for net in _weak(learned))
    least = " and ".join(f"{share:g} % ({name})" for name, share in AGREEMENT.items())
    return (
        f"The surrogates learn by {taught} and then decide like their targets on these shares of"
        f" the test images: {shown}. At least {least} is asked of one whose transfer is to say"
        f" something of its target{f'; short of it: {weak}' if weak else ''}. The figure's caption"
        " in the paper, “Lower y value here means better defense”, contradicts its axis, accuracy:"
        " higher is better. The legend's last entry is not in the paper: the attacked network's own"
        " gradients again, of the margin instead of the cross-entropy."
    )


def _weak(learned: Learned) -> list[Net]:
    """The networks one of whose surrogates agrees too seldom with its target."""
    least = {net: min(f["agree"] for f in learned[net.key].values()) for net in NETS}
    return [net for net, agree in least.items() if agree < AGREEMENT[net.data]]


# --------------------------------------------------------------------------------------- the claim


def _claim(by_net: dict[str, Curves], slopes: tuple[float, ...], learned: Learned) -> Claim:
    """Severely hindered: the surrogate takes half of the clean accuracy somewhere on the grid.
    Higher than directly: its mean over the attacked eps is above that of the direct attack at slope
    1; truly: so is that under the gradients of slope 1. Not tested with surrogates that do not know
    their targets (`AGREEMENT`).
    """
    cases = {
        net: [(c, key) for key in c if key[1:] == (max(slopes), "surrogate")]
        for net, c in by_net.items()
    }
    halved = [all(min(c[key]) < c[key][0] / 2 for c, key in of) for of in cases.values()]
    above, from_1, margins = (
        [[_mean_gap(c, key, way) for c, key in of] for of in cases.values()]
        for way in ("surrogate", "from slope 1", "direct, margin loss")
    )
    agreement = [f["agree"] for by_slope in learned.values() for f in by_slope.values()]
    met = [is_so and min(of) > 0 for is_so, of in zip(halved, above, strict=True)]
    answer = answer_by_network(met, [min(of) > 1 for of in from_1])
    return Claim(
        "figure8",
        "cannot be told" if _weak(learned) else answer,
        f"surrogates that decide like their targets on {min(agreement):.0f} to"
        f" {max(agreement):.0f} % of the test images{', too few' if _weak(learned) else ''};"
        f" slope {max(slopes):g}, FGSM and PGD, three networks: the surrogate takes half of the"
        f" clean accuracy or more {'everywhere' if all(halved) else 'not everywhere'}; mean"
        f" accuracy above the direct attack at slope 1 by {_span(above)} points"
        f" under the surrogate, {_span(from_1)} under the gradients"
        f" of slope 1, {_span(margins)} under its own with the margin"
        " loss",
    )


def _span(values: list[list[float]]) -> str:
    every = [v for of in values for v in of]
    return f"{min(every):+.1f} to {max(every):+.1f}"


def _say_transfer(by_net: dict[str, Curves], slope: float) -> Takeaway:
    """What other networks' gradients find, in a line."""
    ways = ("direct, this slope", "from slope 1", "direct, margin loss")
    told = "; ".join(
        f"{net.title} " + ", ".join(f"{by_net[net.key]['PGD', slope, w][-1]:.1f}" for w in ways)
        for net in NETS
    )
    return Takeaway(
        7,
        f"PGD at the largest eps leaves slope {slope:g}, %, by its own gradients, by those of slope"
        f" 1, and by its own of the margin: {told}.",
    )


def _mean_gap(curves: Curves, key: tuple[str, float, str], way: str) -> float:
    """Mean accuracy over the attacked eps less that of the direct attack at slope 1, in points."""
    mine, plain = curves[(*key[:2], way)][1:], curves[(*key[:2], "direct, slope 1")][1:]
    return (sum(mine) - sum(plain)) / len(mine)
