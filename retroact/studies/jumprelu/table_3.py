"""Table 3: detection of adversarial images by their local intrinsic dimensionality

The paper says CIFAR-10 and no more: network, kappa, noise and classifier are not stated, and the
scripts that were published do not run. Our choices: the networks and kappas below; 200 steps of the
paper's PGD, DF_inf with 100, DF_2 as in the scripts (the target chosen once, on the clean image, no
radius), TR with radius 0.5; Gaussian noise with the attack's own mean L2; k = 20 among batches of
100; images that the network decides rightly; both classifiers; three seeds of noise and classifier,
and a bootstrap interval on the difference, since one run cannot carry a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retroact.activations.piecewise import JumpReLU
from retroact.attacks.erichson import ErichsonDeepFool, ErichsonPGD, ErichsonTrustRegion
from retroact.crafting.attack import Attack
from retroact.crafting.noise import normal
from retroact.crafting.threat import L2, Linf, ThreatModel
from retroact.detection.lid import Detection, characteristics, detect, difference
from retroact.evaluation.evaluate import decide, evaluate
from retroact.experiments.cell import Model
from retroact.nets.data import data
from retroact.nets.zoo import NETWORKS, names
from retroact.reports.studied import Claim, Part, Table, Text, Value
from retroact.spec import Count, spec
from retroact.studies.desk import Desk, Facts
from retroact.studies.jumprelu.audited import beside
from retroact.studies.jumprelu.networks import available
from retroact.studies.published import published
from retroact.studies.truth import answer_claim

SEEDS = (0, 1, 2)
CLASSIFIERS = ("lr", "mlp")


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
    """The AUCs (%) of a detector of one attack's images, on ReLU and on its retrofit, with the 95 %
    interval of their difference."""

    setting: Setting
    attack: str
    classifier: str
    relu: float
    jumprelu: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        return self.jumprelu - self.relu

    def values(self) -> tuple[Value, ...]:
        low, high = self.interval
        measured = (self.relu, self.jumprelu, self.difference, f"{low:+.1f} to {high:+.1f}")
        return self.setting.net, self.attack, self.classifier, *measured, *_quote(self.attack)


ALEX = tuple(
    f"module.{name}"
    for name in ("conv1_relu", "pool1", "conv3_relu", "pool2", "fc1_relu", "fc2_relu")
)
LENET = tuple(f"module.{name}" for name in ("conv1_relu", "conv2_relu", "fc1_relu", "fc2_relu"))
SETTINGS = (
    Setting("alexlike-cifar10", 0.4, ALEX, "cifar10"),
    Setting("resnet20-cifar10", 0.07, (), "cifar10"),
    Setting("lenet-mnist", 1.0, LENET, "mnist"),
)


def make(desk: Desk) -> Iterator[Part]:
    head = (
        "network",
        "attack",
        "classifier",
        "ReLU",
        "JumpReLU",
        "difference",
        "95 % interval",
        "published ReLU",
    )
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
        "AUC (%) of the detector, mean over the seeds 0, 1, 2",
        (*head, "published JumpReLU"),
        tuple(row.values() for row in rows),
    )
    yield beside(
        desk, [net for net in available(desk) if net.name in {setting.net for setting in SETTINGS}]
    )
    yield _judge(rows)


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
    part = f"{setting.data}[:{desk.pick(200, 2000 if setting.data == 'mnist' else 1000)}]"
    lids = {}
    for kappa in (0.0, setting.kappa):
        model = Model(setting.net, JumpReLU(kappa))
        layers = setting.layers or _blocks(model())
        lids[kappa] = desk.facts(LidFeatures(model, attack, threat, layers, part))
    return [
        Row(setting, name, c, *_compare(lids[0.0], lids[setting.kappa], c)) for c in CLASSIFIERS
    ]


def _blocks(net: nn.Module) -> tuple[str, ...]:
    """The outputs of a residual network's blocks, the modules that hold a shortcut of their own."""
    return tuple(
        n for n, m in net.named_modules() if n and type(m).__name__.lower().endswith("block")
    )


def _compare(
    plain: Facts, jump: Facts, classifier: str
) -> tuple[float, float, tuple[float, float]]:
    """The mean AUCs over the seeds, and the widest of the seeds' intervals of their difference."""
    pairs = [(_detect(plain, classifier, seed), _detect(jump, classifier, seed)) for seed in SEEDS]
    relu, jumprelu = (100 * float(np.mean([pair[i].auc for pair in pairs])) for i in (0, 1))
    bounds = [difference(p, j) for p, j in pairs]
    return relu, jumprelu, (100 * min(b[0] for b in bounds), 100 * max(b[1] for b in bounds))


def _detect(lids: Facts, classifier: Any, seed: int) -> Detection:
    rows = (lids["normal"], lids["noisy"][SEEDS.index(seed)], lids["adversarial"])
    normal_, noisy, adversarial = (np.asarray(r) for r in rows)
    return detect(normal_, noisy, adversarial, classifier, seed=seed)


def _quote(attack: str) -> tuple[float | None, float | None]:
    return tuple(
        published("jumprelu", "table3.lid_auc", kind, attack) for kind in ("relu", "jumprelu")
    )  # type: ignore[return-value]


def _judge(rows: list[Row]) -> Claim:
    """Increased: on the CIFAR-10 networks every interval of the difference lies above 0."""
    asked = [row for row in rows if row.setting.data == "cifar10"]
    if not asked:
        return Claim("lid", "not tested", "no CIFAR-10 network has weights")
    above = [row for row in asked if row.interval[0] >= 0]
    below = [row for row in asked if row.interval[1] < 0]
    least, most = (side(row.difference for row in asked) for side in (min, max))
    because = (
        f"on CIFAR-10 the AUC rises beyond its 95 % interval in {len(above)} of {len(asked)} rows"
        f" and falls beyond it in {len(below)}; differences from {least:+.1f} to {most:+.1f} points"
    )
    return Claim("lid", answer_claim(len(above) == len(asked)), because)
