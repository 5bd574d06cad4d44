"""What `harden` would take, before it learns: passes by its recipe, seconds and bytes by a short
trial."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from retroact.evaluation.trial import try_gradient
from retroact.ground import neutral
from retroact.nets.data import Images
from retroact.training.budget import FORWARD
from retroact.training.hardening import Hardening, check, looks


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
