"""Table 3: detection of adversarial images by their local intrinsic dimensionality

The paper says CIFAR-10 and no more: network, kappa, noise and classifier are not stated, and the
scripts that were published do not run. Our choices: the networks and kappas below; 200 steps of the
paper's PGD, DF_inf with 100, DF_2 as in the scripts (the target chosen once, on the clean image, no
radius), TR with radius 0.5; Gaussian noise with the attack's own mean L2; k = 20 among batches of
100; images that the network decides rightly; both classifiers; three seeds of noise and classifier.
The public scripts test on a fifth of the images; here the detector is trained five times and tests
each fifth once, so that every image is tested, and the difference of the AUCs has the interval that
this leaves, image by image, clean, noisy and adversarial rows together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU
from retroact.attacks.erichson import ErichsonDeepFool, ErichsonPGD, ErichsonTrustRegion
from retroact.crafting.attack import Attack
from retroact.crafting.noise import normal
from retroact.crafting.threat import L2, Linf, ThreatModel
from retroact.detection.lid import characteristics, cross_fit, mean_auc
from retroact.evaluation.evaluate import decide, evaluate
from retroact.experiments.cell import Model
from retroact.nets.data import DataSlice, data
from retroact.nets.zoo import NETWORKS, names
from retroact.reports.plots import Mark
from retroact.reports.studied import Answer, Claim, Part, Table, Takeaway, Text, Value, Weighed
from retroact.spec import Count, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.audited import beside
from retroact.studies.jumprelu.networks import ATTACKS, NETS, available
from retroact.studies.jumprelu.sizes import DETECTION
from retroact.studies.published import published
from retroact.studies.truth import answer_by_network

SEEDS = (0, 1, 2)
CLASSIFIERS: tuple[Literal["lr"], Literal["mlp"]] = ("lr", "mlp")
SAID = {"lr": "logistic regression", "mlp": "perceptron"}
FOLDS = 5
BLOCK = 1000
"""Images whose LIDs are filed together, so that a stop loses minutes."""
Z = 1.959964


@spec
class LidFeatures:
    """LIDs of clean, noisy and adversarial images of one network, layer by layer."""

    model: Model
    attack: Attack
    threat: ThreatModel
    layers: tuple[str, ...]
    data: str
    k: Count = 20
    seeds: tuple[int, ...] = SEEDS

    def __call__(self) -> Facts:
        net, examples = self.model(), data(self.data)
        right = decide(net, examples.images) == examples.labels
        kept = examples.images[right]
        record = evaluate(net, examples, self.attack, self.threat, keep=len(examples))
        assert record.examples is not None
        adversarial = torch.from_numpy(record.examples)[right]
        sizes, index = (adversarial - kept).flatten(1).norm(dim=1), examples.index[right]
        noisy = [_add_noise(kept, sizes, index, seed) for seed in self.seeds]
        lids = [
            np.round(v, 5).tolist()
            for v in characteristics(net, self.layers, kept, [adversarial, *noisy], k=self.k)
        ]
        return {"normal": lids[0], "adversarial": lids[1], "noisy": lids[2:]}


def _add_noise(images: Tensor, sizes: Tensor, index: Tensor, seed: int) -> Tensor:
    """Gaussian noise whose mean L2 is that of the attack, clipped to the box."""
    scale = float(sizes.mean()) / math.sqrt(images[0].numel())
    return (images + scale * normal(tuple(images.shape[1:]), index, seed)).clamp(0.0, 1.0)


@spec
class Detected:
    """AUCs (from 0 to 1) of detectors of the images that `attack` makes on `plain` and on `jumped`,
    each image tested once, by classifier: one for each seed, and `error`, the standard error of the
    difference of their means.

    It takes the LIDs of blocks of the images (`LidFeatures`), so a stop loses one of these.
    """

    plain: Model
    jumped: Model
    attack: Attack
    threat: ThreatModel
    layers: tuple[str, ...]
    data: str
    folds: Count = FOLDS
    seeds: tuple[int, ...] = SEEDS
    derived: ClassVar[bool] = True

    def __call__(self, desk: Desk) -> Facts:
        models = (self.plain, self.jumped)
        asked = [self._features(model, part) for model in models for part in self.parts]
        lids = desk.all_facts(asked)
        half = len(self.parts)
        sides = [
            Lids.of(model, self.parts, of)
            for model, of in zip(models, (lids[:half], lids[half:]), strict=True)
        ]
        found: Facts = {"n": [len(side.index) for side in sides]}
        return found | {c: self._compare(c, *sides) for c in CLASSIFIERS}

    @property
    def parts(self) -> list[str]:
        """The slices that are crafted one by one."""
        whole = DataSlice.read(self.data)
        assert whole.stop is not None
        begins = range(0, whole.stop, BLOCK)
        return [str(replace(whole, start=i, stop=min(i + BLOCK, whole.stop))) for i in begins]

    def _features(self, model: Model, part: str) -> LidFeatures:
        return LidFeatures(model, self.attack, self.threat, self.layers, part, seeds=self.seeds)

    def _compare(self, classifier: Literal["lr", "mlp"], plain: Lids, jumped: Lids) -> Facts:
        """The AUCs of both, and the error of their difference: an image that both networks decide
        rightly stands in it as a pair."""
        size = 1 + max(int(side.index.max()) for side in (plain, jumped))
        added, areas = np.zeros(size), []
        for side, sign in ((plain, -1.0), (jumped, 1.0)):
            found = [side.detect(classifier, self.folds, i) for i in range(len(self.seeds))]
            areas.append([area for area, _ in found])
            added[side.index] += sign * np.mean([part for _, part in found], axis=0)
        error = float(np.sqrt(np.square(added).sum()))
        return {"relu": areas[0], "jumprelu": areas[1], "error": error}


@dataclass(frozen=True, eq=False)
class Lids:
    """The LIDs (n, layers) of the images that a network decides rightly, and which these are."""

    index: NDArray[np.int64]
    normal: NDArray[np.float64]
    adversarial: NDArray[np.float64]
    noisy: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, model: Model, parts: list[str], lids: list[Facts]) -> Lids:
        """Those of a model, of the slices `parts` one after the other."""
        net, kept = model(), []
        for part, of in zip(parts, lids, strict=True):
            examples = data(part)
            right = decide(net, examples.images) == examples.labels
            kept.append(examples.index[right][: len(of["normal"])].numpy())
        normal, adversarial = (
            np.concatenate([np.asarray(of[name]) for of in lids])
            for name in ("normal", "adversarial")
        )
        noisy = zip(*(of["noisy"] for of in lids), strict=True)
        noises = tuple(np.concatenate([np.asarray(v) for v in seed]) for seed in noisy)
        return cls(np.concatenate(kept), normal, adversarial, noises)

    def detect(
        self, classifier: Literal["lr", "mlp"], folds: int, seed: int
    ) -> tuple[float, NDArray[np.float64]]:
        """The mean AUC over the folds, and what each image adds to its error."""
        rows = (self.normal, self.noisy[seed], self.adversarial)
        return mean_auc(cross_fit(*rows, classifier, folds=folds, seed=seed), len(self.index))


@dataclass(frozen=True)
class Setting:
    """A network, its kappa, and the modules whose outputs are looked at besides input and
    logits."""

    net: str
    kappa: float
    layers: tuple[str, ...]
    data: str


@dataclass(frozen=True)
class Row:
    """The AUCs (%) of a detector of one attack's images, on ReLU and on its retrofit, with the
    standard error of their difference, and of how many images."""

    setting: Setting
    attack: str
    classifier: str
    n: int
    relu: float
    jumprelu: float
    error: float

    @property
    def network(self) -> str:
        return next(net.title for net in NETS if net.name == self.setting.net)

    @property
    def difference(self) -> float:
        return self.jumprelu - self.relu

    @property
    def interval(self) -> tuple[float, float]:
        """That of 95 % of the difference."""
        return self.difference - Z * self.error, self.difference + Z * self.error

    @property
    def published(self) -> tuple[float | None, float | None]:
        """The paper's two AUCs."""
        return tuple(
            published("jumprelu", "table3.lid_auc", kind, self.attack)
            for kind in ("relu", "jumprelu")
        )  # type: ignore[return-value]

    @property
    def rises(self) -> bool | None:
        """Whether the interval lies above 0; False where it excludes the paper's own gain; None
        where it can do neither."""
        low, high = self.interval
        relu, jumprelu = self.published
        assert relu is not None and jumprelu is not None
        return True if low > 0 else False if high < jumprelu - relu else None

    @property
    def said(self) -> str:
        """What the row says, in words."""
        falls = self.interval[1] < 0
        words = {True: "rises", None: "cannot be told", False: "rises less than published"}
        return "falls" if falls else words[self.rises]

    def values(self) -> tuple[Value, ...]:
        low, high = self.interval
        measured = (self.relu, self.jumprelu, self.difference, f"{low:+.1f} to {high:+.1f}")
        start = (self.network, ATTACKS[self.attack], SAID[self.classifier], self.n)
        return *start, *measured, self.said, *self.published


