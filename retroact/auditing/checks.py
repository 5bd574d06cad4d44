"""Where an audit would mean nothing, it says so before it attacks."""

from __future__ import annotations

import torch
from torch import Tensor

from retroact.auditing.numbers import Pair
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.drawing import drawing
from retroact.crafting.noise import normal
from retroact.crafting.oracle import Network, device_of, evaluating, in_float
from retroact.crafting.threat import ThreatModel
from retroact.doors import check_images, check_labels, warn_of_probabilities
from retroact.evaluation.evaluate import Examples
from retroact.retrofitting.copying import copy_of
from retroact.spec import show

NAMES = Pair("the network before the change", "the network after the change")

_FIRST = 32  # images on which networks are asked twice, and what they remember is looked for
_OFTEN, _FEW = 8, 4
_ALONE = 8
_LOOSE, _FLIPPED = 1e-2, 0.1
_MOVES = 600_000_011  # a stream of its own


def check(nets: Pair[Network], data: Examples, threat: ThreatModel) -> int:
    """The number of classes. ValueError for networks that do not fit each other or the data, that
    decide at random, for a threat without gradients, and for a radius at which nothing survives."""
    domain = domain_of(data)
    check_images(data.images, domain.shape, domain.low, domain.high)
    if threat.access != "gradient":
        raise ValueError(f"an audit attacks with gradients, got {threat}; leave out access=")
    grey, same = threat.measure(domain) / 2, "grey one" if domain.word == "image" else "one"
    if threat.eps >= grey:
        raise ValueError(
            f"at {show(threat)} every {domain.word} can be turned into the same {same}, so nothing"
            f" can survive; expected eps below {grey:g}"
        )
    logits = [
        _settle(net, data.images[:_FIRST], name) for net, name in zip(nets, NAMES, strict=True)
    ]
    if logits[0].shape != logits[1].shape:
        raise ValueError(
            f"{NAMES.before} gives {logits[0].shape[1]} classes and the one after it"
            f" {logits[1].shape[1]}; an audit compares two networks for the same task"
        )
    classes = int(logits[0].shape[1])
    check_labels(data.labels, classes)
    warn_of_probabilities(logits[1])
    return classes


def is_random(
    net: Network,
    fresh: Network | None,
    data: Examples,
    threat: ThreatModel,
    name: str,
    seed: int = 0,
) -> bool:
    """Whether a network gives other logits to the same examples each time it is asked, as they are
    or moved by half of eps. ValueError for one that fails on them, or that does so because it
    remembers: `fresh` is a copy of it that was asked nothing yet, None where it cannot be copied.
    """
    at = data.images[:_FIRST], _move(data, threat, seed)
    # twice, as each may draw for itself, and a few often, as one draw may be for all of them
    asked = [(2, x) for x in at] + [(_OFTEN, x[:_FEW]) for x in at]
    random = not all(_answers_alike(net, x, times, name) for times, x in asked)
    if random and fresh is not None:
        _check_memory(fresh, asked, domain_of(data), name)
    return random


def _check_memory(
    fresh: Network, asked: list[tuple[int, Tensor]], domain: Domain, name: str
) -> None:
    """ValueError where what a network says, with the same seeds, depends on which images it was
    asked about before, and not on how often alone."""
    negative = [(times, domain.low + domain.high - x) for times, x in asked]
    x = asked[-1][1]  # those that it was asked about most
    one, again, other = (
        _answer_after(copy_of(fresh) or fresh, before, x) for before in (asked, asked, negative)
    )
    # what answers otherwise after the same questions cannot be asked twice, which is said elsewhere
    if not _differ(one, again) and _differ(one, other):
        raise ValueError(_say_remembers(name, domain.word))


def _answer_after(net: Network, before: list[tuple[int, Tensor]], x: Tensor) -> Tensor:
    for times, others in before:
        for _ in range(times):
            _answer(net, others)
    return _answer(net, x)


def _say_remembers(name: str, word: str) -> str:
    return (
        f"{name} remembers: it answers {word}s otherwise once it has been asked about others, so no"
        " attack on it can be repeated; audit it without its memory"
    )


def _answers_alike(net: Network, x: Tensor, times: int, name: str) -> bool:
    first, *others = _ask(net, x, times, name)
    return all(bool(_same(first, other).all()) for other in others)


def _move(data: Examples, threat: ThreatModel, seed: int) -> Tensor:
    """The first few examples, half of eps away along random signs."""
    x, domain = data.images[:_FIRST], domain_of(data)
    drawn = normal(domain.shape, data.index[:_FIRST], seed, _MOVES).to(x)
    return threat.project(x + threat.eps / 2 * threat.along(drawn.sign()), x, domain)


