"""The six attacks of Figure 3, and the two of them that the other items take, by name: what is
counted under them at the paper's eps."""

from __future__ import annotations

from typing import Any

from retroact.attacks.fgsm import FGSM
from retroact.attacks.pgd import PGD
from retroact.attacks.torchattacks13 import (
    Torchattacks13BIM,
    Torchattacks13DeepFool,
    Torchattacks13RFGSM,
    Torchattacks13StepLL,
)
from retroact.crafting.losses import Loss
from retroact.crafting.threat import Linf
from retroact.experiments.cell import Model
from retroact.studies.counted import Counted, Counts
from retroact.studies.desk import Desk
from retroact.studies.published import published
from retroact.studies.srelu.networks import Net, label
from retroact.studies.srelu.panels import Curve

ATTACKS = ("FGSM", "BIM", "StepLL", "RFGSM", "PGD", "DeepFool")
PGD_STEP = 2 / 255


def make_attack(name: str, eps: float, loss: Loss = "cross_entropy") -> FGSM | PGD:
    """FGSM, or the paper's PGD: 40 steps of 2/255 from the clean image, whatever the eps."""
    return FGSM(loss) if name == "FGSM" else PGD(40, 2 / 255 / eps, random_start=False, loss=loss)


def climb(
    net: Net,
    slope: float,
    name: str,
    n: int,
    *,
    loss: Loss = "cross_entropy",
    source: Model | None = None,
) -> Counted:
    """FGSM or the paper's PGD at each eps, up a loss, along the gradients of `source` where one is
    given."""
    attacks = {e: make_attack(name, e, loss) for e in net.eps if e > 0}
    if name == "FGSM":  # one attack for all eps
        return net.counted(net.sloped(slope), next(iter(attacks.values())), n, source=source)
    groups = tuple(((attack,), (Linf(e),)) for e, attack in attacks.items())
    return net.counted_groups(net.sloped(slope), groups, n, source=source)


def images(desk: Desk, attack: str) -> int:
    """How many images an attack gets: all for a full desk, and few of a quick one's for those that
    take hundreds of gradients each."""
    return desk.pick(500 if attack == "FGSM" else 100, 10_000)


def attack_counts(net: Net, attack: str, model: Model, n: int) -> Counted:
    """What is counted for one curve of Figure 3. Our PGD leaves broken images alone and is else the
    published one."""
    radii = tuple(e for e in net.eps if e > 0)
    if attack == "FGSM":
        return net.counted(model, FGSM(), n)
    if attack == "PGD":
        steps = {e: PGD(40, relative_step=PGD_STEP / e, random_start=False) for e in radii}
        groups = tuple(((pgd,), (Linf(e),)) for e, pgd in steps.items())
        return net.counted_groups(model, groups, n)
    attacks: dict[str, tuple[Any, ...]] = {
        "BIM": tuple(Torchattacks13BIM(e) for e in radii),
        "StepLL": tuple(Torchattacks13StepLL(e) for e in radii),
        "RFGSM": tuple(Torchattacks13RFGSM(e) for e in net.eps),  # at eps 0 it moves, too
        "DeepFool": (Torchattacks13DeepFool(len(net.eps) + 2),),
    }
    # two steps more than the longest column, so that a count of gradients says which column it is
    beyond = tuple(10 * (k + 2) for k in range(len(net.eps))) if attack == "DeepFool" else ()
    return net.counted_groups(model, ((attacks[attack], (Linf(1.0),)),), n, beyond=beyond)


def columns(net: Net, attack: str) -> list[str]:
    """What the columns of a curve are called: radii, or DeepFool's numbers of steps."""
    if attack == "DeepFool":
        return [str(k + 1) for k in range(len(net.eps))]
    return [label(e) for e in net.eps]


def accuracies(attack: str, found: Counts) -> list[float]:
    """Accuracy in percent, column by column, from what `attack_counts` gave.

    DeepFool's columns are fewer steps than were made: an image that is broken at step k is dropped
    after 10 (k + 1) gradients.
    """
    if attack == "DeepFool":
        return [100 * (k / found.n) for k in found.beyond]
    return [*([] if attack == "RFGSM" else [found.clean]), *found.robust]


def curve(net: Net, attack: str, slope: float, found: Counts) -> Curve:
    """The curve of `attack_counts` at a slope, beside the published one, and that of the published
    pixels alone where there are others."""
    own = None if found.first is None else accuracies(attack, found.first)
    there = as_published(net, attack, slope)
    return Curve(label(slope), accuracies(attack, found), there, own, "slope")


def as_published(net: Net, attack: str, slope: float) -> dict[str, float]:
    """The published curve by the names of `columns`; published.json files DeepFool's steps under
    radii."""
    there = published("srelu", f"figure2_3.{net.key}", "accuracy", attack, label(slope)) or {}
    by_eps = dict(zip(map(label, net.eps), columns(net, attack), strict=True))
    return {by_eps[eps]: value for eps, value in there.items()}
