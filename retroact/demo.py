"""The demo: what two retrofits of a small network are worth, and what hardening it is worth.

One network after the other goes through the audit's quick battery, the plain one first, and each is
told as soon as it is measured. So every network has one verified number: that of the plain one is
measured once, and read by all audits after.
"""

# torch, and all that needs it, is imported as it is needed: the first line stands at once

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from retroact.auditing.audit import Audit
    from retroact.experiments.tuning import Tuning
    from retroact.nets.classifier import Classifier
    from retroact.nets.data import Images
    from retroact.reading import Net
    from retroact.reports.walk import Shown


@dataclass(frozen=True)
class Scene:
    """What the demo runs on: a network, what it reads, its data, a radius in pixels, the kappa of
    JumpReLU that tuning recommends on validation data, the clean accuracy to keep, and the recipe
    that hardens the network."""

    net: str
    what: str
    test: str
    validation: str
    train: str
    eps: float
    kappa: float
    keep: float
    recipe: str

    @property
    def retrofits(self) -> dict[str, str]:
        """The retrofits, with a sentence about each."""
        return {"SReLU(100)": SLOPED, f"JumpReLU({self.kappa:g})": JUMPING}

    @property
    def intro(self) -> str:
        return (
            f"{self.net} is a small network that reads {self.what}. An attacker may move every"
            f" pixel by {self.eps:g} of its range."
        )


SLOPED = "The slope of every ReLU is raised (Borji 2020). All scores grow, and no decision changes."
JUMPING = "Every ReLU is silent below a threshold, and jumps there (Erichson, Yao & Mahoney 2019)."
SCENES = {
    "digits": Scene(
        net="digits-cnn",
        what="8x8 digits",
        test="digits[:100]",
        validation="digits/validation",
        train="digits/train",
        eps=0.1,
        kappa=0.4,
        keep=0.97,
        recipe="Hardening(learn='all', steps=60, batch=128, lr=0.003, attack_steps=5)",
    ),
    "mnist": Scene(
        net="lenet-mnist",
        what="the digits of MNIST",
        test="mnist[:100]",
        validation="mnist/validation[:200]",
        train="mnist/train[:5000]",
        eps=0.1,
        kappa=1.0,
        keep=0.99,
        recipe="Hardening()",
    ),
}

YOURS = (
    'retroact audit mine:net "SReLU(100)" --data folder:test --threat "Linf(0.03)"',
    'retroact check mine:net --reported 53 --data folder:test --threat "Linf(0.03)"',
    'retroact harden mine:net --data folder:train --threat "Linf(0.03)" \\\n'
    "      --out hard.safetensors",
)
"""What to try next, on a network of one's own."""


class Audience(Protocol):
    """Whoever follows the demo while it runs."""

    def say(self, line: str) -> None:
        """A line of the story, final."""

    def watch(self, doing: str, done: float) -> None:
        """What is being done, and the share of everything that is done, in [0, 1]."""


class Nobody:
    """An audience that listens to nothing."""

    def say(self, line: str) -> None: ...
    def watch(self, doing: str, done: float) -> None: ...


@dataclass(frozen=True, eq=False)
class Walk:
    """What the demo found: its networks, the plain one first, what JumpReLU's kappa was tuned on
    (None without detail), and the page."""

    scene: Scene
    networks: tuple[Shown, ...]
    tuning: Tuning | None
    page: Path

    @property
    def summary(self) -> str:
        """What was run, and where to read on."""
        n = self.networks[0].n
        return (
            f"n = {n}, seed 0, by the audit's quick battery: a first look, and an upper bound on"
            f" what withstands. Pictures and reasons: {self.page}"
        )

    def to_json(self) -> list[dict[str, Any]]:
        """An object for each network: its name, and the numbers of its audit beside the plain
        one."""
        return [{"name": one.name, **one.numbers.to_json()} for one in self.networks]


def run(name: str, page: Path, *, detail: bool = False, audience: Audience | None = None) -> Walk:
    """Runs the demo on `name` (digits or mnist) and writes its page; with `detail` JumpReLU is
    tuned too, and the sizes of the perturbations are measured.

    Raises ValueError for another name.
    """
    if name not in SCENES:
        raise ValueError(f"the demo knows {' and '.join(SCENES)}, got {name!r}")
    scene, told = SCENES[name], audience or Nobody()
    begin = _Steps(told, detail)
    told.say(scene.intro)
    networks = tuple(_walk(scene, begin, told.say, detail))
    tuning = _tune(scene, begin("tuning JumpReLU", 12)) if detail else None
    begin("drawing the page", 3)
    return Walk(scene, networks, tuning, _write(scene, networks, tuning, page))


