"""The demo: what two retrofits of a small network are worth, and what hardening it is worth.

One network after the other is audited beside the plain one, by the audit's quick battery, and each
number is told as soon as it is measured. Every network has one verified number: that of the plain
one is measured once, by the first audit, and read by those after.
"""

# torch, and all that needs it, is imported as it is needed: the first line stands at once

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

    from retroact.auditing.audit import Audit
    from retroact.experiments.tuning import Tuning
    from retroact.nets.data import Images
    from retroact.reading import Net
    from retroact.reports.walk import Shown


@dataclass(frozen=True)
class Scene:
    """What the demo runs on: a network, what it reads, its data, a radius in pixels, the kappa of
    JumpReLU that tuning finds best on validation data, the clean accuracy to keep, and the recipe
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


PLAIN = "The network as it was trained."
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
        recipe="Hardening(learn='all', steps=40, batch=128, lr=0.003, attack_steps=5)",
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
    'retroact audit mine:net "SReLU(100)" --data folder:pics --threat "Linf(0.03)"',
    'retroact check mine:net --reported 53 --data folder:pics --threat "Linf(0.03)"',
    'retroact harden mine:net --data folder:pics/train --threat "Linf(0.03)" \\\n'
    "      --out hard.safetensors",
)
"""What to try next, on a network and images of one's own: the first two read the test split of the
folder, the last its training split, which are disjoint also where the folder has none."""

WHOSE = (
    "Where mine.py has a function net() that returns your network, and the folder pics a sub-folder"
    " of images for each class:"
)
"""Before these commands."""


class Audience(Protocol):
    """Whoever follows the demo while it runs."""

    def say(self, line: str) -> None:
        """A line of the story, final."""

    def begin(self, line: str) -> None:
        """How the next line begins, while the rest of it is measured."""

    def watch(self, doing: str, done: float) -> None:
        """What is being done, and the share of everything that is done, in [0, 1]."""


class Nobody:
    """An audience that listens to nothing."""

    def say(self, line: str) -> None: ...
    def begin(self, line: str) -> None: ...
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

    @property
    def tuned(self) -> str:
        """What tuning found, and what the audit makes of the value that it audited; empty without
        detail."""
        if self.tuning is None:
            return ""
        name = f"JumpReLU({self.scene.kappa:g})"
        audited = next(one for one in self.networks if one.name == name)
        return (
            f"{self.tuning}. These are other images and fewer attacks than the audit's, which finds"
            f" {name} {audited.gain} points beside the plain network (the table above): that is"
            " what it is worth."
        )

    def to_json(self) -> list[dict[str, Any]]:
        """An object for each changed network: its name, and the numbers of its audit beside the
        plain one."""
        changed = (one for one in self.networks if not one.is_plain)
        return [{"name": one.name, **one.numbers.to_json()} for one in changed]


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
    networks = tuple(_walk(scene, begin, told, detail))
    tuning = _tune(scene, begin("tuning JumpReLU", 12)) if detail else None
    begin("drawing the page", 3)
    return Walk(scene, networks, tuning, _write(scene, networks, tuning, page))


class _Steps:
    """The steps of the demo one after the other, and how far they are in all: each is as long as
    its weight, about its seconds."""

    def __init__(self, audience: Audience, detail: bool) -> None:
        self._audience, self._done, self._all = audience, 0.0, 42.0 if detail else 30.0

    def __call__(self, doing: str, weight: float) -> Callable[[float, int], None]:
        """Begins a step; what it returns is told how much of it is done of how much."""
        start, self._done = self._done, self._done + weight

        def tell(done: float, total: int) -> None:
            self._audience.watch(doing, (start + weight * done / total) / self._all)

        tell(0, 1)
        return tell


def _walk(scene: Scene, begin: _Steps, told: Audience, detail: bool) -> Iterator[Shown]:
    """The networks of the scene, each as soon as it is measured and said."""
    begin("reading the network", 4)
    net, images = _read(scene, told.say)
    from retroact.auditing.numbers import Pair
    from retroact.reports.walk import Shown, begin_line, fooled, legend

    told.say(legend(len(images)))
    told.begin(begin_line("plain", _look(net, images, scene)))
    taken: set[int] = set()
    with TemporaryDirectory(prefix="retroact-") as folder:
        for turn, (name, about, after) in enumerate(_change(scene, net, begin)):
            tell = begin(f"attacking {name}", 4 if turn else 11)
            hear = _Hearing(told, name, len(images))
            made = _audit(net, after, images, scene, Path(folder) / "plain.json", tell, hear)
            both = [("plain", PLAIN, net), (name, about, after)]
            for side in (1,) if turn else (0, 1):
                who, what, asked = both[side]
                size = _size(net, asked, images, scene) if detail else None
                case = fooled(made, side, Pair("plain", name), taken)
                one = Shown(who, what, made.numbers(), side, case, size)
                if not one.is_plain:  # whose line was said before the other was attacked
                    told.say(one.line)
                yield one


def _read(scene: Scene, say: Callable[[str], None]) -> tuple[nn.Module, Images]:
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


def _look(net: nn.Module, images: Images, scene: Scene) -> int:
    """How many the plain network still reads under the usual attack, alone, so that the first
    number need not wait for what an audit prepares; the audit finds the same."""
    from retroact.attacks.pgd import CLAIMED
    from retroact.evaluation.evaluate import evaluate
    from retroact.evaluation.metrics import robust_accuracy
    from retroact.ground import one_thread

    with one_thread():
        record = evaluate(net, images, CLAIMED, _threat(scene))
    return round(robust_accuracy(record) * len(images))


class _Hearing:
    """Tells what an audit has measured, the network before by its name "plain": what each looks
    like begins its line, and the line of the plain one is ended."""

    def __init__(self, told: Audience, name: str, n: int) -> None:
        self._told, self._n, self._names = told, n, {"before": "plain", "after": name}
        self._begun = ""

    def __call__(self, when: str, what: str, share: float) -> None:
        from retroact.reports.walk import begin_line

        count = round(share * self._n)
        if what == "claimed":
            self._begun = begin_line(self._names[when], count)
            self._told.begin(self._begun)
        elif when == "before":
            self._told.say(f"{self._begun}, really {count}")


def _change(scene: Scene, net: nn.Module, begin: _Steps) -> Iterator[tuple[str, str, Net]]:
    """The name of each changed network, what was done to it, and it; the last is hardened when its
    turn comes."""
    for activation, about in scene.retrofits.items():
        yield activation, about, activation
    from retroact.training.hardening import harden

    how: dict[str, Any] = {"keep": scene.keep, "held": scene.validation}
    tell = begin("hardening the network", 4)
    made = harden(net, scene.train, _threat(scene), scene.recipe, **how, progress=tell)
    about = (
        f"{made.learned:,} of its {made.parameters:,} numbers are trained a little more, half on"
        " images as an attack has moved them."
    )
    yield f"hardened in {made.seconds:.0f} s", about, made.net


def _audit(
    net: nn.Module,
    after: Net,
    images: Images,
    scene: Scene,
    plain: Path,
    progress: Callable[[float, int], None],
    heard: Callable[[str, str, float], None],
) -> Audit:
    """The audit beside the plain network, whose own side is in the file `plain` from the first
    audit on."""
    from retroact.auditing.audit import audit

    how: dict[str, Any] = {"battery": "quick", "baseline": plain}
    how |= {"progress": progress, "heard": heard}
    return audit(net, after, images, _threat(scene), **how)


def _size(net: nn.Module, after: Net, images: Images, scene: Scene) -> float:
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
    how: dict[str, Any] = {"intro": scene.intro, "whose": WHOSE}
    how |= {"commands": YOURS, "figures": figures}
    return write(page(networks, title=title, **how), path)


def _draw(scene: Scene, tuning: Tuning) -> tuple[str, str]:
    """The caption and the curve of tuning JumpReLU."""
    from retroact.experiments.tuning import TUNED
    from retroact.reports import plots

    caption = (
        f"JumpReLU tuned on {tuning.data} (n = {tuning.n}) with three attacks of its own, which are"
        f" not the audit's; the bar marks what was audited. {tuning}."
    )
    return caption, plots.tuning(tuning.points, tuning.knob, scene.kappa, TUNED)


def _threat(scene: Scene) -> str:
    return f"Linf({scene.eps:g})"