ALEX = tuple(
    f"module.{name}"
    for name in ("conv1_relu", "pool1", "conv3_relu", "pool2", "fc1_relu", "fc2_relu")
)
LENET = tuple(f"module.{name}" for name in ("conv1_relu", "conv2_relu", "fc1_relu", "fc2_relu"))
HEAD = (
    "network",
    "attack",
    "classifier",
    "n",
    "ReLU",
    "JumpReLU",
    "difference",
    "95 % interval",
    "the AUC",
    "published ReLU",
)
SETTINGS = (
    Setting("alexlike-cifar10", 0.4, ALEX, "cifar10"),
    Setting("resnet20-cifar10", 0.07, (), "cifar10"),
    Setting("lenet-mnist", 1.0, LENET, "mnist"),
)


def make(desk: Desk) -> Iterator[Part]:
    rows: list[Row] = []
    for setting in SETTINGS:
        if setting.net not in names():
            yield Text(
                f"`{setting.net}` has no weights yet (`retroact train {setting.net}`), so it has no"
                " rows."
            )
            continue
        for name, attack, threat in _attacks(setting):
            rows += _rows(desk, setting, name, attack, threat)
    yield Table(
        f"AUC (%) of the detector, mean over the seeds 0, 1, 2, in {FOLDS} folds",
        (*HEAD, "published JumpReLU"),
        tuple(row.values() for row in rows),
    )
    yield Text(
        "n are the images that both have in common at most: those that the ReLU network decides"
        " rightly. An interval that lies below the paper's own gain says that it is not so large"
        " here; one that holds both 0 and that gain says nothing."
    )
    beside_them = {setting.net for setting in SETTINGS}
    yield beside(desk, [net for net in available(desk) if net.name in beside_them])
    yield from _judge(rows)


