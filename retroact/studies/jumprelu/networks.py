"""The paper's four networks, base and robust, and ResNet-20 of its authors' code: jump sizes,
budgets, attacks, slices.

Switches of the protocol, all of them fields of a spec, with their defaults:

* lengths in normalised space: `std` of the attacks is the network's own; `std=(1.0,)` would mean
  pixels.
* frozen iterates: `Crafted(frozen=True)`: an image is never touched again once it fools the source.
* gray-box PGD: steps of .031 on the base WideResNet, MobileNetV2 and ResNet-20 (`Net.gray_step`),
  .01
  elsewhere, as in the authors' code; the paper says .01 throughout.
* the radius of TR: 0.5, which gives the paper's numbers on MNIST; for CIFAR-10 it is not known, and
  0.5 is used.
* dead networks: an image that switched every hidden unit off is left alone and counted ("leave");
  `Crafted`
  also says what painting it white would give ("white"), as the paper's numbers have it.
"""

from __future__ import annotations

from dataclasses import dataclass

from retroact.activations.piecewise import JumpReLU
from retroact.attacks.erichson import MNIST_STD, ErichsonDeepFool, ErichsonPGD, ErichsonTrustRegion
from retroact.crafting.attack import Attack
from retroact.crafting.threat import L2, Linf, ThreatModel
from retroact.experiments.cell import Model
from retroact.nets import zoo
from retroact.studies.desk import Desk
from retroact.studies.published import published
from retroact.training.recipes import Standard

CIFAR_STD = (0.2023, 0.1994, 0.2010)
ATTACKS = {"pgd": "PGD", "deepfool_linf": "DF∞", "deepfool_l2": "DF₂", "trust_region": "TR"}
"""The columns of Tables 1 and 2, by their names in published.json."""
DEEPFOOLS = ("deepfool_linf", "deepfool_l2")
NOISES = {name: title for name, title in ATTACKS.items() if name != "pgd"}
"""Those that end where an image is fooled, so that noise tells how far that is."""
FAR_INF, FAR_2 = Linf(1.0), L2(1000.0)
"""No limit: these attacks end where an image is fooled, or with their steps."""


@dataclass(frozen=True)
class Net:
    """A trained network: its name in the zoo and in published.json, the paper's kappa, the kappas
    of its figure, the steps of PGD and DeepFool, and the pixel radius of its audit.
    """

    title: str
    name: str
    key: str
    kappa: float
    kappas: tuple[float, ...]
    data: str
    std: tuple[float, ...]
    steps: int
    eps: float
    gray_step: float = 0.01

    @property
    def robust(self) -> bool:
        """Whether it was trained on clean and FGSM images."""
        return "-robust" in self.name

    @property
    def here(self) -> bool:
        """Whether its weights have been trained and are in the zoo."""
        return self.name in zoo.names()

    @property
    def missing(self) -> str:
        """What stands in the place of numbers where there are no weights."""
        return f"no weights yet: `retroact train {self.name}`"

    @property
    def large(self) -> bool:
        """Whether each of its cells takes minutes."""
        return self.key in ("wideresnet_cifar10", "mobilenetv2_cifar10")

    def absent(self, desk: Desk) -> str:
        """Why it is not measured, in words; empty where it is."""
        if not self.here:
            return self.missing
        return "left out: `--large`" if self.large and not desk.large else ""

    def model(self, kappa: float) -> Model:
        """The network with its ReLUs for kappa 0, retrofitted otherwise."""
        return Model(self.name, JumpReLU(kappa) if kappa else None)

    def slice(self, n: int) -> str:
        """The first `n` test images."""
        return f"{self.data}[:{n}]"

    def held(self, n: int) -> str:
        """The first `n` validation images."""
        return f"{self.data}/validation[:{n}]"

    @property
    def schedule(self) -> Standard:
        """The paper's own training schedule, behind its accuracies; ours may be a shorter one."""
        if self.key in ("lenet_mnist", "alexlike_cifar10"):
            longer = self.robust and self.key == "alexlike_cifar10"
            epochs, ends = (120, (30, 60, 90)) if longer else (90, (30, 60, 80))
            return Standard(
                epochs,
                0.02,
                schedule="steps",
                milestones=ends,
                factor=0.2,
                augment=self.data == "cifar10",
            )
        return Standard(
            120, 0.1, schedule="steps", milestones=(30, 60, 90), factor=0.1, augment=True
        )

    def attack(
        self, name: str, *, gray: bool = False, steps: int | None = None
    ) -> tuple[Attack, ThreatModel]:
        """The paper's attack of that name (with so many `steps`, if not its own), and a threat
        model that does not limit it."""
        most = self.steps if steps is None else steps
        if name == "pgd":
            return ErichsonPGD(self.gray_step if gray else 0.01, most, self.std), FAR_INF
        if name == "trust_region":
            return ErichsonTrustRegion(radius=0.5, steps=1000, std=self.std), FAR_2
        far = FAR_INF if name == "deepfool_linf" else FAR_2
        return ErichsonDeepFool(most, std=self.std), far

    def published(self, table: str, column: str, kappa: float) -> float | None:
        """The paper's number: table "1" or "2", a column of it, kappa 0 or the paper's own."""
        where = f"{'robust' if self.robust else 'base'}.{'jumprelu' if kappa else 'relu'}"
        number = published("jumprelu", TABLES[table], self.key, where, column)
        return None if number is None else float(number)


