"""evaluate: attack a network on a data set and write down what happened.

The attack crafts; the judgement is made on the network itself, in a fresh forward pass in eval mode.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from retroact.attacks.driver import CHUNK, Attack, Outcome, chunks, craft_all, in_halves
from retroact.attacks.goals import Goal, Targets, goal_of
from retroact.attacks.oracle import Network, apart, device_of, evaluating, in_float, settled
from retroact.attacks.threat import ThreatModel
from retroact.doors import check_images, check_labels, warn_of_probabilities
from retroact.evaluation.record import Record


class Examples(Protocol):
    """Labelled images: `images` (n, c, h, w) float32 in [0, 1], `labels` (n,), `index` (n,), `name`."""

    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...
    @property
    def name(self) -> str: ...


def evaluate(
    network: Network,
    data: Examples,
    attack: Attack,
    threat: ThreatModel,
    *,
    goal: Goal | Targets | None = None,
    source: Network | None = None,
    seed: int = 0,
    keep: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Attacks `network` on every example of `data` and returns the facts.

    With `source`, the attacker climbs the gradients of that other network (gray box, or a smoothed
    backward pass) while `network` decides when an example is beaten. `keep` keeps the images
    of the first so many examples on the record. `seed` and each example's index fix all noise. `goal` may be
    a class for each example, too (a tensor, an array or a list): see `PerImage`.

    Raises ValueError for images outside [0, 1], labels out of range, and specs that do not fit.
    """
    return evaluate_all(
        network,
        data,
        attack,
        [threat],
        goal=goal,
        source=source,
        seed=seed,
        keep=keep,
        chunk=chunk,
        progress=progress,
    )[0]


def evaluate_all(
    network: Network,
    data: Examples,
    attack: Attack,
    threats: Sequence[ThreatModel],
    *,
    goal: Goal | Targets | None = None,
    source: Network | None = None,
    seed: int = 0,
    keep: int = 0,
    chunk: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """`evaluate` for several threat models of one norm: one Record each, at the cost of one where one run
    of the attack serves several eps (FGSM, every minimum-norm attack)."""
    check_images(data.images)
    check_labels(data.labels, n=len(data.images))
    goal = goal_of(goal, data.index)
    started = time.perf_counter()
    clean = decide(network, data.images, chunk=chunk, labels=data.labels)
    outcomes = craft_all(
        attack,
        network,
        data.images,
        data.labels,
        data.index,
        threats,
        goal,
        gradients=source,
        seed=seed,
        chunk=chunk,
        progress=progress,
    )
    records = [_judged(network, data, clean, made, keep, chunk) for made in outcomes]
    seconds = (time.perf_counter() - started) / len(threats)
    return [
        replace(r, pedigree=_pedigree(network, data, attack, threat, goal, source, seed, seconds))
        for r, threat in zip(records, threats, strict=True)
    ]


def _judged(network: Network, data: Examples, clean: Tensor, made: Outcome, keep: int, chunk: int | None) -> Record:
    adversarial = decide(network, made.x_adv, chunk=chunk, attacked=True)
    # A network that overflows on an image has not been fooled by it; the flag stays on the record.
    broken = (adversarial < 0) & (clean >= 0)
    x_adv = torch.where(broken.view(-1, 1, 1, 1), data.images, made.x_adv)
    adversarial = torch.where(broken, clean, adversarial)
    return Record(
        index=data.index.numpy(),
        label=data.labels.numpy(),
        target=made.targets.numpy(),
        clean=clean.numpy(),
        adversarial=adversarial.numpy(),
        distance=_sizes(x_adv - data.images),
        size=_sizes(data.images),
        queries=made.queries.numpy(),
        gradients=made.gradients.numpy(),
        zero_gradients=made.zero_gradients.numpy(),
        nonfinite=(made.nonfinite | broken | (clean < 0)).numpy(),
        examples=x_adv[:keep].numpy() if keep else None,
        originals=data.images[:keep].numpy() if keep else None,
    )


def decide(
    network: Network,
    images: Tensor,
    *,
    chunk: int | None = None,
    labels: Tensor | None = None,
    attacked: bool = False,
) -> Tensor:
    """The decided class of each image, int64 (n,) on the CPU; −1 where its logits decide nothing.

    They do not where one is NaN or infinite or rounding leaves nothing of their spread: see `settled`. `attacked`
    images may lie next to a boundary, so that there it is enough that the logits are not all alike. With `labels`,
    checks that they fit the network's classes and warns of probabilities that pose as logits.
    """
    device = device_of(network)

    def run(rows: slice) -> Tensor:
        logits = in_float(network, images[rows].to(device))
        if labels is not None and rows.start == 0:
            _check_logits(logits, labels)
        decided = apart(logits) if attacked else settled(logits)
        return torch.where(decided, logits.argmax(1), -1).cpu()

    with evaluating(network), torch.no_grad():
        found = [part for rows in chunks(len(images), chunk or CHUNK) for part in in_halves(run, rows)]
    return torch.cat(found)


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2:
        raise ValueError(f"expected logits of shape (n, classes), got {tuple(logits.shape)}; see Classifier(output=)")
    check_labels(labels, logits.shape[1])
    warn_of_probabilities(logits)


def _sizes(d: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    # a few images at a time, since doubles of all of them are slow to come by and thrown away
    return torch.cat([_norms(part.flatten(1).double()) for part in d.split(CHUNK)]).numpy()


def _norms(flat: Tensor) -> Tensor:
    columns = ((flat != 0).sum(1), flat.abs().sum(1), flat.norm(dim=1), flat.abs().amax(1))
    return torch.stack([c.float() for c in columns], dim=1)


def _pedigree(
    network: Network,
    data: Examples,
    attack: Attack,
    threat: ThreatModel,
    goal: Goal,
    source: Network | None,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    return {
        "network": described(network),
        "source": None if source is None else described(source),
        "data": data.name,
        "attack": str(attack),
        "threat": str(threat),
        "goal": str(goal),
        "seed": seed,
        "seconds": round(seconds, 3),
        "device": str(device_of(network)),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()} {platform.system()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
    }


def described(network: Network) -> str:
    """What a person calls this network: its name and, where it was retrofitted, how."""
    name = getattr(network, "name", "") or type(network).__name__
    retrofit = getattr(network, "retrofit", None)
    if retrofit is None:
        return name
    # on all sites, which is what a person means who does not name them
    return f"{name} + {retrofit.activation if getattr(retrofit, 'sites', '') == '*' else retrofit}"
