"""The networks of the ledger, their images, and the radius that each is attacked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retroact.crafting.threat import Linf
from retroact.experiments.cell import Model
from retroact.studies.desk import Desk
from retroact.studies.ledger.measurements import Before, found

MIDDLE = 0.4
"""The verified accuracy before any change that a radius is chosen for: far from 0 and from 1."""


@dataclass(frozen=True)
class Slices:
    """What a run takes of a data set: `held` to choose on, `train` to calibrate and learn on,
    `whole` to train on, the images of the two `looks`, and those that AutoAttack gets (`auto`)."""

    held: str
    train: str
    whole: str
    looks: tuple[str, str]
    auto: str

    @classmethod
    def of(
        cls, data: str, first: int, *, looks: tuple[int, int], held: int, train: int, auto: int
    ) -> Slices:
        """So many of each, verdicts from image `first` on; `train` 0: all."""
        one, two, three = (f"{data}[{first}:{first + n}]" for n in (*looks, auto))
        whole = f"{data}/train[:{train}]" if train < CALIBRATED else f"{data}/train"
        return cls(
            f"{data}/validation[:{held}]", f"{data}/train[:{train}]", whole, (one, two), three
        )


CALIBRATED = 5000
"""Training images that numbers are measured on; a quick run takes fewer, for training too."""


@dataclass(frozen=True)
class Net:
    """A network by its name in the zoo, the radii that it is tried at, and its images for a quick
    run and a full one.

    `large` ones take minutes for each audit; `wide` ones have the rows that matter most alone;
    `seeds` are those that it is trained from anew for a row that comes out GENUINE.
    """

    name: str
    radii: tuple[float, ...]
    small: Slices
    full: Slices
    large: bool = False
    wide: bool = False
    seeds: tuple[int, ...] = ()

    @property
    def model(self) -> Model:
        """The network before any change."""
        return Model(self.name)

    @property
    def data(self) -> str:
        """The name of its data set."""
        return self.full.held.partition("/")[0]

    def slices(self, desk: Desk) -> Slices:
        """The images of a desk's size."""
        return desk.pick(self.small, self.full)

    def radius(self, threat: Linf) -> str:
        """The radius in words."""
        return f"{255 * threat.eps:g}/255" if self.data == "cifar10" else f"{threat.eps:g}"


def _mnist(name: str) -> Net:
    small = Slices.of("mnist", 2000, looks=(40, 60), held=40, train=1000, auto=10)
    full = Slices.of("mnist", 2000, looks=(200, 1000), held=100, train=CALIBRATED, auto=100)
    return Net(name, (0.05, 0.1, 0.2, 0.3), small, full, seeds=(1, 2))


def _cifar10(name: str, wide: bool = False) -> Net:
    small = Slices.of("cifar10", 200, looks=(40, 60), held=40, train=1000, auto=10)
    full = Slices.of("cifar10", 200, looks=(200, 817), held=100, train=CALIBRATED, auto=64)
    return Net(name, (1 / 255, 2 / 255, 4 / 255, 8 / 255), small, full, large=True, wide=wide)


NETS = (
    _mnist("lenet-mnist"),
    _mnist("lenet-mnist-robust"),
    _cifar10("resnet20-cifar10"),
    _cifar10("resnet20-cifar10-robust"),
    _cifar10("alexlike-cifar10", wide=True),
    _cifar10("mobilenetv2-cifar10", wide=True),
)


def available(desk: Desk) -> tuple[Net, ...]:
    """The networks that a desk measures: all, or those that take no hours."""
    return tuple(net for net in NETS if desk.large or not net.large)


def radii(desk: Desk, nets: Iterable[Net]) -> dict[Net, Linf]:
    """The radius of each network: of those tried the one at which verified accuracy before any
    change, by the quick battery on held-out images, is nearest to MIDDLE (of two the smaller). A
    network of which that is not measured is left out."""
    asked = {net: [_standing(desk, net, eps) for eps in net.radii] for net in nets}
    facts = found(desk, [what for several in asked.values() for what in several])
    told = {
        net: [facts[what]["verified"] for what in several]
        for net, several in asked.items()
        if all(what in facts for what in several)
    }
    return {net: choose_radius(net.radii, verified) for net, verified in told.items()}


def choose_radius(tried: Sequence[float], verified: Sequence[float]) -> Linf:
    """The radius at which `verified`, in [0, 1], is nearest to MIDDLE; of two the first."""
    return Linf(min(zip(tried, verified, strict=True), key=lambda p: abs(p[1] - MIDDLE))[0])


def _standing(desk: Desk, net: Net, eps: float) -> Before:
    return Before(net.model, net.slices(desk).held, Linf(eps), "quick")
