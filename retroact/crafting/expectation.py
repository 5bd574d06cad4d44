"""Expectation over transformation: a randomised net, averaged over its own draws.

    craft(attack, net, ..., source=Expectation(net, draws=20))

Gradients of one draw of a randomised net are mostly noise; those of the mean of its logits are not
(Athalye et al. 2018, section 3). Given as `network` too, it also decides by the mean, which is how
such a net should be judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from retroact.crafting.drawing import drawing
from retroact.crafting.goals import Aim, Goal, seen_by
from retroact.crafting.losses import margin
from retroact.crafting.oracle import Network, in_float

_SAME: ContextVar[bool] = ContextVar("same draws", default=False)


@contextmanager
def same_draws() -> Iterator[None]:
    """Within the block a mean is over the same draws wherever it is asked, in batches of one size:
    a function whose derivative is its gradient, so that differences of it are not those of luck."""
    before = _SAME.set(True)
    try:
        yield
    finally:
        _SAME.reset(before)


class Expectation(nn.Module):
    """f(x) = 1/draws · Σ_i net_i(x), net_i the net with its randomness drawn from torch's, numpy's
    or Python's generator, or from one that a module of it holds.

    Maps (n, …) to mean logits (n, k). The draws depend on `seed` and on the images, so every
    step draws anew and yet a run repeats; the generators are as they were afterwards. A net that
    makes a generator for every call is averaged but not repeated. Raises ValueError for draws < 1.
    """

    def __init__(self, net: Network, draws: int = 20, seed: int = 0) -> None:
        super().__init__()
        if draws < 1:
            raise ValueError(f"Expectation.draws: expected at least 1, got {draws}; 20 is usual")
        self.net, self.draws, self.seed = net, draws, seed

    def forward(self, x: Tensor) -> Tensor:
        at = 0.0 if _SAME.get() else float(x.detach().double().sum())
        with drawing(hash((self.seed, at)) % 2**32, x.device, self.net):
            total = in_float(self.net, x)
            for _ in range(self.draws - 1):
                total = total + in_float(self.net, x)
        return total / self.draws

    def longer(self, times: int, turn: int = 1) -> Expectation:
        """The mean over so many times the draws, other ones at each turn."""
        return Expectation(self.net, times * self.draws, self.seed + turn)

    @torch.no_grad()
    def errors_of(self, x: Tensor, labels: Tensor, goal: Goal | None = None) -> Tensor:
        """The standard error of the mean's margin at each x (n, …), as an untargeted `goal` sees
        it, (n,); 0 of a single draw."""
        if self.draws < 2:
            return torch.zeros(len(x))
        with drawing(self.seed, x.device, self.net):
            each = (in_float(self.net, x) for _ in range(self.draws))
            margins = [margin(seen_by(goal, z, labels), Aim(labels)) for z in each]
        return torch.stack(margins).std(0).cpu() / math.sqrt(self.draws)
