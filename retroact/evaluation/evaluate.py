"""evaluate: attack a network on a data set and write down what happened.

The attack crafts; the judgement is made on the network itself, in a fresh forward pass in eval
mode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from retroact.crafting.attack import CHUNK, Attack
from retroact.crafting.domain import Domain, domain_of
from retroact.crafting.driver import (
    apart_or_together,
    check_crafting,
    chunks,
    count_on,
    in_halves,
)
from retroact.crafting.expectation import Expectation
from retroact.crafting.geometry import each
from retroact.crafting.goals import Goal, Targets, Untargeted
from retroact.crafting.oracle import (
    Crafting,
    Network,
    apart,
    device_of,
    evaluating,
    in_float,
    settled,
)
from retroact.crafting.sending import Ahead, Sent
from retroact.crafting.sizing import chunk_for
from retroact.crafting.threat import ThreatModel
from retroact.doors import (
    check_labels,
    checked,
    noting_failure,
    places,
    warn_of_place,
    warn_of_probabilities,
)
from retroact.evaluation.proof import Crafted, Proved, craft_on, prove_for
from retroact.evaluation.record import Record
from retroact.evaluation.surroundings import surroundings
from retroact.ground import neutral, one_thread
from retroact.parts import UNFILED, Filed
from retroact.reading import (
    Data,
    Examples,
    Net,
    Said,
    as_attack,
    as_goal,
    as_images,
    as_network,
    as_threat,
    as_threats,
)


def evaluate(
    network: Net,
    data: Data,
    attack: Said[Attack],
    threat: Said[ThreatModel],
    *,
    goal: Said[Goal] | Targets | None = None,
    source: Net | None = None,
    seed: int = 0,
    keep: int = 0,
    chunk: int | None = None,
    crafting: Crafting = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Attacks `network` on every example of `data` and returns the facts.

    With `source`, the attacker climbs the gradients of that other network (gray box, or a smoothed
    backward pass) while `network` decides when an example is broken. `keep` keeps the images of the
    first so many examples on the record. `seed` and each example's index fix all noise. `goal` may
    be a class for each example, too (a tensor, an array or a list): see `PerImage`. Networks, data
    and specs may be their texts; `as_images` says which other data are read. `crafting` "bfloat16"
    takes an attack's gradients from the network under torch's autocast; what is decided, compared
    and judged is the network's own, in float32.

    Raises ValueError for examples outside their box, labels out of range, and specs that do not
    fit.
    """
    return evaluate_all(
        network,
        data,
        attack,
        [as_threat(threat)],
        goal=goal,
        source=source,
        seed=seed,
        keep=keep,
        chunk=chunk,
        crafting=crafting,
        progress=progress,
    )[0]


@neutral()
@one_thread()
def evaluate_all(
    network: Net,
    data: Data,
    attack: Said[Attack],
    threats: Sequence[Said[ThreatModel]],
    *,
    goal: Said[Goal] | Targets | None = None,
    source: Net | None = None,
    seed: int = 0,
    keep: int = 0,
    chunk: int | None = None,
    crafting: Crafting = "float32",
    progress: Callable[[int, int], None] | None = None,
    filed: Filed = UNFILED,
) -> list[Record]:
    """`evaluate` for several threat models of one norm: one Record each, at the cost of one where
    one run of the attack serves several eps (FGSM, every minimum-norm attack). Chunks that were
    `filed` are not run again."""
    network, source = as_network(network), None if source is None else as_network(source)
    data, attack, threats = as_images(data, network), as_attack(attack), as_threats(threats)
    goal = as_goal(goal, data.index)
    seed, chunk, keep = checked(seed, chunk, keep)
    goal = Untargeted() if goal is None else goal
    with evaluating(network, source):  # once for all that follows
        how: dict[str, Any] = {"goal": goal, "source": source, "seed": seed, "keep": keep}
        how |= {"chunk": chunk, "progress": progress, "filed": filed, "crafting": crafting}
        return _evaluate_all(network, data, attack, threats, **how)


def _evaluate_all(
    network: Network,
    data: Examples,
    attack: Attack,
    threats: list[ThreatModel],
    *,
    goal: Goal,
    source: Network | None,
    seed: int,
    keep: int,
    chunk: int | None,
    crafting: Crafting,
    progress: Callable[[int, int], None] | None,
    filed: Filed,
) -> list[Record]:
    check_crafting(crafting, network, source)
    clean = decide(network, data.images, chunk=chunk, labels=data.labels)
    runs, domain = apart_or_together(attack, threats), domain_of(data)
    x, index, how = data.images, data.index, _How(domain=domain, seed=seed)
    records: list[Record] = []
    for turn, together in enumerate(runs):
        started = time.perf_counter()
        on = prove_for(attack, network, x, index, together, **how)
        shown = None if source is None else prove_for(attack, source, x, index, together, **how)
        run = (attack, x, data.labels, index, together, goal)
        seen = count_on(progress, turn, len(runs))
        more: dict[str, Any] = {"source": shown, "progress": seen, "filed": filed.of("turn", turn)}
        crafted = craft_on(on, *run, chunk=chunk, crafting=crafting, **more, **how)
        seconds = (time.perf_counter() - started) / len(together)
        for one, threat in zip(crafted, together, strict=True):
            pedigree = _pedigree(on, data, attack, threat, goal, shown, seed, seconds, one.again)
            pedigree |= {} if crafting == "float32" else {"crafting": crafting}
            records.append(_judge(data, clean, one, keep, pedigree))
    return records


class _How(TypedDict):
    """What a proof and a run both take."""

    domain: Domain
    seed: int


