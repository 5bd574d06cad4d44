"""The process's own random generators, lent for a block: seeded, to one borrower at a time, and as
they were after it.

Our attacks draw from generators of their own, example by example. Randomised networks and other
people's attacks draw from torch's and numpy's, which all threads share.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from retroact.ground import seed_torch

_LENT = threading.RLock()  # the same thread may borrow within its own block


@contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's (also `device`'s) and numpy's generators seeded with `seed`, 0 to 2^32 − 1; other
    threads wait."""
    devices = [device] if device.type == "cuda" else []
    with _LENT:
        state = np.random.get_state()
        try:
            with torch.random.fork_rng(devices):
                seed_torch(seed)
                np.random.seed(seed)
                yield
        finally:
            np.random.set_state(state)
