"""What was measured of a network, and the part of a model card that says it: the `model-index` of
huggingface.co's cards, which a file of `save` carries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A number that was measured of the network whose digest is `of`: a share in [0, 1] of the `n`
    examples of `data`."""

    what: str
    value: float
    data: str
    n: int
    of: str


TASKS = {3: "image-classification", 1: "tabular-classification"}
"""The cards' words for a network, by the rank of its examples; `other` for the rest."""


def model_index(
    name: str, shape: Sequence[int] | None, measured: Iterable[Measured]
) -> list[dict[str, object]]:
    """The `model-index` of a network: one result for each number, in the order given."""
    task = "other" if shape is None else TASKS.get(len(shape), "other")
    return [{"name": name or "unnamed", "results": [_result(task, one) for one in measured]}]


def _result(task: str, one: Measured) -> dict[str, object]:
    data = {"name": one.data, "type": one.data.split("[")[0].split("/")[0], "args": {"n": one.n}}
    metric = {"type": "accuracy", "name": one.what, "value": one.value}
    return {"task": {"type": task}, "dataset": data, "metrics": [metric]}