def _judge(
    data: Examples, clean: Tensor, crafted: Crafted, keep: int, pedigree: dict[str, Any]
) -> Record:
    adversarial = decided(crafted.logits, attacked=True)
    # A network that overflows on an image has not been fooled by it; the flag stays on the record.
    broken = (adversarial < 0) & (clean >= 0)
    x_adv = torch.where(each(broken, data.images), data.images, crafted.outcome.x_adv)
    adversarial = torch.where(broken, clean, adversarial)
    return Record(
        index=data.index.numpy(),
        label=data.labels.numpy(),
        target=crafted.outcome.targets.numpy(),
        clean=clean.numpy(),
        adversarial=adversarial.numpy(),
        distance=_sizes(x_adv - data.images),
        size=_sizes(data.images),
        queries=crafted.outcome.queries.numpy(),
        gradients=crafted.outcome.gradients.numpy(),
        zero_gradients=crafted.outcome.zero_gradients.numpy(),
        nonfinite=(crafted.outcome.nonfinite | broken | (clean < 0)).numpy(),
        examples=x_adv[:keep].numpy() if keep else None,
        originals=data.images[:keep].numpy() if keep else None,
        pedigree=pedigree,
    )


def decided(logits: Tensor, *, attacked: bool = False) -> Tensor:
    """The decided class of each row of logits (n, k), int64; −1 where they decide nothing.

    Of images that were `attacked` only what is not finite, or not apart at all, decides nothing: an
    attack ends where two classes meet.
    """
    decides = apart(logits) if attacked else settled(logits)
    return torch.where(decides, logits.argmax(1), -1)


@neutral()
def decide(
    network: Network,
    images: Tensor,
    *,
    chunk: int | None = None,
    labels: Tensor | None = None,
    attacked: bool = False,
) -> Tensor:
    """The decided class of each image, int64 (n,) on the CPU; −1 where its logits decide nothing.

    They do not where one is NaN or infinite or rounding leaves nothing of their spread: see
    `settled`. `attacked` images may lie next to a boundary, so that there it is enough that the
    logits are not all alike. With `labels`, checks that they fit the network's classes, and warns
    of logits that were found in a larger output and of probabilities that pose as logits.
    """
    device = device_of(network)
    chunk = chunk_for(network, images, CHUNK) if chunk is None else chunk
    classes: set[int] = set()
    ahead = Ahead(device, chunk, images)

    def run(sent: Sent, rows: slice) -> Tensor:
        with places() as where, noting_failure(images):
            logits = in_float(network, *sent.at(rows, device))
        if labels is not None and not classes:
            warn_of_place(where)
            check_labels(labels, logits.shape[1])
            warn_of_probabilities(logits)
        _check_classes(classes, logits)
        return decided(logits, attacked=attacked).cpu()

    with evaluating(network), torch.no_grad():
        runs = ((partial(run, ahead.take(rows)), rows) for rows in chunks(len(images), chunk))
        return torch.cat([part for here, rows in runs for part in in_halves(here, rows)])


def _check_classes(classes: set[int], logits: Tensor) -> None:
    classes.add(logits.shape[1])
    if len(classes) > 1:
        raise ValueError(
            "expected the same classes for every image, got"
            f" {' and then '.join(map(str, sorted(classes)))}: the network's output depends on"
            " which images stand together; give it a fixed number of logits"
        )


def _sizes(d: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    # a few images at a time, since doubles of all of them are slow to come by and thrown away
    return torch.cat([_norms(part.flatten(1).double()) for part in d.split(CHUNK)]).numpy()


def _norms(flat: Tensor) -> Tensor:
    columns = ((flat != 0).sum(1), flat.abs().sum(1), flat.norm(dim=1), flat.abs().amax(1))
    return torch.stack([c.float() for c in columns], dim=1)


def _pedigree(
    on: Proved,
    data: Examples,
    attack: Attack,
    threat: ThreatModel,
    goal: Goal,
    source: Proved | None,
    seed: int,
    seconds: float,
    again: int,
) -> dict[str, Any]:
    """What was run, and where. `form` says on which form of the network the attack ran, `again` on
    how many images that form differed at the attack's last point, so that the network itself was
    attacked."""
    return {
        "network": describe(on.network),
        "source": None if source is None else describe(source.network),
        "form": str(on),
        "source_form": None if source is None else str(source),
        "again": again,
        "left_alone": left_alone(on.network),
        "data": data.name,
        **_box_of(domain_of(data)),
        "attack": str(attack),
        "threat": str(threat),
        "goal": str(goal),
        "seed": seed,
        "seconds": round(seconds, 3),
        **vars(surroundings(on.network)),
    }


def _box_of(domain: Domain) -> dict[str, Any]:
    """The box where it is another than that of images."""
    box = [domain.low, domain.high]
    return {} if box == [0.0, 1.0] else {"box": box}


def left_alone(network: Network) -> dict[str, int]:
    """Which kinds of activations the network's retrofit left as they are, and how often each is
    called."""
    return dict(getattr(network, "left_alone", {}))


def describe(network: Network) -> str:
    """What a person calls this network: its name and, where it was retrofitted, how."""
    if isinstance(network, Expectation):
        return f"{describe(network.net)}, mean of {network.draws} draws"
    name = getattr(network, "name", "") or type(network).__name__
    retrofit = getattr(network, "retrofit", None)
    if retrofit is None:
        return name
    # on all sites, which is what a person means who does not name them
    return f"{name} + {retrofit.activation if getattr(retrofit, 'sites', '') == '*' else retrofit}"
