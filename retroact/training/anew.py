"""Networks of the zoo trained anew from another seed, kept in the user's cache."""

from __future__ import annotations

from pathlib import Path

from retroact.files import own_cache
from retroact.nets import zoo
from retroact.nets.classifier import Classifier
from retroact.training.recipes import RECIPES
from retroact.training.train import train


def trained_anew(
    name: str, seed: int, *, epochs: int | None = None, cache: str | Path | None = None
) -> Classifier:
    """The network `name` by its recipe from `seed`, over `epochs` (None: all of them).

    Trained once and then read from `cache`, the folder retroact under XDG_CACHE_HOME or ~/.cache
    where none is given. Raises ZooError for a network without a recipe.
    """
    whole = RECIPES[name].standard.epochs if epochs is None and name in RECIPES else epochs
    folder = Path(cache or own_cache()) / "anew" / f"seed{seed}-epochs{whole}"
    if not (folder / f"{name}.json").is_file():
        train(name, epochs=epochs, seed=seed, out=folder)
    return zoo.load(name, folder)
