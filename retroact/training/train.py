"""Training a net of the zoo by its name: `train("lenet-mnist")` is what `retroact train
lenet-mnist` does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from retroact.doors import check_device, check_labels, checked
from retroact.evaluation.accuracy import clean_accuracy_of
from retroact.nets import zoo
from retroact.nets.classifier import Classifier
from retroact.nets.data import DataSlice, Images
from retroact.nets.zoo import Entry, Network, ZooError
from retroact.spec import show
from retroact.training.fit import Progress, fit
from retroact.training.recipes import RECIPES, Recipe


def train(
    name: str,
    *,
    epochs: int | None = None,
    seed: int = 0,
    data: str | None = None,
    device: str = "cpu",
    out: str | Path | None = None,
    resume: bool = True,
    seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Entry:
    """Trains the net `name` by its recipe, measures it, and writes NAME.safetensors and NAME.json
    into `out`.

    `data` names another training slice (default: the train split of the net's data set); its data
    set's validation and test splits measure the result. `out` is RETROACT_ZOO or else zoo/. A run
    that was killed goes on from its last epoch unless `resume` is False. The weights are the last
    epoch's; nothing is selected on test data. With `seconds`, raises UnfinishedError where training
    would take longer; call again to go on.
    """
    network, recipe = _named(name, epochs)
    seed, _, _ = checked(seed)
    check_device(device)
    part = DataSlice.read(data or f"{network.data}/train")
    if part.split != "train":
        raise ValueError(
            f"{part} is {part.split} data, which nothing is trained on; use {part.name}/train"
        )
    folder = Path(out or os.environ.get("RETROACT_ZOO") or "zoo")
    if not resume:
        shutil.rmtree(checkpoints_of(folder, name, seed), ignore_errors=True)
    # all three are opened before hours are spent
    images, held, test = part(), DataSlice(part.name, "validation")(), DataSlice(part.name)()
    command = _command(name, recipe, images, network, device, seed)
    return train_on(
        (images, held, test),
        name,
        recipe,
        command=command,
        seed=seed,
        device=device,
        out=folder,
        seconds=seconds,
        progress=progress,
    )


def checkpoints_of(folder: Path, name: str, seed: int) -> Path:
    """Where the run's checkpoint lies while it is trained."""
    return folder / "checkpoints" / f"{name}-seed{seed}"


def train_on(
    splits: tuple[Images, Images, Images],
    name: str,
    recipe: Recipe,
    *,
    command: str,
    seed: int,
    device: str,
    out: Path,
    seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Entry:
    """`train` by any recipe on images at hand: `splits` are those to train on, the held-out ones
    and the test ones.

    `command` is what the page says of how to do it again.
    """
    network, (images, held, test) = zoo.NETWORKS[name], splits
    for used in splits:
        check_labels(used.labels, network.classes)
    checkpoints = checkpoints_of(out, name, seed)
    began = time.monotonic()
    net, started = _born(network, recipe.standard.start, seed)
    fit(
        net,
        images,
        recipe,
        seed=seed,
        device=device,
        checkpoint_dir=checkpoints,
        seconds=seconds,
        progress=progress,
    )
    took = round(time.monotonic() - began, 1)
    net, dtype = _kept(network, net)
    page = Entry(
        name=name,
        network=show(network),
        recipe=show(recipe),
        epochs=recipe.standard.epochs,
        seed=seed,
        command=command,
        weights_sha256="",
        start_sha256=started,
        dtype=dtype,
        device=device,
        seconds=took,
        versions=_versions(),
        **_measured(net.to(device), images, held, test),
    )
    page = zoo.write(net, page, out)
    shutil.rmtree(checkpoints)
    return page


def _named(name: str, epochs: int | None) -> tuple[Network, Recipe]:
    if name not in zoo.NETWORKS:
        raise ZooError(
            f"there is no recipe for {name!r}; expected one of: {', '.join(zoo.NETWORKS)}"
        )
    recipe = RECIPES[name]
    return zoo.NETWORKS[name], recipe if epochs is None else _lasting(recipe, epochs)


def _lasting(recipe: Recipe, epochs: int) -> Recipe:
    plan = recipe.standard
    shorter = dataclasses.replace(
        plan,
        epochs=epochs,
        averaged=plan.averaged if epochs > plan.averaged else 0,
        sizes=plan.sizes if epochs > len(plan.sizes) else (),
    )
    if recipe is plan:
        return shorter
    return dataclasses.replace(recipe, standard=shorter)  # type: ignore[type-var]


def _born(network: Network, start: str, seed: int) -> tuple[Classifier, str]:
    """The net before its first step, and the SHA-256 of the weights file that it begins from, if it
    does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
    if not start:
        return net, ""
    begun = zoo.load(start)
    if begun.network != net.network:
        raise ZooError(
            f"its recipe starts from {start}, which is {begun.network}, but it is {net.network}"
        )
    net.load_state_dict(begun.state_dict())
    return net, zoo.entry(start).weights_sha256


def _kept(network: Network, net: Classifier) -> tuple[Classifier, str]:
    """The net as `zoo.load` will give it back, rounded to fp16 where it is large: this is what is
    measured."""
    size = sum(v.numel() * v.element_size() for v in net.module.state_dict().values())
    dtype = "float32" if size < 0.98 * zoo.PACKAGE_LIMIT else "float16"
    kept = network()
    kept.module.load_state_dict(zoo.stored(net, dtype))
    return kept, dtype


def _measured(net: Classifier, images: Images, held: Images, test: Images) -> dict[str, Any]:
    return {
        "data": images.name,
        "data_origin": images.origin,
        "data_fingerprint": images.fingerprint,
        "test": test.name,
        "test_n": len(test),
        "accuracy": clean_accuracy_of(net, test),
        "validation": held.name,
        "validation_n": len(held),
        "validation_accuracy": clean_accuracy_of(net, held),
    }


def _command(
    name: str, recipe: Recipe, images: Images, network: Network, device: str, seed: int
) -> str:
    words = ["retroact", "train", name, "--seed", str(seed)]
    if recipe != RECIPES[name]:
        words += ["--epochs", str(recipe.standard.epochs)]
    if images.name != f"{network.data}/train":
        words += ["--data", images.name]
    return " ".join(words + (["--device", device] if device != "cpu" else []))


def _versions() -> dict[str, str]:
    # retroact runs from a checkout that is not installed too, and trains without `datasets` on
    # images that are at hand
    found = {"python": platform.python_version()}
    for package in ("retroact", "torch", "numpy", "datasets", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