def _same(first: Tensor, second: Tensor) -> Tensor:
    spread = (first.amax(1) - first.amin(1)).nan_to_num(0.0, 0.0, 0.0)[:, None]
    near = (first - second).abs() <= 1e-3 * spread
    return near | (~first.isfinite() & ~second.isfinite()) | (first == second)


def _settle(net: Network, x: Tensor, name: str) -> Tensor:
    """Logits of a net that gives the same ones twice. ValueError for one that does not, or fails on
    these images."""
    first, second = _ask(net, x, 2, name)
    if not _same(first, second).all():
        raise ValueError(
            f"{name} gives other logits each time it is asked, also with the same seed of torch,"
            " numpy and Python, so its mean cannot be attacked; draw from their generators, or from"
            " one that the module holds"
        )
    return first


def _ask(net: Network, x: Tensor, times: int, name: str) -> list[Tensor]:
    try:
        with torch.no_grad(), evaluating(net):
            return [in_float(net, x.to(device_of(net))) for _ in range(times)]
    except RuntimeError as e:
        word = Domain(tuple(x.shape[1:])).word
        raise ValueError(f"{name} fails on {word}s of shape {tuple(x.shape[1:])}: {e}") from e


class Witness:
    """What a network answered before anybody attacked it, to a few images moved by half of eps: one
    that answers by what it was asked before cannot be judged image by image.

    `fresh` is a copy of it that was asked nothing yet, None where it cannot be copied.

    Raises ValueError, on making it or in `check`, for a network that remembers, and on making it
    for one whose answer to an image depends on the images beside it.
    """

    def __init__(
        self,
        net: Network,
        fresh: Network | None,
        data: Examples,
        threat: ThreatModel,
        name: str,
        seed: int = 0,
    ) -> None:
        self._net, self._name, self._word = net, name, domain_of(data).word
        self._moved = _move(data, threat, seed)
        asked = None if fresh is None else copy_of(fresh)
        first = net if fresh is None else fresh
        self._answers = _answer(first, self._moved)
        if asked is not None:
            _answer(asked, data.images[:_FIRST])
            self._compare(_answer(asked, self._moved))
        self._check_company(first)

    def check(self) -> None:
        """ValueError where the network itself answers otherwise by now."""
        self._compare(_answer(self._net, self._moved))

    def _compare(self, answers: Tensor) -> None:
        if _differ(self._answers, answers):
            raise ValueError(_say_remembers(self._name, self._word))

    def _check_company(self, net: Network) -> None:
        """Alone, in another order, and beside others: an answer is the image's own."""
        some = self._moved[:_ALONE]
        alone = torch.cat([_answer(net, image[None]) for image in some])
        turned = _answer(net, self._moved.flip(0)).flip(0)
        if _differ(self._answers[:_ALONE], alone) or _differ(self._answers, turned):
            raise ValueError(
                f"{self._name} answers the same {self._word} otherwise in another batch, so its"
                " accuracy is that of a batch size: a batch norm with batch statistics, or a layer"
                " across examples; fix its statistics (track_running_stats=True) or take it out"
            )


def _answer(net: Network, x: Tensor) -> Tensor:
    with torch.no_grad(), evaluating(net), drawing(0, device_of(net), net):
        return in_float(net, x.to(device_of(net))).cpu()


def _differ(one: Tensor, other: Tensor) -> bool:
    """Whether more than rounding does: a jump may flip a unit on a few images."""
    spread = (one.amax(1) - one.amin(1)).nan_to_num(0.0, 0.0, 0.0)
    same = ((one - other).abs().amax(1) <= _LOOSE * spread) | (one == other).all(1)
    return float((~same & one.isfinite().all(1)).double().mean()) > _FLIPPED


def check_chance(decisions: Pair[Tensor], labels: Tensor) -> None:
    """ValueError for a network that decides no better than by the commonest class."""
    most = float(labels.bincount().max()) / len(labels)
    for decided, name in zip(decisions, NAMES, strict=True):
        accuracy, shifted = (float((decided == y).float().mean()) for y in (labels, labels - 1))
        if len(labels) >= 20 and accuracy <= most + 0.02:
            cure = "check weights, labels, normalisation and the retrofit's size"
            if shifted > most + 0.02 and shifted > 0.5:
                cure = (
                    f"labels - 1 would be right for {shifted:.0%}, so they count from 1: use"
                    " labels - 1"
                )
            raise ValueError(
                f"{name} decides {accuracy:.0%} of these images rightly, and always naming the"
                f" commonest class would get {most:.0%}: there is nothing to audit; {cure}"
            )
