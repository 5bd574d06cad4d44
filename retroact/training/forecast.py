"""What `harden` and `train` would take, before they learn: passes by the recipe, seconds and bytes
by a short trial."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from retroact.evaluation.trial import try_gradient
from retroact.ground import neutral
from retroact.nets import zoo
from retroact.nets.data import DataSlice, Images
from retroact.training.budget import FORWARD
from retroact.training.hardening import Hardening, check, looks
from retroact.training.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Forecast:
    """`steps` of `batch` examples, `passes` forward and backward in each; about so many `seconds`,
    and `bytes` of memory beside the network's own."""

    steps: int
    batch: int
    passes: int
    seconds: float
    bytes: int

    @property
    def gradients(self) -> int:
        """Of one example each."""
        return self.steps * self.batch * self.passes


@neutral()
def forecast(
    net: nn.Module,
    train: Images,
    recipe: Hardening,
    *,
    keep: float = 0.0,
    held: Images | None = None,
) -> Forecast:
    """What `harden` takes of `net`: to learn on `train`, and at most to choose a dose on `held`.
    Raises as it does for what cannot be learned on."""
    check(net, train, held, keep)
    batch = min(len(train), recipe.batch)
    tried = try_gradient(net, train.images.shape[1:], batch)
    seconds = tried.seconds * (recipe.steps * batch * recipe.passes + looks(held) / FORWARD)
    # what one half keeps stays until both are differentiated
    kept = round(tried.bytes * batch * (recipe.passes - recipe.attack_steps))
    return Forecast(recipe.steps, batch, recipe.passes, seconds, kept)


@dataclass(frozen=True)
class TrainingForecast:
    """`epochs` of so many `steps`, in about so many `seconds`."""

    epochs: int
    steps: int
    seconds: float


@neutral()
def forecast_training(
    name: str, *, epochs: int | None = None, data: str | None = None
) -> TrainingForecast:
    """What `train` takes of the net `name`: its steps by its recipe, seconds by two of them on its
    first examples. Raises as it does for data that is not there."""
    network, recipe = zoo.NETWORKS[name], RECIPES[name]
    images = DataSlice.read(data or f"{network.data}/train")()
    plan = recipe.standard
    count, steps = epochs or plan.epochs, math.ceil(len(images) / plan.batch)
    with torch.random.fork_rng(devices=[]):
        seconds = min(_step(network(), recipe, images[: plan.batch]) for _ in range(2))
    return TrainingForecast(count, steps, seconds * steps * count)


def _step(net: nn.Module, recipe: Recipe, batch: Images) -> float:
    """Seconds of one step forward and backward, with the examples that the recipe makes."""
    net.train()
    began = time.perf_counter()
    made = recipe(net, batch.images, batch.labels)
    F.cross_entropy(net(made), batch.labels).backward()
    return time.perf_counter() - began