def _attacks(setting: Setting) -> list[tuple[str, Attack, ThreatModel]]:
    std = NETWORKS[setting.net].std
    return [
        ("pgd", ErichsonPGD(steps=200, std=std), Linf(1.0)),
        ("deepfool_linf", ErichsonDeepFool(steps=100, std=std), Linf(1.0)),
        ("deepfool_l2", ErichsonTrustRegion(radius=1e6, std=std), L2(1e3)),
        ("trust_region", ErichsonTrustRegion(std=std), L2(1e3)),
    ]


def _rows(
    desk: Desk, setting: Setting, name: str, attack: Attack, threat: ThreatModel
) -> list[Row]:
    plain, jumped = (Model(setting.net, JumpReLU(kappa)) for kappa in (0.0, setting.kappa))
    layers, sizes = setting.layers or _blocks(plain()), DETECTION[setting.data]
    asked = {
        n: Detected(plain, jumped, attack, threat, layers, f"{setting.data}[:{n}]") for n in sizes
    }
    (facts,) = desk.derive([asked[desk.largest(sizes, lambda n: [asked[n]])]])
    rows = []
    for c in CLASSIFIERS:
        relu, jumprelu = (100 * float(np.mean(facts[c][k])) for k in ("relu", "jumprelu"))
        rows.append(Row(setting, name, c, facts["n"][0], relu, jumprelu, 100 * facts[c]["error"]))
    return rows


def _blocks(net: nn.Module) -> tuple[str, ...]:
    """The outputs of a residual network's blocks, the modules that hold a shortcut of their own."""
    return tuple(
        n for n, m in net.named_modules() if n and type(m).__name__.lower().endswith("block")
    )


def _mark(row: Row) -> Mark:
    relu, jumprelu = row.published
    gain = None if relu is None or jumprelu is None else jumprelu - relu
    name = f"{row.network}, {SAID[row.classifier]}"
    return Mark(name, ATTACKS[row.attack], row.difference, row.interval, gain)


def _judge(rows: list[Row]) -> Iterator[Part]:
    """Increased: on the CIFAR-10 networks every interval of the difference lies above 0; not, where
    every one excludes the paper's own gain."""
    asked = [row for row in rows if row.setting.data == "cifar10"]
    says = [row.rises for row in asked]
    told = [one for one in says if one is not None]
    answer: Answer = "cannot be told" if None in says else answer_by_network(told, told)
    counts = Counter(row.said for row in asked)
    least, most = (side((row.difference for row in asked), default=0.0) for side in (min, max))
    said = ", ".join(f"{what} in {count}" for what, count in counts.most_common())
    because = (
        f"of {len(asked)} rows on CIFAR-10 the AUC {said} (95 % intervals beside 0 and the paper's"
        f" gains of 1.7 to 4.8); differences from {least:+.1f} to {most:+.1f} points"
    )
    shown = Weighed(tuple(_mark(row) for row in asked), "points of AUC gained", (0.0, math.inf))
    yield Claim("lid", answer, because, shown)
    yield Takeaway(
        9,
        f"Detection by LID (Table 3): the AUC changes by {least:+.1f} to {most:+.1f} points; of"
        f" {len(asked)} rows on CIFAR-10 it {said}.",
    )
