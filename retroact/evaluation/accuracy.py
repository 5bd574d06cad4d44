"""The clean accuracy of a network on examples, where there is no record to ask for it."""

from __future__ import annotations

import numpy as np

from retroact.crafting.oracle import Network
from retroact.evaluation.evaluate import decide
from retroact.reading import Examples


def clean_accuracy_of(network: Network, examples: Examples, *, chunk: int | None = None) -> float:
    """The share of `examples` that `network` decides rightly, from 0 to 1.

    It is what the metric `clean_accuracy` says of any record of the two.
    """
    right = decide(network, examples.images, chunk=chunk) == examples.labels
    return float(np.mean(right.numpy()))
