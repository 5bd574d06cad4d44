"""Other people's attacks as specs, judged, stored and reported like our own.

    Foolbox("LinfDeepFoolAttack", steps=50)      # any attack of foolbox.attacks, by its name
    AutoAttack(version="standard")               # the ensemble of Croce & Hein 2020, through
                                                 pyautoattack

They see the network through the oracle, so all they cost is counted, and gradients may come from
elsewhere here too (transfer, BPDA): the loss at the logits of the network under attack, the slopes
of the other. Their randomness is their own: it repeats with the seed and the chunk, but unlike ours
it changes with the chunk's make-up. Where such an attack looks at only some examples of the chunk,
it does not say which, and the counters are right in total only.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from retroact.crafting.attack import Attack
from retroact.crafting.drawing import drawing
from retroact.crafting.oracle import Oracle
from retroact.crafting.scene import Scene
from retroact.crafting.threat import Access, ThreatModel
from retroact.spec import SpecError, spec

Version = Literal["standard", "plus", "rand"]


@spec
class Foolbox(Attack):
    """The attack `name` of foolbox.attacks with its `options`, also as keywords:
    Foolbox("DDNAttack", steps=50).

    A minimum-norm attack of foolbox runs once for every eps, and what it finds is cut back to the
    ball, as foolbox does. "l2" or "linf" as the option `distance` is foolbox's distance of that
    name; where an attack leaves it open, it is the threat's. Raises ModuleNotFoundError without
    foolbox, and ValueError for a name that foolbox does not know or a norm that the attack does not
    serve.
    """

    name: str
    options: tuple[Any, ...] = ()
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Rauber et al. 2020, doi:10.21105/joss.02607"
    shares_radii: ClassVar[bool] = True

    def __init__(self, name: str, options: Sequence[tuple[str, Any]] = (), **more: Any) -> None:
        pairs = tuple(options) + tuple(more.items())
        if not all(
            isinstance(p, tuple | list) and len(p) == 2 and isinstance(p[0], str) for p in pairs
        ):
            raise SpecError(
                f'Foolbox.options: expected pairs such as (("steps", 50),), got {options!r}'
            )
        object.__setattr__(self, "name", name)
        object.__setattr__(
            self, "options", tuple(sorted((str(key), value) for key, value in pairs))
        )
        self.__post_init__()

    def __post_init__(self) -> None:
        """Replaced by the decorator, which settles the fields here."""

    @property
    def passes(self) -> int:
        """The option `steps`, where it is given: foolbox does not say what its attacks cost."""
        return int(dict(self.options).get("steps", 50))

    def __call__(self, scene: Scene) -> Tensor:
        return self.sweep(scene, [scene.threat])[0]

    def sweep(self, scene: Scene, threats: Sequence[ThreatModel]) -> list[Tensor]:
        """All eps in one call, as foolbox takes them."""
        foolbox = _module("foolbox", "foolbox")
        x, aim, domain, index = scene.x, scene.aim, scene.domain, scene.index
        attack = self._build(foolbox, scene.threat)
        bounds = (domain.low, domain.high)
        shown = _Shown(scene.oracle, len(x)).eval()
        net = foolbox.PyTorchModel(shown, bounds=bounds, device=x.device)
        if aim.targets is None:
            criterion = foolbox.criteria.Misclassification(aim.labels)
        else:
            criterion = foolbox.criteria.TargetedMisclassification(aim.targets)
        with drawing(_own_seed(scene.seed, index), index.device):
            _, clipped, _ = attack(net, x, criterion, epsilons=[t.eps for t in threats])
        pairs = zip(clipped, threats, strict=True)
        return [t.project(x_adv.detach(), x, domain) for x_adv, t in pairs]

    def _build(self, foolbox: Any, threat: ThreatModel) -> Any:
        theirs: Callable[..., Any] | None = getattr(foolbox.attacks, self.name, None)
        if theirs is None:
            known = ", ".join(n for n in dir(foolbox.attacks) if n.endswith("Attack"))
            raise ValueError(
                f"foolbox {foolbox.__version__} has no attack {self.name!r}; it has {known}"
            )
        options = dict(self.options)
        if "distance" in inspect.signature(theirs).parameters:
            options["distance"] = getattr(foolbox.distances, options.get("distance", threat.norm))
        attack = theirs(**options)
        wanted = getattr(foolbox.distances, threat.norm).p
        if attack.distance.p != wanted:
            raise ValueError(
                f"{self} measures in {attack.distance}, got {threat}; choose a threat of its norm"
            )
        return attack


@spec
class AutoAttack(Attack):
    """AutoAttack of pyautoattack: "standard" (APGD-CE, APGD-T, FAB-T, Square-5000), "plus", or
    "rand" for randomised nets. Untargeted only. Raises ModuleNotFoundError without pyautoattack,
    and ValueError for examples that are no images, and for fewer than 4 classes ("rand": 3), since
    its DLR losses compare so many logits.
    """

    version: Version = "standard"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs: ClassVar[Access] = "gradient"
    kind: ClassVar[str] = "budget"
    paper: ClassVar[str] = "Croce & Hein 2020, arXiv:2003.01690"

    @property
    def passes(self) -> int:
        """Gradients and queries of the published settings for 10 classes, counted together."""
        return {"standard": 100 + 900 + 1800 + 5000, "plus": 8900 + 5 * 1000, "rand": 2 * 20 * 100}[
            self.version
        ]

    def __call__(self, scene: Scene) -> Tensor:
        x, index = scene.x, scene.index
        if scene.aim.targets is not None:
            raise ValueError(
                "AutoAttack chooses its targets itself, so it serves Untargeted() only; use APGD"
            )
        domain = scene.domain
        domain.image(self)  # its own Square paints images
        pyautoattack = _module("pyautoattack", "autoattack")
        net = _Shown(scene.oracle, len(x), domain.low, domain.width).eval()
        unit = (x - domain.low) / domain.width  # the box that it knows
        classes = self._classes(net(unit[:1]))
        own = _own_seed(scene.seed, index)
        with drawing(own, index.device), _quiet():
            ensemble = pyautoattack.AutoAttack(
                net,
                norm=type(scene.threat).__name__,
                eps=scene.threat.eps / domain.width,
                seed=own,
                version=self.version,
                device=x.device,
            )
            for targeted in (ensemble.apgd_targeted, ensemble.fab):
                targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
            x_adv, _ = ensemble.run_standard_evaluation(
                unit.contiguous(), scene.aim.labels, batch_size=len(x)
            )
        return scene.project(domain.low + domain.width * x_adv.detach(), x)

    def _classes(self, logits: Tensor) -> int:
        needs, k = 3 if self.version == "rand" else 4, logits.shape[1]
        if k < needs:
            raise ValueError(
                f'{self} needs at least {needs} classes, got {k}; use APGD(loss="margin") and'
                " Square() instead"
            )
        return k


class _Shown(nn.Module):
    """The oracle as a module with a gradient: what a foreign attack is given in place of the
    network, at low + width · x."""

    def __init__(self, oracle: Oracle, n: int, low: float = 0.0, width: float = 1.0) -> None:
        super().__init__()
        self.oracle, self.n, self.low, self.width = oracle, n, low, width

    def forward(self, x: Tensor) -> Tensor:
        x = self.low + self.width * x
        parts = [_Look.apply(part, self.oracle) for part in x.split(self.n)]
        return torch.cat(parts)


class _Look(torch.autograd.Function):
    """Logits forward; backward the oracle's own gradient of ⟨logits, what came back⟩."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, oracle: Oracle) -> Tensor:
        ctx.save_for_backward(x)
        ctx.oracle = oracle
        return oracle.logits(x, torch.arange(len(x), device=x.device))

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None]:
        (x,), (weight,) = ctx.saved_tensors, weights
        rows = torch.arange(len(x), device=x.device)
        _, gradient = ctx.oracle.gradient(x, rows, lambda logits: (logits * weight).sum(1))
        return gradient, None


def _module(name: str, extra: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"this attack needs {name}, which is not installed (no module {e.name!r}); pip install"
            f' "retroact[{extra}]"',
            name=e.name,
        ) from e


def _own_seed(seed: int, index: Tensor) -> int:
    """Of the seed and the chunk, as their generators know no examples."""
    return hash((seed, *index.tolist())) % 2**32


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("auto-attack")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