TABLES = {"1": "table1.graybox", "2": "table2.whitebox"}
TENTHS = tuple(round(0.1 * i, 1) for i in range(9))
HUNDREDTHS = tuple(round(0.01 * i, 2) for i in range(10))


def _mnist(title: str, name: str, eps: float) -> Net:
    kappas = (0.0, 0.5, 1.0, 1.5)
    return Net(title, name, "lenet_mnist", 1.0, kappas, "mnist", MNIST_STD, 40, eps)


def _cifar(
    title: str,
    name: str,
    kappa: float,
    *,
    kappas: tuple[float, ...] = HUNDREDTHS,
    gray_step: float = 0.01,
) -> Net:
    key = name.removesuffix("-robust").replace("-", "_")
    return Net(title, name, key, kappa, kappas, "cifar10", CIFAR_STD, 7, 2 / 255, gray_step)


LENET = _mnist("LeNet-like", "lenet-mnist", 0.1)
LENET_ROBUST = _mnist("robust LeNet-like", "lenet-mnist-robust", 0.2)
LENET_STEPS = _mnist("LeNet-like, 90 epochs", "lenet-mnist-steps", 0.1)
LENET_ROBUST_STEPS = _mnist("robust LeNet-like, 90 epochs", "lenet-mnist-robust-steps", 0.2)
ALEX = _cifar("AlexLike", "alexlike-cifar10", 0.4, kappas=TENTHS)
ALEX_ROBUST = _cifar("robust AlexLike", "alexlike-cifar10-robust", 0.4, kappas=TENTHS)
WIDE = _cifar("WideResNet", "wideresnet-cifar10", 0.07, gray_step=0.031)
WIDE_ROBUST = _cifar("robust WideResNet", "wideresnet-cifar10-robust", 0.07)
MOBILE = _cifar("MobileNetV2", "mobilenetv2-cifar10", 0.06, gray_step=0.031)
MOBILE_ROBUST = _cifar("robust MobileNetV2", "mobilenetv2-cifar10-robust", 0.06)
RESNET = _cifar("ResNet-20", "resnet20-cifar10", 0.07, gray_step=0.031)
RESNET_ROBUST = _cifar("robust ResNet-20", "resnet20-cifar10-robust", 0.07)

PAPERS = (LENET, LENET_ROBUST, ALEX, ALEX_ROBUST, WIDE, WIDE_ROBUST, MOBILE, MOBILE_ROBUST)
STEPS = (LENET_STEPS, LENET_ROBUST_STEPS)
"""The LeNet-likes by the paper's own 90 epochs and seed."""
NETS = (LENET, LENET_ROBUST, *STEPS, *PAPERS[2:], RESNET, RESNET_ROBUST)
"""Those that answer no claim stand beside: `STEPS`, which show how much is a schedule, and
ResNet-20, which is in the authors' code and not in the paper."""


def available(desk: Desk, among: tuple[Net, ...] = NETS) -> list[Net]:
    """Those that are measured: their weights are in the zoo, and a quick desk has the large ones
    only if told so."""
    return [net for net in among if not net.absent(desk)]


def untested(desk: Desk, among: tuple[Net, ...] = NETS) -> str:
    """What to say where some of them are not measured: the verdict then rests on the others."""
    absent = {
        "no weights yet": [net.title for net in among if not net.here],
        "left out (`--large`)": [net.title for net in among if net.here and net.absent(desk)],
    }
    return "".join(f"; {why}: {', '.join(titles)}" for why, titles in absent.items() if titles)
