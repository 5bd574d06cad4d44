"""Training a net of the zoo by its name: `train("lenet-mnist")` is what `retroact train
lenet-mnist` does."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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
from retroact.training.resuming import drop_checkpoint


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
    network, recipe = _find(name, epochs)
    seed, _, _ = checked(seed)
    check_device(device)
    splits = _read_splits(data or f"{network.data}/train")
    folder = Path(out or os.environ.get("RETROACT_ZOO") or "zoo")
    if not resume:
        drop_checkpoint(checkpoints_of(folder, name, seed))
    command = _command(name, recipe, splits[0], network, device, seed)
    run = partial(train_on, splits, name, recipe, command=command, seed=seed)
    return run(device=device, out=folder, seconds=seconds, progress=progress)


def _read_splits(text: str) -> tuple[Images, Images, Images]:
    """The images to train on, and the held-out and test ones of their data set."""
    part = DataSlice.read(text)
    if part.split != "train":
        raise ValueError(
            f"{part} is {part.split} data, which nothing is trained on; use {part.name}/train"
        )
    # all three are opened before hours are spent
    return part(), DataSlice(part.name, "validation")(), DataSlice(part.name)()


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
    network = zoo.NETWORKS[name]
    for used in splits:
        check_labels(used.labels, network.classes)
    checkpoints = checkpoints_of(out, name, seed)
    began = time.monotonic()
    net, start = _begin(network, recipe.standard.start, seed)
    run = partial(fit, net, splits[0], recipe, checkpoint_dir=checkpoints, seconds=seconds)
    run(seed=seed, device=device, progress=progress)
    took = round(time.monotonic() - began, 1)
    net, dtype = _round(network, net)
    page = _describe(net.to(device), name, recipe, splits, seed)
    page = dataclasses.replace(page, command=command, start_sha256=start, dtype=dtype)
    page = zoo.write(net, dataclasses.replace(page, device=device, seconds=took), out)
    drop_checkpoint(checkpoints)
    return page


def _describe(
    net: Classifier,
    name: str,
    recipe: Recipe,
    splits: tuple[Images, Images, Images],
    seed: int,
) -> Entry:
    """The page of a trained net, but for what only its run knows."""
    train, held, test = splits
    return Entry(
        name=name,
        network=show(zoo.NETWORKS[name]),
        recipe=show(recipe),
        epochs=recipe.standard.epochs,
        seed=seed,
        data=train.name,
        data_origin=train.origin,
        data_fingerprint=train.fingerprint,
        test=test.name,
        test_n=len(test),
        accuracy=clean_accuracy_of(net, test),
        validation=held.name,
        validation_n=len(held),
        validation_accuracy=clean_accuracy_of(net, held),
        command="",
        weights_sha256="",
        versions=_versions(),
    )


def _find(name: str, epochs: int | None) -> tuple[Network, Recipe]:
    if name not in zoo.NETWORKS:
        raise zoo.NameOfNoNetError(
            f"there is no recipe for {name!r}; expected one of: {', '.join(zoo.NETWORKS)}"
        )
    recipe = RECIPES[name]
    return zoo.NETWORKS[name], recipe if epochs is None else _shorten(recipe, epochs)


def _shorten(recipe: Recipe, epochs: int) -> Recipe:
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


def _begin(network: Network, start: str, seed: int) -> tuple[Classifier, str]:
    """The net before its first step, and the SHA-256 of the weights file that it begins from, if it
    does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
    if not start:
        return net, ""
    earlier = zoo.load(start)
    if earlier.network != net.network:
        raise ZooError(
            f"its recipe starts from {start}, which is {earlier.network}, but it is {net.network}"
        )
    net.load_state_dict(earlier.state_dict())
    return net, zoo.entry(start).weights_sha256


def _round(network: Network, net: Classifier) -> tuple[Classifier, str]:
    """The net as `zoo.load` will give it back, rounded to fp16 where it is large: this is what is
    measured."""
    size = sum(v.numel() * v.element_size() for v in net.module.state_dict().values())
    dtype = "float32" if size < 0.98 * zoo.PACKAGE_LIMIT else "float16"
    rounded = network()
    rounded.module.load_state_dict(zoo.stored(net, dtype))
    return rounded, dtype


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
    versions = {"python": platform.python_version()}
    for package in ("retroact", "torch", "numpy", "datasets", "safetensors"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