class _Steps:
    """The steps of the demo one after the other, and how far they are in all: each is as long as
    its weight, about its seconds."""

    def __init__(self, audience: Audience, detail: bool) -> None:
        self._audience, self._done, self._all = audience, 0.0, 48.0 if detail else 32.0

    def __call__(self, doing: str, weight: float) -> Callable[[float, int], None]:
        """Begins a step; what it returns is told how much of it is done of how much."""
        start, self._done = self._done, self._done + weight

        def tell(done: float, total: int) -> None:
            self._audience.watch(doing, (start + weight * done / total) / self._all)

        tell(0, 1)
        return tell


def _walk(scene: Scene, begin: _Steps, say: Callable[[str], None], detail: bool) -> Iterator[Shown]:
    """The networks of the scene, each as soon as it is measured and said."""
    begin("reading the network", 4)
    net, images = _read(scene, say)
    from retroact.reports.walk import Shown, fooled, legend

    say(legend(len(images)))
    taken: set[int] = set()
    with TemporaryDirectory(prefix="retroact-") as folder:
        for name, about, after in _networks(scene, net, begin):
            tell = begin(f"attacking {name}", 9 if after is net else 3)
            made = _audit(net, after, images, scene, Path(folder) / "plain.json", tell)
            example = fooled(made.after, taken)
            size = _size(net, after, images, scene) if detail else None
            one = Shown(name, about, made.numbers(), after is net, example, size)
            say(one.line)
            yield one


def _read(scene: Scene, say: Callable[[str], None]) -> tuple[Classifier, Images]:
    """The network and its test images; says how many it decides rightly, which is the first number
    and wants little of the package."""
    from retroact.checkpoint import load
    from retroact.evaluation.accuracy import clean_accuracy_of
    from retroact.nets.data import data

    net, images = load(scene.net), data(scene.test)
    n = len(images)
    right = round(clean_accuracy_of(net, images) * n)
    say(f"Of {n} images that it has never seen it reads {right} rightly.")
    return net, images


def _networks(scene: Scene, net: Classifier, begin: _Steps) -> Iterator[tuple[str, str, Net]]:
    """The name of each network, what was done to it, and it; the last is hardened when its turn
    comes."""
    yield "plain", "The network as it was trained.", net
    for activation, about in scene.retrofits.items():
        yield activation, about, activation
    from retroact.training.hardening import harden

    how: dict[str, Any] = {"keep": scene.keep, "held": scene.validation}
    tell = begin("hardening the network", 7)
    made = harden(net, scene.train, _threat(scene), scene.recipe, **how, progress=tell)
    about = (
        f"{made.learned:,} of its {made.parameters:,} numbers are trained a little more, half on"
        " images as an attack has moved them."
    )
    yield f"hardened in {made.seconds:.0f} s", about, made.net


def _audit(
    net: Classifier,
    after: Net,
    images: Images,
    scene: Scene,
    plain: Path,
    progress: Callable[[float, int], None],
) -> Audit:
    """The audit beside the plain network, whose own side is in the file `plain` from the first
    audit on."""
    from retroact.auditing.audit import audit

    how: dict[str, Any] = {"battery": "quick", "baseline": plain, "progress": progress}
    return audit(net, after, images, _threat(scene), **how)


def _size(net: Classifier, after: Net, images: Images, scene: Scene) -> float:
    """ρ₂ under the usual attack."""
    from retroact.attacks.pgd import CLAIMED
    from retroact.evaluation.evaluate import evaluate
    from retroact.evaluation.metrics import rho
    from retroact.reading import as_changed

    changed = as_changed(after, net, images.images)
    return rho(evaluate(changed, images, CLAIMED, _threat(scene)))


def _tune(scene: Scene, progress: Callable[[float, int], None]) -> Tuning:
    from retroact.experiments.tuning import tune
    from retroact.ground import one_thread

    how: dict[str, Any] = {"keep": scene.keep, "progress": progress}
    with one_thread():
        return tune(scene.net, "JumpReLU", scene.validation, _threat(scene), **how)


def _write(scene: Scene, networks: tuple[Shown, ...], tuning: Tuning | None, path: Path) -> Path:
    from retroact.files import write
    from retroact.reports.walk import page

    title, figures = f"retroact demo: {scene.net}", [] if tuning is None else [_draw(scene, tuning)]
    how: dict[str, Any] = {"intro": scene.intro, "commands": YOURS, "figures": figures}
    return write(page(networks, title=title, **how), path)


def _draw(scene: Scene, tuning: Tuning) -> tuple[str, str]:
    """The caption and the curve of tuning JumpReLU."""
    from retroact.reports import plots

    caption = (
        f"JumpReLU tuned on {tuning.data} (n = {tuning.n}) with three attacks of its own, which are"
        f" not the audit's; the bar marks what was audited. {tuning}."
    )
    return caption, plots.tuning(tuning.points, tuning.knob, scene.kappa)


def _threat(scene: Scene) -> str:
    return f"Linf({scene.eps:g})"
